"""What a frozen backbone knows: features, probes, attention."""

"""What would stop a run on this machine or on the cluster, each finding with a remedy."""

"""Ray: start or join it, see its nodes, place the stages on them."""

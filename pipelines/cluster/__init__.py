"""Start or join Ray, list its nodes, and place the stages of a run on them."""

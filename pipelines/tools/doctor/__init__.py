"""Find what would stop a run on this machine or on the cluster; each finding has a remedy."""

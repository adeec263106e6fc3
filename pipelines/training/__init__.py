"""The one frame of all jobs that train, and the loop of their workers."""

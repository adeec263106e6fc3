"""From what was typed to a configuration, and from errors to exit codes. Knows no job."""

"""Reports: the pages that runs write."""

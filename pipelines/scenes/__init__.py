"""The built-in data: rendered scenes with a label and a segmentation mask."""

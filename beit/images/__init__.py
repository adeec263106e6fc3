"""From encoded images to views, and from arrays to pictures."""

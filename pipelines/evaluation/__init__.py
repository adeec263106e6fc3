"""A model over every image of a set, exactly once."""

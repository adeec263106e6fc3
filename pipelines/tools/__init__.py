"""Commands that are no training: look, pack, compare, convert, measure."""

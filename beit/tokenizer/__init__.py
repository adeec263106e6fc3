"""Tokenizers: from pixels to visual tokens, and back to pixels where there is a decoder."""

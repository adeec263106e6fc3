"""Tokenizers: from pixels to visual tokens, and back to pixels if there is a decoder."""

"""BEiT: a Vision Transformer that predicts the visual tokens of hidden patches. No Ray in here."""

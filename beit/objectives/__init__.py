"""What the training loop asks of a method: the objective, its optimizer and schedule."""

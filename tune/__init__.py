"""Sweeps and ablations: many pretraining runs, compared."""

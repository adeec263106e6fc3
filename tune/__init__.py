"""Sweeps and ablations: run many pretrainings, and compare them."""

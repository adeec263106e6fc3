"""Forecast time, machines, costs and storage of a pretraining before it starts."""

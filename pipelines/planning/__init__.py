"""Time, machines, costs and storage of a pretraining, before it is paid for."""

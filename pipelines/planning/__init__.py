"""What a pretraining will take, before it is paid for."""

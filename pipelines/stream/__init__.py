"""From units to batches, every sample exactly once: rounds, ledger, dispatcher, the Ray Data graph."""

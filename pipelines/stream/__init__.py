"""Turn units of data into batches, every sample exactly once: rounds, ledger, dispatcher, and the Ray Data
graph.
"""

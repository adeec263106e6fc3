"""The paper's ablations (its table 4): pretrain every row, fine-tune all of them with the same protocol, and
compare the results with the paper's.
"""

"""The paper's ablations, its table 4: every row pretrained, then fine-tuned by one protocol, beside its
figures.
"""

"""`python -m tune.ablation [PRESET] [--rows …] [--seeds N] [--option value …]`, as `beit ablate` does."""

import sys

from pipelines.cli import main

main(["ablate", *sys.argv[1:]])

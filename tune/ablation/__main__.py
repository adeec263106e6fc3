"""`python -m tune.ablation [PRESET] [--rows …] [--seeds N] [--option value …]`, as `beit ablate` does."""

from pipelines.command_line.run import run_program
from tune.ablation.ablate import command

run_program(command)

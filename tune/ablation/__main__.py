"""`python -m tune.ablation [PRESET] [--rows …] [--seeds N] [--option value …]`, the same as `beit ablate`."""

from pipelines.command_line.run import run_program
from tune.ablation.ablate import command

run_program(command)

"""A sweep that is killed in its second trial: `python sweep_to_kill.py OUT SPACE`. A program, because its
driver is what is killed.
"""

import os
import signal
import sys

from beit.plain import override
from tune.config import sweep_preset
from tune.sweep import sweep


def small(out, space):
    values = {
        "space": space,
        "steps": 96,
        "data.scenes": 96,
        "optim.global_batch_size": 16,
        "optim.warmup_steps": 2,
        "evaluation.images": 32,
        "evaluation.points": 6,
        "output.root": out,
        "output.name": "mine",
    }
    return override(sweep_preset("quickstart"), values)


def say(line):
    print(line, flush=True)
    if line.startswith("trial 1 | point 2/6"):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sweep(small(*sys.argv[1:]), preset="quickstart", say=say)

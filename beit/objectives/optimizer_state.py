"""The state of an optimizer as a safetensors file: tensors and JSON, no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

OPTIMIZER_FILE = "optimizer.safetensors"

OLD_FILE = "optimizer.pt"
"""What older versions wrote, by `torch.save`."""

GROUPS = "param_groups"


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write the optimizer's state: its tensors as PARAMETER.NAME, its groups as JSON in the metadata."""
    state = optimizer.state_dict()
    tensors = {
        f"{parameter}.{name}": value.detach().contiguous()
        for parameter, values in state["state"].items()
        for name, value in values.items()
    }
    save_file(tensors, folder / OPTIMIZER_FILE, metadata={GROUPS: json.dumps(state[GROUPS])})


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path, device: torch.device) -> None:
    """Read the state that `save_optimizer` wrote, or that of an older version, into the optimizer."""
    if not (folder / OPTIMIZER_FILE).exists():
        state = torch.load(folder / OLD_FILE, map_location=device, weights_only=True)
        optimizer.load_state_dict(state)
        return
    values: dict[int, dict[str, Any]] = {}
    with safe_open(folder / OPTIMIZER_FILE, framework="pt", device=str(device)) as file:
        groups = json.loads(file.metadata()[GROUPS])
        for key in file.keys():  # noqa: SIM118 (it is no dictionary)
            parameter, name = key.split(".")
            values.setdefault(int(parameter), {})[name] = file.get_tensor(key)
    for group in groups:  # JSON has no tuples: AdamW's betas.
        group |= {
            name: tuple(value)
            for name, value in group.items()
            if isinstance(value, list) and name != "params"
        }
    optimizer.load_state_dict({"state": values, GROUPS: groups})

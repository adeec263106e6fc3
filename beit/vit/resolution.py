"""Positions for another image size: those that a model has learned, resampled (microsoft/unilm,
beit/run_class_finetuning.py).

Absolute positions are a picture of the grid, and are resized like one. A table of relative biases is a
picture of offsets: near offsets matter most and keep their values almost unchanged, far ones are stretched to
reach the new distances.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.config import AbsoluteMode
from beit.errors import UserError
from beit.vit.backbone import backbone_of, relative_position_index

Model = TypeVar("Model", bound=nn.Module)
Grid = tuple[int, int]
"""Rows and columns of patches."""

CLASS_ROWS = 3
"""Rows at the end of a bias table that serve the class token, whatever the grid."""

SMALLEST_GROWTH, LARGEST_GROWTH, GROWTH_PRECISION = 1.01, 1.5, 1e-6
"""Between what, and how closely, the authors search the growth of offsets."""


def growth(source: int, target: int) -> float:
    """The ratio q by which successive steps between old offsets grow, so that 1 + q + ... reaches the new
    grid's farthest offset.

    Args:
        source: Offsets along an axis of the old table, 2 * grid - 1.
        target: Offsets along an axis of the new one.

    Returns:
        q in [1.01, 1.5], by bisection to 1e-6 as the authors do: the last middle that was tried. Smaller
        grids, and much larger ones, are met at an end of that range.
    """
    low, high = SMALLEST_GROWTH, LARGEST_GROWTH
    q = (low + high) / 2
    while high - low > GROWTH_PRECISION:
        q = (low + high) / 2
        reached = (1 - q ** (source // 2)) / (1 - q)
        low, high = (low, q) if reached > target // 2 else (q, high)
    return q


def spline_weights(points: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The linear map from values at `points` [S] to the values at `at` [T] of the cubic spline through them,
    [T, S].

    The third derivative is continuous at the second and the last but one point ("not-a-knot"), as in FITPACK
    and SciPy. Through fewer than four points goes the polynomial that they determine. Beyond the outermost
    points their values stay.
    """
    count = len(points)
    at = at.clip(points[0], points[-1])
    if count < 4:
        return np.asarray(np.vander(at, count) @ np.linalg.inv(np.vander(points, count)), np.float64)
    # Second derivatives m of the spline at the points, from the values y: system @ m = right @ y.
    step = np.diff(points)
    system, right = np.zeros((count, count)), np.zeros((count, count))
    for i in range(1, count - 1):
        system[i, i - 1 : i + 2] = step[i - 1], 2 * (step[i - 1] + step[i]), step[i]
        right[i, i - 1 : i + 2] = 6 / step[i - 1], -6 / step[i - 1] - 6 / step[i], 6 / step[i]
    system[0, :3] = step[1], -step[0] - step[1], step[0]
    system[-1, -3:] = step[-1], -step[-2] - step[-1], step[-2]
    second = np.linalg.solve(system, right)
    left = np.searchsorted(points, at, side="right").clip(1, count - 1) - 1
    width = step[left, None]
    b = (at[:, None] - points[left, None]) / width
    a = 1 - b
    values = np.eye(count)
    curved = (a**3 - a) * second[left] + (b**3 - b) * second[left + 1]
    return np.asarray(a * values[left] + b * values[left + 1] + width**2 / 6 * curved, np.float64)


def offset_weights(source: int, target: int) -> NDArray[np.float64]:
    """The linear map [target, source] from a bias table's values along one axis to those for another number
    of offsets.

    Old offsets are placed at 0, +-1, +-(1 + q), +-(1 + q + q^2), ..., new ones at the integers.
    """
    if source == target:
        return np.eye(source)
    far = np.cumsum(growth(source, target) ** np.arange(source // 2))
    places = np.concatenate([-far[::-1], [0.0], far])
    return spline_weights(places, np.arange(-(target // 2), target // 2 + 1, dtype=np.float64))


def resample_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """A table of relative biases [rows, H] of the grid `source` for the grid `target`; the class token's rows
    are kept.

    The authors define this for square grids; the axes of others are treated one by one in the same way.
    """
    if source == target:
        return table
    offsets = [2 * side - 1 for side in source]
    vertical, horizontal = (
        torch.from_numpy(offset_weights(old, 2 * side - 1)).to(table.device)
        for old, side in zip(offsets, target, strict=True)
    )
    picture = table[:-CLASS_ROWS].double().reshape(*offsets, -1)
    resampled = torch.einsum(
        "xv,yvh->yxh", horizontal, torch.einsum("yu,uvh->yvh", vertical, picture)
    ).flatten(0, 1)
    return torch.cat([resampled.to(table.dtype), table[-CLASS_ROWS:]])


def resample_absolute(
    positions: Tensor, source: Grid, target: Grid, mode: AbsoluteMode = "bicubic"
) -> Tensor:
    """Position embeddings [1, 1 + N, D] of the grid `source` for the grid `target`; the class token's is
    kept.

    Args:
        positions: One a token, the class token first.
        source: Their grid.
        target: The grid wanted.
        mode: bicubic, as the authors' code; the paper's segmentation (table 14) has bilinear.
    """
    if source == target:
        return positions
    picture = positions[:, 1:].transpose(1, 2).reshape(1, -1, *source)
    resized = F.interpolate(picture.float(), size=target, mode=mode, align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], 1)


def resample(name: str, tensor: Tensor, source: Grid, target: Grid, mode: AbsoluteMode = "bicubic") -> Tensor:
    """A model's tensor for another grid: positions resampled, all others as they are."""
    match name.rpartition(".")[2]:
        case "relative_position_bias_table":
            return resample_table(tensor, source, target)
        case "pos_embed":
            return resample_absolute(tensor, source, target, mode)
    return tensor


@torch.no_grad()
def at_size(model: Model, height: int, width: int) -> Model:
    """A model for images of another size, such as whole photographs that are not square.

    Args:
        model: Any model with a `Backbone`, or one itself.
        height: In pixels, a multiple of the patch size.
        width: Likewise.

    Returns:
        A model whose positions are resampled, and which shares every other weight with `model`. For
        inference: a training run is built at its size, and only square models can be saved.

    Raises:
        UserError: If the size is no multiple of the patch size.
    """
    backbone = backbone_of(model)
    patch, source = backbone.config.patch_size, backbone.grid
    if min(height, width) < patch or height % patch or width % patch:
        near = [max(1, round(side / patch)) * patch for side in (height, width)]
        raise UserError(
            f"an image of {height} x {width} pixels is not made of patches of {patch}",
            f"resize it to {near[0]} x {near[1]}",
        )
    target = (height // patch, width // patch)
    if target == source:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    resized = copy.deepcopy(model, shared)
    backbone = backbone_of(resized)
    for module in backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            changed = resample(name, parameter, source, target)
            if changed is not parameter:
                setattr(module, name, nn.Parameter(changed, requires_grad=parameter.requires_grad))
    backbone.grid = target
    if height == width:
        backbone.config = dataclasses.replace(backbone.config, image_size=height)
    if backbone.pos_embed is None:
        backbone.relative_position_index = relative_position_index(*target).to(backbone.cls_token.device)
    return resized

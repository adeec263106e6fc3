"""Positions for another image size, resampled from learned ones.

As in microsoft/unilm, beit/run_class_finetuning.py. Absolute positions are resized like an image of the grid.
A table of relative biases is an image of offsets: near offsets matter most and keep their values almost
unchanged; far ones are stretched to reach the new distances.
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
from beit.vit.attention import relative_position_index
from beit.vit.backbone import backbone_of

Model = TypeVar("Model", bound=nn.Module)
Grid = tuple[int, int]
"""Rows and columns of patches."""

CLASS_ROWS = 3
"""Rows at the end of a bias table that are for the class token, whatever the grid."""

SMALLEST_GROWTH, LARGEST_GROWTH, GROWTH_PRECISION = 1.01, 1.5, 1e-6
"""The range in which the authors search the growth of offsets, and the precision of that search."""


def growth(source: int, target: int) -> float:
    """Return the ratio q of successive steps between old offsets, so that they reach the new grid's farthest.

    The farthest new offset is then 1 + q + q^2 + ..., one term for each old offset to one side.

    Args:
        source: Offsets along an axis of the old table, 2 * grid - 1.
        target: Offsets along an axis of the new one.

    Returns:
        q in [1.01, 1.5], by bisection to 1e-6 as the authors do: the last midpoint tried. For smaller grids
        and for much larger ones it is an end of that range.
    """
    low, high = SMALLEST_GROWTH, LARGEST_GROWTH
    q = (low + high) / 2
    while high - low > GROWTH_PRECISION:
        q = (low + high) / 2
        reached = (1 - q ** (source // 2)) / (1 - q)
        low, high = (low, q) if reached > target // 2 else (q, high)
    return q


def spline_weights(points: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the linear map [T, S] from values at `points` [S] to a cubic spline's values at `at` [T].

    The spline's third derivative is continuous at the second and at the last but one point ("not-a-knot"), as
    in FITPACK and SciPy. Fewer than four points are interpolated by the polynomial that they determine.
    Beyond the outermost points, the value stays that of the nearest point.
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
    """Return the linear map [target, source] along one axis of a bias table, for another number of offsets.

    Old offsets are placed at 0, +-1, +-(1 + q), +-(1 + q + q^2), ..., new ones at the integers.
    """
    if source == target:
        return np.eye(source)
    far = np.cumsum(growth(source, target) ** np.arange(source // 2))
    places = np.concatenate([-far[::-1], [0.0], far])
    return spline_weights(places, np.arange(-(target // 2), target // 2 + 1, dtype=np.float64))


def resample_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample a table of relative biases [rows, H] from grid `source` to grid `target`.

    The class token's rows are kept. The authors define this for square grids; for other grids, each axis is
    resampled in the same way.
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
    """Resample position embeddings [1, 1 + N, D] from grid `source` to grid `target`.

    Args:
        positions: One embedding per token, the class token first; the class token's is kept.
        source: Their grid.
        target: The new grid.
        mode: bicubic in the authors' code; bilinear in the paper's segmentation (table 14).
    """
    if source == target:
        return positions
    picture = positions[:, 1:].transpose(1, 2).reshape(1, -1, *source)
    resized = F.interpolate(picture.float(), size=target, mode=mode, align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], 1)


def resample(name: str, tensor: Tensor, source: Grid, target: Grid, mode: AbsoluteMode = "bicubic") -> Tensor:
    """Return a model's tensor for another grid: positions are resampled, others are returned as they are."""
    match name.rpartition(".")[2]:
        case "relative_position_bias_table":
            return resample_table(tensor, source, target)
        case "pos_embed":
            return resample_absolute(tensor, source, target, mode)
    return tensor


@torch.no_grad()
def at_size(model: Model, height: int, width: int) -> Model:
    """Return the model for images of another size, such as photographs that are not square.

    Args:
        model: A `Backbone`, or a model that contains one.
        height: Height of the images in pixels, a multiple of the patch size.
        width: Width of the images, likewise a multiple.

    Returns:
        A model with resampled positions that shares every other weight with `model`. Use it for inference
        only: a model to be trained is built at its size, and only square models can be saved.

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

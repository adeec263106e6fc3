"""`beit attention RUN IMAGE…`: draw the attention of chosen patches in a model's last block (the paper's
figure 2).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

from beit.checks import CommandConfig, Options, PositiveInt
from beit.errors import UserError
from beit.loading import load_model
from beit.probing.attention import check_size, figure_size, look
from beit.probing.attention_sheet import attention_sheet
from beit.vit.backbone import backbone_of
from beit.vit.checkpoints import SavedConfig, read_config
from beit.vit.model import VitModel
from pipelines import storage
from pipelines.command_line.options import parse
from pipelines.runs.models import find_model, model_files, view_of
from pipelines.schemes import StoragePath
from pipelines.tools.image_files import check_picture, read_square

MIDDLES = ("0.5,0.5", "0.25,0.25", "0.75,0.25", "0.25,0.75", "0.75,0.75")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(CommandConfig):
    """Draw the attention of chosen patches in a model's last block.

    The largest centred square of each image is shown, with no patch hidden. Each point gets a row: the query
    patch in red, the mean over heads, the map of each head, and the smallest set of patches that receives 60
    % of the mean's attention to patches.
    """

    run: str
    """Run folder or checkpoint folder with the model. Of a run, its model/ is taken, or its newest checkpoint
    if that is later."""

    images: tuple[str, ...] = ()
    """Image files, local or on a bucket."""

    points: tuple[str, ...] = MIDDLES
    """Points x,y whose patches are the queries, as shares of the shown square's side: 0,0 is its top left
    corner, 1,1 the bottom right one."""

    size: PositiveInt | None = None
    """Side in pixels of the square that the model sees, a multiple of its patch size; position embeddings are
    resampled. None: 15/7 of the model's own size, like the paper's 480 px for a model of 224, but at most 30
    patches a side, or the model's own size if that is larger."""

    out: StoragePath = "attention.png"
    """Path of the picture to write."""

    side: PositiveInt = 180
    """Side of each image on the sheet, in pixels, rounded to a multiple of the patches along a side."""

    def check_together(self, option: Options) -> None:
        """Refuse points outside of the image."""
        if not self.points:
            raise UserError("--points is given without a point", "write --points 0.5,0.5")
        _ = self.places

    @property
    def places(self) -> list[tuple[float, float]]:
        """The points as numbers."""
        return [_place(point) for point in self.points]


def _place(point: str) -> tuple[float, float]:
    try:
        x, y = (float(share) for share in point.split(","))
    except ValueError:
        raise UserError(
            f"--points {point} is not two numbers with a comma between them", "write --points 0.5,0.5 0.2,0.8"
        ) from None
    if not (0 <= x <= 1 and 0 <= y <= 1) or math.isnan(x + y):
        raise UserError(
            (
                f"--points {point} is not in the picture: 0,0 is its top left corner and 1,1 its bottom "
                "right one"
            ),
            "divide pixels by the side of the shown square",
        )
    return x, y


def show(config: AttentionConfig) -> Iterator[str]:
    """Write the sheet; returns lines that describe it.

    Raises:
        UserError: If no image or no model is given, an image cannot be decoded, or the size is no whole
            number of patches.
    """
    if not config.images:
        raise UserError("beit attention: IMAGE is missing", "write beit attention RUN IMAGE…")
    check_picture(config.out)
    model, saved = _open_model(config.run)
    view = view_of(saved, config.run)
    backbone = backbone_of(model)
    size = figure_size(backbone) if config.size is None else config.size
    check_size(size, saved.model.patch_size)
    squares = [read_square(image, size) for image in config.images]
    shown = [look(model, square, config.places, view) for square in squares]
    file = io.BytesIO()
    attention_sheet(shown, [storage.name(image) for image in config.images], side=config.side).save(
        file, "PNG"
    )
    storage.write_bytes(config.out, file.getvalue())
    patches = size // saved.model.patch_size
    stretched = (
        ""
        if patches == saved.model.grid
        else f", positions resampled from {saved.model.grid} x {saved.model.grid}"
    )
    yield (
        f"block {saved.model.depth} of {saved.model.depth}, {saved.model.heads} heads; {len(shown)} image(s) "
        f"of {size} px: {patches} x {patches} patches{stretched}"
    )
    yield f"written: {config.out}"


def _open_model(run: str) -> tuple[VitModel, SavedConfig]:
    """Load the model of a run or checkpoint folder, and its config.json."""
    with model_files(find_model(run)) as folder:
        return load_model(folder), read_config(folder)


def command(arguments: list[str], debug: bool) -> None:
    """`beit attention RUN IMAGE…`."""
    if len(arguments) > 1 and not any(argument.startswith("-") for argument in arguments[:2]):
        arguments = [arguments[0], "--images", *arguments[1:]]
    for line in show(parse(arguments, AttentionConfig, command="attention RUN IMAGE…", positional=("run",))):
        print(line)

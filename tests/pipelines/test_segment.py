"""The whole job, small: from a pretrained checkpoint to a segmenter that is evaluated on every image once."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchmetrics import classification

from beit.config import ModelConfig
from beit.errors import UserError
from beit.images.pixels import normalise
from beit.loading import load_model
from beit.plain import from_dict, override, to_dict
from beit.pretraining.model import Beit
from beit.segmentation import sliding
from beit.segmentation.annotations import IGNORED
from beit.segmentation.config import AnnotationConfig, SegmentViewConfig, SlidingConfig
from beit.segmentation.model import Segmenter
from beit.segmentation.views import scaled_size, whole_view
from beit.vit.checkpoints import read_config, save_model
from pipelines.config.supervised import SegmentConfig
from pipelines.config.workers import WorkerRange
from pipelines.evaluation.segmentation import PixelJudge, add_up, whole_views
from pipelines.presets.segment import PRESETS, recipe_for
from pipelines.runs import evaluations, run_folder
from pipelines.segment import SegmentationTask, check_parts, rebuild_report, segment
from pipelines.sources import open_source
from pipelines.stream.ledger import Ledger

TASK = SegmentationTask()

TINY = ModelConfig(image_size=32, patch_size=8, dim=32, depth=2, heads=2, drop_path=0.0, position="relative")
NAMES = ("sky", "road", "tree", "void")
VOID = 3
SIZES = ((41, 33), (32, 32), (57, 38), (20, 64))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pretrained(tmp_path):
    save_model(
        Beit(TINY, 16, seed=1), tmp_path / "pretrained", extra={"view": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    )
    return str(tmp_path / "pretrained")


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def street(number):
    """An image of an odd size, its ids, and both files: areas of three classes by their brightness, and some
    void.
    """
    rng = np.random.default_rng([7, number])
    height, width = SIZES[number % len(SIZES)]
    ids = np.kron(rng.integers(0, 3, (4, 4)), np.ones((-(-height // 4), -(-width // 4)), int))[
        :height, :width
    ].astype(np.uint8)
    image = (60 + 60 * ids[..., None] + rng.integers(-20, 20, (height, width, 3))).astype(np.uint8)
    ids[:3, :5] = VOID
    return image, ids, {"image": png(image), "annotation": png(ids)}


def write_streets(folder, numbers, *, broken=None, names=NAMES):
    """Parquet as on the hub; `broken` says what some rows hold instead."""
    folder.mkdir()
    files = [{**street(number)[2], **(broken or {}).get(row, {})} for row, number in enumerate(numbers)]
    columns = {
        name: [{"bytes": file[name], "path": None} for file in files] for name in ("image", "annotation")
    }
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": kind, "annotation": kind}, metadata={"class_names": json.dumps(names)})
    pq.write_table(pa.Table.from_pydict(columns, schema), folder / "part.parquet", row_group_size=8)
    return str(folder)


def wrong_files():
    """Annotations that cannot be used, by row, with the expected reason."""
    other, too_high = np.zeros((40, 33), np.uint8), np.zeros(SIZES[1], np.uint8)
    too_high[0, :4] = 9
    return {
        4: ({"annotation": png(other)}, "annotation and image differ in size: 33 x 40, the image 33 x 41"),
        9: (
            {"annotation": png(too_high)},
            "annotation has an id that is no class: id 9 on 4 of 1024 pixels, the classes are 0 to 2",
        ),
        14: ({"annotation": b"\xff\xd8\xff" + bytes(50)}, "annotation is not a PNG"),
        19: ({"image": b"no image"}, "image: not an image, or of a format that Pillow cannot read"),
    }


def job_config(pretrained, tmp_path, **values):
    fixed = {
        "data.train": str(tmp_path / "train"),
        "data.val": str(tmp_path / "val"),
        "annotation.ignore_index": VOID,
        "optim.global_batch_size": 8,
        "optim.warmup_steps": 1,
        "output.root": str(tmp_path / "runs"),
        "output.name": "run",
        "output.mlflow": False,
    }
    return override(TASK.config_for(pretrained, "quickstart"), {**fixed, **values})


def test_every_preset_survives_its_file():
    for preset in PRESETS.values():
        assert from_dict(SegmentConfig, json.loads(json.dumps(to_dict(preset())))) == preset()


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_takes_a_step_with_a_small_model(name, tmp_path):
    write_streets(
        tmp_path / "train",
        range(8),
        names=[f"kind {number}" for number in range(PRESETS[name]().annotation.classes or 4)],
    )
    small = {
        "model.dim": 24,
        "model.depth": 4,
        "model.heads": 2,
        "channels": 8,
        "steps": 20_000,
        "optim.global_batch_size": 2,
    }
    small |= {"model.image_size": 64, "view.short_side": 64, "view.long_side": 256}
    config = override(PRESETS[name](), {**small, "data.train": str(tmp_path / "train")})
    training = TASK.prepare(config, preset=name, say=print)
    keys = {"epoch": np.zeros(2, int), "unit": np.zeros(2, int), "row": np.arange(2)}
    batch = training.samples.make(
        {**training.source.unit(0).read(np.arange(2), ("image", "annotation")), **keys}
    )
    objective = training.make_objective()
    objective.start_step(5)
    sums = objective({column: torch.from_numpy(batch[column]) for column in objective.columns})
    (sums["loss"] / objective.weight(batch)).backward()
    assert abs(float(sums["main"]) / objective.weight(batch) - np.log(training.config.annotation.classes)) < 1
    objective.optimizer().step()


def test_a_recipe_takes_model_and_pixels_from_the_run_and_scales_images_for_its_size(pretrained):
    config = TASK.config_for(pretrained, "camvid")
    assert (config.model.image_size, config.model.position, config.view.short_side) == (
        32,
        "relative-per-block",
        64,
    )
    assert (config.view.mean, config.annotation) == (
        (0.5, 0.5, 0.5),
        AnnotationConfig(classes=11, ignore_index=11),
    )
    released = TASK.config_for(pretrained, "ade20k-upernet-22k-640")
    assert (released.model.image_size, released.view.short_side, released.view.mean[0]) == (640, 640, 0.485)
    assert recipe_for(ModelConfig(position="relative"), "mim") == "ade20k-upernet"
    assert recipe_for(ModelConfig(position="relative"), "classifier") == "ade20k-upernet-22k"
    assert recipe_for(ModelConfig(), "mim") == "ade20k"


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "remedy"),
    [(9, 4, 1, 5), (5, 1, 1, 3), (1, None, 1, None), (9, 4, 3, 0), (8, 4, 1, 0)],
)
def test_upernet_is_refused_a_single_image_at_a_time(batch, micro, workers, remedy):
    config = override(
        PRESETS["ade20k-upernet"](), {"optim.global_batch_size": batch, "resources.micro_batch_size": micro}
    )
    if remedy == 0:
        check_parts(config, WorkerRange(workers, workers))
        return
    what = "optim.global-batch-size 2" if remedy is None else f"resources.micro-batch-size {remedy}"
    with pytest.raises(UserError, match=f"set --{what}, or --head setr-pup"):
        check_parts(config, WorkerRange(workers, workers))
    check_parts(override(config, {"head": "setr-pup"}), WorkerRange(workers, workers))


def test_workers_that_come_and_go_must_go_through_their_shares_in_equally_many_parts():
    config = override(PRESETS["ade20k"](), {"optim.global_batch_size": 16, "resources.micro_batch_size": 5})
    with pytest.raises(
        UserError, match=r"(?s)3 workers have 5 or 6 images, in parts of .*set --resources.micro-batch-size 6"
    ):
        check_parts(config, WorkerRange(2, 4))
    check_parts(override(config, {"resources.micro_batch_size": 6}), WorkerRange(2, 4))
    check_parts(config, WorkerRange(4, 4))


def test_data_without_annotations_or_with_other_ids_is_refused_before_anything_starts(pretrained, tmp_path):
    write_streets(tmp_path / "train", range(16))
    write_streets(tmp_path / "val", range(16, 20))
    prepared = TASK.prepare(job_config(pretrained, tmp_path), preset="test", say=print)
    assert prepared.classes == 3, "void, the last id, is no class"
    other = write_streets(tmp_path / "other", range(4), names=("sky", "tree", "road", "void"))
    with pytest.raises(UserError, match=r"data.val calls class 1 of 3 tree, data.train road"):
        TASK.prepare(job_config(pretrained, tmp_path, **{"data.val": other}), preset="test", say=print)
    lines = []
    TASK.prepare(
        job_config(pretrained, tmp_path, **{"annotation.ignore_index": 255}), preset="test", say=lines.append
    )
    assert [line for line in lines if "class 3 is called void" in line]
    longer = write_streets(tmp_path / "longer", range(4), names=("sky", "road", "tree", "car", "void"))
    with pytest.raises(
        UserError, match=r"data.val names 5 ids, which do not come to the 3 classes of data.train"
    ):
        TASK.prepare(job_config(pretrained, tmp_path, **{"data.val": longer}), preset="test", say=print)
    lines = []
    TASK.prepare(
        job_config(pretrained, tmp_path, **{"steps": 3, "optim.warmup_steps": 3}),
        preset="test",
        say=lines.append,
    )
    assert any(
        line.startswith("warning: the warmup of 3 steps is not shorter than the run") for line in lines
    )
    with pytest.raises(
        UserError,
        match=r"none of the 16 images looked at can be used.*an id that is no class: id 3 on 15 of .* pixels",
    ):
        TASK.prepare(
            job_config(pretrained, tmp_path, **{"annotation.ignore_index": 255, "annotation.classes": 3}),
            preset="test",
            say=print,
        )
    plain = pq.read_table(tmp_path / "train" / "part.parquet").drop(["annotation"])
    (tmp_path / "plain").mkdir()
    pq.write_table(plain, tmp_path / "plain" / "part.parquet")
    with pytest.raises(UserError, match="has no annotations, it is parquet with images only"):
        TASK.prepare(
            job_config(pretrained, tmp_path, **{"data.train": str(tmp_path / "plain")}),
            preset="test",
            say=print,
        )
    pq.write_table(plain.append_column("annotation", [["a.png"] * 16]), tmp_path / "plain" / "part.parquet")
    with pytest.raises(UserError, match="the column annotation holds str, not the bytes of files"):
        TASK.prepare(
            job_config(pretrained, tmp_path, **{"data.train": str(tmp_path / "plain")}),
            preset="test",
            say=print,
        )


def test_image_files_take_their_annotations_from_a_folder_beside_them(pretrained, tmp_path):
    for name, numbers in (("train", range(16)), ("val", range(16, 20))):
        for kind in ("images", "annotations"):
            (tmp_path / kind / name).mkdir(parents=True)
        for number in numbers:
            files = street(number)[2]
            (tmp_path / "images" / name / f"{number}.png").write_bytes(files["image"])
            (tmp_path / "annotations" / name / f"{number}.png").write_bytes(files["annotation"])
    paths = {"data.train": "images/train", "data.annotations": "annotations/train", "data.val": "images/val"}
    values = {option: str(tmp_path / path) for option, path in paths.items()} | {
        "annotation.classes": 3,
        "data.fraction": 0.5,
    }
    config = job_config(pretrained, tmp_path, **values)
    with pytest.raises(UserError, match=r"(?s)data.val=.* has no annotations.*--data.val-annotations"):
        TASK.prepare(config, preset="test", say=print)
    prepared = TASK.prepare(
        override(config, {"data.val_annotations": str(tmp_path / "annotations" / "val")}),
        preset="test",
        say=print,
    )
    assert (prepared.source.manifest.total, prepared.val.total) == (8, 4)
    assert "data: 8 images, 3 classes (data.fraction 0.5)" in TASK.summary(prepared)
    made = prepared.samples.make(
        {
            **prepared.val.unit(0).read(np.arange(4), ("image", "annotation")),
            **{"epoch": np.zeros(4, int), "unit": np.zeros(4, int), "row": np.arange(4)},
        }
    )
    assert (made["status"] == 0).all()
    assert set(np.unique(made["labels"]).tolist()) == {0, 1, 2, IGNORED}
    with pytest.raises(UserError, match=r"given without data\.val"):
        override(config, {"data.val": None, "data.val_annotations": "somewhere"})


@pytest.mark.parametrize("test", [SlidingConfig(), SlidingConfig(ratios=(0.75, 1.5), flip=True, stride=20)])
def test_the_judge_predicts_what_the_model_does_and_counts_the_pixels_that_torchmetrics_counts(
    test, tmp_path
):
    model = Segmenter(TINY, 3, head="setr-pup", channels=8, generator=torch.Generator().manual_seed(3))
    save_model(model, tmp_path / "model")
    view, ids = (
        SegmentViewConfig(short_side=40, long_side=400, mean=(0.3, 0.5, 0.6)),
        AnnotationConfig(classes=3, ignore_index=VOID),
    )
    unit = open_source(write_streets(tmp_path / "val", range(8))).unit(0)
    judge = PixelJudge(
        str(tmp_path / "model"),
        device="cpu",
        threads=1,
        view=view,
        test=test,
        shown={(0, row) for row in range(8)},
    )
    judged = [judge(batch) for batch in whole_views(unit, 0, 8, view=view, ids=ids, largest=max(test.ratios))]
    counts, shown = (np.concatenate([part[name] for part in judged]) for name in ("counts", "predicted"))
    metric = classification.MulticlassConfusionMatrix(num_classes=3, ignore_index=IGNORED)
    for row in range(8):
        image, truth = street(row)[0], street(row)[1].astype(int)
        predicted = np.frombuffer(shown[row], np.int16).reshape(truth.shape).astype(int)
        pixels = normalise(
            torch.from_numpy(whole_view(image, view, largest=max(test.ratios))[None].copy()), view
        )
        with torch.inference_mode():
            directly = sliding.segment(
                model.eval(),
                pixels,
                size=truth.shape,
                scaled=scaled_size(*truth.shape, view, 1.0),
                crop=32,
                stride=test.stride or 21,
                ratios=test.ratios,
                flip=test.flip,
            )
        assert (predicted == directly.argmax(1)[0].numpy()).mean() > 0.995  # A tie may go either way.
        assert len(np.unique(predicted)) > 1
        metric.update(torch.from_numpy(predicted), torch.from_numpy(np.where(truth == VOID, IGNORED, truth)))
    assert (add_up(counts, 3) == metric.compute().numpy()).all()


def test_wrong_annotations_have_no_pixel_that_counts_and_are_named_with_figures(pretrained, tmp_path):
    wrong = wrong_files()
    write_streets(tmp_path / "train", range(24), broken={row: files for row, (files, _) in wrong.items()})
    write_streets(tmp_path / "val", range(40, 44))
    training = TASK.prepare(job_config(pretrained, tmp_path), preset="test", say=print)
    named = {}
    for index in range(3):
        unit = training.source.unit(index)
        keys = {"epoch": np.zeros(8, int), "unit": np.full(8, index), "row": np.arange(8)}
        made = training.samples.make({**unit.read(np.arange(8), ("image", "annotation")), **keys})
        for row in np.flatnonzero(made["status"]).tolist():
            assert (made["labels"][row] == IGNORED).all()
            named[8 * index + row] = training.samples.reason(unit, row, int(made["status"][row]))
    assert named == {row: reason for row, (_, reason) in wrong.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_stopped_while_it_is_judged_goes_on_and_names_what_is_wrong_with_annotations(
    pretrained, tmp_path, monkeypatch
):
    wrong = wrong_files()
    write_streets(tmp_path / "train", range(35), broken={row: files for row, (files, _) in wrong.items()})
    write_streets(tmp_path / "val", range(40, 61), broken={5: wrong[14][0]})
    config = job_config(pretrained, tmp_path, **{"epochs": 2, "evaluate_epochs": 1, "data.max_bad": 0.5})
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipelines.segment.evaluate",
            lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            segment(config, say=lines.append)
    result = segment(config, resume=str(tmp_path / "runs" / "run"), say=lines.append)

    ledger = Ledger.from_bytes(Path(result.checkpoint, "ledger.npz").read_bytes())
    assert (result.step, ledger.settled) == (8, 64)
    assert "resumed: continuing from step 4" in lines
    with open(Path(result.run, "quarantine.csv"), newline="") as file:
        listed = {row["image"].partition(", ")[2]: row["reason"] for row in csv.DictReader(file)}
    assert listed == {f"row group {row // 8}, row {row % 8}": reason for row, (_, reason) in wrong.items()}

    # The same without Ray, counted class by class.
    folder = Path(result.run, "model")
    model, view = load_model(folder, Segmenter), read_config(folder).extra["view"]
    assert model.class_names == NAMES[:3]
    assert (model.head, view["mean"]) == ("setr-pup", [0.5] * 3)
    judge = PixelJudge(
        str(folder),
        device="cpu",
        threads=1,
        view=config.view,
        test=config.test,
        shown={(0, row) for row in range(21)},
    )
    ids = AnnotationConfig(classes=3, ignore_index=VOID)
    both, either = np.zeros(3), np.zeros(3)
    for row, number in enumerate(range(40, 61)):
        if row == 5:
            continue
        image, truth, files = street(number)
        unit = OneImage(files)
        [seen] = whole_views(unit, 0, 1, view=config.view, ids=ids)
        predicted = np.frombuffer(judge(seen)["predicted"][0], np.int16).reshape(image.shape[:2])
        for kind in range(3):
            there, said = truth == kind, (predicted == kind) & (truth != VOID)
            both[kind] += np.sum(there & said)
            either[kind] += np.sum(there | said)
    judged = evaluations.read(result.run, "validation")
    assert [one["step"] for one in judged] == [4, 8]
    assert (judged[-1]["images"], len(judged[-1]["unusable"])) == (20, 1)
    assert judged[-1]["unusable"][0][1] == "annotation is not a PNG"
    np.testing.assert_allclose(
        [np.nan if value is None else value for value in judged[-1]["iou"]], both / either, atol=2e-3
    )
    assert result.metrics["val/mean_iou"] == judged[-1]["mean_iou"]
    report = Path(rebuild_report(result.run)).read_text()
    assert "Image, truth and prediction" in report
    assert "annotation and image differ in size: 33 x 40" in report
    assert run_folder.saved_run(result.run).job == "segment"


class OneImage:
    """A unit of one row."""

    def __init__(self, files):
        self.files = files

    def read(self, rows, columns):
        return {column: np.array([self.files[column]], object) for column in columns}


def test_images_go_through_the_model_together_as_far_as_the_largest_scale_has_room_with_the_same_counts(
    tmp_path, monkeypatch
):
    model = Segmenter(TINY, 3, head="setr-pup", channels=16, generator=torch.Generator().manual_seed(0))
    save_model(model, tmp_path, extra={"view": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    rng = np.random.default_rng(0)
    view, ids = SegmentViewConfig(short_side=32, long_side=64), AnnotationConfig(classes=3)
    block = {name: np.arange(4) for name in ("unit", "row")} | {
        "status": np.zeros(4, np.uint8),
        "reason": np.full(4, "", object),
    }
    block |= {"shape": np.full((4, 2), 32), "size": np.full((4, 2), 40)}
    block["pixels"] = np.array(
        [rng.integers(0, 256, (32, 32, 3), np.uint8).tobytes() for _ in range(4)], object
    )
    block["labels"] = np.array(
        [rng.integers(0, ids.classes, (40, 40)).astype(np.int16).tobytes() for _ in range(4)], object
    )

    def judged(ratios, room):
        monkeypatch.setattr("pipelines.evaluation.segmentation.LOGITS_AT_ONCE", room)
        judge = PixelJudge(
            str(tmp_path), device="cpu", threads=1, view=view, test=SlidingConfig(ratios=ratios), shown=()
        )
        predict, together = judge._predict, []
        judge._predict = lambda images, size: together.append(len(images)) or predict(images, size)
        return judge(block)["counts"].tolist(), together

    two_images = 2 * 3 * 3 * 40 * 40
    counts, together = judged((1.0,), 1 << 27)
    assert together == [4]
    assert judged((1.0,), two_images) == (counts, [2, 2])
    assert judged((1.0,), two_images // 9) == (counts, [1, 1, 1, 1]), "never less than an image"
    assert judged((1.0, 2.5), two_images)[1] == [1, 1, 1, 1], "80 x 80 logits at the largest scale"

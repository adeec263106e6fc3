import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from beit.config import MaskConfig, ViewConfig
from beit.images.decode import Status
from pipelines.cluster import session
from pipelines.cluster.placement import Node, place
from pipelines.config.resources import ResourceConfig
from pipelines.sources import open_source
from pipelines.stream.dispatcher import Dispatcher, Plan
from pipelines.stream.graph import build_stream, read_slot
from pipelines.stream.rounds import Part, slots_of_round
from pipelines.stream.samples import KEYS, SampleConfig, draw_unseen, make_samples
from pipelines.stream.shuffle import shuffle

SAMPLES = SampleConfig(seed=3, view=ViewConfig(), patch_px=224, token_px=112, mask=MaskConfig(), grid=14)


def encoded(colour, size=40):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def batch_of(images, epoch=0):
    count = len(images)
    keys = {"epoch": np.full(count, epoch), "unit": np.zeros(count, np.int64), "row": np.arange(count)}
    return {"image": np.array(images, object), **keys}


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(6):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    return images


def test_a_sample_depends_on_its_key_alone_not_on_its_neighbours_or_their_order(photos):
    batch = batch_of(photos)
    together = make_samples(batch, config=SAMPLES)
    order = np.array([4, 1, 5, 0])
    others = make_samples({name: column[order] for name, column in batch.items()}, config=SAMPLES)
    for name in ("patch_view", "token_view", "mask", "status", *KEYS):
        np.testing.assert_array_equal(others[name], together[name][order])


def test_another_epoch_draws_other_views_and_masks_and_another_mask_leaves_the_view_alone(photos):
    first, second = (make_samples(batch_of(photos, epoch), config=SAMPLES) for epoch in (0, 1))
    assert (first["patch_view"] != second["patch_view"]).any((1, 2, 3)).all()
    assert (first["mask"] != second["mask"]).any(1).all()
    random = SampleConfig(
        seed=3, view=ViewConfig(), patch_px=224, token_px=112, mask=MaskConfig(kind="random"), grid=14
    )
    other = make_samples(batch_of(photos), config=random)
    assert (first["mask"] != other["mask"]).any(1).all()
    np.testing.assert_array_equal(first["patch_view"], other["patch_view"])


def test_an_image_that_cannot_be_decoded_stays_as_a_zero_view_with_an_empty_mask(photos):
    samples = make_samples(batch_of([photos[0], photos[1][:300], b"", photos[2]]), config=SAMPLES)
    assert samples["status"].tolist() == [0, Status.TRUNCATED, Status.EMPTY, 0]
    assert not samples["patch_view"][1:3].any()
    assert samples["mask"].any(1).tolist() == [True, False, False, True]


def test_a_sample_travels_as_bytes_and_within_200_kb(photos):
    samples = make_samples(batch_of(photos), config=SAMPLES)
    assert {samples[name].dtype for name in ("patch_view", "token_view", "status")} == {np.dtype(np.uint8)}
    on_the_way = (
        sum(column.nbytes for name, column in samples.items() if name != "token_view") / len(photos) + 196 * 2
    )  # int16 tokens
    assert on_the_way < 200_000


def test_a_slot_mixes_the_rows_of_its_units_under_a_cap_and_repeats_itself(tmp_path):
    images = [{"bytes": encoded((index, 0, 0)), "path": ""} for index in range(200)]
    pq.write_table(pa.table({"image": images}), tmp_path / "shard.parquet", row_group_size=50)
    source = open_source(str(tmp_path))
    parts = [(source.unit(unit), Part(2, unit, np.arange(50))) for unit in (3, 1, 0, 2)]

    def keys(mix_bytes):
        batches = list(read_slot(parts, seed=0, rows_per_batch=64, mix_bytes=mix_bytes))
        return np.concatenate([np.stack([batch["unit"], batch["row"]], 1) for batch in batches])

    mixed = keys(1 << 30)
    assert sorted(map(tuple, mixed.tolist())) == [(unit, row) for unit in range(4) for row in range(50)]
    assert len(np.unique(mixed[:32, 0])) == 4
    np.testing.assert_array_equal(keys(1 << 30), mixed)
    capped = keys(2 * 50 * len(images[0]["bytes"]))
    assert set(capped[:100, 0]) == {3, 1}


def stream_batches(source, *, epochs, rows, batch):
    """All batches of a round through Ray Data, as one worker gets them."""
    samples = SampleConfig(seed=3, view=ViewConfig(), patch_px=32)
    placement = place(ResourceConfig(), [Node(cpus=2, gpus=0)], tokenize=False)
    slots = slots_of_round(epochs * len(source.manifest.rows), cores=2)
    plan = Plan(seed=0, epochs=epochs, total_rows=rows, max_rows=rows, slots=slots)
    dispatcher = session.start_beside_driver(Dispatcher, source.manifest, plan)
    generation = ray.get(dispatcher.resume.remote(None))
    ray.get(dispatcher.start_round.remote(generation, 1))
    stream = build_stream(
        dispatcher, slots=range(slots), config=samples, tokenizer=None, placement=placement, batch_rows=batch
    )
    return list(
        shuffle(
            stream.iter_batches(batch_size=batch, batch_format="numpy", drop_last=True),
            np.random.default_rng(0),
        )
    )


@pytest.mark.usefixtures("ray_cluster")
def test_shards_sorted_by_class_still_give_mixed_batches(tmp_path):
    """At least half the classes that a random batch would show, from row groups of one class each."""
    classes, batch = 20, 32
    images = [
        {"bytes": encoded((12 * index, 0, 0)), "path": ""} for index in range(classes) for _ in range(40)
    ]
    pq.write_table(pa.table({"image": images}), tmp_path / "sorted.parquet", row_group_size=40)
    batches = stream_batches(open_source(str(tmp_path)), epochs=1, rows=800, batch=batch)
    assert sum(len(found["row"]) for found in batches) == 800
    distinct = np.mean([len(np.unique(found["unit"])) for found in batches])
    random = classes * (1 - (1 - 1 / classes) ** batch)
    assert distinct >= random / 2, f"{distinct:.1f} classes a batch; random batches would have {random:.1f}"


def test_late_messages_of_a_worker_group_that_is_gone_do_not_count():
    class Manifest:
        rows = np.array([4, 4])

    dispatcher = Dispatcher(Manifest, Plan(seed=0, epochs=1, total_rows=8, max_rows=8, slots=1))
    with pytest.raises(RuntimeError, match="resume"):
        dispatcher.slot(0)
    key = [np.array([0]), np.array([1]), np.array([2]), np.array([0])]
    old = dispatcher.resume(None)
    dispatcher.settle(old, *key)
    checkpoint = dispatcher.snapshot(old)
    new = dispatcher.resume(checkpoint)
    dispatcher.settle(old, *[np.array([0]), np.array([1]), np.array([3]), np.array([0])])
    assert dispatcher.counts() == {"settled": 1, "quarantined": 0}
    with pytest.raises(RuntimeError, match="is over"):
        dispatcher.start_round(old, 1)
    assert dispatcher.start_round(new, 1) == 7
    assert dispatcher.resume(None) != new
    assert dispatcher.counts()["settled"] == 0


def test_a_reader_of_the_quarantine_misses_nothing_when_the_workers_go_back_to_a_checkpoint():
    class Manifest:
        rows = np.array([4, 4])

    def settle(generation, unit, row):
        dispatcher.settle(generation, *(np.array([value]) for value in (0, unit, row, 1)))

    dispatcher = Dispatcher(Manifest, Plan(seed=0, epochs=1, total_rows=8, max_rows=8, slots=1))
    generation = dispatcher.resume(None)
    settle(generation, 0, 1)
    read = dispatcher.quarantined(0)
    generation = dispatcher.resume(None)
    settle(generation, 1, 2)  # found in another order the second time
    settle(generation, 0, 1)
    read += dispatcher.quarantined(len(read))
    assert read == [(0, 1, 1), (1, 2, 1)]


def test_unseen_samples_are_whole_images_in_views_of_no_epoch(tmp_path, photos):
    images = [
        {"bytes": photo if index % 3 else b"broken", "path": ""} for index, photo in enumerate(photos * 4)
    ]
    pq.write_table(pa.table({"image": images}), tmp_path / "shard.parquet", row_group_size=5)
    manifest = open_source(str(tmp_path)).manifest
    samples = draw_unseen(manifest, SAMPLES, 8)
    assert len(samples["row"]) == 8
    assert not samples["status"].any()
    assert samples["mask"].any(1).all()
    assert (
        len(
            {(unit, row) for unit, row in zip(samples["unit"].tolist(), samples["row"].tolist(), strict=True)}
        )
        == 8
    )
    assert len(draw_unseen(manifest, SAMPLES, 100)["row"]) == 16  # all that can be decoded

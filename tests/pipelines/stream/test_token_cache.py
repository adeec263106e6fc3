"""Tokenise once: what a cache holds, and what pretraining makes of it."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image

from beit.config import TokenizerConfig, ViewConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.plain import override
from beit.tokenizer.config import DvaeConfig
from beit.tokenizer.dvae import Dvae, initialise
from beit.tokenizer.frozen import save_tokenizer
from beit.tokenizer.registry import load_tokenizer
from beit.tokenizer.spread_tokens import spread_tokens
from pipelines import seeds
from pipelines.cli import main
from pipelines.cluster.nodes import cluster_nodes
from pipelines.cluster.placement import Node, place
from pipelines.cluster.session import start_beside_driver
from pipelines.config.data import DataConfig
from pipelines.config.resources import ResourceConfig
from pipelines.config.tokenizer import EncodeConfig
from pipelines.encode_tokens import config_of, encode_tokens, place_encoding
from pipelines.presets import pretrain as presets
from pipelines.pretrain import PretrainTask, pretrain
from pipelines.runs.metrics import read_metrics
from pipelines.sources import open_source
from pipelines.stream.dispatcher import Dispatcher
from pipelines.stream.graph import Tokenize, read_slot
from pipelines.stream.rounds import Part
from pipelines.stream.samples import draw_unseen, make_samples
from pipelines.stream.shuffle import shuffle
from pipelines.stream.token_cache import PART_UNITS, CacheDescription, TokenCache, view_fields
from pipelines.training import fit
from pipelines.training.step import Stepper
from pipelines.training.training import MICRO_BATCH

TASK = PretrainTask()

UNITS, ROWS, EPOCHS = PART_UNITS + 2, 5, 2
BROKEN = (3, 1)  # unit, row


def photo(rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((60, 50)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    images = [
        {"bytes": photo(rng)[: 50 if divmod(index, ROWS) == BROKEN else None], "path": ""}
        for index in range(UNITS * ROWS)
    ]
    pq.write_table(pa.table({"image": images}), folder / "shard.parquet", row_group_size=ROWS)
    return str(folder)


@pytest.fixture(scope="module")
def config(shards, tmp_path_factory):
    """A pretraining with a very small tokenizer of random weights."""
    dvae = Dvae(DvaeConfig(vocab_size=64, encoder_width=8, decoder_width=8, blocks=1, bottleneck=8))
    generator = torch.Generator().manual_seed(0)
    initialise(dvae, generator)
    spread_tokens(dvae.encoder, 6.0, generator)
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, dvae, image_size=32, training={}, figures={})
    values = {
        "data.train": shards,
        "model.patch_size": 16,
        "tokenizer.path": str(folder),
        "tokenizer.image_size": 32,
        "seed": 5,
    }
    return override(presets.quickstart(), {**values, "optim.global_batch_size": 30, "optim.warmup_steps": 1})


def encoding(config, out):
    return EncodeConfig(
        data=DataConfig(train=config.data.train),
        image_size=config.model.image_size,
        tokenizer=config.tokenizer,
        view=config.view,
        seed=config.seed,
        epochs=EPOCHS,
        out=str(out),
    )


@pytest.fixture(scope="module")
def cache(config, ray_cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    result = encode_tokens(encoding(config, out), say=lambda line: None)
    assert (result.views, result.parts, result.written) == (EPOCHS * UNITS * ROWS, 2 * EPOCHS, 2 * EPOCHS)
    return str(out)


def with_cache(config, cache):
    return override(config, {"data.tokens": cache})


def prepared(config):
    return TASK.prepare(config, preset="quickstart", say=lambda line: None)


def test_cached_tokens_are_those_of_tokenising_online_byte_for_byte(config, cache):
    online, cached = prepared(config), prepared(with_cache(config, cache))
    assert cached.tokenizer is None
    tokenize = Tokenize(config.tokenizer, device="cpu", threads=1)
    seen = []
    for epoch in range(EPOCHS):
        parts = [(online.source.unit(unit), Part(epoch, unit, np.array([4, 1, 2]))) for unit in range(UNITS)]
        here = next(read_slot(parts, seed=5, rows_per_batch=1000))
        there = next(
            read_slot(
                parts, seed=5, rows_per_batch=1000, cache=pickle.loads(pickle.dumps(cached.samples.cache))
            )
        )
        expected, found = (
            tokenize(make_samples(here, config=online.samples)),
            make_samples(there, config=cached.samples),
        )
        assert set(found) == set(expected)
        broken = found["status"] != 0
        assert list(zip(found["unit"][broken], found["row"][broken], strict=True)) == [BROKEN]
        assert not found["tokens"][broken].any()
        expected["tokens"][broken] = 0
        for name, column in expected.items():
            assert found[name].dtype == column.dtype
            np.testing.assert_array_equal(found[name], column, err_msg=name)
        seen.append(found["tokens"])
    assert len(np.unique(seen)) > 16
    assert (seen[0] != seen[1]).any()


def test_views_and_tokens_repeat_after_the_epochs_of_the_cache_and_masks_do_not(config, cache):
    cached = prepared(with_cache(config, cache))

    def samples(epoch):
        parts = [(cached.source.unit(unit), Part(epoch, unit, np.arange(ROWS))) for unit in (0, 17)]
        batch = make_samples(
            next(read_slot(parts, seed=5, rows_per_batch=1000, cache=cached.samples.cache)),
            config=cached.samples,
        )
        order = np.lexsort((batch["row"], batch["unit"]))
        return {name: column[order] for name, column in batch.items()}

    first, later = samples(0), samples(EPOCHS)
    for name in ("patch_view", "tokens"):
        np.testing.assert_array_equal(first[name], later[name])
    assert (first["mask"] != later["mask"]).any()
    assert later["epoch"].tolist() == [EPOCHS] * 2 * ROWS
    shown = "\n".join(TASK.summary(cached))
    assert "2 epochs of views, computed in float32" in shown
    assert "the sets of 2 epochs repeat; masks still change" in shown
    assert "repeat" not in "\n".join(
        TASK.summary(prepared(override(with_cache(config, cache), {"epochs": EPOCHS})))
    )
    np.testing.assert_array_equal(
        draw_unseen(cached.source.manifest, cached.samples, 4)["patch_view"],
        draw_unseen(cached.source.manifest, replace(cached.samples, cache=None), 4)["patch_view"],
    )


def test_encoding_again_writes_only_what_is_missing(config, cache, capsys):
    files = sorted(Path(cache).rglob("*.parquet"))
    assert [str(file.relative_to(cache)) for file in files] == [
        f"epoch-{e:05d}/part-{p:05d}.parquet" for e in (0, 1) for p in (0, 1)
    ]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    files[2].unlink()
    with pytest.raises(UserError, match="lacks 1 of 4 parts"):
        prepared(with_cache(config, cache))
    lines = []
    assert encode_tokens(encoding(config, cache), say=lines.append).written == 1
    assert "2 epochs x 90 images = 180 views; 1 of 4 parts missing" in "\n".join(lines)
    assert lines[-1].startswith("part 1/1 | ")
    for file, (content, changed) in before.items():
        assert file.read_bytes() == content
        assert (file.stat().st_mtime_ns == changed) == (file != files[2])
    options = {
        "data.train": config.data.train,
        "tokenizer.path": config.tokenizer.path,
        "tokenizer.image-size": 32,
        "seed": 5,
    }
    named = [
        text
        for name, value in {**options, "epochs": EPOCHS, "out": cache}.items()
        for text in (f"--{name}", str(value))
    ]
    main(["tokenizer", "encode", "quickstart", *named])
    assert f"180 views in 4 parts (0 written now): {cache}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed is 5 there and 6 here"),
        ({"view.min_area": 0.3}, r"view.min_area is 0.4 there and 0.3 here"),
        ({"model.image_size": 128, "model.patch_size": 32}, "model.image_size is 64 there and 128 here"),
        ({"tokenizer.path": None}, r"tokenizer \(digest\) is [0-9a-f]+ there and [0-9a-f]+ here"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_field_and_both_values(config, cache, change, named):
    other = override(config, change)
    with pytest.raises(UserError, match=f"data.tokens={cache} does not match: {named}"):
        prepared(with_cache(other, cache))
    with pytest.raises(UserError, match=f"out={cache} does not match: {named}"):
        encode_tokens(encoding(other, cache), say=lambda line: None)


def test_a_cache_of_other_data_and_what_is_no_cache_are_refused(config, cache, shards, tmp_path):
    table = pq.read_table(Path(shards, "shard.parquet"))
    pq.write_table(table.slice(0, 80), tmp_path / "fewer.parquet", row_group_size=ROWS)
    other = override(config, {"data.train": str(tmp_path)})
    digest = open_source(shards).manifest.digest
    with pytest.raises(UserError, match=rf"data.train \(digest\) is {digest} there and"):
        prepared(with_cache(other, cache))
    with pytest.raises(UserError, match=r"is no token cache: there is no .*cache\.json"):
        prepared(with_cache(config, shards))
    with pytest.raises(UserError, match=r"is not empty and holds no cache\.json.*shard\.parquet"):
        encode_tokens(encoding(config, shards), say=lambda line: None)
    prepared(
        with_cache(override(config, {"view.mean": (0.5, 0.5, 0.5)}), cache)
    )  # Normalising comes after the views.


def trained_here(training):
    """Loss, accuracy and gradient norm of each step, and the weights, of a run of one worker: its stream, and
    its steps in this process.
    """
    placement = place(training.config.resources, cluster_nodes(), tokenize=training.tokenizer is not None)
    plan = fit._plan(training, placement)
    dispatcher = start_beside_driver(Dispatcher, training.source.manifest, plan)
    generation = ray.get(dispatcher.resume.remote(None))
    ray.get(dispatcher.start_round.remote(generation, training.global_batch_size))
    [stream] = fit._streams(training, plan, placement, dispatcher).values()
    batches = stream.iter_batches(batch_size=training.global_batch_size, batch_format="numpy", drop_last=True)
    stepper = Stepper(
        training.make_objective(),
        device=torch.device("cpu"),
        micro_batch_size=MICRO_BATCH,
        clip_norm=training.optim.clip_norm,
    )
    objective, rows = stepper.objective, []
    mixed = shuffle(batches, seeds.generator(training.config.seed, seeds.BUFFER, 0, 0, 0))
    for step, batch in enumerate(mixed):
        tensors = {name: torch.from_numpy(batch[name]) for name in objective.columns}
        stepper.step(step, tensors, objective.weight(batch))
        taken = stepper.take_sums()
        metrics = objective.metrics(taken.sums, taken.weight)
        rows.append((metrics["loss"], metrics["accuracy"], taken.norm))
    ray.kill(dispatcher)
    return rows, objective.model.state_dict()


def test_a_run_with_a_cache_has_no_tokenizer_and_the_losses_of_one_that_tokenises_to_the_last_digit(
    config, cache, tmp_path
):
    values = {
        "steps": 6,
        "output.root": str(tmp_path),
        "output.mlflow": False,
        "output.log_seconds": 0.0,
        "resources.in_order": True,
    }
    online, said = override(config, values), []
    run = pretrain(with_cache(online, cache), say=said.append)
    rows = read_metrics(run.run)
    assert [len(rows), rows[-1]["step"]] == [6, 6]  # two epochs of 90 images
    assert rows[0]["train/loss"] == pytest.approx(np.log(64), abs=0.3)
    assert not any(line.startswith("tokenizers: ") for line in said)
    model = load_model(Path(run.run, "model"))
    assert model.vocab_size == 64
    digest = load_tokenizer(config.tokenizer.path).digest
    assert digest in Path(run.run, "model", "config.json").read_text()

    expected, weights = trained_here(prepared(online))
    names = ("train/loss", "train/accuracy", "optim/grad_norm")
    assert [tuple(row[name] for name in names) for row in rows] == expected
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_a_preset_gives_what_its_pretraining_needs():
    base, config = presets.base(), config_of("base")
    assert (config.image_size, config.tokenizer, config.view) == (
        224,
        TokenizerConfig(name="dalle", image_size=112),
        base.view,
    )


@pytest.mark.parametrize(
    ("node", "resources", "actors", "cpus", "gpus"),
    [
        (Node(cpus=1, gpus=0), {}, (1, 1), 0.14, 0),
        (Node(cpus=2, gpus=0), {}, (1, 1), 1, 0),
        (Node(cpus=16, gpus=0), {}, (1, 15), 1, 0),
        (Node(cpus=16, gpus=2), {}, (1, 2), 1, 1),
        (Node(cpus=16, gpus=2), {"tokenizer_gpus": 0.5}, (1, 4), 1, 0.5),
        (Node(cpus=16, gpus=2), {"device": "cpu", "tokenizers": 3}, (1, 3), 1, 0),
    ],
)
def test_the_tokenizers_get_what_no_worker_needs(node, resources, actors, cpus, gpus):
    placement = place_encoding(ResourceConfig(**resources), [node])
    assert (placement.tokenizers, placement.tokenizer_cpus, placement.tokenizer_gpus) == (actors, cpus, gpus)
    assert placement.view_cpus != placement.tokenizer_cpus or gpus


def test_caches_that_would_be_refused_for_each_other_have_different_names():
    given = {
        "data": "a",
        "units": 2,
        "seed": 0,
        "view": {},
        "patch_px": 64,
        "token_px": 64,
        "vocab_size": 64,
        "epochs": 1,
    }
    first = CacheDescription(**given, tokenizer="digest", precision="float32")
    others = [
        replace(first, tokenizer="another"),
        replace(first, precision="bfloat16"),
        replace(first, seed=1),
        replace(first, epochs=2),
    ]
    assert len({first.name, *(other.name for other in others)}) == 5
    assert replace(first).name == first.name


def test_a_cache_of_another_format_is_refused_alike_by_who_reads_it_and_who_writes_it(tmp_path):
    (tmp_path / "cache.json").write_text('{"format": 2}')
    description = CacheDescription(
        data="a", units=1, seed=0, view={}, patch_px=64, token_px=64, tokenizer="b", vocab_size=8,
        precision="float32", epochs=1,
    )  # fmt: skip
    for refuse in (
        lambda: TokenCache.open(str(tmp_path), option="out"),
        lambda: TokenCache.create(str(tmp_path), description, option="out"),
    ):
        with pytest.raises(UserError) as refused:
            refuse()
        assert refused.value.cause == f"out={tmp_path} has the format 2, and this version reads 1"
        assert refused.value.remedy.startswith("encode again into another folder")


def test_a_folder_laid_out_by_hand_opens_and_goes_on(tmp_path):
    """The layout on disk must not change: caches are kept for months."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 512, (3 + unit % 2, 16)).astype(np.int16) for unit in range(18)]
    (tmp_path / "epoch-00000").mkdir()
    kind = pa.list_(pa.int16(), 16)
    with pq.ParquetWriter(
        tmp_path / "epoch-00000" / "part-00000.parquet", pa.schema({"tokens": kind})
    ) as file:
        for unit in tokens[:16]:
            file.write_table(pa.table({"tokens": pa.array(unit.tolist(), kind)}))
    (tmp_path / "cache.json").write_text(
        """{
 "format": 1,
 "data": "baf8a3774444d242a27552ca3444588c",
 "units": 18,
 "seed": 0,
 "view": {"exif_rotate": true, "background": [255, 255, 255], "max_pixels": 100000000, "min_area": 0.4,
          "max_area": 1.0, "aspect": 1.3333333333333333, "short_side": null, "flip": 0.5, "jitter": 0.4},
 "patch_px": 64,
 "token_px": 64,
 "tokenizer": "ca8e98ad94b75900f70e941673b435f24d80ef0b0c13107994384d082fce8409",
 "vocab_size": 512,
 "precision": "float32",
 "epochs": 1
}
"""
    )
    found = TokenCache.open(str(tmp_path))
    assert found.missing() == [1]
    description = CacheDescription(
        data="baf8a3774444d242a27552ca3444588c",
        units=18,
        seed=0,
        view=view_fields(ViewConfig(min_area=0.4)),
        patch_px=64,
        token_px=64,
        tokenizer="ca8e98ad94b75900f70e941673b435f24d80ef0b0c13107994384d082fce8409",
        vocab_size=512,
        precision="float32",
        epochs=1,
    )
    cache = TokenCache.create(str(tmp_path), description, option="out")
    cache.write_part(1, tokens[16:])
    assert (cache.missing(), (tmp_path / "epoch-00000" / "part-00001.parquet").exists()) == ([], True)
    for epoch in (0, 1):
        for unit, expected in enumerate(tokens):
            rows = np.array([2, 0])
            np.testing.assert_array_equal(cache.read(epoch, unit, rows), expected[rows])

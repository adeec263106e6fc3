"""The jobs' configs: values out of range are named as they were typed, with a remedy."""

import dataclasses
import math
import re

import pytest

from beit.errors import UserError
from pipelines.config.data import DataConfig
from pipelines.config.jobs import JobConfig, OutputConfig
from pipelines.config.resources import ResourceConfig
from pipelines.scenes.shards import ScenesConfig
from pipelines.tools.check import CheckConfig
from pipelines.tools.pack import PackConfig


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: JobConfig(seed=-1), "--seed -1 is negative\nset --seed 0"),
        (lambda: JobConfig(steps=0), "--steps 0 is not positive\nset 1 or more, or leave it out"),
        (lambda: JobConfig(stop_at=-4), "--stop-at -4 is not positive"),
        (lambda: JobConfig(epochs=0.0), "--epochs 0.0 is not positive\nset --epochs 1"),
        (lambda: DataConfig(scenes=-3), "data.scenes=-3 is not positive\nset data.scenes=4096"),
        (lambda: DataConfig(max_bad=-1), "data.max_bad=-1 is not between 0 and 1\nset data.max_bad=0.01"),
        (lambda: ResourceConfig(cpus=0), "resources.cpus=0 is not positive\nset 1 or more, or leave it out"),
        (
            lambda: ResourceConfig(worker_cpus=0),
            "resources.worker_cpus=0 is not positive\nset a number above 0, or leave it out",
        ),
        (lambda: ResourceConfig(view_cpus=-1), "resources.view_cpus=-1 is not positive"),
        (lambda: ResourceConfig(tokenizers=0), "resources.tokenizers=0 is not positive"),
        (lambda: ResourceConfig(tokenizer_cpus=0), "resources.tokenizer_cpus=0 is not positive"),
        (
            lambda: ResourceConfig(tokenizer_gpus=-1),
            "resources.tokenizer_gpus=-1 is not between 0 and 1\nset 0 to 1, or leave it out",
        ),
        (lambda: ResourceConfig(micro_batch_size=0), "resources.micro_batch_size=0 is not positive"),
        (
            lambda: ResourceConfig(max_failures=-7),
            "resources.max_failures=-7 is negative\nset resources.max_failures=3",
        ),
        (
            lambda: OutputConfig(log_seconds=-5),
            "output.log_seconds=-5 is negative\nset output.log_seconds=10",
        ),
        (
            lambda: OutputConfig(checkpoint_steps=0),
            "output.checkpoint_steps=0 is not positive\nset output.checkpoint_steps=1000",
        ),
        (lambda: OutputConfig(keep_checkpoints=0), "output.keep_checkpoints=0 is not positive"),
        (
            lambda: PackConfig(source="a", out="b", shard_mib=0),
            "--shard-mib 0 is not positive\nset --shard-mib 256",
        ),
        (lambda: PackConfig(source="a", out="b", split="a/b"), "--split 'a/b' is not a plain name"),
        (lambda: ScenesConfig(out="b", first=-1), "--first -1 is negative\nset --first 0"),
        (lambda: ScenesConfig(out="b", images=0), "--images 0 is not positive"),
        (lambda: CheckConfig(source="a", seed=-1), "--seed -1 is negative"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_fix(build, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build()


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/b", "/runs/a", "a\\b"])
def test_a_run_lies_in_the_folder_of_the_runs(name):
    with pytest.raises(UserError, match=r"output\.name='.*' is not a plain name"):
        OutputConfig(name=name)
    OutputConfig(name="a run of mine, 2.5")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, field.name)
        for kind in (DataConfig, ResourceConfig, OutputConfig, JobConfig)
        for field in dataclasses.fields(kind)
        if "float" in str(field.type)
    ],
)
def test_no_field_takes_what_is_no_number(kind, name, value):
    with pytest.raises(UserError, match=name):
        kind(**{name: value})


def test_zero_stands_where_it_means_something():
    assert ResourceConfig(tokenizer_gpus=0, max_failures=0).max_failures == 0
    assert OutputConfig(log_seconds=0).log_seconds == 0
    assert DataConfig(max_bad=0).max_bad == 0
    assert ScenesConfig(out="a", seed=0, first=0).first == 0

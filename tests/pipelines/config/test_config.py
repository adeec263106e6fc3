"""The jobs' configs: values out of range are named as they were typed, with a remedy."""

import re
import subprocess
import sys

import pytest

from beit.checks import check
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
        (
            lambda: check(DataConfig(scenes=-3), "data."),
            "data.scenes=-3 is not positive\nset data.scenes=4096",
        ),
        (
            lambda: check(DataConfig(max_bad=-1), "data."),
            "data.max_bad=-1 is not between 0 and 1\nset data.max_bad=0.01",
        ),
        (
            lambda: check(ResourceConfig(cpus=0), "resources."),
            "resources.cpus=0 is not positive\nset 1 or more, or leave it out",
        ),
        (
            lambda: check(ResourceConfig(worker_cpus=0), "resources."),
            "resources.worker_cpus=0 is not positive\nset a number above 0, or leave it out",
        ),
        (lambda: check(ResourceConfig(view_cpus=-1), "resources."), "resources.view_cpus=-1 is not positive"),
        (lambda: check(ResourceConfig(tokenizers=0), "resources."), "resources.tokenizers=0 is not positive"),
        (
            lambda: check(ResourceConfig(tokenizer_cpus=0), "resources."),
            "resources.tokenizer_cpus=0 is not positive",
        ),
        (
            lambda: check(ResourceConfig(tokenizer_gpus=-1), "resources."),
            "resources.tokenizer_gpus=-1 is not between 0 and 1\nset 0 to 1, or leave it out",
        ),
        (
            lambda: check(ResourceConfig(micro_batch_size=0), "resources."),
            "resources.micro_batch_size=0 is not positive",
        ),
        (
            lambda: check(ResourceConfig(max_failures=-7), "resources."),
            "resources.max_failures=-7 is negative\nset resources.max_failures=3",
        ),
        (
            lambda: check(OutputConfig(log_seconds=-5), "output."),
            "output.log_seconds=-5 is negative\nset output.log_seconds=10",
        ),
        (
            lambda: check(OutputConfig(checkpoint_steps=0), "output."),
            "output.checkpoint_steps=0 is not positive\nset output.checkpoint_steps=1000",
        ),
        (
            lambda: check(OutputConfig(keep_checkpoints=0), "output."),
            "output.keep_checkpoints=0 is not positive",
        ),
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
        check(OutputConfig(name=name), "output.")
    check(OutputConfig(name="a run of mine, 2.5"))


def test_zero_stands_where_it_means_something():
    check(ResourceConfig(tokenizer_gpus=0, max_failures=0))
    check(OutputConfig(log_seconds=0))
    check(DataConfig(max_bad=0))
    assert ScenesConfig(out="a", seed=0, first=0).first == 0


def test_configs_import_nothing_heavy():
    modules = ("jobs", "pretrain", "supervised", "tokenizer")
    code = (
        f"import sys, {', '.join(f'pipelines.config.{module}' for module in modules)}; "
        "print(sorted({'torch', 'numpy', 'ray', 'pyarrow', 'PIL'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

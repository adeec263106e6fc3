import contextlib
import io
import re

import pytest
import tyro

from beit.errors import UserError
from pipelines.command_line.options import parse
from pipelines.command_line.parse_errors import nearest, option_names
from pipelines.config.pretrain import PretrainConfig
from pipelines.features import FeaturesConfig
from pipelines.presets.pretrain import quickstart


@pytest.mark.parametrize(
    ("typed", "cause", "remedy"),
    [
        (
            "--optim.peaklr 3",
            "beit pretrain has no option --optim.peaklr",
            "perhaps you meant --optim.peak-lr",
        ),
        ("--optim.peak_lr=abc", "--optim.peak-lr abc is not a number", "write --optim.peak-lr 0.002"),
        ("--optim.peak-lr", "--optim.peak-lr needs a value", "write --optim.peak-lr 0.002"),
        (
            "--optim.peak-lr 1 2",
            "beit pretrain: 2 belongs to no option",
            "options begin with --; beit pretrain --help lists them",
        ),
        ("--view.mean 0.5", "--view.mean needs 3 values", "write --view.mean 0.485 0.456 0.406"),
        (
            "--view.mean 1 a b",
            "--view.mean 1 a b is not 3 values, each a number",
            "write --view.mean 0.485 0.456 0.406",
        ),
        ("--steps 1.5", "--steps 1.5 is not a whole number or None", "write --steps N"),
        (
            "--target.positions hiden",
            "--target.positions hiden is none of hidden, all",
            "perhaps you meant hidden",
        ),
        ("--no-mlflow", "beit pretrain has no option --no-mlflow", "perhaps you meant --output.no-mlflow"),
        ("--qqq=3", "beit pretrain has no option --qqq", "beit pretrain --help lists the options"),
    ],
)
def test_what_tyro_refuses_is_told_in_two_lines(typed, cause, remedy):
    with pytest.raises(UserError) as refused:
        parse(typed.split(), PretrainConfig, command="pretrain [PRESET]", positional=(), default=quickstart())
    assert (refused.value.cause, refused.value.remedy) == (cause, remedy)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--mask.ratio 1.5", "mask.ratio=1.5 is not in [0, 1)\nset mask.ratio=0.382653"),
        (
            "--evaluation.mask.ratio 1.5",
            "evaluation.mask.ratio=1.5 is not in [0, 1)\nset evaluation.mask.ratio=0.382653",
        ),
        (
            "--optim.min-lr=1",
            "optim.min_lr=1.0 is not between 0 and optim.peak_lr=0.002\nset optim.min_lr=1e-05",
        ),
        ("--view.std 1 0 1", "view.std=(1.0, 0.0, 1.0) is not positive\nset view.std=(0.229, 0.224, 0.225)"),
        ("--seed -1", "--seed -1 is negative\nset --seed 0"),
        (
            "--resources.workers 0..2",
            "resources.workers=0..2 is not positive\nset 1 or more, or leave it out",
        ),
    ],
)
def test_a_value_out_of_range_is_told_with_its_whole_path(typed, message):
    with pytest.raises(UserError) as refused:
        parse(typed.split(), PretrainConfig, command="pretrain [PRESET]", positional=(), default=quickstart())
    assert str(refused.value) == message


def test_an_option_that_must_be_given_is_named():
    with pytest.raises(UserError) as refused:
        parse(["--run", "x", "--out", "y"], FeaturesConfig, command="features RUN DATA OUT", positional=())
    assert refused.value.cause == "beit features: --data is missing"


def test_options_are_suggested_by_their_last_part_then_by_what_contains_it_then_by_spelling():
    names = option_names(PretrainConfig)
    assert nearest("--peak-lr", names) == ["--optim.peak-lr"]
    assert set(nearest("--batch-size", names)) == {
        "--optim.global-batch-size",
        "--resources.micro-batch-size",
    }
    assert nearest("--mask.blok-size", ["--mask.min-block", "--mask.block-size"]) == ["--mask.block-size"]


def test_every_option_of_the_help_is_known_and_no_other():
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        tyro.cli(PretrainConfig, args=["--help"], default=quickstart())
    printed = re.findall(r"^ +(?:-h, )?(--.*)$", shown.getvalue(), re.MULTILINE)
    options = {option for line in printed for option in re.findall(r"--[a-z][a-z0-9.-]*", line)} - {"--help"}
    assert options == set(option_names(PretrainConfig))

"""Constraints in the types of fields, and the walk over a config and those in it."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

import pytest

from beit.checks import (
    BelowOne,
    Byte,
    CommandConfig,
    Constraint,
    FileName,
    Options,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
    above,
    between,
    check,
)
from beit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A config at two places of `Command`."""

    size: PositiveInt | None = None
    low: PositiveShare = 0.5
    high: float = 1.0
    colours: tuple[Byte, ...] = (0, 255)
    name: FileName | None = None
    growth: Annotated[float, above(1)] = 2.0
    strength: Annotated[float, between(0, 10)] = 5.0
    dropped: BelowOne = 0.25

    def check_together(self, option: Options) -> None:
        """Refuse two values that make no range."""
        if self.low > self.high:
            raise UserError(f"{option('low')} is above {option('high')}", f"set {option('high', 1)}")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A config between the command and a crop."""

    crop: Crop = field(default_factory=Crop)


@dataclass(frozen=True, kw_only=True)
class Command(CommandConfig):
    """The configuration of a whole command."""

    many_steps: PositiveInt
    lr: PositiveFloat = 0.1
    flip: Share = 0.5
    crop: Crop = field(default_factory=Crop)
    test: Judge = field(default_factory=Judge)

    def check_together(self, option: Options) -> None:
        """A rule about fields of the configs inside."""
        if self.test.crop.size == self.many_steps:
            raise UserError(f"{option('test.crop.size')} and {option('many_steps')} are the same", "-")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size=0 is not positive\nset 1 or more, or leave it out"),
        ({"low": 0.0}, "low=0.0 is not positive\nset {}low=0.5"),
        ({"low": 1.5}, "low=1.5 is not between 0 and 1\nset {}low=0.5"),
        ({"low": 40.0}, "low=40.0 is not between 0 and 1\nset {}low=0.4 if 40 % is meant"),
        ({"low": math.nan}, "low=nan is not a finite number\nset {}low=0.5"),
        ({"high": math.inf}, "high=inf is not a finite number\nset {}high=1"),
        (
            {"colours": (0, 256)},
            "colours=(0, 256) is not between 0 and 255\nset {}colours=(0, 255)",
        ),
        (
            {"name": "a/b"},
            "name='a/b' is not a plain name: it is empty, or has a / in it\n"
            "set a name without / in it, or leave it out",
        ),
        ({"growth": 1.0}, "growth=1.0 is not above 1\nset {}growth=2"),
        ({"strength": 11}, "strength=11 is not between 0 and 10\nset {}strength=5"),
        ({"dropped": 40.0}, "dropped=40.0 is not in [0, 1)\nset {}dropped=0.4 if 40 % is meant"),
        ({"dropped": 100.0}, "dropped=100.0 is not in [0, 1)\nset {}dropped=0.25"),
        ({"dropped": 1.0}, "dropped=1.0 is not in [0, 1)\nset {}dropped=0.25"),
        ({"low": 0.5, "high": 0.25}, "low=0.5 is above {}high=0.25\nset {}high=1"),
    ],
)
def test_a_config_at_two_places_is_named_by_the_place_where_the_fault_is(values, message):
    crop = Crop(**values)
    for config, at in (({"crop": crop}, "crop."), ({"test": Judge(crop=crop)}, "test.crop.")):
        with pytest.raises(UserError) as refused:
            Command(many_steps=5, **config)
        assert str(refused.value) == at + message.replace("{}", at)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"many_steps": 0}, "--many-steps 0 is not positive\nset 1 or more"),
        ({"lr": -1.0}, "--lr -1.0 is not positive\nset --lr 0.1"),
        ({"flip": 50}, "--flip 50 is not between 0 and 1\nset --flip 0.5 if 50 % is meant"),
        ({"test": Judge(crop=Crop(size=5))}, "test.crop.size=5 and --many-steps 5 are the same\n-"),
    ],
)
def test_fields_of_the_command_itself_are_named_as_options(values, message):
    with pytest.raises(UserError) as refused:
        Command(**{"many_steps": 5, **values})
    assert str(refused.value) == message


def test_a_constraint_may_say_what_a_wrong_value_probably_meant():
    @dataclass(frozen=True, kw_only=True)
    class Paint(CommandConfig):
        colour: Annotated[
            str, Constraint(str.islower, "is not in lower case", "a name", remedy=lambda value: value.lower())
        ] = "red"

    with pytest.raises(UserError) as refused:
        Paint(colour="Blue")
    assert str(refused.value) == "--colour 'Blue' is not in lower case\nblue"


def test_a_command_cannot_be_changed_into_a_wrong_one():
    command = Command(many_steps=5)
    with pytest.raises(UserError, match=r"crop\.size=-1"):
        replace(command, crop=replace(command.crop, size=-1))


def test_a_part_can_be_checked_where_it_stands_in_something_else():
    with pytest.raises(UserError, match=r"extra\.crop\.size=-1 is not positive"):
        check(Crop(size=-1), "extra.crop.")
    check(Crop(size=1, colours=(), low=1, strength=10, name="a b.c"))

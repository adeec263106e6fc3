"""Choices by name: what is built in, what is registered, and what another process is sent."""

import pytest

from beit.errors import UserError
from beit.registry import Registry


def colours(**options) -> Registry[int]:
    return Registry("paint.colour", {"red": 1, "green": 2}, register="paint.register", **options)


def test_a_registered_choice_is_found_and_sent_to_another_process():
    here, there = colours(), colours()
    here.add("blue", 3)
    there.adopt(here.own)
    assert (here.own, there.own, there.find("blue")) == ({"blue": 3}, {"blue": 3}, 3)
    assert there.names == ("red", "green", "blue")


def test_a_built_in_choice_is_replaced_only_where_that_is_allowed_and_then_sent_too():
    with pytest.raises(ValueError, match=r"paint\.colour=red is built in"):
        colours().add("red", 9)
    here, there = colours(replaceable=True), colours(replaceable=True)
    here.add("red", 9)
    there.adopt(here.own)
    assert (here.own, there.find("red")) == ({"red": 9}, 9)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError) as refused:
        colours().find("gren")
    assert refused.value.cause == "paint.colour=gren is none of red, green"
    assert refused.value.remedy.startswith("perhaps you meant green; ")
    assert "paint.register" in refused.value.remedy

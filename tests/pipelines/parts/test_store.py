"""A store of parts, by a small one: what it begins with, refuses, and lacks."""

import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from beit.errors import UserError
from pipelines.parts.store import PartStore


@dataclass(frozen=True, kw_only=True)
class Recipe:
    seed: int = 0
    sizes: tuple[int, ...] = (2, 3)
    view: dict[str, float] = field(default_factory=lambda: {"area": 0.5, "flip": 1.0})


class Numbers(PartStore[Recipe]):
    description_files: ClassVar[tuple[str, ...]] = ("unfinished.json", "numbers.json")
    may_precede: ClassVar[frozenset[str]] = frozenset({"model"})
    what: ClassVar[str] = "numbers"
    mismatch: ClassVar[str] = "holds other numbers"
    option_names = {"seed": "--seed"}  # noqa: RUF012

    @property
    def parts(self):
        return 4

    def name(self, part):
        return f"folder-{part // 2}/part-{part}.bin"


def write(store, part):
    with store.open_output(part) as file:
        file.write(b"%d" % part)


def begun(folder, **changes) -> Numbers:
    store = Numbers(str(folder), Recipe(**changes))
    store.begin()
    return store


def test_what_is_written_is_no_longer_missing_and_is_read_by_its_number(tmp_path):
    store = begun(tmp_path / "out")
    assert store.missing() == [0, 1, 2, 3]
    write(store, 2)
    again = begun(tmp_path / "out")
    assert again.missing() == [0, 1, 3]
    with again.open_input(2) as file:
        assert file.read() == b"2"


def test_a_part_that_was_broken_off_is_missing(tmp_path):
    store = begun(tmp_path / "out")

    def interrupted() -> None:
        with store.open_output(1) as file:
            file.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.missing() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["unfinished.json", "numbers.json"])
def test_a_folder_goes_on_with_the_same_description_only_whatever_the_name_of_its_file(tmp_path, name):
    text = '{"seed": 0, "sizes": [2, 3], "view": {"flip": 1.0, "area": 0.5}}'
    (tmp_path / name).write_text(text)
    begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text
    with pytest.raises(
        UserError,
        match=rf"out={tmp_path} holds other numbers: --seed is 0 there and 1 here; "
        r"view\.area is 0\.5 there and 0\.1 here\ngive another folder, or the same options",
    ):
        begun(tmp_path, seed=1, view={"area": 0.1, "flip": 1.0})


def test_a_field_that_an_older_description_lacks_differs(tmp_path):
    (tmp_path / "numbers.json").write_text(json.dumps({"seed": 0, "sizes": [2, 3]}))
    with pytest.raises(UserError, match=r"view\.area is None there and 0\.5 here"):
        begun(tmp_path)


def test_a_store_of_another_format_is_refused_before_anything_else_is_compared(tmp_path):
    @dataclass(frozen=True)
    class Versioned:
        format: int = 1
        seed: int = 0

    class Later(Numbers):
        format: ClassVar[int | None] = 1

    (tmp_path / "numbers.json").write_text(json.dumps({"format": 2, "seed": 7}))
    with pytest.raises(UserError) as refused:
        Later(str(tmp_path), Versioned()).begin(option="--out")
    assert refused.value.cause == f"--out={tmp_path} has the format 2, and this version reads 1"
    assert refused.value.remedy == "give another folder"


def test_a_store_is_checked_against_what_is_expected_of_it(tmp_path):
    store = begun(tmp_path)
    store.check(Recipe(), option="data.numbers")
    with pytest.raises(UserError, match=rf"data\.numbers={tmp_path} holds .*--seed is 0 there and 7 here"):
        store.check(Recipe(seed=7), option="data.numbers")


def test_a_folder_with_anything_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=rf"out={tmp_path} is not empty and holds no numbers: thesis.tex"):
        begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["model", ".hidden"])
def test_what_may_precede_the_description_and_hidden_files_are_no_obstacle(tmp_path, name):
    (tmp_path / name).write_text("")
    assert begun(tmp_path).missing() == [0, 1, 2, 3]


def test_the_description_has_the_first_name_until_it_is_given_another(tmp_path):
    store = begun(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished.json"]
    store.write_description("numbers.json")
    first, second = ((tmp_path / "out" / name).read_text() for name in store.description_files)
    assert first == second == json.dumps(json.loads(first), indent=1) + "\n"

"""What a configuration chooses by name: the built-in choices, and those that are registered from outside."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Generic, TypeVar

from beit.errors import UserError

Choice = TypeVar("Choice")


class Registry(Generic[Choice]):
    """The choices of one option.

    A registry belongs to one process. What is sent to another process must therefore be the choice itself,
    never its name alone.
    """

    def __init__(self, option: str, built_in: Mapping[str, Choice], *, register: str) -> None:
        """Begin with the built-in choices.

        Args:
            option: The option that names a choice, such as "target.kind".
            built_in: These cannot be replaced.
            register: The function that adds one from outside, for the message about unknown names.
        """
        self._option = option
        self._built_in = frozenset(built_in)
        self._choices = dict(built_in)
        self._register = register

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `find` knows."""
        return tuple(self._choices)

    def add(self, name: str, choice: Choice) -> None:
        """Add a choice. A name from outside may be given again, as when a notebook's cell is run twice: the
        latest counts.
        """
        if name in self._built_in and choice != self._choices[name]:
            raise ValueError(f"{self._option}={name} is built in; choose another name")
        self._choices[name] = choice

    def find(self, name: str, *, option: str | None = None) -> Choice:
        """The choice of that name.

        Args:
            name: As the user typed it.
            option: The option that it was given by, where it is not this registry's.

        Raises:
            UserError: For an unknown name, with the nearest one.
        """
        if name not in self._choices:
            close = difflib.get_close_matches(name, self._choices, n=1)
            hint = f"perhaps you meant {close[0]}; " if close else ""
            raise UserError(
                f"{option or self._option}={name} is none of {', '.join(self._choices)}",
                f"{hint}one of your own is registered first, by {self._register}",
            )
        return self._choices[name]

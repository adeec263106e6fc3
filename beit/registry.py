"""What a configuration chooses by name: the built-in choices, and those that are registered from outside."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Generic, TypeVar

from beit.errors import UserError

Choice = TypeVar("Choice")


class Registry(Generic[Choice]):
    """The choices of one option.

    A registry belongs to one process. Another process is sent the choice itself, not its name; or, where it
    has to look names up, all choices from outside.
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

    @property
    def own(self) -> dict[str, Choice]:
        """The choices from outside, for another process to `adopt`."""
        return {name: choice for name, choice in self._choices.items() if name not in self._built_in}

    def adopt(self, own: Mapping[str, Choice]) -> None:
        """Add the choices from outside that another process has."""
        for name, choice in own.items():
            self.add(name, choice)

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

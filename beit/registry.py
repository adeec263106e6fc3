"""Choices that a configuration makes by name, such as targets and masks: built-in ones, and those that
programs register.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Generic, TypeVar

from beit.errors import UserError

Choice = TypeVar("Choice")


class Registry(Generic[Choice]):
    """The choices of one option.

    A registry belongs to one process. Other processes receive the choice itself, not its name; or, if they
    have to look names up, all registered choices.
    """

    def __init__(
        self, option: str, built_in: Mapping[str, Choice], *, register: str, replaceable: bool = False
    ) -> None:
        """Start with the built-in choices.

        Args:
            option: The option that names a choice, such as "target.kind".
            built_in: The choices that are always there.
            register: Name of the function that registers a choice, for the message about unknown names.
            replaceable: Whether a registered choice may take the name of a built-in one.
        """
        self._option = option
        self._built_in = dict(built_in)
        self._replaceable = replaceable
        self._choices = dict(built_in)
        self._register = register

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `find` knows."""
        return tuple(self._choices)

    @property
    def register(self) -> str:
        """Name of the function that registers a choice, for messages."""
        return self._register

    @property
    def own(self) -> dict[str, Choice]:
        """The registered choices, for another process to `adopt`."""
        return {
            name: choice
            for name, choice in self._choices.items()
            if name not in self._built_in or choice != self._built_in[name]
        }

    def adopt(self, own: Mapping[str, Choice]) -> None:
        """Add the choices that were registered in another process."""
        for name, choice in own.items():
            self.add(name, choice)

    def add(self, name: str, choice: Choice) -> None:
        """Add a choice. A registered name may be registered again, as when a notebook's cell is run twice;
        the latest choice counts.
        """
        if name in self._built_in and choice != self._built_in[name] and not self._replaceable:
            raise ValueError(f"{self._option}={name} is built in; choose another name")
        self._choices[name] = choice

    def find(self, name: str, *, option: str | None = None) -> Choice:
        """Return the choice with this name.

        Args:
            name: The name as the user typed it.
            option: The option that gave the name, if it is not this registry's.

        Raises:
            UserError: If the name is unknown; the message suggests the nearest one.
        """
        if name not in self._choices:
            close = difflib.get_close_matches(name, self._choices, n=1)
            hint = f"perhaps you meant {close[0]}; " if close else ""
            raise UserError(
                f"{option or self._option}={name} is none of {', '.join(self._choices)}",
                f"{hint}one of your own is registered first, by {self._register}",
            )
        return self._choices[name]

"""Take secrets out of text before it is printed, logged or saved, and refuse them on a command line.

A secret is a user with a password in a URI (`https://user:password@host`, `s3://KEY:SECRET@bucket`), a value
of a URI's query that is named as a secret (`?token=…`, `&X-Amz-Signature=…`), or what follows `Bearer`.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, cast

from beit.errors import UserError

HIDDEN = "***"

# `scheme://user:password@`. A password may hold a slash or an @, an address' port is no password.
PASSWORD = re.compile(
    r"(?P<before>[a-z][a-z0-9+.-]*://)(?![^\s/@:]*:\d{1,5}[/?#])"
    r"[^\s/@:?#\"'<>]*:(?:(?!://)[^\s\"'<>])*@",
    re.IGNORECASE,
)
# `https://token@host`, as services for source code have it. (`gs://anonymous@bucket` is no secret.)
WEB_USER = re.compile(r"(?P<before>https?://)[^\s/@?#\"'<>]+@", re.IGNORECASE)
QUERY = re.compile(
    r"(?P<before>[?&;](?:[\w.-]*(?:token|secret|passw|pwd|signature|credential|access.?key|api.?key|auth)"
    r"[\w.-]*|sig|key)=)[^\s&;#\"'<>]+",
    re.IGNORECASE,
)
BEARER = re.compile(r"(?P<before>\bBearer\s+)[\w.~+/=-]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Return a text with `***` in place of every secret."""
    for secret, after in ((PASSWORD, "@"), (WEB_USER, "@"), (QUERY, ""), (BEARER, "")):
        text = secret.sub(rf"\g<before>{HIDDEN}{after}", text)
    return text


def refuse_secrets(arguments: Iterable[str]) -> None:
    """Refuse a command line with a secret: other users of the machine see it, and run folders keep it.

    Raises:
        UserError: If there is one.
    """
    for argument in arguments:
        if (shown := redact(argument)) != argument:
            raise UserError(
                f"{shown} holds a secret, which would be saved with the run",
                "leave it out, and give it by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE; GOOGLE_APPLICATION_CREDENTIALS) or by your file of credentials",
            )


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redact what this process prints, tracebacks included."""
    before = sys.stdout, sys.stderr, sys.excepthook
    sys.stdout, sys.stderr = cast(TextIO, _Redacted(sys.stdout)), cast(TextIO, _Redacted(sys.stderr))
    # The interpreter prints the traceback later than this ends.
    sys.excepthook = _print_redacted
    try:
        yield
        sys.excepthook = before[2]
    finally:
        sys.stdout, sys.stderr = before[:2]


class _Redacted:
    """A stream that redacts each piece of text that is written to it; `print` writes a line in one piece."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _print_redacted(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, where))))

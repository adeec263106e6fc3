"""Errors of the world (disk, network, permissions, Ray, MLflow) in two lines; errors of the code keep their
traceback.
"""

from __future__ import annotations

import errno

LIBRARIES = ("ray", "pyarrow", "mlflow", "sqlalchemy", "sqlite3", "urllib3", "requests")
"""Packages whose own exceptions are about the world."""

REMEDIES = {
    errno.ENOSPC: "free some space there, or give another folder",
    errno.EDQUOT: "free some of your quota, or give another folder",
    errno.EACCES: "give yourself the permission, or give another path",
    errno.EPERM: "give yourself the permission, or give another path",
    errno.EROFS: "give a path that can be written",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENOENT: "look whether it was moved or deleted meanwhile",
    errno.ENOMEM: "free some memory, or use fewer --resources.cpus",
}


def unwrapped(error: BaseException) -> BaseException:
    """Return the exception that was raised first, where Ray has wrapped what a task raised."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    return error


def told(error: BaseException) -> tuple[str, str] | None:
    """Return cause and remedy of an error of the world; None for another one."""
    error = unwrapped(error)
    if isinstance(error, OSError):
        where = "" if error.filename is None else f": {error.filename}"
        reason = error.strerror or _first_line(error)
        return f"{reason}{where}", REMEDIES.get(error.errno or 0, "--debug shows where it happened")
    if isinstance(error, MemoryError):
        return "there is not enough memory", REMEDIES[errno.ENOMEM]
    if type(error).__module__.partition(".")[0] in LIBRARIES:
        return f"{type(error).__name__}: {_first_line(error)}", "--debug shows where it happened"
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

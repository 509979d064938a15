"""The exceptions that a user is meant to see."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a disk answers that is full, read-only, forbidden or broken."""


class UserError(Exception):
    """Input that Stillroom cannot work with.

    The message is one line that names the thing, the value and the way out; the command line prints it
    without a traceback and exits with status 2. What a terminal would obey or break the line at (names of files
    and tensors may hold anything) is shown as an escape.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class NonFinite(UserError):
    """A loss or a weight is infinite or not a number; the command line exits with status 1."""


class Interrupted(Exception):
    """The run was asked to stop, has saved its state and can be resumed."""


def printable(text: str) -> str:
    """The text with every character that cannot be printed (control, direction, line ends) as its escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def refused(place: Path, way: str) -> Iterator[None]:
    """What the disk refuses inside becomes a UserError of the file (`place`, where none is named) and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        file = error.filename or place
        raise UserError(f"'{file}' is refused by the disk ({error.strerror}): {way}") from error


def reason(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing: to stand inside a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def require(flag: str, value: float, low: float, high: float = math.inf, *, ends: str = "[]") -> None:
    """Raise UserError unless `value` lies between `low` and `high`; `ends` says which ends belong to the range."""
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if above and below and math.isfinite(value):
        return
    if high == math.inf:
        wanted = f"{low:g} or more" if ends[0] == "[" else f"a number above {low:g}"
    else:
        words = {"[": "", "(": " (itself excluded)", "]": "", ")": " (itself excluded)"}
        wanted = f"a number from {low:g}{words[ends[0]]} to {high:g}{words[ends[1]]}"
    raise UserError(f"{flag} is {value}: pass {wanted}")

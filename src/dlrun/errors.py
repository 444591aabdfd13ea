"""The one exception a user sees, and the exit codes it carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every dlrun command."""

    OK = 0
    BUG = 1
    USAGE = 2
    TRAINING = 3
    DATA = 4
    MEMORY = 5
    DISK = 6
    GATE = 7
    TRACKING = 8
    INTERRUPTED = 130
    TERMINATED = 143


class DlrunError(Exception):
    """An error that is the user's to mend: what is wrong, and the next thing to type.

    message: one line: where, what was given, what was expected.
    hint: one line, or empty.
    code: the exit code of the command that ends with this error.
    """

    def __init__(self, message: str, hint: str = "", code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = Exit(code)

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self):  # crosses process borders with its hint and code
        return type(self), (self.message, self.hint, self.code)


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known spelling closest to what was given, or None if nothing is close."""
    names = list(known)
    found = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if found:
        return found[0]
    folded = {name.lower().replace("-", "_"): name for name in names}
    found = difflib.get_close_matches(given.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(given: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for a misspelt name: the nearest known one, else the list of what is known."""
    names = sorted(known)
    close = nearest(given, names)
    if close is not None:
        return f"did you mean {close}?"
    if otherwise:
        return otherwise
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"known: {shown}" if shown else ""

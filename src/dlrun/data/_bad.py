"""What happens to a row that cannot be read: an error, or it is left out, up to a budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dlrun.errors import DlrunError, Exit


@dataclass
class BadRows:
    """The rows of one data set that could not be read, and how many may be.

    what: one and several of what may be bad; a bad box counts as a bad row does.
    A streaming split counts in each worker process for itself.
    """

    on_bad: Literal["raise", "skip"] = "raise"
    max_bad: int = 10
    what: tuple[str, str] = ("row", "rows")
    found: dict[str, str] = field(default_factory=dict)  # place -> reason

    def report(self, place: str, reason: str) -> None:
        """Note a bad row. Raises DlrunError where bad rows are refused, or the budget is spent."""
        self.found[place] = reason
        if self.on_bad == "raise":
            hint = f"leave such {self.what[1]} out, up to data.max_bad={self.max_bad}: data.on_bad=skip"
            raise DlrunError(f"{place}: {reason}", hint, Exit.DATA)
        if len(self.found) > self.max_bad:
            place, reason = next(iter(self.found.items()))
            raise DlrunError(
                f"more than data.max_bad={self.max_bad} {self.what[1]} cannot be read; the first is {place}: {reason}",
                "mend the data, or raise data.max_bad",
                Exit.DATA,
            )

    def apart(self) -> BadRows:
        """An empty count with the same rules, for rows that are read beside others."""
        return BadRows(self.on_bad, self.max_bad, self.what)

    def add(self, other: BadRows) -> None:
        """Count what was found apart."""
        for place, reason in other.found.items():
            self.report(place, reason)

    def notes(self) -> list[str]:
        """A sentence about the rows left out so far."""
        if not self.found:
            return []
        place, reason = next(iter(self.found.items()))
        count = len(self.found)
        rows = (
            f"1 {self.what[0]} that cannot be read is"
            if count == 1
            else f"{count} {self.what[1]} that cannot be read are"
        )
        return [f"{rows} left out; the first is {place}: {reason}"]

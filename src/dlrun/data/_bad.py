"""What happens to a row that cannot be read: an error, or it is left out, up to a budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dlrun.errors import DlrunError, Exit


@dataclass
class BadRows:
    """The rows of one data set that could not be read, and how many may be.

    A streaming split counts in each worker process for itself.
    """

    on_bad: Literal["raise", "skip"] = "raise"
    max_bad: int = 10
    found: dict[str, str] = field(default_factory=dict)  # place -> reason

    def report(self, place: str, reason: str) -> None:
        """Note a bad row. Raises DlrunError where bad rows are refused, or the budget is spent."""
        self.found[place] = reason
        if self.on_bad == "raise":
            hint = f"leave such rows out, up to data.max_bad={self.max_bad}: data.on_bad=skip"
            raise DlrunError(f"{place}: {reason}", hint, Exit.DATA)
        if len(self.found) > self.max_bad:
            place, reason = next(iter(self.found.items()))
            raise DlrunError(
                f"more than data.max_bad={self.max_bad} rows cannot be read; the first is {place}: {reason}",
                "mend the data, or raise data.max_bad",
                Exit.DATA,
            )

    def notes(self) -> list[str]:
        """A sentence about the rows left out so far."""
        if not self.found:
            return []
        place, reason = next(iter(self.found.items()))
        rows = (
            "1 row that cannot be read is"
            if len(self.found) == 1
            else f"{len(self.found)} rows that cannot be read are"
        )
        return [f"{rows} left out; the first is {place}: {reason}"]

"""The characters that a transcript is spelled with; number 0 is the blank of connectionist temporal classification."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from dlrun.errors import DlrunError, Exit

CHARACTERS_FILE = "characters.json"


@dataclass(frozen=True)
class Characters:
    """A vocabulary of single characters. known: in their order, from number 1."""

    known: tuple[str, ...]
    lower: bool = False

    @staticmethod
    def of(texts: Iterable[str], lower: bool = False) -> Characters:
        """The blank and the characters that these texts have, in the order of their code points."""
        spelled = Characters((), lower)
        return Characters(tuple(sorted({" ", *(one for text in texts for one in spelled.plain(text))})), lower)

    @property
    def size(self) -> int:
        """With the blank."""
        return len(self.known) + 1

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.known, start=1)}

    def plain(self, text: str) -> str:
        """The text as it is spelled here: blanks side by side are one, and there is none at an end."""
        text = " ".join(text.split())
        return text.lower() if self.lower else text

    def unknown(self, text: str) -> str | None:
        """The first character of a text that is not known, or None."""
        return next((character for character in self.plain(text) if character not in self._numbers), None)

    def encode(self, text: str) -> list[int]:
        """The number of each character. Raises: KeyError for one that is not known."""
        return [self._numbers[character] for character in self.plain(text)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of numbers; blanks have no text."""
        return "".join(self.known[number - 1] for number in numbers if number)

    def to_json(self) -> bytes:
        """What `from_json` reads."""
        stored = {"lower": self.lower, "characters": list(self.known)}
        return json.dumps(stored, ensure_ascii=False, indent=1).encode()

    @staticmethod
    def from_json(content: bytes, name: str = CHARACTERS_FILE) -> Characters:
        """Raises: DlrunError with code DATA for a file that is none."""
        try:
            stored = json.loads(content)
            known = tuple(stored["characters"])
            is_fine = len(set(known)) == len(known) and all(isinstance(one, str) and len(one) == 1 for one in known)
            made = Characters(known, bool(stored["lower"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DlrunError(f"{name}: is no list of characters", code=Exit.DATA) from error
        if not is_fine:
            raise DlrunError(f"{name}: each character stands there once, and alone", code=Exit.DATA)
        return made

"""How much of some texts a vocabulary knows: what it does not becomes one and the same token, and says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from dlrun.tokens import Tokenizer


class Coverage(NamedTuple):
    """tokens: of some texts, special ones aside.   unknown: those of them that stand for what is not known."""

    tokens: int = 0
    unknown: int = 0

    @staticmethod
    def of(tokenizer: Tokenizer, rows: Iterable[np.ndarray]) -> Coverage:
        """rows: tokens [T] of each text."""
        counts_V = np.bincount(np.concatenate([np.zeros(0, np.int64), *rows]), minlength=tokenizer.size)
        unknown = int(counts_V[list(tokenizer.unknowns)].sum())
        return Coverage(int(counts_V.sum() - counts_V[list(tokenizer.specials)].sum()) + unknown, unknown)

    def plus(self, other: Coverage) -> Coverage:
        """That of both."""
        return Coverage(self.tokens + other.tokens, self.unknown + other.unknown)

    @property
    def share_unknown(self) -> float:
        """0 to 1; 0 of no tokens."""
        return self.unknown / max(1, self.tokens)

"""Hiding tokens of a text, for a model that learns to fill them in."""

# B batch, T places of a text

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlrun.contracts import NO_TARGET, Batch, DataSpec
from dlrun.errors import DlrunError
from dlrun.randomness import Draws, key, uniform
from dlrun.tokens import FILE, Tokenizer


class Hidden(NamedTuple):
    """Tokens with some of them hidden, and what was there: NO_TARGET where nothing is asked; int64 [B, T] both."""

    tokens_BT: Tensor
    targets_BT: Tensor


@dataclass(frozen=True)
class Masking:
    """Each token of text is asked for with this probability, and one of each example always is. Of those, 80 % are
    replaced by the mask token, 10 % by a random one, and 10 % stay.

    Source: Devlin et al. 2019, "BERT", section 3.1 and appendix A.1.
    """

    probability: float
    mask: int
    vocabulary: int
    specials: tuple[int, ...]  # never asked for

    @staticmethod
    def of(spec: DataSpec, probability: float) -> Masking:
        """For data of texts. Raises: DlrunError for data without, or a vocabulary without a mask token."""
        vocabulary = spec.size("vocabulary")
        if FILE not in spec.files:
            raise DlrunError(f"hiding tokens needs data with a vocabulary ({FILE})", "see: dlrun list data")
        tokenizer = Tokenizer.from_json(spec.files[FILE])
        return Masking(probability, tokenizer.mask, vocabulary, tuple(sorted(tokenizer.specials)))

    def hide(self, batch: Batch, draws: Draws) -> Hidden:
        """Reads tokens [B, T], and lengths [B] where there are some. What is hidden of an example depends on its draws
        alone, not on how far its batch is padded."""
        tokens_BT = batch["tokens"]
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        is_text_BT = ~torch.isin(tokens_BT, torch.tensor(self.specials, device=tokens_BT.device))
        if "lengths" in batch:
            is_text_BT &= places_T < batch["lengths"][:, None]
        high_B, low_B = draws.integers(0, 1 << 24, 2).unbind(1)
        counters_BT = (((high_B << 24) + low_B) << 15)[:, None] + places_T
        chance_BT, kind_BT, other_BT = (uniform(counters_BT, key("hide", number)) for number in range(3))
        chance_BT = chance_BT.masked_fill(~is_text_BT, 2.0)
        is_least_BT = chance_BT == chance_BT.min(1, keepdim=True).values
        is_asked_BT = ((chance_BT < self.probability) | is_least_BT) & is_text_BT
        random_BT = (other_BT * self.vocabulary).long().clamp(max=self.vocabulary - 1)
        other_BT = torch.where(kind_BT < 0.8, torch.full_like(tokens_BT, self.mask), random_BT)
        hidden_BT = torch.where(is_asked_BT & (kind_BT < 0.9), other_BT, tokens_BT)
        return Hidden(hidden_BT, tokens_BT.masked_fill(~is_asked_BT, NO_TARGET))

"""Hide tokens, for a model that learns to fill them in."""

from __future__ import annotations

from dlrun.augment._checks import within
from dlrun.contracts import NO_TARGET, Augmentation, Batch, DataSpec
from dlrun.masking import Masking
from dlrun.randomness import Draws


def build(spec: DataSpec, *, probability: float = 0.15) -> Augmentation:
    """Other tokens are hidden in every epoch; for task=masked_language_model, which else hides the same ones each time.

    Settings:
        probability: of a token being asked for, above 0 and at most 1.
    Source: Devlin et al. 2019, "BERT", section 3.1; anew in every epoch as in Liu et al. 2019, "RoBERTa", section 4.1.
    """
    within("mask_tokens", "probability", probability, 1e-3, 1)
    masking = Masking.of(spec, probability)

    def mask_tokens(batch: Batch, draws: Draws) -> Batch:
        tokens_BT, targets_BT = masking.hide(batch, draws)
        hidden = {"tokens": tokens_BT, "targets": targets_BT, "hidden": targets_BT != NO_TARGET}
        return {name: field for name, field in batch.items() if name != "num_targets"} | hidden

    return mask_tokens

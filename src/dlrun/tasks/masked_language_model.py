"""Hidden tokens of a text, from those around them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.masking import Masking
from dlrun.metrics.text import Perplexity
from dlrun.randomness import Draws
from dlrun.tasks import _token_losses

_FIXED = 0x4D4C4D  # keys what is hidden of an example wherever no augmentation hides: at every evaluation the same


def build(spec: DataSpec, *, probability: float = 0.15) -> MaskedLanguageModelTask:
    """Cross-entropy of the tokens that were hidden, in nats.

    What is hidden while training is decided by data.augment.mask_tokens, anew in every epoch; without it an example
    always has the same tokens hidden.

    Settings:
        probability: of a token being asked for, above 0 and at most 1; at evaluations, and without the augmentation
    Source: Devlin et al. 2019, "BERT", section 3.1.
    """
    if not 0 < probability <= 1:
        raise DlrunError(f"task.probability: {probability} is not above 0 and at most 1", "try task.probability=0.15")
    return MaskedLanguageModelTask(spec, Masking.of(spec, probability))


@dataclass(eq=False)
class MaskedLanguageModelTask:
    """See `build`. Models see both sides of a token, and map the inputs to logits [B, T, V]."""

    spec: DataSpec
    masking: Masking

    goal = Goal("loss", "min")
    additive = True
    unit = "tokens"
    hub_kind = "fill-mask"

    def _hidden(self, batch: Batch) -> Batch:
        """The batch as an augmentation has hidden it, or with what is always hidden of its examples."""
        if "hidden" in batch:
            return batch
        tokens_BT, targets_BT = self.masking.hide(batch, Draws(batch["id"], seed=_FIXED, epoch=0))
        known = {name: field for name, field in batch.items() if name not in ("bytes", "num_targets")}
        return known | {"tokens": tokens_BT, "targets": targets_BT}

    def count(self, batch: Batch) -> int:
        """Hidden tokens in this batch."""
        return _token_losses.num_targets(self._hidden(batch))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over hidden tokens, in nats."""
        batch = self._hidden(batch)
        logits_BTV = _token_losses.logits_of(model, self.spec, batch, self.masking.vocabulary)
        return _token_losses.loss(logits_BTV, batch, label_smoothing=0.0)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Sums by example, see metrics.text.Perplexity."""
        batch = self._hidden(batch)
        logits_BTV = _token_losses.logits_of(model, self.spec, batch, self.masking.vocabulary)
        return Outputs(batch["id"], _token_losses.sums(logits_BTV, batch))

    def metrics(self) -> list[Metric]:
        """loss, perplexity and accuracy of hidden tokens."""
        return [Perplexity()]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "loss" (a hidden token's, in nats), "perplexity", "tokens" (hidden ones)}."""
        return _token_losses.rows(outputs)

"""Several models that say tokens, as one: the average of what each expects next."""

# B batch, T places, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.decoding import State
from dlrun.errors import DlrunError

Space = Literal["probabilities", "logits", "geometric"]


def average(log_probs: Sequence[Tensor], of: Space) -> Tensor:
    """Log-probabilities over the last dimension: of the mean of probabilities, or the mean of logits made to sum to 1.

    A single one is itself. Raises: DlrunError for vocabularies of different sizes.
    """
    sizes = [each.shape[-1] for each in log_probs]
    if len(set(sizes)) > 1:
        raise DlrunError(f"the members say tokens of different vocabularies, of {' and '.join(map(str, sizes))} tokens")
    if len(log_probs) == 1:
        return log_probs[0]
    stacked = torch.stack(list(log_probs))
    if of == "probabilities":
        return stacked.logsumexp(0) - math.log(len(log_probs))
    return stacked.mean(0).log_softmax(-1)


class AverageModel(nn.Module):
    """Models of one vocabulary as a model: forward, start and step give the average's log-probabilities."""

    def __init__(self, models: Sequence[nn.Module], of: Space = "probabilities") -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.of: Space = of

    def forward(self, *inputs: Tensor) -> Any:
        """Log-probabilities [B, T, V]; a single model's logits as they are. Of models that give more (CTC: how many
        frames count) the rest is the first one's."""
        said = [model(*inputs) for model in self.models]
        if len(said) == 1:
            return said[0]
        logits = [each[0] if isinstance(each, tuple) else each for each in said]
        mean = average([each.float().log_softmax(-1) for each in logits], self.of)
        return (mean, *said[0][1:]) if isinstance(said[0], tuple) else mean

    def start(self, *inputs: Tensor) -> tuple[Tensor, State]:
        """See Decoder."""
        return self._joined([model.start(*inputs) for model in self._saying()])

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """See Decoder."""
        pairs = zip(self._saying(), state, strict=True)
        return self._joined([model.step(tokens_B, own) for model, own in pairs])

    def _saying(self) -> list[Any]:
        for model in self.models:
            if not callable(getattr(model, "start", None)) or not callable(getattr(model, "step", None)):
                raise DlrunError(
                    f"model: {type(model).__name__} does not generate: it has no start and step",
                    "choose members that say sequences",
                )
        return list(self.models)

    def _joined(self, said: list[tuple[Tensor, State]]) -> tuple[Tensor, State]:
        logits, states = [each for each, _ in said], tuple(state for _, state in said)
        if len(logits) == 1:
            return logits[0], states
        return average([each.float().log_softmax(-1) for each in logits], self.of), states


def require_one_vocabulary(specs: Sequence[DataSpec], names: Sequence[str]) -> None:
    """Raises: DlrunError naming the member whose tokens are not the first one's."""
    first = specs[0].to_json()
    for name, spec in zip(names[1:], specs[1:], strict=True):
        if spec.to_json()["files"] != first["files"] or spec.sizes.get("vocabulary") != specs[0].sizes.get(
            "vocabulary"
        ):
            raise DlrunError(
                f"{name} and {names[0]} say tokens of different vocabularies, which cannot be averaged",
                "train members on the same data with the same vocabulary",
            )

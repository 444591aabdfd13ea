"""An ensemble that averages as one model: its members side by side, and the mean of what they say."""

# M members, B batch, C classes

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.contracts import Exportable, Unfinished
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError
from dlrun.exporting import Source
from dlrun.predictor import TrainedModel


class MeanOf(nn.Module):
    """The weighted mean of models' answers.

    kind: "classes" (logits go in, logarithms of probabilities come out), "labels" (logits, each by itself) or
    "numbers".   of: "probabilities", else what goes in is averaged as it is.   temperature: divides what comes out.
    """

    def __init__(
        self, models: Sequence[nn.Module], weights: Sequence[float], kind: str, of: str, temperature: float | None
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.shares = [weight / sum(weights) for weight in weights]
        self.kind, self.of, self.temperature = kind, of, temperature

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the members' own: [B, C], [B, C, h, w] or [B, T]."""
        said = [model(*inputs) for model in self.models]
        if self.kind == "classes":
            said = [logits.log_softmax(1) for logits in said]
        if self.kind == "numbers" or self.of != "probabilities":
            mean = torch.stack([share * values for share, values in zip(self.shares, said, strict=True)]).sum(0)
        elif self.kind == "classes":
            parts = [values + math.log(share) for share, values in zip(self.shares, said, strict=True)]
            mean = torch.stack(parts).logsumexp(0)
        else:
            mean = sum(share * values.sigmoid() for share, values in zip(self.shares, said, strict=True))
            assert isinstance(mean, Tensor)
            mean = mean.logit(eps=1e-7)
        if self.temperature is not None and self.kind != "numbers":
            mean = mean / self.temperature
        return mean.log_softmax(1) if self.kind == "classes" else mean

    def exportable(self) -> nn.Module:
        """The mean of the members' own exportable forms."""
        forms = [model.exportable() if isinstance(model, Exportable) else model for model in self.models]
        if any(isinstance(form, Unfinished) for form in forms):
            raise DlrunError("export: these members' answers are chosen, and then combined, outside of a graph")
        return MeanOf(forms, self.shares, self.kind, self.of, self.temperature)


def source(predictor: Any) -> Source:
    """The ensemble of a run as one model. Raises: DlrunError for a method that is no mean, or members that are none."""
    method, hint = predictor.method, "make one model of it: dlrun compress RUN compression=distill, or ensemble=soup"
    if not isinstance(method, Average):
        raise DlrunError(f"export: {type(method).__name__.lower()} is no mean of its members", hint)
    sources = []
    for member in predictor.members:
        if type(member) is not TrainedModel and not hasattr(member, "members"):
            raise DlrunError("export: draws of one model with dropout are no graph", hint)
        sources.append(Source.of(member))
    first = sources[0]
    if any(_pipeline(each) != _pipeline(first) for each in sources):
        raise DlrunError("export: the members prepare their inputs in different ways", "export each of them")
    kind = next((kind for kind, sizes in _KINDS.items() if sizes & first.spec.sizes.keys()), None)
    if kind is None:
        raise DlrunError("export: what these members say is not averaged in a graph", hint)
    weights = predictor.fit.get("weights") or [1.0] * len(sources)
    used = [(each.model, weight) for each, weight in zip(sources, weights, strict=True) if weight > 0]
    mean = MeanOf(
        [model for model, _ in used], [weight for _, weight in used], kind, method.mean.of, predictor.temperature
    )
    return Source(mean.eval(), first.inputs, first.spec, first.task, first.batch_size, first.load, predictor.evaluate)


_KINDS = {"classes": {"classes", "pixel_classes"}, "labels": {"labels"}, "numbers": {"targets"}}


def _pipeline(source: Source) -> dict[str, Any]:
    """What decides how examples become inputs."""
    stored = source.spec.to_json()
    return {name: stored[name] for name in ("inputs", "shapes", "assets", "files")}

"""What can be combined of members' Outputs: the one table of fields, and weighted means of them."""

# N examples, C classes, T targets, M members; P rows that are one prediction each (examples, or pixels of them)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dlrun.contracts import IGNORED, Outputs
from dlrun.ensembles._boxes import Fusion, fused
from dlrun.errors import DlrunError

Kind = Literal["classes", "labels", "numbers", "boxes"]
Space = Literal["probabilities", "logits", "geometric"]
_MOST_PIXELS = 200_000  # that methods learn from, of all pictures together
_LOWEST = -1e4  # log-probability, as tasks of pixels have it


class Form(NamedTuple):
    """The field that members are combined in, what it holds, and the field of the truth."""

    field: str
    kind: Kind
    truth: str


FORMS = (
    Form("boxes", "boxes", "true_boxes"),
    Form("log_probabilities", "classes", "label"),  # [N, C], or [N, C, h, w] with the truth in "mask"
    Form("logits", "labels", "labels"),  # [N, C], each by itself
    Form("prediction", "numbers", "target"),  # [N, T]
    Form("scores", "numbers", "target"),  # [N, items] of a recommender; of boxes they belong to these
    Form("all_scores", "numbers", "target"),  # [N, all items], minus infinity where an item is not to be recommended
)


def form_of(outputs: Outputs) -> Form:
    """What these outputs are combined in. Raises: DlrunError for outputs that hold sums or texts only."""
    for form in FORMS:
        if form.field in outputs.fields:
            return form._replace(truth="mask") if "mask" in outputs.fields else form
    raise DlrunError(
        f"these predictions cannot be combined: they hold {', '.join(outputs.fields)}",
        "models that say tokens are combined while they say them: ensemble=average",
    )


def require(method: str, outputs: Outputs, *kinds: Kind) -> Form:
    """The form, which must be of one of these kinds. Raises: DlrunError naming the method."""
    form = form_of(outputs)
    if form.kind not in kinds:
        said = {"classes": "classes", "labels": "several labels", "numbers": "numbers", "boxes": "boxes"}[form.kind]
        raise DlrunError(f"ensemble={method} does not apply to {said}", "try ensemble=average or ensemble=greedy")
    return form


def require_validation(method: str, members: Sequence[Outputs]) -> None:
    """Raises: DlrunError where there is nothing to learn from."""
    if not members:
        raise DlrunError(
            f"ensemble={method} learns from the validation split, and the members share none",
            "try ensemble=average, or train members with the same data.split_seed",
        )


def require_truth(method: str, outputs: Outputs, form: Form) -> None:
    """Raises: DlrunError for a method that learns from the truth, where there is none (scores of items)."""
    if form.truth not in outputs.fields:
        raise DlrunError(
            f"ensemble={method} does not apply to scores of items: none of them has a true value",
            "try ensemble=average or ensemble=greedy",
        )


def best_anew(outputs: Outputs) -> Outputs:
    """With the best items by scores that were combined; other outputs as they are."""
    if "all_scores" not in outputs.fields:
        return outputs
    found = outputs.fields["all_scores"].topk(outputs.fields["top"].shape[1], 1)
    best = {"top": found.indices, "top_scores": found.values.float()}
    return Outputs(outputs.ids, outputs.fields | best)


# ---------------------------------------------------------------- means


@dataclass(frozen=True)
class Mean:
    """How outputs are averaged. of: what is averaged of classes and labels; the logits of members differ from
    log-probabilities by a number for each example, so that their mean and the geometric one are the same."""

    of: Space = "probabilities"
    fusion: Fusion = Fusion()  # noqa: RUF009 - frozen

    def __call__(self, members: Sequence[Outputs], weights: Sequence[float]) -> Outputs:
        """The weighted mean; all other fields are the first member's. A single one that weighs is itself, to the bit.

        weights: at least 0, not all of them 0; they need not sum to 1.
        """
        total = float(sum(weights))
        used = [(member, weight / total) for member, weight in zip(members, weights, strict=True) if weight > 0]
        if len(used) == 1:
            return used[0][0]
        form, first = form_of(members[0]), members[0]
        if form.kind == "boxes":
            return fused(members, weights, self.fusion)
        parts = [(member.fields[form.field], weight) for member, weight in used]
        if form.kind == "numbers":
            mean, variance = _moments(parts)
            # Ranks among more than these scores are one member's own: nothing is known of the mean's.
            others = {name: field for name, field in first.fields.items() if name != "rank"}
            if form.field == "all_scores":
                return Outputs(first.ids, others | {form.field: mean})
            return Outputs(first.ids, others | {form.field: mean, "variance": variance})
        mean = _classes(parts, self.of) if form.kind == "classes" else _labels(parts, self.of)
        return Outputs(first.ids, first.fields | {form.field: mean.to(first.fields[form.field].dtype)})


def _wide(values: Tensor) -> Tensor:
    """Pixels in single precision, for there are many; all else in double."""
    return values.float() if values.dim() > 2 else values.double()


def _classes(parts: Sequence[tuple[Tensor, float]], of: Space) -> Tensor:
    if of != "probabilities":
        return sum(weight * _wide(values) for values, weight in parts).log_softmax(1).clamp(min=_LOWEST)  # type: ignore[union-attr]
    return sum(weight * _wide(values).exp() for values, weight in parts).log().clamp(min=_LOWEST)  # type: ignore[union-attr]


def _labels(parts: Sequence[tuple[Tensor, float]], of: Space) -> Tensor:
    if of != "probabilities":
        return sum(weight * values.double() for values, weight in parts)  # type: ignore[return-value]
    mean: Tensor = sum(weight * values.double().sigmoid() for values, weight in parts)  # type: ignore[assignment]
    return mean.logit(eps=1e-12)


def _moments(parts: Sequence[tuple[Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Mean and variance over members (Lakshminarayanan et al. 2017, section 2.4, without the members' own)."""
    mean: Tensor = sum(weight * values.double() for values, weight in parts)  # type: ignore[assignment]
    variance: Tensor = sum(weight * (values.double() - mean) ** 2 for values, weight in parts)  # type: ignore[assignment]
    return mean.to(parts[0][0].dtype), variance.float()


# ---------------------------------------------------------------- rows to learn from


class Rows(NamedTuple):
    """values [P, C] (log-probabilities, logits or numbers, float64) and truth [P] or [P, C]; None if unknown."""

    values: Tensor
    truth: Tensor | None


def rows_of(outputs: Outputs) -> Rows:
    """One row a prediction. Of pixels an even sample of those that count, the same for all members."""
    form = form_of(outputs)
    values, truth = outputs.fields[form.field], outputs.fields.get(form.truth)
    if form.kind == "numbers":
        return Rows(values.double().flatten(1), None if truth is None else truth.flatten(1))
    if values.dim() <= 2 or form.kind != "classes":
        return Rows(values.double(), truth)
    stride = max(1, values[:, 0].numel() // _MOST_PIXELS)
    flat_PC = values.movedim(1, -1).reshape(-1, values.shape[1])[::stride].double()
    if truth is None:
        return Rows(flat_PC, None)
    if truth.shape[1:] != values.shape[2:]:
        truth = interpolate(truth[:, None], size=values.shape[2:], mode="nearest-exact")[:, 0]
    mask_P = truth.reshape(-1)[::stride]
    counts_P = mask_P != IGNORED
    return Rows(flat_PC[counts_P], mask_P[counts_P].long())


def losses(outputs: Outputs) -> Tensor | None:
    """[P] float64: the negative log-likelihood of each row, or its squared error; None for boxes, or without truth."""
    form = form_of(outputs)
    if form.kind == "boxes":
        return None
    values, truth = rows_of(outputs)
    if truth is None:
        return None
    if form.kind == "classes":
        return -values.gather(1, truth[:, None].long())[:, 0]
    if form.kind == "numbers":
        return ((values - truth.double()) ** 2).mean(1)
    return torch.nn.functional.binary_cross_entropy_with_logits(values, truth.double(), reduction="none").mean(1)


def aligned(members: Sequence[Outputs], names: Sequence[str]) -> list[Outputs]:
    """The same examples of every member, in ascending order of id. Raises: DlrunError naming one that lacks some."""
    ordered = [member.by_id() for member in members]
    for name, member in zip(names, ordered, strict=True):
        if not torch.equal(member.ids, ordered[0].ids):
            raise DlrunError(f"{name} and {names[0]} did not predict the same examples", "use members on the same data")
    return ordered

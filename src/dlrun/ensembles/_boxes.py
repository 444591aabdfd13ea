"""Several detectors' boxes as one's: weighted boxes fusion, and suppression of what overlaps."""

# N examples, D detections of an example, K clusters

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlrun.contracts import Outputs
from dlrun.errors import DlrunError


@dataclass(frozen=True)
class Fusion:
    """boxes: fusion averages boxes that overlap, nms keeps the surest of them.
    overlap: intersection over union from which boxes are one."""

    boxes: Literal["fusion", "nms"] = "fusion"
    overlap: float = 0.55

    def __post_init__(self) -> None:
        if not 0 < self.overlap < 1:
            raise DlrunError(f"ensemble.overlap: {self.overlap} is not between 0 and 1", "try ensemble.overlap=0.55")


def fused(members: Sequence[Outputs], weights: Sequence[float], how: Fusion) -> Outputs:
    """boxes [N, D, 4], scores [N, D] and labels [N, D] of all members together, the surest first; D is the largest of
    the members'. weights: of members, 0 leaves one out."""
    used = [(member.fields, weight) for member, weight in zip(members, weights, strict=True) if weight > 0]
    most = max(fields["scores"].shape[1] for fields, _ in used)
    found = [_of_example(index, used, how, most) for index in range(len(members[0].ids))]
    fields = {name: torch.stack([example[place] for example in found])
              for place, name in enumerate(("boxes", "scores", "labels"))}  # fmt: skip
    return Outputs(members[0].ids, members[0].fields | fields)


def _of_example(
    index: int, used: Sequence[tuple[dict[str, Tensor], float]], how: Fusion, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    boxes, scores, labels, shares = [], [], [], []
    for fields, weight in used:
        there_D = fields["labels"][index] >= 0
        boxes.append(fields["boxes"][index][there_D])
        scores.append(fields["scores"][index][there_D])
        labels.append(fields["labels"][index][there_D])
        shares.append(torch.full((int(there_D.sum()),), weight))
    total = sum(weight for _, weight in used)
    join = _fusion if how.boxes == "fusion" else _suppression
    parts = [torch.cat(boxes), torch.cat(scores), torch.cat(shares)]
    classes = torch.cat(labels)
    made = []
    for label in classes.unique().tolist():
        boxes_D4, scores_D, shares_D = (part[classes == label] for part in parts)
        made.append((*join(boxes_D4, scores_D, shares_D, how.overlap, total), label))
    if not made:
        return torch.zeros(most, 4), torch.zeros(most), torch.full((most,), -1)
    boxes_K4, scores_K = torch.cat([part[0] for part in made]), torch.cat([part[1] for part in made])
    labels_K = torch.cat([torch.full((len(part[1]),), part[2]) for part in made])
    order = scores_K.argsort(descending=True, stable=True)[:most]
    more = most - len(order)
    return (
        pad(boxes_K4[order], (0, 0, 0, more)),
        pad(scores_K[order], (0, more)),
        pad(labels_K[order], (0, more), value=-1),
    )


def _fusion(
    boxes_D4: Tensor, scores_D: Tensor, shares_D: Tensor, overlap: float, total: float
) -> tuple[Tensor, Tensor]:
    """One class of one picture. A cluster's box is the mean of its boxes weighted by their scores; its score is their
    mean, lowered by the share of the members that saw nothing there.

    Source: Solovyev et al. 2021, "Weighted boxes fusion", section 3, equations 1 to 4 and 6.
    """
    clusters: list[list[int]] = []
    centres = torch.zeros(0, 4)
    weights_D = scores_D * shares_D
    for index in (scores_D * shares_D).argsort(descending=True, stable=True).tolist():
        overlaps_K = _overlaps(boxes_D4[index], centres)
        best = int(overlaps_K.argmax()) if len(overlaps_K) else -1
        if best >= 0 and overlaps_K[best] > overlap:
            clusters[best].append(index)
            own = torch.tensor(clusters[best])
            centres[best] = (boxes_D4[own] * weights_D[own, None]).sum(0) / weights_D[own].sum().clamp(min=1e-12)
        else:
            clusters.append([index])
            centres = torch.cat([centres, boxes_D4[index][None]])
    scores = [
        weights_D[own].sum() / shares_D[own].sum() * (shares_D[own].sum() / total).clamp(max=1) for own in clusters
    ]
    return centres, torch.stack(scores)


def _suppression(
    boxes_D4: Tensor, scores_D: Tensor, shares_D: Tensor, overlap: float, total: float
) -> tuple[Tensor, Tensor]:
    """One class of one picture: of boxes that overlap, the surest."""
    left = scores_D.argsort(descending=True, stable=True).tolist()
    kept: list[int] = []
    while left:
        best = left.pop(0)
        kept.append(best)
        overlaps = _overlaps(boxes_D4[best], boxes_D4[left]) if left else torch.zeros(0)
        left = [index for index, value in zip(left, overlaps.tolist(), strict=True) if value <= overlap]
    return boxes_D4[kept], scores_D[kept]


def _overlaps(box_4: Tensor, boxes_K4: Tensor) -> Tensor:
    """[K]: intersection over union of a box with each of others."""
    low, high = torch.maximum(box_4[:2], boxes_K4[:, :2]), torch.minimum(box_4[2:], boxes_K4[:, 2:])
    shared_K = (high - low).clamp(min=0).prod(1)
    areas_K = (boxes_K4[:, 2:] - boxes_K4[:, :2]).prod(1) + (box_4[2:] - box_4[:2]).prod()
    return shared_K / (areas_K - shared_K).clamp(min=1e-12)

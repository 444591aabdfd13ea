"""Are inputs unlike those of training told apart by how unsure the members are of them?"""

# N examples, M members, C classes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlrun import predictor, runs
from dlrun.commands._ensemble_making import Made
from dlrun.commands._ensemble_members import Member
from dlrun.config.schema import EnsembleConfig
from dlrun.contracts import Batch, Outputs
from dlrun.ensembles import _fields, _shift
from dlrun.errors import DlrunError
from dlrun.metrics.auroc import area_under_roc
from dlrun.randomness import permutation

_MOST = 512  # examples
_BINS = 20


def require_classes(made: Made) -> None:
    """Raises: DlrunError unless each example has one class."""
    said = made.test or made.valid
    assert said is not None
    values = said.fields.get("log_probabilities")
    if values is None or values.dim() != 2:
        raise DlrunError(
            "ensemble.shift: how unsure members are is compared for classification, a class an example",
            "leave ensemble.shift out",
        )


def shift(
    run: runs.Run, made: Made, members: Sequence[Member], method: Any, settings: EnsembleConfig
) -> dict[str, Any]:
    """A sample of the test split against a changed copy of itself: see docs/ensemble.md.

    run: of the ensemble, whose weights are read where members became one model.
    """
    split = "test" if made.test is not None else "valid"
    whole, of_members = (made.test, made.of_test) if split == "test" else (made.valid, made.of_valid)
    assert whole is not None
    asked = list(made.drawn) or [member.source.open() for member in members]
    rows_N = permutation(len(asked[0].dataset.split(split)), "shift", settings.seed)[:_MOST].sort().values

    def change(batch: Batch) -> Batch:
        return _shift.shifted(batch, settings.seed)

    names = [f"member {index}" for index in range(len(asked))]
    changed = _fields.aligned([each.predict_changed(split, rows_N, change) for each in asked], names)
    if made.kind == "weights":
        whole_changed = predictor.load(run.folder, str(asked[0].device)).predict_changed(split, rows_N, change)
    else:
        whole_changed = method.combine(changed, made.fit)
    ids_N = changed[0].ids
    return compared(
        _at(whole, ids_N), whole_changed.by_id(), [_at(each, ids_N) for each in of_members], changed
    ) | {"split": split}  # fmt: skip


def _at(outputs: Outputs, ids_N: Tensor) -> Outputs:
    """These examples of outputs in ascending order of id."""
    places_N = torch.searchsorted(outputs.ids.cpu(), ids_N)
    return Outputs(ids_N, {"log_probabilities": outputs.fields["log_probabilities"].cpu()[places_N]})


def compared(
    clean: Outputs, changed: Outputs, members_clean: Sequence[Outputs], members_changed: Sequence[Outputs]
) -> dict[str, Any]:
    """Areas under the ROC curve of telling the changed from the clean, by entropy; of several members also by the
    mutual information of class and member, and the histograms of the ensemble's entropy.

    Source: Hendrycks and Gimpel 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", for
    the comparison; Malinin and Gales 2018, "Predictive Uncertainty Estimation via Prior Networks", for the mutual
    information.
    """
    before_N, after_N = entropy(clean), entropy(changed)
    edges = torch.linspace(0, float(torch.cat([before_N, after_N]).max().clamp(min=1e-6)), _BINS + 1)
    counts = [torch.histc(each.float(), _BINS, 0, float(edges[-1])).tolist() for each in (before_N, after_N)]
    spread = [mutual_information(each) for each in (members_clean, members_changed)] if len(members_clean) > 1 else None
    return {
        "examples": len(clean.ids),
        "entropy": _told_apart(before_N, after_N),
        "mutual_information": None if spread is None else _told_apart(*spread),
        "members": [
            _told_apart(entropy(one), entropy(other))
            for one, other in zip(members_clean, members_changed, strict=True)
        ],
        "histogram": {"edges": edges.tolist(), "clean": counts[0], "shifted": counts[1]},
    }  # fmt: skip


def _told_apart(clean_N: Tensor, changed_N: Tensor) -> float:
    is_changed = torch.cat([torch.zeros(len(clean_N)), torch.ones(len(changed_N))]) > 0
    return area_under_roc(torch.cat([clean_N, changed_N]), is_changed)


def entropy(outputs: Outputs) -> Tensor:
    """[N] float64, in nats."""
    log_NC = outputs.fields["log_probabilities"].double().log_softmax(1)
    return -(log_NC.exp() * log_NC).sum(1)


def mutual_information(members: Sequence[Outputs]) -> Tensor:
    """[N] float64: the entropy of the members' mean less the mean of their entropies; 0 where all say the same."""
    log_MNC = torch.stack([each.fields["log_probabilities"].double().log_softmax(1) for each in members])
    mean_NC = log_MNC.exp().mean(0)
    whole_N = -torch.special.xlogy(mean_NC, mean_NC).sum(1)
    return (whole_N - torch.stack([entropy(each) for each in members]).mean(0)).clamp(min=0)

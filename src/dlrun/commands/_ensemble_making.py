"""What an ensemble is made of: its members' predictions, what the method learned of them, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dlrun import _predictor_ensemble as reading_back
from dlrun import runs
from dlrun._decoding_average import AverageModel, require_one_vocabulary
from dlrun.commands import _ensemble_members as members_of
from dlrun.commands._ensemble_members import Member
from dlrun.config.schema import EnsembleConfig
from dlrun.contracts import DrawsDropout, InOneModel, MixesWeights, Outputs, unit
from dlrun.ensembles import _calibration
from dlrun.ensembles.average import Average
from dlrun.errors import DlrunError
from dlrun.metrics.scoring import goodness
from dlrun.predictor import TrainedModel
from dlrun.training import checkpoint
from dlrun.training.evaluate import batches

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["outputs", "dropout", "parts", "tokens", "weights"]
OF_ONE = ("dropout", "parts")  # kinds whose members are one run's


@dataclass
class Made:
    """valid, test: the ensemble's predictions, None where the data has no such split (valid: held out from the fit).
    of_valid, of_test: the members'.   seconds: of predicting, one number a member.   tensors: of kind weights.
    drawn: the members' predictors, where they are no runs.
    """

    kind: Kind
    fit: dict[str, Any]
    valid: Outputs | None
    test: Outputs | None
    of_valid: list[Outputs] = field(default_factory=list)
    of_test: list[Outputs] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    temperature: float | None = None
    tensors: Mapping[str, Tensor] | None = None
    fingerprint: str = ""
    drawn: Sequence[TrainedModel] = ()


def kind_of(method: Any, members: Sequence[Member]) -> Kind:
    """How the members become one. Raises: DlrunError where the method cannot do that with them."""
    first = members[0]
    if isinstance(method, MixesWeights):
        members_of.require_one_model(members)
        return "weights"
    says_tokens = unit(first.task) == "tokens"
    if isinstance(method, DrawsDropout):
        if len(members) > 1 or says_tokens:
            raise DlrunError(
                "ensemble=mc_dropout draws from one run" + (" that does not say tokens" if says_tokens else ""),
                f"dlrun ensemble {first.run.short_id} ensemble=mc_dropout",
            )
        return "dropout"
    if isinstance(method, InOneModel):
        return "parts"
    if not says_tokens:
        return "outputs"
    if not isinstance(method, Average) or type(method).fit is not Average.fit:
        raise DlrunError(
            "models that say tokens are averaged while they say them; this method needs all predictions at once",
            "use ensemble=average, or ensemble=soup for members that began at the same weights",
        )
    require_one_vocabulary([member.spec for member in members], [member.name for member in members])
    return "tokens"


def make(
    method: Any, settings: EnsembleConfig, kind: Kind, members: Sequence[Member], options: Any, reporter: Any
) -> Made:
    """Predict, fit, combine."""
    if kind in OF_ONE:
        return _of_one(method, settings, kind, members[0])
    test = members_of.predict(members, "test", reporter)  # first: members that differ there are refused
    try:
        valid = members_of.predict(members, "valid", reporter)
    except DlrunError as error:
        valid = None
        reporter.note(f"note: {error.message}: nothing is learned from it")
    known = test or valid
    if known is None:
        raise DlrunError(f"{members[0].name}: its data has neither a valid nor a test split", "data.test_fraction=0.1")
    made = Made(
        kind, {}, None, None, [each.outputs for each in valid or ()], [each.outputs for each in test or ()],
        [each.seconds for each in known], fingerprint=known[0].fingerprint,
    )  # fmt: skip
    if kind == "outputs":
        made.fit = method.fit(made.of_valid, members[0].task)
        made.valid = method.held_out(made.of_valid, made.fit) if made.of_valid else None
        made.test = method.combine(made.of_test, made.fit) if made.of_test else None
    elif kind == "tokens":
        first = members[0].source.open()
        model = AverageModel([member.source.open().model for member in members], method.mean.of)
        _predict_with(replace(first, model=model), made)
    else:
        _mix(method, members, made)
    return _calibrated(made)


def _calibrated(made: Made) -> Made:
    if made.valid is not None:
        try:
            made.temperature = _calibration.temperature(made.valid)
        except DlrunError:
            made.temperature = None  # of texts only sums are there
    return made


def _predict_with(predictor: TrainedModel, made: Made) -> None:
    splits = predictor.dataset.splits
    made.valid = predictor.predict_split("valid") if "valid" in splits else None
    made.test = predictor.predict_split("test") if "test" in splits else None


def _of_one(method: Any, settings: EnsembleConfig, kind: Kind, member: Member) -> Made:
    """Members are draws or parts of one model; their predictions are not kept."""
    import time

    loaded = member.source.open()
    if kind == "dropout":
        drawn = reading_back.draws(loaded, method.draws, settings.seed)
    else:
        drawn = reading_back.parts(loaded)
    splits, fingerprint = loaded.dataset.splits, loaded.dataset.fingerprint
    made = Made(kind, {}, None, None, fingerprint=fingerprint, drawn=drawn)
    for each in drawn:
        made.of_valid += [each.predict_split("valid").by_id()] if "valid" in splits else []
        started = time.perf_counter()
        made.of_test += [each.predict_split("test").by_id()] if "test" in splits else []
        made.seconds.append(time.perf_counter() - started)
    made.fit = method.fit(made.of_valid, member.task)
    made.valid = method.held_out(made.of_valid, made.fit) if made.of_valid else None
    made.test = method.combine(made.of_test, made.fit) if made.of_test else None
    return _calibrated(made)


# ---------------------------------------------------------------- weights


def _mix(method: Any, members: Sequence[Member], made: Made) -> None:
    """Members' weights to one model's, and what that says."""
    given = [
        {name: tensor.clone() for name, tensor in checkpoint.model_tensors(member.source.open().model).items()}
        for member in members
    ]
    first = members[0].source.open()
    scratch = replace(first, model=deepcopy(first.model))

    def score(tensors: Mapping[str, Tensor]) -> float:
        if "valid" not in scratch.dataset.splits:
            raise DlrunError("a greedy soup is judged on the validation split, and the data has none")
        checkpoint.load_model(scratch.model, tensors, "the soup")
        return goodness(scratch.task, scratch.predict_split("valid"))

    tensors, made.fit = method.mix(given, score)
    checkpoint.load_model(scratch.model, tensors, "the soup")
    is_one_of_them = any(all(torch.equal(tensor, each[name]) for name, tensor in tensors.items()) for each in given)
    if not is_one_of_them and method.refresh_norms and _norms(scratch.model):
        _refresh(scratch)
    made.tensors = checkpoint.model_tensors(scratch.model)
    _predict_with(scratch, made)


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def _refresh(predictor: TrainedModel) -> None:
    """Statistics of batch norms over the training split, a plain mean over its batches (as Izmailov et al. 2018,
    section 3.2)."""
    norms: list[Any] = _norms(predictor.model)
    momenta = [norm.momentum for norm in norms]
    predictor.model.train()
    for module in predictor.model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    stream = batches(
        predictor.dataset.split("train"), predictor.inputs, batch_size=predictor.config.data.batch_size,
        place=predictor._place,
    )  # fmt: skip
    for batch in stream:
        if len(batch["id"]) > 1:
            predictor.task.loss(predictor.model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    predictor.model.eval()


def save_weights(run: runs.Run, tensors: Mapping[str, Tensor]) -> None:
    """As a run's own checkpoint, of step 0."""
    contents = checkpoint.Contents({"weights": dict(tensors)}, {"step": 0})
    checkpoint.save(run.checkpoints, 0, contents)
    checkpoint.point(run.checkpoints, "best", 0)

"""The methods of `dlrun ensemble`, each against a hand-computed number, an identity or a reference."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dlrun._decoding_average import AverageModel, average
from dlrun.commands import _ensemble_making, _ensemble_members, _ensemble_report, _predictions
from dlrun.config.schema import ModelConfig
from dlrun.contracts import DataSpec, Outputs
from dlrun.data._held import MemorySplit
from dlrun.ensembles import (
    _calibration,
    _fields,
    _stacking,
    _weights,
    greedy,
    rank,
    snapshot,
    soup,
    stack,
    vote,
    weighted,
)
from dlrun.ensembles import average as plain
from dlrun.ensembles._boxes import Fusion, fused
from dlrun.errors import DlrunError
from dlrun.schedules import cyclic
from dlrun.tasks import classification, multilabel, regression, segmentation
from dlrun.training.bootstrap import resampled

SPEC = DataSpec(("image",), "label", {"classes": 3}, {"image": (4,)}, ("a", "b", "c"))
TASK = classification.build(SPEC)


def classes(logits: list | torch.Tensor, labels: list | torch.Tensor | None = None) -> Outputs:
    """Outputs of a classifier."""
    log_probabilities = torch.as_tensor(logits, dtype=torch.float32).log_softmax(1)
    fields = {"log_probabilities": log_probabilities}
    if labels is not None:
        fields["label"] = torch.as_tensor(labels)
    return Outputs(torch.arange(len(log_probabilities)), fields)


def noisy(count: int = 400, spread: tuple = (1.0, 1.5, 2.5), seed: int = 0) -> list[Outputs]:
    """Three classifiers whose logits are the truth and their own noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    signal = 2 * nn.functional.one_hot(labels, 3).float()
    return [classes(signal + each * torch.randn(count, 3, generator=generator), labels) for each in spread]


def numbers(values: list, truth: list | None = None) -> Outputs:
    fields = {"prediction": torch.tensor(values, dtype=torch.float32)[:, None]}
    return Outputs(
        torch.arange(len(values)), fields | ({} if truth is None else {"target": torch.tensor(truth)[:, None]})
    )


METHODS = [plain, weighted, vote, rank, stack, greedy]


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("method", [plain, weighted, vote, rank, greedy], ids=lambda module: module.__name__)
def test_one_member_is_itself_to_the_bit(method):
    [alone, *_] = noisy()
    made = method.build(SPEC)
    said = made.combine([alone], made.fit([alone], TASK))
    assert torch.equal(said.fields["log_probabilities"], alone.fields["log_probabilities"])


@pytest.mark.parametrize("method", METHODS, ids=lambda module: module.__name__)
def test_what_is_said_of_classes_is_a_distribution_and_a_plan_is_json(method):
    import json

    members = noisy()
    made = method.build(SPEC)
    plan = json.loads(json.dumps(made.fit(members, TASK)))
    for said in (made.combine(members, plan), made.held_out(members, plan)):
        assert said.fields["log_probabilities"].isfinite().all()
        total = said.fields["log_probabilities"].double().exp().sum(1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS, ids=lambda module: module.__name__)
def test_combining_does_not_look_at_the_truth(method):
    members, made = noisy(), method.build(SPEC)
    plan = made.fit(members, TASK)
    known = made.combine(members, plan).fields["log_probabilities"]
    hidden = [Outputs(each.ids, {"log_probabilities": each.fields["log_probabilities"]}) for each in members]
    assert torch.equal(made.combine(hidden, plan).fields["log_probabilities"], known)


# ---------------------------------------------------------------- means


def test_the_mean_of_probabilities_is_the_hand_computed_one():
    members = [classes(torch.tensor([[0.5, 0.3, 0.2]]).log()), classes(torch.tensor([[0.1, 0.1, 0.8]]).log())]
    said = plain.build(SPEC).combine(members, {}).fields["log_probabilities"].exp()
    torch.testing.assert_close(said, torch.tensor([[0.3, 0.2, 0.5]]))


def test_the_mean_of_logits_is_the_geometric_mean_of_probabilities():
    first, second = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.1, 0.8]])
    wanted = (first * second).sqrt() / (first * second).sqrt().sum()
    for of in ("logits", "geometric"):
        said = plain.build(SPEC, of=of).combine([classes(first.log()), classes(second.log())], {})
        torch.testing.assert_close(said.fields["log_probabilities"].exp(), wanted)


def test_numbers_have_the_mean_and_the_variance_between_members():
    said = plain.build(SPEC).combine([numbers([1.0, 4.0]), numbers([3.0, 4.0])], {})
    assert said.fields["prediction"][:, 0].tolist() == [2.0, 4.0]
    assert said.fields["variance"][:, 0].tolist() == [1.0, 0.0]


def test_a_mean_of_numbers_says_how_far_its_members_are_apart():
    spec = DataSpec(("x",), "target", {"targets": 2}, {"x": (1,)}, ("height", "weight"))
    members = [Outputs(torch.arange(1), {"prediction": torch.tensor([said])}) for said in ([1.0, 5.0], [3.0, 5.0])]
    [row] = regression.build(spec).rows(plain.build(spec).combine(members, {}))
    assert row == {"id": 0, "prediction": {"height": 2.0, "weight": 5.0}, "std": {"height": 1.0, "weight": 0.0}}
    assert "std" not in regression.build(spec).rows(members[0])[0]


def test_labels_are_averaged_each_by_itself():
    members = [
        Outputs(torch.arange(1), {"logits": torch.tensor([[p]]).logit(), "labels": torch.tensor([[True]])})
        for p in (0.2, 0.6)
    ]
    assert plain.build(SPEC).combine(members, {}).fields["logits"].sigmoid().item() == pytest.approx(0.4)


def test_pixels_are_averaged_each_by_itself_and_keep_the_mask():
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (2, 4, 6), generator=generator, dtype=torch.uint8)
    members = []
    for _ in range(3):
        logits = torch.randn(2, 3, 4, 6, generator=generator)
        members.append(Outputs(torch.arange(2), {"log_probabilities": logits.log_softmax(1).half(), "mask": mask}))
    said = plain.build(SPEC).combine(members, {})
    wanted = torch.stack([each.fields["log_probabilities"].float().exp() for each in members]).mean(0)
    torch.testing.assert_close(said.fields["log_probabilities"].float().exp(), wanted, atol=2e-3, rtol=0)
    assert said.fields["log_probabilities"].dtype == torch.float16 and torch.equal(said.fields["mask"], mask)
    spec = DataSpec(("image",), "mask", {"pixel_classes": 3}, {"image": (3, 4, 6)})
    task: Any = segmentation.build(spec)
    weights = weighted.build(spec).fit(members, task)["weights"]
    assert sum(weights) == pytest.approx(1)


def test_predictions_that_hold_sums_only_are_refused():
    sums = Outputs(torch.arange(2), {"loss": torch.ones(2), "num_targets": torch.ones(2)})
    with pytest.raises(DlrunError, match="cannot be combined: they hold loss, num_targets"):
        plain.build(SPEC).combine([sums, sums], {})


# ---------------------------------------------------------------- weights


def test_learned_weights_sum_to_one_and_prefer_the_better_member():
    weights = weighted.build(SPEC).fit(noisy(), TASK)["weights"]
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    assert weights[0] > weights[2]


def test_learned_weights_are_the_likeliest_on_a_fine_grid():
    members = noisy()[:2]
    [share, _] = weighted.build(SPEC).fit(members, TASK)["weights"]
    rows = [_fields.rows_of(each).values for each in members]
    likelihoods = [each.gather(1, members[0].fields["label"][:, None]).exp() for each in rows]
    losses = [-(w / 200 * likelihoods[0] + (1 - w / 200) * likelihoods[1]).log().mean() for w in range(201)]
    assert share == pytest.approx(losses.index(min(losses)) / 200, abs=0.006)


def test_weights_of_numbers_solve_least_squares():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(500, generator=generator)
    members = [
        numbers((truth + s * torch.randn(500, generator=generator)).tolist(), truth.tolist()) for s in (1.0, 2.0)
    ]
    spec = DataSpec(("x",), "target", {"targets": 1}, {"x": (1,)})
    [share, _] = weighted.build(spec, iterations=5000).fit(members, regression.build(spec))["weights"]
    first, second = (each.fields["prediction"][:, 0].double() - truth.double() for each in members)
    wanted = float((second * (second - first)).mean() / ((first - second) ** 2).mean())
    assert share == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("alone", "best"), [((0.3, -0.1), [0.25, 0.75]), ((0.3, 0.1), [0, 1])])
def test_weights_of_members_that_err_alike_are_found_by_what_is_their_own(alone, best):
    alike, own = torch.tensor([[10, 10, -10, -10], [1, -1, 1, -1]]).double()
    errors = torch.stack([alike + each * own for each in alone])
    assert weighted.least_squares(errors, 500).tolist() == pytest.approx(best, abs=1e-9)


def test_no_member_would_lower_the_square_that_learned_weights_leave():
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(300, generator=generator), torch.randn(6, 300, generator=generator)
    errors = (5 * common + own * torch.arange(1, 7)[:, None]).double()
    weights = weighted.least_squares(errors, 500)
    slopes = errors @ (weights @ errors) / 300
    assert weights.sum().item() == pytest.approx(1) and weights.min() >= 0
    assert slopes.min().item() == pytest.approx(float(weights @ slopes), abs=1e-6)


def test_labels_have_weights_too():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(200, 4, generator=generator) > 0.6
    members = [
        Outputs(torch.arange(200), {"logits": (truth.float() - 0.5) * 4 + s * torch.randn(200, 4, generator=generator),
                                    "labels": truth})
        for s in (0.5, 4.0)
    ]  # fmt: skip
    spec = DataSpec(("x",), "labels", {"labels": 4}, {"x": (1,)})
    weights = weighted.build(spec).fit(members, multilabel.build(spec))["weights"]
    assert sum(weights) == pytest.approx(1) and weights[0] > 0.8


def test_a_method_that_learns_says_so_where_nothing_is_to_be_learned_from():
    with pytest.raises(DlrunError, match="ensemble=weighted learns from the validation split"):
        weighted.build(SPEC).fit([], TASK)


# ---------------------------------------------------------------- scores of items


def items(*rows: list[float]) -> Outputs:
    """What a recommender says of users it has not been asked about: the best two of three items, by id from 1."""
    scores = torch.tensor(rows)
    found = scores.topk(2, 1)
    fields = {"top": found.indices, "top_scores": found.values, "all_scores": scores}
    return Outputs(torch.arange(len(rows)), fields)


def test_the_best_items_are_those_of_the_mean_score_and_what_was_seen_stays_away():
    hidden = float("-inf")
    first, second = items([hidden, 3.0, 2.0, -1.0]), items([hidden, 0.0, 2.5, 3.0])
    said = _fields.best_anew(plain.build(SPEC).combine([first, second], {}))
    assert said.fields["top"].tolist() == [[2, 1]] and said.fields["top_scores"].tolist() == [[2.25, 1.5]]
    assert said.fields["all_scores"][0, 0] == hidden and "variance" not in said.fields
    assert not said.fields["all_scores"].isnan().any()
    other = classes([[1.0, 0.0, 0.0]])
    assert _fields.best_anew(other) is other


@pytest.mark.parametrize("method", [weighted, stack], ids=lambda module: module.__name__)
def test_methods_that_learn_from_the_truth_refuse_scores_that_have_none(method):
    scores = [Outputs(torch.arange(20), {"scores": torch.rand(20, 5)}) for _ in range(2)]
    with pytest.raises(DlrunError, match="does not apply to scores of items"):
        method.build(SPEC).fit(scores, TASK)


# ---------------------------------------------------------------- votes, ranks, greedy


def test_a_hard_vote_counts_heads_and_settles_ties_by_probability():
    heads, sure = [0.4, 0.3, 0.3], [0.0001, 0.0001, 0.9998]
    tied = ([0.6, 0.4, 1e-9], [0.1, 0.9, 1e-9], [0.5, 0.5, 1e-9])
    rows = zip((heads, heads, sure), tied, strict=True)
    members = [classes(torch.tensor(pair).log()) for pair in rows]
    said = vote.build(SPEC).combine(members[:3], {})
    assert said.fields["log_probabilities"][0].argmax() == 0  # two heads against one that is sure
    assert plain.build(SPEC).combine(members, {}).fields["log_probabilities"][0].argmax() == 2
    tie = vote.build(SPEC).combine(members[:2], {})
    assert tie.fields["log_probabilities"][1].argmax() == 1


def test_a_soft_vote_is_the_mean_and_a_vote_of_numbers_the_median():
    members = noisy()
    assert torch.equal(
        vote.build(SPEC, ballot="soft").combine(members, {}).fields["log_probabilities"],
        plain.build(SPEC).combine(members, {}).fields["log_probabilities"],
    )
    said = vote.build(SPEC).combine([numbers([1.0]), numbers([2.0]), numbers([9.0])], {})
    assert said.fields["prediction"].item() == 2.0


def test_ranks_do_not_depend_on_the_scale_of_a_member():
    first, second, _ = noisy()
    stretched = Outputs(second.ids, second.fields | {"log_probabilities": second.fields["log_probabilities"] * 7})
    made = rank.build(SPEC)
    pairs = ([first, second], [first, stretched])
    plain_scale, large_scale = (made.combine(pair, made.fit(pair, TASK)).fields["log_probabilities"] for pair in pairs)
    torch.testing.assert_close(plain_scale, large_scale, atol=1e-4, rtol=1e-4)
    with pytest.raises(DlrunError, match="ensemble=rank does not apply to numbers"):
        made.fit([numbers([1.0, 2.0])], TASK)


def test_greedy_selection_is_at_least_as_good_as_the_best_member():
    for seed in range(5):
        members = noisy(120, seed=seed)
        made = greedy.build(SPEC)
        plan = made.fit(members, TASK)
        accuracy = [float(_fields.rows_of(m).values.argmax(1).eq(m.fields["label"]).double().mean()) for m in members]
        said = made.combine(members, plan)
        assert _fields.rows_of(said).values.argmax(1).eq(said.fields["label"]).double().mean() >= max(accuracy)
        assert plan["order"][0] == accuracy.index(max(accuracy)) or accuracy.count(max(accuracy)) > 1
        assert sum(plan["weights"]) == len(plan["order"])


def test_greedy_selection_takes_a_member_twice_where_that_is_best():
    """Both examples are right only where the first member weighs between 5/7 and 5/6."""
    first = classes(torch.tensor([[0.6, 0.4, 1e-9], [0.55, 0.45, 1e-9]]).log(), [0, 1])
    second = classes(torch.tensor([[0.25, 0.75, 1e-9], [0.25, 0.75, 1e-9]]).log(), [0, 1])
    plan = greedy.build(SPEC, rounds=4).fit([first, second], TASK)
    assert plan["weights"] == [3, 1] and plan["path"] == [0.5, 0.5, 0.5, 1.0]


# ---------------------------------------------------------------- stacking


@pytest.mark.parametrize("learner", ["logistic", "ridge", "mlp"])
def test_stacking_finds_what_a_mean_cannot(learner):
    """One member calls every class by the name of the next."""
    straight, _, _ = noisy(240, (1.0, 1.0, 1.0))
    turned = Outputs(
        straight.ids, straight.fields | {"log_probabilities": straight.fields["log_probabilities"].roll(1, 1)}
    )
    made = stack.build(SPEC, learner=learner)
    said = made.combine([turned, turned], made.fit([turned, turned], TASK))
    right = said.fields["log_probabilities"].argmax(1) == straight.fields["label"]
    assert right.double().mean() > 0.8


@pytest.mark.parametrize("learner", ["logistic", "ridge", "mlp"])
def test_what_stacking_says_of_a_validation_example_is_of_a_fit_that_did_not_see_it(learner):
    members = noisy(60)
    made = stack.build(SPEC, learner=learner, folds=3)
    plan = made.fit(members, TASK)
    inputs, truth = stack._inputs(members, "classes"), members[0].fields["label"]
    kind = made._learner(members)
    [fold, *_] = _stacking.permutation(60, "folds", 0).tensor_split(3)
    left = torch.ones(60, dtype=torch.bool)
    left[fold] = False
    wanted = kind.say(kind.fit(inputs[left], truth[left], plan["penalty"]), inputs[fold])
    said = made.held_out(members, plan).fields["log_probabilities"][fold]
    torch.testing.assert_close(said.double(), wanted, atol=1e-5, rtol=1e-5)


def test_ridge_of_numbers_is_least_squares_towards_the_mean():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(300, generator=generator)
    noises = [torch.randn(300, generator=generator) / 4 for _ in range(2)]
    members = [numbers((truth * f + n).tolist(), truth.tolist()) for f, n in zip((0.5, 2), noises, strict=True)]
    made = stack.build(SPEC, learner="ridge")
    said = made.combine(members, made.fit(members, TASK)).fields["prediction"][:, 0]
    given = torch.stack([torch.ones(300), *(m.fields["prediction"][:, 0] for m in members)], 1).double()
    best = given @ torch.linalg.lstsq(given, truth.double()[:, None]).solution
    assert float(((said - truth) ** 2).mean()) < 1.02 * float(((best[:, 0] - truth) ** 2).mean())


def test_too_few_validation_examples_for_folds_are_refused():
    with pytest.raises(DlrunError, match="9 validation examples are too few for 5 folds"):
        stack.build(SPEC).fit(noisy(9), TASK)


# ---------------------------------------------------------------- temperature


def test_the_temperature_of_logits_that_were_doubled_is_two():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert _calibration.temperature(classes(logits, labels)) == pytest.approx(1, abs=0.03)
    found = _calibration.temperature(classes(2 * logits, labels))
    assert found == pytest.approx(2, abs=0.06)
    said = _calibration.tempered(classes(2 * logits, labels), 2.0)
    wanted = logits.log_softmax(1)
    torch.testing.assert_close(said.fields["log_probabilities"], wanted, atol=1e-5, rtol=1e-5)
    assert _calibration.temperature(numbers([1.0], [2.0])) is None


# ---------------------------------------------------------------- boxes


def found_boxes(*rows: tuple) -> Outputs:
    """One picture; rows of (left, top, right, bottom, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32)[None]
    return Outputs(torch.arange(1), {"boxes": table[..., :4], "scores": table[..., 4], "labels": table[..., 5].long()})


def test_boxes_that_overlap_become_their_mean_weighted_by_score():
    first, second = found_boxes((0, 0, 10, 10, 0.9, 0)), found_boxes((1, 0, 11, 10, 0.3, 0))
    said = fused([first, second], [1, 1], Fusion()).fields
    torch.testing.assert_close(said["boxes"][0, 0], torch.tensor([0.25, 0, 10.25, 10]))
    assert said["scores"][0, 0].item() == pytest.approx(0.6)


def test_a_box_that_one_member_of_two_saw_is_half_as_sure():
    first, second = found_boxes((0, 0, 10, 10, 0.8, 0)), found_boxes((50, 50, 60, 60, 0.4, 1))
    said = fused([first, second], [1, 1], Fusion())
    assert said.fields["scores"].tolist() == [[pytest.approx(0.4)]]  # as many places as a member has
    assert said.fields["labels"].tolist() == [[0]]


def test_suppression_keeps_the_surest_of_boxes_that_overlap_within_a_class():
    first = found_boxes((0, 0, 10, 10, 0.9, 0), (30, 30, 40, 40, 0.2, 0), (0, 0, 0, 0, 0, -1))
    second = found_boxes((1, 0, 11, 10, 0.3, 0), (1, 0, 11, 10, 0.5, 1), (0, 0, 0, 0, 0, -1))
    said = fused([first, second], [1, 1], Fusion("nms", 0.5)).fields
    assert said["labels"].tolist() == [[0, 1, 0]]
    assert said["scores"][0].tolist() == pytest.approx([0.9, 0.5, 0.2])


def test_a_picture_without_any_box_stays_without():
    nothing = found_boxes((0, 0, 0, 0, 0, -1))
    assert fused([nothing, nothing], [1, 1], Fusion()).fields["labels"].tolist() == [[-1]]


# ---------------------------------------------------------------- weights of models


def test_the_soup_of_equal_weights_is_these_weights_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    tensors = {"w": torch.randn(50, generator=generator), "n": torch.tensor(7)}
    for count in (2, 3, 7):
        said = _weights.mean([tensors] * count)
        assert torch.equal(said["w"], tensors["w"]) and said["n"] == 7


def test_a_greedy_soup_leaves_out_what_harms():
    members = [{"w": torch.tensor([value])} for value in (0.0, 1.0, 9.0)]
    tensors, plan = soup.build(SPEC, recipe="greedy").mix(members, lambda given: -abs(float(given["w"]) - 0.6))
    assert plan["weights"] == [1, 1, 0] and tensors["w"].item() == 0.5


@dataclass
class Judged:
    """A predictor of four rows."""

    model: nn.Module
    task: Any = TASK
    dataset: Any = field(default_factory=lambda: SimpleNamespace(splits=("valid", "test")))

    def predict_split(self, split: str) -> Outputs:
        with torch.no_grad():
            return classes(self.model.eval()(torch.eye(4)), [0, 1, 2, 2])


def normed(weight: torch.Tensor) -> Judged:
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_()
    return Judged(nn.Sequential(nn.BatchNorm1d(4), linear))


def test_a_greedy_soup_that_keeps_one_member_is_that_member(monkeypatch):
    monkeypatch.setattr(_ensemble_making, "_refresh", lambda _: pytest.fail("its norms were made anew"))
    right = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]])
    given = [normed(-3 * right), normed(right)]
    members: Any = [SimpleNamespace(source=SimpleNamespace(open=lambda each=each: each)) for each in given]
    made = _ensemble_making.Made("weights", {}, None, None)
    _ensemble_making._mix(soup.build(SPEC, recipe="greedy"), members, made)
    assert made.fit["weights"] == [0, 1] and made.tensors
    for name, tensor in given[1].model.state_dict().items():
        assert torch.equal(made.tensors[name], tensor)


def test_models_whose_weights_cannot_be_averaged_are_told_apart_by_a_setting():
    configs = [ModelConfig("mlp", options={"width": width, "norm": "batch"}) for width in (8, 16)]
    members: Any = [
        SimpleNamespace(
            name=f"run {index}", source=SimpleNamespace(config=SimpleNamespace(model=config)),
            run=SimpleNamespace(record=SimpleNamespace(verb="train")),
        )
        for index, config in enumerate(configs)
    ]  # fmt: skip
    with pytest.raises(DlrunError, match=r"different models \(mlp with model.width=8 and 16\): their weights cannot"):
        _ensemble_members.require_one_model(members)


def test_weights_of_different_shapes_are_refused_by_name():
    with pytest.raises(DlrunError, match=r"'w' is \[2\] and \[3\]"):
        _weights.mean([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}])


def test_a_snapshot_ensemble_saves_at_the_end_of_every_cycle():
    [overrides] = snapshot.build(SPEC, cycles=4).trainings(0, "10 epochs")
    assert overrides == ["schedule=cyclic", "schedule.cycles=4", "train.save_every='2.5 epochs'", "train.keep=4"]
    with pytest.raises(DlrunError, match="10 steps are not 4 cycles"):
        snapshot.build(SPEC, cycles=4).trainings(0, "10 steps")
    with pytest.raises(DlrunError, match="cannot be cut into cycles"):
        snapshot.build(SPEC).trainings(0, "3 minutes")


# ---------------------------------------------------------------- models that say tokens


class Fixed(nn.Module):
    """A decoder that always expects the same."""

    def __init__(self, probabilities: list) -> None:
        super().__init__()
        self.log_probs = torch.tensor([probabilities]).log()

    def start(self, *inputs):
        return self.log_probs.expand(len(inputs[0]), -1), torch.zeros(len(inputs[0]), 1)

    def step(self, tokens_B, state):
        return self.log_probs.expand(len(tokens_B), -1), state + 1


def test_several_that_decode_as_one_average_what_they_expect():
    joined = AverageModel([Fixed([0.8, 0.1, 0.1]), Fixed([0.2, 0.7, 0.1])])
    log_probs, state = joined.start(torch.zeros(2, 4))
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.5, 0.4, 0.1]] * 2))
    log_probs, state = joined.step(torch.tensor([0, 1]), state)
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.5, 0.4, 0.1]] * 2))
    assert [part.tolist() for part in state] == [[[1.0], [1.0]]] * 2


def test_one_model_averaged_is_that_model_to_the_bit_and_vocabularies_must_agree():
    model = nn.Linear(3, 5)
    given = torch.randn(2, 3)
    assert torch.equal(AverageModel([model])(given), model(given))
    with pytest.raises(DlrunError, match="different vocabularies, of 5 and 4 tokens"):
        average([torch.zeros(2, 5), torch.zeros(2, 4)], "probabilities")


def test_losses_are_those_of_the_mean():
    members = noisy(50)
    said = plain.build(SPEC).combine(members, {})
    losses = _fields.losses(said)
    assert losses is not None
    mean = torch.stack([each.fields["log_probabilities"].double().exp() for each in members]).mean(0)
    wanted = -mean[torch.arange(50), said.fields["label"]].log().mean()
    assert float(losses.mean()) == pytest.approx(float(wanted), rel=1e-5) and not math.isnan(float(wanted))


# ---------------------------------------------------------------- what members are trained with


def test_a_bootstrap_has_as_many_rows_some_of_them_several_times_and_depends_on_its_seed_alone():
    split = MemorySplit({"id": torch.arange(1000), "x": torch.arange(1000) * 2}, torch.arange(1000))
    drawn = resampled(split, 3)
    batch = drawn.gather(torch.arange(1000))
    assert len(drawn) == 1000 and torch.equal(batch["x"], batch["id"] * 2)
    assert len(batch["id"].unique()) / 1000 == pytest.approx(1 - math.exp(-1), abs=0.03)
    assert torch.equal(resampled(split, 3).gather(torch.arange(1000))["id"], batch["id"])
    assert not torch.equal(resampled(split, 4).gather(torch.arange(1000))["id"], batch["id"])
    assert resampled(split, None) is split


def test_a_cyclic_schedule_begins_anew_at_every_cycle_and_ends_at_its_end():
    factor = cyclic.build(100, cycles=4)
    assert [factor(step) for step in (0, 25, 50)] == [1, 1, 1]
    assert factor(12.5) == pytest.approx(0.5) and factor(24.999) < 1e-6 and factor(100) == pytest.approx(0)


# ---------------------------------------------------------------- what is said of an ensemble


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ({"value": 0.5, "low": 0.25, "high": 0.75}, "better than the mean member by 0.5000  [0.2500, 0.7500]"),
        ({"value": -0.5, "low": -0.75, "high": 0.25}, "worse than the mean member by 0.5000  [-0.2500, 0.7500]"),
        ({"value": -0.5, "low": None, "high": None}, "worse than the mean member by 0.5000"),
    ],
)
def test_an_ensemble_that_is_worse_is_called_worse(gain, said):
    assert _ensemble_report._compared(gain, "the mean member") == said


@pytest.mark.parametrize(
    ("rows", "in_memory", "asked"), [(500, True, [8]), (50, True, [5]), (9, True, []), (500, False, [])]
)
def test_a_model_is_warmed_up_before_it_is_timed_where_that_is_cheap(rows, in_memory, asked):
    class Timed(SimpleNamespace):
        def predict_changed(self, split: str, rows_N: torch.Tensor, change: Any) -> None:
            seen.append(len(rows_N))

    class Rows(SimpleNamespace):
        def __len__(self) -> int:
            return rows

    seen: list[int] = []
    config = SimpleNamespace(data=SimpleNamespace(batch_size=4))
    predictor: Any = Timed(config=config, dataset=SimpleNamespace(split=lambda _: Rows(in_memory=in_memory)))
    _predictions._warm_up(predictor, "test")
    assert seen == asked

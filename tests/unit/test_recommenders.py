"""Models that recommend, the ranking task and its metrics: against formulas written out and hand-computed ranks."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.numpy import save
from torch import nn

from dlrun.contracts import NO_TARGET, DataSpec, Outputs
from dlrun.data import made_ratings
from dlrun.errors import DlrunError
from dlrun.metrics.ranking import Ranking, rank_of_first
from dlrun.models import lightgcn, matrix_factorization, neumf, sasrec, two_tower
from dlrun.tasks import _ranking_losses, ranking, rating

MODELS = {
    "matrix_factorization": lambda spec: matrix_factorization.build(spec, width=6),
    "neumf": lambda spec: neumf.build(spec, width=4, widths=(8, 4)),
    "two_tower": lambda spec: two_tower.build(spec, width=6, hidden=(8,)),
    "sasrec": lambda spec: sasrec.build(spec, width=6, dropout=0.0),
    "lightgcn": lambda spec: lightgcn.build(spec, width=6, depth=2),
}
LOSSES = ["bpr", "bce", "cross_entropy", "sampled_softmax"]


def log_of(users: list[list[int]]) -> bytes:
    """The items of users 1, 2, …, all of them trained on."""
    import numpy as np

    items = np.array([item for user in users for item in user], dtype=np.int32)
    starts = np.cumsum([0, 0, *map(len, users)])
    return save({"item": items, "starts": starts, "is_train": np.ones(len(items), dtype=np.uint8)})


def spec(history: int = 4) -> DataSpec:
    sizes = {"users": 3, "items": 5, "candidates": 4} | ({"history": history} if history else {})
    files = {"ids.json": json.dumps({"users": ["u", "v", "w"], "items": list("abcde")}).encode(),
             "interactions.safetensors": log_of([[1, 2], [2, 3], [5]])}  # fmt: skip
    return DataSpec(("user", "history", "candidates"), "item", sizes, {}, (), {"kind": "ratings"}, files)


USER = torch.tensor([1, 2])
HISTORY = torch.tensor([[0, 0, 1, 2], [3, 1, 4, 5]])


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", MODELS)
def test_a_model_scores_items_of_a_row_of_a_place_and_of_all_rows_alike(name):
    model = MODELS[name](spec()).eval()
    items = torch.tensor([1, 3, 5])
    of_all = model(USER, HISTORY, items)
    assert of_all.shape == (2, 3)
    torch.testing.assert_close(model(USER, HISTORY, items.expand(2, 3)), of_all)
    by_place = model(USER, HISTORY, items.expand(2, 4, 3))
    assert by_place.shape == (2, 4, 3)
    torch.testing.assert_close(by_place[:, -1], of_all)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_all_its_parameters_on_windows(name):
    model = MODELS[name](spec())
    model(USER, HISTORY, torch.tensor([[[1, 2]] * 4, [[3, 4]] * 4])).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", [name for name in MODELS if name != "sasrec"])
def test_a_model_of_users_takes_pairs_without_a_history(name):
    model = MODELS[name](spec(history=0))
    assert model(USER, torch.zeros(2, 0, dtype=torch.int64), torch.tensor([[1, 2], [3, 4]])).shape == (2, 2)


def test_sasrec_looks_at_nothing_that_comes_later_and_at_no_padding():
    model = sasrec.build(spec(), width=6, heads=2, dropout=0.0, std=1.0).eval()
    read = model.read(HISTORY)
    changed = HISTORY.clone()
    changed[:, 3] = 3
    torch.testing.assert_close(model.read(changed)[:, :3], read[:, :3])
    torch.testing.assert_close(model.read(HISTORY[:1, 2:]), read[:1, 2:])  # padding or not is the same
    assert not torch.allclose(model.read(changed)[:, 3], read[:, 3])


def test_sasrec_reads_no_more_than_it_has_places_for_and_nothing_of_nothing():
    model = sasrec.build(spec(history=2), width=6, dropout=0.0).eval()
    torch.testing.assert_close(model.read(HISTORY), model.read(HISTORY[:, 2:]))
    assert model(USER, torch.zeros(2, 0, dtype=torch.int64), torch.tensor([1, 2])).abs().sum() == 0


def test_sasrec_needs_histories():
    with pytest.raises(DlrunError, match="this model reads what a user had before; this data has no histories") as said:
        sasrec.build(spec(history=0))
    assert said.value.hint == "data.history=50"


def test_matrix_factorisation_is_its_formula():
    model = matrix_factorization.build(spec(), width=6)
    for bias in (model.user_bias, model.item_bias):
        nn.init.normal_(bias.weight)
    said = model(USER, HISTORY, torch.tensor([[1, 2], [3, 4]]))
    expected = (
        model.users.weight[2] @ model.items.weight[4] + model.user_bias.weight[2, 0] + model.item_bias.weight[4, 0]
    )
    torch.testing.assert_close(said[1, 1], expected)


def test_neumf_scores_many_items_in_parts_as_it_does_at_once(monkeypatch):
    model = neumf.build(spec(), width=4, widths=(8, 4))
    items = torch.arange(1, 6)
    whole = model(USER, HISTORY, items)
    monkeypatch.setattr(neumf, "_AT_ONCE", 4)
    torch.testing.assert_close(model(USER, HISTORY, items), whole)


def test_lightgcn_spreads_over_the_normalised_graph():
    model = lightgcn.build(spec(), width=6, depth=2)
    graph = torch.zeros(10, 10)  # users 0 to 3, then items 0 to 5
    for user, item in ((1, 1), (1, 2), (2, 2), (2, 3), (3, 5)):
        graph[user, 4 + item] = graph[4 + item, user] = 1
    degree = graph.sum(1).clamp(min=1).rsqrt()
    normal = degree[:, None] * graph * degree
    first = torch.cat([model.users.weight, model.items.weight])
    expected = (first + normal @ first + normal @ normal @ first) / 3
    torch.testing.assert_close(torch.cat(model.spread()), expected)


def test_two_towers_look_at_features_and_at_the_mean_of_the_history():
    data = made_ratings.build(SimpleNamespace(seed=0, spec=None), features=True, history=5)
    model = two_tower.build(data.spec, width=6, hidden=())
    batch = data.split("test").gather(torch.arange(4))
    said = model(batch["user"], batch["history"], batch["candidates"])
    assert said.abs().max() <= 10.001  # cosines over the temperature
    model.items.codes = model.items.codes.roll(1, 0)
    assert not torch.allclose(model(batch["user"], batch["history"], batch["candidates"]), said)
    means = model.means(HISTORY)
    torch.testing.assert_close(means[1, 2], model.items.ids.weight[torch.tensor([3, 1, 4])].mean(0))
    assert means[0, 1].abs().sum() == 0


# ---------------------------------------------------------------- losses


def test_losses_are_their_formulas():
    positive, negatives = torch.tensor([1.0, -0.5]), torch.tensor([[0.5, 2.0], [0.0, -1.0]])
    sigmoid = torch.sigmoid
    expected = -torch.log(sigmoid(positive[:, None] - negatives)).mean(1)
    torch.testing.assert_close(_ranking_losses.bpr(positive, negatives), expected)
    expected = -torch.log(sigmoid(positive)) - torch.log(1 - sigmoid(negatives)).sum(1)
    torch.testing.assert_close(_ranking_losses.bce(positive, negatives), expected)
    expected = -torch.log(positive.exp() / (positive.exp() + negatives.exp().sum(1)))
    torch.testing.assert_close(_ranking_losses.softmax(positive, negatives), expected)


def test_frequent_items_are_drawn_as_often_as_the_correction_says():
    torch.manual_seed(0)
    drawn = _ranking_losses.log_uniform_items((100_000,), 20, torch.device("cpu"))
    share = torch.bincount(drawn, minlength=21)[1:] / 100_000
    chance = _ranking_losses.log_uniform_chance(torch.arange(1, 21), 20).exp()
    assert chance.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(share, chance, atol=5e-3, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("history", [0, 4])
def test_a_loss_is_a_sum_over_the_places_with_a_target(loss, history):
    task = ranking.build(spec(history), loss=loss, negatives=2)
    model = MODELS["matrix_factorization"](spec(history))
    if history:
        targets = torch.tensor([[NO_TARGET, NO_TARGET, 2, 3], [1, 4, 5, 2]])
        batch = {"id": torch.arange(2), "user": USER, "history": HISTORY, "targets": targets}
    else:
        batch = {"id": torch.arange(2), "user": USER, "history": torch.zeros(2, 0, dtype=torch.int64),
                 "targets": torch.tensor([[1], [4]]), "seen": torch.tensor([[1, 2], [3, 4]])}  # fmt: skip
    said = task.loss(model, batch)
    assert said.count == task.count(batch) == (6 if history else 2)
    per_place = said.sum.item() / said.count
    expected = {"bpr": math.log(2), "bce": 3 * math.log(2), "cross_entropy": math.log(3)}.get(loss)
    assert expected is None or per_place == pytest.approx(expected, abs=0.3)  # vectors start small


def test_negatives_are_drawn_anew_where_the_user_had_them():
    torch.manual_seed(0)
    task = ranking.build(spec(0), negatives=50)
    batch = {"history": torch.zeros(2, 0, dtype=torch.int64), "seen": torch.tensor([[1, 0], [4, 5]])}
    drawn = task._negatives(batch, torch.tensor([[1], [4]]))
    assert drawn.shape == (2, 1, 50) and drawn.min() >= 1 and drawn.max() <= 5
    assert (drawn[0] == 1).float().mean() < 0.05  # 0.2 before, 0.2^4 after three more draws


# ---------------------------------------------------------------- scores


class _Said(nn.Module):
    """Says given scores by item id."""

    def __init__(self, scores_BI: torch.Tensor) -> None:
        super().__init__()
        self.scores_BI = scores_BI

    def forward(self, user_B, history_BT, items):
        return self.scores_BI[:, items] if items.dim() == 1 else self.scores_BI.gather(1, items)


def test_ranks_and_recommendations_by_hand():
    said = _Said(torch.tensor([[9.0, 0.5, 0.1, 0.9, 0.7, 0.3], [9.0, 0.2, 0.2, 0.2, 0.2, 0.2]]))
    task = ranking.build(spec(), k=[2, 1], top_k=3).thorough()
    batch = {"id": torch.arange(2), "user": USER, "history": HISTORY, "item": torch.tensor([1, 2]),
             "candidates": torch.tensor([[1, 2, 5], [2, 3, 4]]), "seen": torch.tensor([[3, 0], [5, 1]])}  # fmt: skip
    outputs = task.outputs(said, batch)
    assert rank_of_first(outputs.fields["scores"]).tolist() == [1, 3]  # a tie counts against the model
    assert outputs.fields["rank"].tolist() == [2, 3]  # of b's tied, 3 and 4 are left: 5 and 1 were seen
    values, tables = {}, {}
    for metric in task.metrics():
        metric.update(outputs)
        values |= metric.compute()
        tables |= metric.tables()
    assert tables == {"signatures": ["hr_2, ndcg_2, hr_1, ndcg_1, mrr: of each item among itself and 2 sampled ones"]}
    assert values == {
        "mrr": pytest.approx((1 + 1 / 3) / 2), "hr_2": 0.5, "ndcg_2": 0.5, "hr_1": 0.5, "ndcg_1": 0.5,
        "mrr_all": pytest.approx((1 / 2 + 1 / 3) / 2), "hr_2_all": 0.5, "ndcg_2_all": pytest.approx(0.5 / math.log2(3)),
        "hr_1_all": 0.0, "ndcg_1_all": 0.0,
    }  # fmt: skip
    assert task.rows(outputs) == [{"id": 0, "rank": 1, "rank_all": 2}, {"id": 1, "rank": 3, "rank_all": 3}]
    new = {name: value for name, value in batch.items() if name not in ("item", "candidates")}
    rows = task.rows(task.outputs(said, new))
    assert list(rows[0]["items"]) == ["d", "a", "e"]
    assert rows[0]["items"]["d"] == pytest.approx(0.7)
    assert set(rows[1]["items"]) == {"b", "c", "d"}
    fewer = task.recommending(1)
    assert list(fewer.rows(fewer.outputs(said, new))[0]["items"]) == ["d"] and task.recommending(99).top_k == 5
    with pytest.raises(DlrunError, match="--top-k: 0 is not at least 1"):
        task.recommending(0)


def test_a_user_who_has_seen_all_but_one_is_told_of_one():
    task = ranking.build(spec(), top_k=10)
    seen = torch.tensor([[1, 2, 3, 4]])
    batch = {"id": torch.arange(1), "user": USER[:1], "history": HISTORY[:1], "seen": seen}
    assert list(task.rows(task.outputs(_Said(torch.ones(1, 6)), batch))[0]["items"]) == ["e"]


def test_ranks_add_up_over_batches_and_nothing_gives_nan():
    scores = torch.rand(40, 11, generator=torch.Generator().manual_seed(0))
    whole, parts = Ranking([5]), Ranking([5])
    whole.update(Outputs(torch.arange(40), {"scores": scores}))
    for rows in torch.arange(40).split(7):
        parts.update(Outputs(rows, {"scores": scores[rows]}))
    assert parts.compute() == pytest.approx(whole.compute())
    ranks = 1 + (scores[:, 1:] > scores[:, :1]).sum(1)
    assert whole.compute()["hr_5"] == pytest.approx((ranks <= 5).float().mean().item())
    assert math.isnan(Ranking([5]).compute()["mrr"])


def test_a_rating_task_chases_the_root_of_the_squared_error():
    data = made_ratings.build(SimpleNamespace(seed=0, spec=None), feedback="explicit")
    task = rating.build(data.spec)
    assert task.goal.metric == "rmse"
    model = matrix_factorization.build(data.spec)
    batch = data.split("test").gather(torch.arange(50))
    (metric,) = task.metrics()
    metric.update(task.outputs(model, batch))
    values = metric.compute()
    assert values["rmse"] == pytest.approx(math.sqrt(values["mse"]))
    assert values["rmse"] < 1.5  # the mean of the ratings is where it starts


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"k": [0]}, "task.k: [0] is not a list of whole numbers of at least 1"),
        ({"negatives": 0}, "task.negatives: 0 is not at least 1"),
    ],
)
def test_what_ranking_cannot_do_is_refused(settings, says):
    with pytest.raises(DlrunError) as raised:
        ranking.build(spec(), **settings)
    assert raised.value.message == says


def test_the_task_must_fit_the_feedback():
    explicit = made_ratings.build(SimpleNamespace(seed=0, spec=None), feedback="explicit").spec
    with pytest.raises(DlrunError, match="this task or model needs data with 'candidates'"):
        ranking.build(explicit)
    with pytest.raises(DlrunError, match="task=rating needs ratings to predict"):
        rating.build(spec())

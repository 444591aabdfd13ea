"""Tasks: losses against torch and by hand, outputs that merge, rows a person can read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dlrun.contracts import DataSpec, Goal, Outputs, Task
from dlrun.errors import DlrunError
from dlrun.tasks import classification, regression

LABELS = ("ant", "bee", "cat")
SPEC = DataSpec(("image",), "label", {"classes": 3, "channels": 1}, {"image": (4,)}, LABELS)
TABLE = DataSpec(("features",), "price", {"targets": 2}, {"features": (4,)}, ("low", "high"))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(outputs: int, seed: int = 1) -> nn.Module:
    made = nn.Linear(4, outputs)
    with torch.no_grad():
        made.weight.copy_(drawn(outputs, 4, seed=seed))
    return made


def batch(size: int = 6) -> dict[str, Tensor]:
    labels = torch.arange(size) % 3
    return {"id": torch.arange(size) + 10, "image": drawn(size, 4), "label": labels}


def part(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: field[rows] for name, field in batch.items()}


# ---------------------------------------------------------------- classification


def test_classification_loss_is_the_sum_of_cross_entropies_and_its_count():
    task, network, data = classification.build(SPEC), model(3), batch()
    loss = task.loss(network, data)
    assert loss.count == 6 == task.count(data)
    torch.testing.assert_close(loss.sum / 6, functional.cross_entropy(network(data["image"]), data["label"]))


def test_loss_of_a_batch_is_the_sum_of_the_losses_of_its_parts():
    task, network, data = classification.build(SPEC, label_smoothing=0.1, class_weights=[1, 2, 0.5]), model(3), batch()
    parts = [task.loss(network, part(data, rows)) for rows in (slice(0, 2), slice(2, 6))]
    whole = task.loss(network, data)
    torch.testing.assert_close(whole.sum, parts[0].sum + parts[1].sum)
    assert whole.count == sum(piece.count for piece in parts)


def test_label_smoothing_and_class_weights_are_those_of_torch():
    network, data = model(3), batch()
    task = classification.build(SPEC, label_smoothing=0.2, class_weights=[1.0, 2.0, 0.5])
    expected = functional.cross_entropy(
        network(data["image"]), data["label"], torch.tensor([1.0, 2.0, 0.5]), reduction="sum", label_smoothing=0.2
    )
    torch.testing.assert_close(task.loss(network, data).sum, expected)


def test_mixed_labels_share_the_loss_by_their_weights():
    network, data = model(3), batch()
    task = classification.build(SPEC, label_smoothing=0.1)
    mixed = data | {"mix_label": data["label"].flip(0), "mix": torch.tensor([1.0, 0.0, 0.25, 0.5, 0.75, 0.9])}
    own, partner = (
        functional.cross_entropy(network(data["image"]), labels, reduction="none", label_smoothing=0.1)
        for labels in (data["label"], mixed["mix_label"])
    )
    expected = (mixed["mix"] * own + (1 - mixed["mix"]) * partner).sum()
    torch.testing.assert_close(task.loss(network, mixed).sum, expected)


def test_mixing_with_weight_one_changes_nothing():
    task, network, data = classification.build(SPEC), model(3), batch()
    mixed = data | {"mix_label": data["label"].flip(0), "mix": torch.ones(6)}
    torch.testing.assert_close(task.loss(network, mixed).sum, task.loss(network, data).sum)


def test_loss_is_float32_under_autocast_and_float64_for_a_float64_model():
    task, network, data = classification.build(SPEC), model(3), batch()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(data["image"]).dtype == torch.bfloat16
        assert task.loss(network, data).sum.dtype == torch.float32
        assert task.outputs(network, data).fields["log_probabilities"].dtype == torch.float32
    doubled = data | {"image": data["image"].double()}
    assert task.loss(network.double(), doubled).sum.dtype == torch.float64


def test_classification_outputs_carry_ids_log_probabilities_and_known_labels():
    task, network, data = classification.build(SPEC), model(3), batch()
    outputs = task.outputs(network, data)
    assert outputs.ids.tolist() == [10, 11, 12, 13, 14, 15]
    torch.testing.assert_close(outputs.fields["log_probabilities"].exp().sum(1), torch.ones(6))
    assert outputs.fields["label"].tolist() == data["label"].tolist()
    unlabelled = {"id": data["id"], "image": data["image"]}
    assert set(task.outputs(network, unlabelled).fields) == {"log_probabilities"}


def test_classification_metrics_of_outputs_agree_with_the_loss():
    task, network, data = classification.build(SPEC), model(3), batch()
    metrics = task.metrics()
    values: dict[str, float] = {}
    for metric in metrics:
        metric.update(task.outputs(network, data))
        values |= metric.compute()
    assert values["loss"] == pytest.approx(task.loss(network, data).sum.item() / 6, rel=1e-5)
    assert task.goal == Goal("accuracy", "max") and task.goal.metric in values
    assert {"macro_f1", "balanced_accuracy", "ece"} <= set(values)


def test_classification_rows_name_labels_and_the_first_k():
    log_probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]).log()
    task = classification.build(SPEC, top_k=2)
    rows = task.rows(
        Outputs(torch.tensor([4, 9]), {"log_probabilities": log_probabilities, "label": torch.tensor([1, 2])})
    )
    assert [(row["id"], row["label"], row["truth"]) for row in rows] == [(4, "bee", "bee"), (9, "ant", "cat")]
    assert rows[0]["probability"] == pytest.approx(0.7)
    assert list(rows[0]["probabilities"]) == ["bee", "cat"] and list(rows[1]["probabilities"]) == ["ant", "cat"]
    assert rows[1]["probabilities"] == pytest.approx({"ant": 0.5, "cat": 0.3})


def test_rows_of_unlabelled_examples_have_no_truth_and_unnamed_classes_their_number():
    unnamed = DataSpec(("image",), "label", {"classes": 3}, {"image": (4,)})
    rows = classification.build(unnamed).rows(Outputs(torch.tensor([0]), {"log_probabilities": torch.eye(3)[:1]}))
    assert rows[0]["label"] == "0" and "truth" not in rows[0] and len(rows[0]["probabilities"]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, r"task\.label_smoothing: 1\.0 is not in \[0, 1\)"),
        ({"top_k": 0}, r"task\.top_k: 0 is not at least 1"),
        (
            {"class_weights": [1, 2]},
            r"task\.class_weights: \[1, 2\] is not a number of at least 0 for each of the 3 classes",
        ),
        ({"class_weights": [1, -2, 1]}, "a number of at least 0"),
        ({"class_weights": [0, 0, 0]}, "a number of at least 0"),
        ({"class_weights": [1, "two", 1]}, "a number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(DlrunError, match=message):
        classification.build(SPEC, **settings)


def test_classification_of_data_without_classes_says_what_the_data_has():
    with pytest.raises(DlrunError, match="needs data with 'classes'; this data set has targets=2"):
        classification.build(TABLE)


def test_a_model_of_another_task_is_refused_with_its_shape():
    with pytest.raises(DlrunError, match=r"the model gives \[6, 5\] for 6 examples; classification needs \[6, 3\]"):
        classification.build(SPEC).loss(model(5), batch())


# ---------------------------------------------------------------- regression


def table(size: int = 5) -> dict[str, Tensor]:
    return {"id": torch.arange(size), "features": drawn(size, 4), "price": drawn(size, 2, seed=5)}


@pytest.mark.parametrize(
    ("loss", "reference"),
    [("mse", functional.mse_loss), ("mae", functional.l1_loss), ("huber", functional.huber_loss)],
)
def test_regression_losses_are_means_over_targets_as_in_torch(loss, reference):
    task, network, data = regression.build(TABLE, loss=loss), model(2), table()
    found = task.loss(network, data)
    assert found.count == 10
    torch.testing.assert_close(found.sum / found.count, reference(network(data["features"]), data["price"]))
    metric = task.metrics()[0]
    metric.update(task.outputs(network, data))
    assert metric.compute()["loss"] == pytest.approx(found.sum.item() / 10, rel=1e-5)
    assert task.goal.metric in metric.compute()


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_several_targets_count_in_deviations_of_each_and_one_in_its_own_unit(loss):
    several = replace(TABLE, assets={"target_std": [2.0, 3000.0]})
    task, network, data = regression.build(several, loss=loss), model(2), table()
    std, plain = torch.tensor([2.0, 3000.0]), regression.build(TABLE, loss=loss)
    scaled = plain.loss(lambda features: network(features) / std, data | {"price": data["price"] / std})
    torch.testing.assert_close(task.loss(network, data).sum, scaled.sum)
    metric = task.metrics()[0]
    metric.update(task.outputs(network, data))
    found = metric.compute()
    assert found["loss"] == pytest.approx(scaled.sum.item() / 10, rel=1e-5)
    error = (network(data["features"]) - data["price"]).detach()
    assert found["mae_high"] == pytest.approx(error[:, 1].abs().mean().item(), rel=1e-5)  # in its own unit
    one = replace(TABLE, sizes={"targets": 1, "features": 4}, labels=("price",), assets={"target_std": [2.0]})
    single = data | {"price": data["price"][:, :1]}
    network = model(1)
    bare = regression.build(replace(one, assets={}), loss=loss).loss(network, single)
    assert torch.equal(regression.build(one, loss=loss).loss(network, single).sum, bare.sum)


def test_huber_delta_is_where_errors_turn_absolute():
    spec = DataSpec(("features",), "price", {"targets": 1}, {"features": (1,)})
    data = {"id": torch.arange(1), "features": torch.tensor([[3.0]]), "price": torch.zeros(1)}
    # Beyond delta: delta * (error - delta / 2).
    loss = regression.build(spec, loss="huber", huber_delta=2.0).loss(nn.Identity(), data)
    assert loss.sum.item() == pytest.approx(2 * (3 - 1))


def test_a_single_target_may_be_a_vector_but_never_broadcasts():
    spec = DataSpec(("features",), "price", {"targets": 1}, {"features": (1,)})
    data = {
        "id": torch.arange(3),
        "features": torch.tensor([[1.0], [2.0], [3.0]]),
        "price": torch.tensor([1.0, 2.0, 5.0]),
    }
    task = regression.build(spec)
    assert task.loss(nn.Identity(), data).sum.item() == pytest.approx(4)
    assert task.rows(task.outputs(nn.Identity(), data))[2] == {"id": 2, "prediction": 3.0, "truth": 5.0}
    with pytest.raises(DlrunError, match=r"the model gives \[3, 2\] for 3 examples; regression needs \[3, 1\]"):
        task.loss(nn.Identity(), data | {"features": torch.zeros(3, 2)})


def test_regression_rows_name_their_targets():
    outputs = Outputs(
        torch.tensor([7]), {"prediction": torch.tensor([[1.0, 2.0]]), "target": torch.tensor([[1.5, 2.5]])}
    )
    rows = regression.build(TABLE).rows(outputs)
    assert rows == [{"id": 7, "prediction": {"low": 1.0, "high": 2.0}, "truth": {"low": 1.5, "high": 2.5}}]


def test_regression_of_data_without_targets_says_what_the_data_has():
    with pytest.raises(DlrunError, match="needs data with 'targets'; this data set has channels=1, classes=3"):
        regression.build(SPEC)
    with pytest.raises(DlrunError, match=r"task\.huber_delta: 0 is not above 0"):
        regression.build(TABLE, huber_delta=0)


def test_tasks_keep_the_contract():
    tasks: list[Task] = [classification.build(SPEC), regression.build(TABLE)]
    for task in tasks:
        assert task.additive and task.goal.mode in ("max", "min")
        assert not math.isnan(task.count({"id": torch.arange(3)}))

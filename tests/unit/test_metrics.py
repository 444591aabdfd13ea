"""Metrics against scikit-learn and hand-computed numbers; ranks add up to the whole."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from dlrun.contracts import Metric, Outputs
from dlrun.errors import DlrunError
from dlrun.metrics.classification import (
    Calibration,
    Classification,
    PerClass,
    confusion_matrix,
    expected_calibration_error,
)
from dlrun.metrics.reduce import reduce
from dlrun.metrics.regression import Regression


def classified(log_probabilities_NC: Tensor, labels_N: Tensor) -> Outputs:
    return Outputs(torch.arange(len(labels_N)), {"log_probabilities": log_probabilities_NC, "label": labels_N})


def drawn(size: int = 200, num_classes: int = 5) -> Outputs:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(size, num_classes, generator=generator)
    return classified(logits.log_softmax(1), torch.randint(num_classes, (size,), generator=generator))


def all_metrics() -> list[Metric]:
    return [Classification(5, top_k=2), PerClass(5), Calibration()]


def computed(metrics: list[Metric], parts: list[Outputs]) -> dict[str, float]:
    for metric in metrics:
        for part in parts:
            metric.update(part)
    return {name: value for metric in metrics for name, value in metric.compute().items()}


def split(outputs: Outputs, *sizes: int) -> list[Outputs]:
    fields = {name: field.split(sizes) for name, field in outputs.fields.items()}
    return [
        Outputs(ids, {name: parts[index] for name, parts in fields.items()})
        for index, ids in enumerate(outputs.ids.split(sizes))
    ]


def test_classification_metrics_equal_those_of_scikit_learn():
    outputs = drawn()
    log_probabilities, labels = outputs.fields["log_probabilities"], outputs.fields["label"]
    values, predictions = computed(all_metrics(), [outputs]), log_probabilities.argmax(1)
    expected = sk.log_loss(labels, log_probabilities.double().softmax(1), labels=range(5))
    assert values["loss"] == pytest.approx(expected, rel=1e-6)
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    assert values["top2_accuracy"] == pytest.approx(sk.top_k_accuracy_score(labels, log_probabilities, k=2))
    assert values["macro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="macro"))
    assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predictions))


def test_classes_without_examples_are_left_out_as_scikit_learn_does():
    # Class 3 is never there and never predicted; class 2 is predicted though never there.
    labels, predictions = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 2, 1, 1, 0])
    outputs = classified(torch.eye(4)[predictions].log_softmax(1), labels)
    values = computed([PerClass(4)], [outputs])
    assert values["macro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="macro", zero_division=0))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = sk.balanced_accuracy_score(labels, predictions)
    assert values["balanced_accuracy"] == pytest.approx(expected)


def test_confusion_matrix_has_true_classes_in_rows():
    labels, predictions = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 2])
    matrix = confusion_matrix(predictions, labels, 4)
    assert matrix.tolist() == sk.confusion_matrix(labels, predictions, labels=range(4)).tolist()
    assert matrix[0, 1] == 1 and matrix[1, 0] == 0


def test_calibration_error_equals_a_hand_computed_one():
    # Two bins: confidences 0.6 and 0.7 with one right answer of two; 0.9 with one right of one, above 0.75.
    probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    labels = torch.tensor([0, 0, 0])
    # Four bins of width 1/4: ]0.5, 0.75] holds rows 0 and 1: |0.65 - 0.5| * 2/3; ]0.75, 1] row 2: |0.9 - 1| * 1/3.
    expected = 0.15 * 2 / 3 + 0.1 / 3
    assert expected_calibration_error(probabilities, labels, num_bins=4) == pytest.approx(expected, rel=1e-6)
    metric = Calibration(num_bins=4)
    metric.update(classified(probabilities.log(), labels))
    assert metric.compute()["ece"] == pytest.approx(expected, rel=1e-6)


def test_sure_and_right_is_perfectly_calibrated_sure_and_wrong_is_not_at_all():
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(sure, torch.tensor([0, 1])) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 0])) == 1


def test_calibration_of_rows_that_are_no_probabilities_is_refused():
    with pytest.raises(DlrunError, match=r"the probabilities of row 1 sum to 0\.7"):
        expected_calibration_error(torch.tensor([[0.5, 0.5], [0.5, 0.2]]), torch.tensor([0, 1]))
    with pytest.raises(DlrunError, match="2 rows of probabilities, 3 labels"):
        expected_calibration_error(torch.full((2, 2), 0.5), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("sizes", [(200,), (1, 199), (64, 64, 64, 8)])
def test_batches_add_up_to_the_whole(sizes):
    outputs = drawn()
    assert computed(all_metrics(), split(outputs, *sizes)) == pytest.approx(computed(all_metrics(), [outputs]))


def test_ranks_add_up_to_the_whole_even_where_one_saw_no_batch():
    outputs = drawn()
    ranks = [all_metrics() for _ in range(3)]
    for metrics, part in zip(ranks, split(outputs, 150, 50), strict=False):
        computed(metrics, [part])
    flats: list[Tensor] = []
    for metrics in ranks:
        reduce(metrics, flats.append)
    total = torch.stack(flats).sum(0)
    for metrics in ranks:
        reduce(metrics, lambda flat: flat.copy_(total))
        assert computed(metrics, []) == pytest.approx(computed(all_metrics(), [outputs]))


def test_reducing_no_metric_communicates_nothing():
    summed = []
    reduce([], summed.append)
    assert summed == []


def test_states_are_float64_sums_that_may_be_changed_in_place():
    metric = Classification(5)
    metric.update(drawn())
    before = metric.compute()
    for state in metric.state():
        assert state.dtype == torch.float64 and state.device.type == "cpu"
        state *= 2
    assert metric.compute() == pytest.approx(before)


def test_a_million_small_losses_do_not_drift():
    metric = Classification(2)
    outputs = classified(
        torch.log(torch.tensor([[0.9, 0.1]])).expand(10_000, 2), torch.zeros(10_000, dtype=torch.int64)
    )
    for _ in range(100):
        metric.update(outputs)
    assert metric.compute()["loss"] == pytest.approx(-math.log(0.9), rel=1e-6)


def test_top_k_is_left_out_where_it_says_nothing():
    assert set(Classification(5, top_k=5).compute()) == {"loss", "accuracy"}
    assert set(Classification(5, top_k=1).compute()) == {"loss", "accuracy"}
    assert set(Classification(6, top_k=5).compute()) == {"loss", "accuracy", "top5_accuracy"}


def test_not_a_number_is_never_a_right_answer():
    metric = Classification(4, top_k=2)
    metric.update(classified(torch.full((3, 4), float("nan")), torch.tensor([1, 2, 3])))
    values = metric.compute()
    assert math.isnan(values["loss"]) and values["accuracy"] == 0 and values["top2_accuracy"] == 0


@pytest.mark.filterwarnings("error")
def test_outputs_without_labels_count_for_nothing():
    unlabelled = Outputs(torch.arange(2), {"log_probabilities": torch.zeros(2, 5)})
    values = computed(all_metrics(), [unlabelled])
    assert all(math.isnan(value) for value in values.values())


def test_regression_metrics_equal_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    target = 100 + torch.randn(60, 3, generator=generator)
    prediction = target + torch.randn(60, 3, generator=generator)
    metric = Regression(["low", "price", "high"], lambda predicted, wanted: (predicted - wanted) ** 2)
    for rows in torch.arange(60).split(25):
        metric.update(Outputs(rows, {"prediction": prediction[rows], "target": target[rows]}))
    values = metric.compute()
    assert values["mse"] == pytest.approx(sk.mean_squared_error(target, prediction), rel=1e-6)
    assert values["loss"] == values["mse"]
    assert values["mae"] == pytest.approx(sk.mean_absolute_error(target, prediction), rel=1e-6)
    assert values["r2"] == pytest.approx(sk.r2_score(target, prediction), rel=1e-6)
    assert values["mse_price"] == pytest.approx(sk.mean_squared_error(target[:, 1], prediction[:, 1]), rel=1e-6)
    assert values["mae_high"] == pytest.approx(sk.mean_absolute_error(target[:, 2], prediction[:, 2]), rel=1e-6)
    assert values["r2_low"] == pytest.approx(sk.r2_score(target[:, 0], prediction[:, 0]), rel=1e-6)


def test_r2_of_a_target_that_never_varies_is_one_or_zero():
    def r2(error: float) -> float:
        metric = Regression(["price"], lambda predicted, wanted: (predicted - wanted).abs())
        target = torch.full((10, 1), 0.1)
        metric.update(Outputs(torch.arange(10), {"prediction": target + error, "target": target}))
        values = metric.compute()
        assert values.keys() == {"loss", "mse", "rmse", "mae", "r2"}  # one target stands for itself
        return values["r2"]

    assert r2(0.0) == 1 and r2(0.5) == 0


def test_regression_without_targets_counts_nothing():
    metric = Regression(["low", "high"], lambda predicted, wanted: predicted)
    metric.update(Outputs(torch.arange(2), {"prediction": torch.zeros(2, 2)}))
    assert all(math.isnan(value) for value in metric.compute().values())

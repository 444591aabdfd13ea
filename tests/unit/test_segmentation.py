"""Segmentation: losses against torch and by hand, ignored pixels, metrics against scikit-learn, files and pictures."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from dlrun.contracts import IGNORED, DataSpec, Goal, Outputs, Task, WithFiles, WithPictures, WithTables
from dlrun.errors import DlrunError, Exit
from dlrun.metrics.reduce import reduce
from dlrun.metrics.segmentation import Segmentation, intersection_over_union
from dlrun.pictures import palette
from dlrun.tasks import segmentation
from dlrun.tasks._pixel_losses import Shaping, dice_loss

LABELS = ("sky", "road", "car")
SIZES = {"pixel_classes": 3, "channels": 3, "height": 6, "width": 8, "mask_height": 12, "mask_width": 16}
SPEC = DataSpec(("image",), "mask", SIZES, {"image": (3, 6, 8)}, LABELS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(seed: int = 1, stride: int = 1) -> nn.Module:
    made = nn.Conv2d(3, 3, stride, stride, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=seeded(seed)))
    return made


def batch(size: int = 4, scale: int = 1, ignored: float = 0.2) -> dict[str, Tensor]:
    mask = torch.randint(0, 3, (size, 6 * scale, 8 * scale), generator=seeded(2), dtype=torch.uint8)
    mask[torch.rand(mask.shape, generator=seeded(3)) < ignored] = IGNORED
    image = torch.randn(size, 3, 6, 8, generator=seeded(4))
    return {"id": torch.arange(size) + 10, "image": image, "mask": mask, "size": torch.tensor([[12, 16]] * size)}


def part(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: field[rows] for name, field in batch.items()}


def loss_of(data: dict[str, Tensor], network: nn.Module | None = None, **settings) -> Tensor:
    loss = segmentation.build(SPEC, **settings).loss(network or model(), data)
    return loss.sum / loss.count


# ---------------------------------------------------------------- losses


def test_the_task_keeps_the_contracts():
    task = segmentation.build(SPEC)
    made: Task = task
    assert isinstance(made, WithPictures) and isinstance(made, WithFiles)
    assert isinstance(made.metrics()[0], WithTables)
    assert task.goal == Goal("mean_iou", "max")


def test_cross_entropy_is_a_mean_over_all_pixels_to_which_ignored_ones_add_nothing():
    data = batch()
    expected = functional.cross_entropy(
        model()(data["image"]), data["mask"].long(), ignore_index=IGNORED, reduction="sum"
    )
    torch.testing.assert_close(loss_of(data), expected / (4 * 6 * 8))
    assert segmentation.build(SPEC).count(data) == 4


def test_smoothing_and_class_weights_are_those_of_torch():
    data = batch(ignored=0)
    expected = functional.cross_entropy(
        model()(data["image"]), data["mask"].long(), torch.tensor([1.0, 0.5, 3.0]), reduction="sum", label_smoothing=0.1
    )
    torch.testing.assert_close(
        loss_of(data, class_weights=[1, 0.5, 3], label_smoothing=0.1), expected / data["mask"].numel()
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_the_loss_of_a_batch_is_the_sum_of_the_losses_of_its_parts(loss):
    task, network, data = segmentation.build(SPEC, loss=loss, class_weights=[1, 2, 0.5]), model(), batch()
    parts = [task.loss(network, part(data, rows)) for rows in (slice(0, 1), slice(1, 4))]
    whole = task.loss(network, data)
    assert task.additive
    torch.testing.assert_close(whole.sum, parts[0].sum + parts[1].sum)
    assert whole.count == sum(piece.count for piece in parts)


def test_focal_without_gamma_is_cross_entropy_and_with_it_by_hand():
    data = batch()
    torch.testing.assert_close(loss_of(data, loss="focal", focal_gamma=0.0), loss_of(data))
    plain = functional.cross_entropy(
        model()(data["image"]), data["mask"].long(), ignore_index=IGNORED, reduction="none"
    )
    expected = ((1 - (-plain).exp()) ** 2 * plain).mean()
    torch.testing.assert_close(loss_of(data, loss="focal"), expected)


def test_dice_by_hand():
    # Two pixels of class 0, one of class 1, one ignored; class 2 is not there.
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]).log()
    logits_BCHW = logits.clamp(min=-100).T.reshape(1, 3, 2, 2)
    mask = torch.tensor([[[0, 0], [1, IGNORED]]], dtype=torch.uint8)
    first = 2 * (0.5 + 0.75) / (1.5 + 2)  # twice what both have, over what each has
    second = 2 * 0.5 / (1.0 + 1)
    expected = 1 - (first + second) / 2
    assert dice_loss(logits_BCHW, mask, Shaping()).item() == pytest.approx(expected)
    weighted = dice_loss(logits_BCHW, mask, Shaping(torch.tensor([3.0, 1.0, 7.0])))
    assert weighted.item() == pytest.approx(1 - (3 * first + second) / 4)


def test_dice_is_nothing_for_a_perfect_answer_and_no_sum_over_pictures():
    data = batch(ignored=0)
    data["image"] = 1000.0 * functional.one_hot(data["mask"].long(), 3).permute(0, 3, 1, 2).float()
    assert loss_of(data, nn.Identity(), loss="dice").item() == pytest.approx(0, abs=1e-6)
    assert not segmentation.build(SPEC, loss="dice").additive
    assert not segmentation.build(SPEC, loss="focal+dice").additive


@pytest.mark.parametrize("first", ["cross_entropy", "focal"])
def test_a_sum_of_losses_is_the_sum_of_the_losses(first):
    data = batch()
    expected = loss_of(data, loss=first) + loss_of(data, loss="dice")
    torch.testing.assert_close(loss_of(data, loss=f"{first}+dice"), expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "focal", "cross_entropy+dice"])
def test_ignored_pixels_change_neither_loss_nor_gradient(loss):
    data = batch(ignored=0.5)
    other = data | {"image": torch.where(data["mask"][:, None] == IGNORED, 50.0, data["image"])}
    found = []
    for given in (data, other):
        network = model()
        loss_of(given, network, loss=loss).backward()
        found.append((network.weight.grad, loss_of(given, network, loss=loss)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("loss", ["cross_entropy", "dice", "focal", "focal+dice"])
def test_a_picture_of_ignored_pixels_alone_has_no_loss_and_finite_gradients(loss):
    data, network = batch(), model()
    data["mask"] = torch.full_like(data["mask"], IGNORED)
    value = loss_of(data, network, loss=loss, focal_gamma=0.5, label_smoothing=0.1)
    value.backward()
    assert value.item() == 0
    assert network.weight.grad is not None and not network.weight.grad.any()


def test_logits_of_a_fraction_of_the_size_are_brought_to_that_of_the_picture_and_masks_too():
    data, network = batch(scale=2), model(stride=2)
    logits = functional.interpolate(network(data["image"]), (6, 8), mode="bilinear")
    mask = functional.interpolate(data["mask"][:, None], (6, 8), mode="nearest-exact")[:, 0]
    expected = functional.cross_entropy(logits, mask.long(), ignore_index=IGNORED, reduction="sum") / mask.numel()
    torch.testing.assert_close(loss_of(data, network), expected)


class Twofold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = model(), model(seed=9, stride=2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return (self.first(x), self.second(x)) if self.training else self.first(x)


def test_auxiliary_logits_are_trained_on_with_their_weight():
    data, network = batch(), Twofold()
    expected = loss_of(data, network.first) + 0.25 * loss_of(data, network.second)
    torch.testing.assert_close(loss_of(data, network, auxiliary_weight=0.25), expected)
    torch.testing.assert_close(loss_of(data, network.eval()), loss_of(data, network.first))


def test_the_loss_is_float32_under_autocast_and_float64_for_a_float64_model():
    task, network, data = segmentation.build(SPEC, loss="cross_entropy+dice"), model(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(data["image"]).dtype == torch.bfloat16
        assert task.loss(network, data).sum.dtype == torch.float32
    assert task.loss(network.double(), data | {"image": data["image"].double()}).sum.dtype == torch.float64


@pytest.mark.parametrize(("settings", "message"), [
    ({"label_smoothing": 1.0}, "task.label_smoothing: 1.0 is not in [0, 1)"),
    ({"focal_gamma": -1.0}, "task.focal_gamma: -1.0 is not a number of at least 0"),
    ({"auxiliary_weight": math.nan}, "task.auxiliary_weight: nan is not a number of at least 0"),
    ({"class_weights": [1, 2]}, "task.class_weights: [1, 2] is not a number of at least 0 for each of the 3 classes"),
])  # fmt: skip
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(DlrunError) as caught:
        segmentation.build(SPEC, **settings)
    assert message in str(caught.value)


def test_data_and_models_that_do_not_fit_are_refused_with_a_sentence():
    classes = DataSpec(("image",), "label", {"classes": 3}, {"image": (3, 6, 8)})
    with pytest.raises(DlrunError, match="needs data with 'pixel_classes'; this data set has classes=3"):
        segmentation.build(classes)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 3))
    with pytest.raises(DlrunError, match=r"gives \[4, 3\] for 4 examples; segmentation needs \[4, 3, height, width\]"):
        segmentation.build(SPEC).loss(flat, batch())


# ---------------------------------------------------------------- outputs


def test_outputs_hold_16_bit_log_probabilities_at_the_pictures_size_and_masks_at_their_own():
    task, data = segmentation.build(SPEC), batch(scale=2)
    outputs = task.outputs(model(stride=2), data)
    assert outputs.ids.tolist() == [10, 11, 12, 13]
    assert outputs.fields["log_probabilities"].shape == (4, 3, 6, 8)
    assert outputs.fields["log_probabilities"].dtype == torch.float16
    torch.testing.assert_close(
        outputs.fields["log_probabilities"].float().exp().sum(1), torch.ones(4, 6, 8), atol=2e-3, rtol=0
    )
    assert outputs.fields["mask"].shape == (4, 12, 16) and outputs.fields["mask"].dtype == torch.uint8
    assert outputs.fields["size"].tolist() == [[12, 16]] * 4
    unknown = {"id": data["id"], "image": data["image"]}
    assert set(task.outputs(model(), unknown).fields) == {"log_probabilities"}


def test_certain_answers_stay_finite_in_16_bits():
    outputs = segmentation.build(SPEC).outputs(nn.Identity(), batch() | {"image": 1e6 * batch()["image"]})
    assert outputs.fields["log_probabilities"].isfinite().all()


def test_outputs_of_parts_merge():
    task, data = segmentation.build(SPEC), batch()
    parts = [task.outputs(model(), part(data, rows)) for rows in (slice(2, 4), slice(0, 2))]
    merged, whole = Outputs.concatenate(parts).by_id(), task.outputs(model(), data)
    assert merged.ids.tolist() == whole.ids.tolist()
    torch.testing.assert_close(merged.fields, whole.fields)


def told(predicted: list, truth: list | None = None) -> Outputs:
    """Outputs that are sure of these classes."""
    log_probabilities = functional.one_hot(torch.tensor(predicted), 3).float().clamp(min=1e-3).log()
    fields = {"log_probabilities": log_probabilities.permute(0, 3, 1, 2).half()}
    known = {} if truth is None else {"mask": torch.tensor(truth, dtype=torch.uint8)}
    return Outputs(torch.arange(len(predicted)), fields | known)


def test_rows_give_the_share_of_each_class_and_of_what_is_right():
    task = segmentation.build(SPEC)
    (row,) = task.rows(told([[[0, 0], [2, 0]]], [[[0, 1], [2, IGNORED]]]))
    assert row == {
        "id": 0,
        "classes": {"sky": 0.75, "car": 0.25},
        "truth": pytest.approx({"sky": 1 / 3, "road": 1 / 3, "car": 1 / 3}),
        "pixel_accuracy": pytest.approx(2 / 3),
    }
    assert task.rows(told([[[1, 1], [1, 1]]])) == [{"id": 0, "classes": {"road": 1.0}}]


def test_a_row_whose_truth_is_ignored_altogether_states_no_accuracy():
    (row,) = segmentation.build(SPEC).rows(told([[[0, 0]]], [[[IGNORED, IGNORED]]]))
    assert row["truth"] == {} and "pixel_accuracy" not in row


# ---------------------------------------------------------------- metrics


def measured(outputs: Outputs, num_classes: int = 3) -> Segmentation:
    metric = Segmentation(num_classes)
    metric.update(outputs)
    return metric


def test_metrics_by_hand():
    metric = measured(told([[[0, 0, 1], [1, 1, 0]]], [[[0, 1, 1], [1, IGNORED, 0]]]))
    # Class 0: 2 right, 2 there, 3 said. Class 1: 2 right, 3 there, 2 said. Class 2: neither there nor said.
    assert metric.tables() == {
        "confusion": [[2, 0, 0], [1, 2, 0], [0, 0, 0]],
        "iou": [2 / 3, 2 / 3, None],
        "signatures": ["mean IoU over 2 of 3 classes at 3 x 2", "iou: 0 0.667, 1 0.667, 2 none"],
    }
    found = metric.compute()
    assert found["mean_iou"] == pytest.approx(2 / 3)
    assert found["pixel_accuracy"] == pytest.approx(4 / 5)
    assert found["mean_class_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    sure, unsure = -math.log(1 / 1.002), -math.log(0.001 / 1.002)
    assert found["loss"] == pytest.approx((4 * sure + unsure) / 5, rel=1e-2)


def test_the_task_says_its_classes_the_size_and_the_values_that_do_not_count():
    spec = replace(SPEC, labels=("sky", "road", "mark"), assets=SPEC.assets | {"ignored": [11]})
    (metric,) = segmentation.build(spec).metrics()
    metric.update(told([[[0, 0, 1, 2], [1, 1, 0, 2]]], [[[0, 1, 1, 2], [1, IGNORED, 0, 2]]]))
    assert metric.tables()["signatures"] == [
        "mean IoU over 3 classes at 4 x 2, ignoring 11",
        "iou: sky 0.667, road 0.667, mark 1.000",
    ]


def test_a_class_that_is_only_predicted_counts_as_missed():
    found = measured(told([[[0, 2]]], [[[0, 0]]])).compute()
    assert found["mean_iou"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["mean_class_accuracy"] == pytest.approx(1 / 2)


def test_metrics_are_those_of_scikit_learn():
    from sklearn import metrics

    truth = torch.randint(0, 5, (3, 20, 30), generator=seeded(5))
    scores = torch.randn(3, 5, 20, 30, generator=seeded(6))
    metric = measured(Outputs(torch.arange(3), {"log_probabilities": scores.log_softmax(1), "mask": truth.byte()}), 5)
    flat, said, tables = truth.flatten().numpy(), scores.argmax(1).flatten().numpy(), metric.tables()
    assert tables["confusion"] == metrics.confusion_matrix(flat, said).tolist()
    assert tables["iou"] == pytest.approx(metrics.jaccard_score(flat, said, average=None).tolist())
    probabilities = scores.softmax(1).permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    assert metric.compute() == pytest.approx({
        "mean_iou": metrics.jaccard_score(flat, said, average="macro"),
        "pixel_accuracy": metrics.accuracy_score(flat, said),
        "mean_class_accuracy": metrics.balanced_accuracy_score(flat, said),
        "loss": metrics.log_loss(flat, probabilities),
    }, rel=1e-5)  # fmt: skip


def test_predictions_are_scored_at_the_masks_own_size_as_bilinear_logits():
    logits = 3 * torch.randn(2, 3, 6, 8, generator=seeded(7))
    mask = torch.randint(0, 3, (2, 12, 16), generator=seeded(8), dtype=torch.uint8)
    at_size = functional.interpolate(logits, (12, 16), mode="bilinear")
    metric = measured(Outputs(torch.arange(2), {"log_probabilities": logits.log_softmax(1), "mask": mask}))
    right = (at_size.argmax(1) == mask).double().mean().item()
    assert metric.compute()["pixel_accuracy"] == pytest.approx(right)
    expected = functional.cross_entropy(at_size, mask.long())
    assert metric.compute()["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_metrics_of_ranks_add_up():
    task, data = segmentation.build(SPEC), batch(scale=2)
    outputs = [task.outputs(model(), part(data, rows)) for rows in (slice(0, 3), slice(3, 4))]
    whole, ranks = measured(Outputs.concatenate(outputs)), [measured(own) for own in outputs]
    states = [torch.cat([state.reshape(-1) for state in rank.state()]) for rank in ranks]
    reduce([ranks[0]], lambda flat: flat.copy_(sum(states)))
    assert ranks[0].compute() == pytest.approx(whole.compute())
    assert ranks[0].tables() == whole.tables()


def test_outputs_without_masks_count_for_nothing():
    metric = measured(told([[[0, 1]]]))
    assert all(math.isnan(value) for value in metric.compute().values())
    assert metric.tables()["iou"] == [None, None, None]
    assert "signatures" not in metric.tables()


def test_a_mask_with_an_unknown_class_is_refused():
    with pytest.raises(DlrunError, match="a mask holds class 7; the data has 3 classes, 0 to 2") as caught:
        measured(told([[[0, 1]]], [[[0, 7]]]))
    assert caught.value.code == Exit.DATA


def test_a_class_that_never_occurs_has_no_intersection_over_union():
    iou = intersection_over_union(torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]).double())
    assert iou[:2].tolist() == pytest.approx([3 / 4, 4 / 5]) and iou[2].isnan()


# ---------------------------------------------------------------- files and pictures


def pixels() -> dict[str, Tensor]:
    """Two pictures as an input pipeline reads them: 6x8 pixels, given at 12x16."""
    image = torch.randint(0, 256, (2, 3, 6, 8), generator=seeded(9), dtype=torch.uint8)
    return {"id": torch.arange(2), "image": image, "size": torch.tensor([[120, 160], [60, 200]])}


def answer(data: dict[str, Tensor]) -> Outputs:
    return segmentation.build(SPEC).outputs(model(), data | {"image": data["image"].float() / 128 - 1})


def test_files_are_masks_of_class_indices_and_overlays_of_the_size_that_was_given():
    data = pixels()
    outputs = answer(data)
    files = dict(segmentation.build(SPEC).files(["a", "b"], data, outputs))
    assert list(files) == ["a.mask.png", "a.overlay.png", "b.mask.png", "b.overlay.png"]
    mask = Image.open(io.BytesIO(files["a.mask.png"]))
    assert mask.mode == "P" and mask.size == (160, 120)
    logits = outputs.fields["log_probabilities"][:1].float()
    expected = functional.interpolate(logits, (120, 160), mode="bilinear")[0].argmax(0)
    assert np.array_equal(np.asarray(mask), expected.numpy())
    first = int(expected[0, 0])
    assert mask.convert("RGB").getpixel((0, 0)) == palette(3)[first]
    assert Image.open(io.BytesIO(files["b.overlay.png"])).size == (200, 60)


def test_the_index_names_classes_masks_and_shares():
    outputs = told([[[0, 0], [2, 0]], [[1, 1], [1, 1]]])
    name, content = segmentation.build(SPEC).index(["street", "field"], ["street.png", "field.png"], outputs)
    assert name == "predictions.json"
    assert content == {
        "classes": ["sky", "road", "car"],
        "predictions": [
            {"name": "street", "mask": "street.mask.png", "classes": {"sky": 0.75, "car": 0.25}},
            {"name": "field", "mask": "field.mask.png", "classes": {"road": 1.0}},
        ],
    }


def test_pictures_show_the_picture_the_truth_and_the_prediction():
    data = pixels()
    without = segmentation.build(SPEC).pictures(data, answer(data))
    known = data | {"mask": torch.randint(0, 3, (2, 12, 16), generator=seeded(1), dtype=torch.uint8)}
    drawn = segmentation.build(SPEC).pictures(known, answer(known))
    assert len(without) == len(drawn) == 2
    assert drawn[0].height == without[0].height
    assert 1.4 < drawn[0].width / without[0].width < 1.6  # three pictures and two

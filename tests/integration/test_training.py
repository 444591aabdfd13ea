"""The engine against references: a hand-written loop, one batch against many, interrupted against not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dlrun.contracts import Goal
from dlrun.errors import DlrunError, Exit
from dlrun.randomness import permutation
from dlrun.training.metrics_log import histories, read_rows


def weights(run, which="last"):
    return load_file(run.checkpoints / which / "weights.safetensors")


def assert_same(left, right, tolerance=0.0):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)


SGD = ("optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9", "optimizer.weight_decay=0", "schedule=constant")


def test_a_run_equals_a_hand_written_loop(train):
    run = train(*SGD, "data.batch_size=64", "train.duration=5 steps", "seed=3")
    from dlrun import build
    from dlrun.config import check
    from dlrun.registry import Registry

    registry = Registry()
    config = check.read(run.folder, registry)
    data = build.dataset(config.data, registry, build.RunTools(3, run.folder, registry))
    model = build.model(config.model, registry, data.spec, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = permutation(len(data.splits["train"]), "order", 3, 0)
    for step in range(5):
        batch = data.inputs.prepare(data.splits["train"].gather(order[step * 64 : step * 64 + 64]))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
        optimizer.step()
    assert_same(weights(run), dict(model.state_dict()), tolerance=1e-6)


def test_ragged_accumulation_gives_the_weights_of_one_batch(train):
    whole = train(*SGD, "data.batch_size=120", "train.duration=1 epoch")
    parts = train(*SGD, "data.batch_size=120", "train.duration=1 epoch", "train.accumulate=4")
    assert_same(weights(whole), weights(parts), tolerance=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(train):
    first, again, other = train("seed=1"), train("seed=1"), train("seed=2")
    assert_same(weights(first), weights(again))
    name = next(iter(weights(first)))
    assert not torch.equal(weights(first)[name], weights(other)[name])


@pytest.mark.parametrize("ends", [(), ("train.patience=1", "train.min_improvement=1")])
def test_the_last_evaluation_counts_as_the_others_do(train, monkeypatch, ends):
    """By a clock that moves when the validation split is evaluated, and not otherwise."""
    from dlrun import worker
    from dlrun.training import loop

    now, evaluate = [0.0], worker.Sitting.evaluate

    def evaluated(sitting, split, *given):
        now[0] += split == "valid" and not given
        return evaluate(sitting, split, *given)

    monkeypatch.setattr(worker.Sitting, "evaluate", evaluated)
    monkeypatch.setattr(loop.Clock, "seconds", lambda _: now[0])
    run = train(*ends)
    assert run.record.reason == ("early stop" if ends else "complete")
    assert run.result["seconds"] == now[0] == 2


def test_global_generator_of_the_caller_is_left_alone_by_building_a_model():
    from dlrun import build
    from dlrun.config.schema import ModelConfig
    from dlrun.contracts import DataSpec
    from dlrun.registry import Registry

    spec = DataSpec(("image",), "label", {"classes": 2, "channels": 1, "height": 8, "width": 8}, {"image": (1, 8, 8)})
    before = torch.get_rng_state()
    build.model(ModelConfig("logistic"), Registry(), spec, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_digits_are_learned(train):
    run = train("model=mlp", "train.duration=15 epochs")
    assert run.status == "FINISHED"
    assert run.result["metrics"]["test/accuracy"] > 0.95
    rows = histories(read_rows(run.metrics_file))
    assert rows["train/loss"][0][1] > rows["train/loss"][-1][1]
    assert len(rows["valid/accuracy"]) == 15


def test_best_points_to_the_evaluation_with_the_best_goal(train):
    run = train("train.duration=4 epochs")
    values = dict(histories(read_rows(run.metrics_file))["valid/accuracy"])
    best = int((run.checkpoints / "best").resolve().name)
    assert values[best] == max(values.values())
    assert run.result["metrics"]["valid/accuracy"] == pytest.approx(values[best])


def test_patience_stops_early(train):
    run = train("train.duration=50 epochs", "train.patience=2", "train.min_improvement=0.5")
    assert run.record.reason == "early stop"
    assert len(histories(read_rows(run.metrics_file))["valid/accuracy"]) == 3


def test_a_loss_that_is_not_finite_stops_before_the_update(train, tmp_path):
    run = None
    with pytest.raises(DlrunError, match="not finite at step") as error:
        train("optimizer=sgd", "optimizer.lr=1e38", "train.duration=20 steps", "train.save_every=1 step", "model=mlp")
    assert error.value.code == Exit.TRAINING
    from dlrun.runs import listing

    run = listing(tmp_path / "runs")[0]
    assert run.status == "FAILED"
    saved = json.loads(next(run.folder.glob("not-finite-step-*.json")).read_text())
    assert len(saved["ids"]) == 128 or len(saved["ids"]) > 0
    state = json.loads((run.checkpoints / "last" / "state.json").read_text())
    assert state["progress"]["step"] == saved["step"]


def test_the_averaged_weights_are_used_and_differ_from_the_raw_ones(train):
    run = train("train.ema=0.9")
    average, raw = weights(run), load_file(run.checkpoints / "last" / "raw.safetensors")
    assert average.keys() == raw.keys()
    assert any(not torch.equal(average[name], raw[name]) for name in average)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_learns(train, precision):
    run = train("model=mlp", f"train.precision={precision}", "train.duration=4 epochs")
    assert run.result["metrics"]["test/accuracy"] > 0.8


def test_overfitting_one_batch_drives_its_loss_down(train):
    run = train(
        "model=mlp",
        "train.overfit_one_batch=true",
        "train.duration=80 steps",
        "data.batch_size=16",
        "schedule=constant",
        "optimizer.lr=0.01",
    )
    losses = [value for _, value in histories(read_rows(run.metrics_file))["train/loss"]]
    assert losses[-1] < 0.05 < losses[0]


def test_a_run_limited_by_time_ends_with_an_evaluation(train):
    run = train("train.duration=2 seconds")
    assert run.status == "FINISHED"
    assert run.result["seconds"] >= 2
    assert "valid/accuracy" in run.result["metrics"]


def test_gradient_clipping_bounds_the_step(train):
    loose = train(*SGD, "optimizer.momentum=0", "train.duration=1 step")
    tight = train(*SGD, "optimizer.momentum=0", "train.duration=1 step", "train.clip_norm=1e-3")
    assert loose.result["step"] == tight.result["step"] == 1
    from dlrun import build
    from dlrun.config import check
    from dlrun.contracts import DataSpec
    from dlrun.registry import Registry
    from dlrun.runs import read_json

    registry = Registry()
    start = build.model(
        check.read(tight.folder, registry).model, registry, DataSpec.from_json(read_json(tight.folder / "spec.json")), 0
    ).state_dict()
    moved = sum(float((weights(tight)[name] - start[name]).square().sum()) for name in start) ** 0.5
    assert moved == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_a_batch_that_cannot_be_split_or_filled_is_refused(train):
    with pytest.raises(DlrunError, match="100 cannot be split over 1 processes x 8 micro-batches") as error:
        train("data.batch_size=100", "train.accumulate=8")
    assert "data.batch_size=96" in error.value.hint
    with pytest.raises(DlrunError, match="is larger than the"):
        train("data.batch_size=100000")


def test_a_goal_knows_what_is_better():
    assert Goal("accuracy", "max").better(0.9, 0.8)
    assert Goal("loss", "min").better(0.1, None)
    assert not Goal("loss", "min").better(float("nan"), None)

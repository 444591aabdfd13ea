"""Each experiment on its real data for a few percent of its duration, against a looser bar written beside it."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("DLRUN_TEST_DATA" not in os.environ, reason="DLRUN_TEST_DATA does not name the real data"),
]


def result(runs, *arguments: str) -> dict:
    command = [sys.executable, "-m", "dlrun", "train", *arguments, "--runs", str(runs), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize(("name", "duration", "metric", "bar"), [
    ("fashion_mnist_cnn", "250 steps", "test/accuracy", 0.80),  # whole: 10 epochs, 0.925
    ("cifar10_resnet20", "200 steps", "test/accuracy", 0.30),  # whole: 18 epochs, 0.82
    ("bccd_detection", "150 steps", "test/ap50", 0.25),  # whole: 25 epochs, 0.55
    ("camvid_unet", "90 steps", "test/mean_iou", 0.10),  # whole: 24 epochs, 0.38
    ("fsdd_cnn", "120 steps", "test/accuracy", 0.60),  # whole: 15 epochs, 0.97
    ("adult_mlp", "250 steps", "test/accuracy", 0.82),  # whole: 12 epochs, 0.850
    ("adult_ft_transformer", "60 steps", "test/accuracy", 0.78),  # whole: 6 epochs, 0.853
    ("amazon_games_sasrec", "300 steps", "test/hr_10", 0.30),  # whole: 120 epochs, 0.65
    ("amazon_games_bprmf", "500 steps", "test/hr_10", 0.30),  # whole: 40 epochs, 0.565
    ("ag_news_textcnn", "150 steps", "test/accuracy", 0.55),  # whole: 6 epochs, 0.84
])  # fmt: skip
def test_a_short_experiment_learns(tmp_path, name, duration, metric, bar):
    whole = (f"train.duration={duration}", f"train.evaluate_every={duration}")
    # bf16 is many times slower on a processor without instructions for it
    found = result(tmp_path, f"experiment={name}", *whole, "train.precision=fp32")
    assert found["status"] == "FINISHED"
    assert found["goal"]["split"] == "test"
    assert found["metrics"][metric] >= bar


def test_a_short_language_model_learns(tmp_path):
    found = result(tmp_path, "experiment=shakespeare_gpt", "train.duration=200 steps", "train.evaluate_every=200 steps")
    assert found["metrics"]["valid/loss"] <= 2.5  # whole: 2,000 steps, 1.78


def test_a_forecast_beats_repeating_the_last_value_and_the_linear_model(tmp_path):
    found = result(tmp_path, "experiment=driving_speed_forecast")["metrics"]  # whole: it takes seconds
    assert found["test/mase"] < 1 and found["test/mase"] < found["test/mase_naive"]
    assert found["test/mase"] < found["test/mase_linear"] < 1.6  # 2.07 if not fitted to changes from the last row


def test_a_short_transfer_loads_its_body_and_learns(tmp_path):
    body = result(tmp_path, "experiment=transfer_body", "train.duration=60 steps", "train.evaluate_every=60 steps")
    assert body["metrics"]["test/accuracy"] >= 0.5
    tuned = result(
        tmp_path, "experiment=digits_1000_transfer", "transfer.from=run:transfer_body", "train.duration=3 epochs"
    )
    assert tuned["metrics"]["test/accuracy"] >= 0.7


def test_cached_features_give_the_head_that_uncached_features_give(tmp_path):
    result(tmp_path, "experiment=transfer_body", "train.duration=20 steps", "train.evaluate_every=20 steps")
    head = (
        "experiment=digits_1000_transfer",
        "transfer=feature_extraction",
        "transfer.from=run:transfer_body",
        "train.duration=1 epoch",
        "model.dropout=0",
        "data.train_size=200",
    )
    cached = result(tmp_path, *head, "transfer.cache_features=true")
    plain = result(tmp_path, *head, "transfer.cache_features=false")
    assert cached["metrics"]["test/loss"] == pytest.approx(plain["metrics"]["test/loss"], rel=1e-3)

"""Series: windows split by time, baselines and MASE by hand, models that begin as "no change"."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun.contracts import DataSpec
from dlrun.data import series, waves
from dlrun.data._series import BASELINE_FILE
from dlrun.errors import DlrunError, Exit
from dlrun.models import linear_forecast, series_rnn, series_transformer, tcn
from dlrun.tasks import classification, forecasting


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(path, columns: dict[str, list]) -> str:
    lines = [",".join(columns)]
    lines += [",".join(str(cell) for cell in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def build(path: str, **settings):
    spec = settings.pop("spec", None)
    return series.build(SimpleNamespace(seed=0, assets=None, spec=spec), path=path, **settings)


def whole(split) -> dict[str, torch.Tensor]:
    return split.gather(torch.arange(len(split)))


def counted(tmp_path, rows: int = 40, **settings):
    """a counts up, b down."""
    path = table(tmp_path / "rows.csv", {"a": list(range(rows)), "b": [2.5 * (rows - row) for row in range(rows)]})
    return build(path, **({"window": 4, "horizon": 2, "valid_fraction": 0.2, "test_fraction": 0.2} | settings))


# ---------------------------------------------------------------- windows


def test_windows_are_split_by_time_and_no_future_of_one_split_is_anothers(tmp_path):
    dataset = counted(tmp_path)
    train, valid, test = (whole(dataset.splits[name]) for name in ("train", "valid", "test"))
    assert train["series"][0, :, 0].tolist() == [0, 1, 2, 3] and train["future"][0, :, 0].tolist() == [4, 5]
    assert train["future"][-1, :, 0].tolist() == [22, 23]
    assert valid["series"][0, :, 0].tolist() == [20, 21, 22, 23] and valid["future"][0, :, 0].tolist() == [24, 25]
    assert valid["future"][-1, :, 0].tolist() == [30, 31]
    assert test["future"][0, :, 0].tolist() == [32, 33] and test["future"][-1, :, 0].tolist() == [38, 39]
    assert [len(dataset.splits[name]) for name in ("train", "valid", "test")] == [19, 7, 7]
    assert dataset.spec.sizes == {"window": 4, "features": 2, "horizon": 2, "forecasts": 2}
    assert "test: 7 windows, rows 32 to 39" in dataset.notes
    assert len(counted(tmp_path, stride=3).splits["train"]) == 7


def test_inputs_are_standardised_by_the_training_rows_alone(tmp_path):
    dataset = counted(tmp_path)
    training = np.arange(24)
    assert dataset.spec.assets["mean"][0] == training.mean() and dataset.spec.assets["std"][0] == training.std()
    batch = dataset.inputs.prepare(dataset.splits["test"].gather(torch.tensor([0])))
    expected = (np.arange(28, 32) - training.mean()) / training.std()
    torch.testing.assert_close(batch["series"][0, :, 0], torch.from_numpy(expected).float())
    assert batch["future"][0, 0, 0] == 32


def test_some_columns_are_foretold_from_others_and_a_run_is_found_again(tmp_path):
    dataset = counted(tmp_path, columns=["b"], target_columns=["a"])
    assert dataset.spec.assets["columns"] == ["b", "a"] and dataset.spec.labels == ("a",)
    batch = dataset.splits["train"].gather(torch.tensor([0]))
    assert batch["series"].shape == (1, 4, 2) and batch["future"].tolist() == [[[4], [5]]]
    again = build(str(tmp_path / "rows.csv"), spec=dataset.spec, valid_fraction=0.2, test_fraction=0.2)
    assert again.spec is dataset.spec and again.fingerprint == dataset.fingerprint
    assert DataSpec.from_json(dataset.spec.to_json(), dataset.spec.files) == dataset.spec


def test_a_window_may_have_the_class_of_its_last_row(tmp_path):
    path = table(
        tmp_path / "rows.csv", {"a": list(range(30)), "state": ["up" if row % 2 else "down" for row in range(30)]}
    )
    dataset = build(path, target="state", window=3, valid_fraction=0.0, test_fraction=0.2)
    train, test = whole(dataset.splits["train"]), whole(dataset.splits["test"])
    assert dataset.spec.labels == ("down", "up") and dataset.spec.target == "label"
    assert train["series"][0, :, 0].tolist() == [0, 1, 2] and train["label"][:2].tolist() == [0, 1]
    assert test["series"][0, :, 0].tolist() == [22, 23, 24] and test["series"][-1, -1, 0] == 29
    task = classification.build(dataset.spec)
    for model in models(dataset.spec).values():
        loss = task.loss(model, dataset.inputs.prepare(train))
        assert loss.count == 22 and loss.sum.isfinite()


def test_bad_rows_are_named_or_no_window_holds_them(tmp_path):
    values = [str(row) for row in range(40)]
    values[10] = ""
    path = table(tmp_path / "rows.csv", {"a": values, "b": list(range(40))})
    with pytest.raises(DlrunError, match=r"rows.csv, row 10: there is no finite number in column 'a'") as caught:
        build(path, window=4, horizon=2)
    assert caught.value.code == Exit.DATA
    dataset = build(path, window=4, horizon=2, on_bad="skip", valid_fraction=0.0, test_fraction=0.0)
    ends = whole(dataset.splits["train"])["id"].tolist()
    assert ends == [4, 5, 6, 7, 8, *range(15, 39)]


@pytest.mark.parametrize("named", [{}, {"columns": ["a", "b"]}])
def test_a_word_in_a_column_of_numbers_is_a_bad_row_and_not_the_end_of_the_column(named, tmp_path):
    values = [str(row) for row in range(40)]
    values[10] = "bad"
    path = table(tmp_path / "rows.csv", {"a": values, "b": list(range(40)), "word": ["x", "y"] * 20})
    with pytest.raises(DlrunError, match=r"rows.csv, row 10: 'bad' in column 'a' is no number") as caught:
        build(path, window=4, **named)
    assert caught.value.code == Exit.DATA and "data.on_bad=skip" in caught.value.hint
    dataset = build(path, window=4, on_bad="skip", valid_fraction=0.0, test_fraction=0.0, **named)
    assert dataset.spec.assets["columns"] == ["a", "b"]
    assert whole(dataset.splits["train"])["id"].tolist() == [*range(4, 10), *range(15, 40)]
    guesses = ("columns: a, b (guessed; data.columns)", "not in a window: word (guessed; data.columns)")
    assert dataset.notes[:2] == guesses if not named else not set(guesses) & set(dataset.notes)


def test_no_window_holds_a_row_without_a_class(tmp_path):
    states = ["up" if row % 2 else "down" for row in range(30)]
    states[12] = ""
    path = table(tmp_path / "rows.csv", {"a": list(range(30)), "state": states})
    with pytest.raises(DlrunError, match=r"1 row has no label in column 'state' \(the first: row 12\)"):
        build(path, target="state", window=3)
    dataset = build(path, target="state", window=3, valid_fraction=0.0, test_fraction=0.0, on_bad="skip")
    assert dataset.spec.labels == ("down", "up")
    assert whole(dataset.splits["train"])["id"].tolist() == [*range(3, 13), *range(16, 31)]


def test_settings_that_make_no_windows_are_refused(tmp_path):
    path = table(tmp_path / "rows.csv", {"a": list(range(30)), "b": list(range(30)), "word": ["x", "y"] * 15})
    for settings, says in (
        ({"window": 0}, "data.window: 0 is not at least 1"),
        ({"season": 9, "window": 4}, "data.season: 9 rows are more than data.window=4"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"window": 28}, "rows.csv: the 24 rows of train hold no window of 28 rows with 1 after it"),
        ({"columns": ["aa"]}, "data.columns: rows.csv has no column 'aa'"),
        (
            {"target_columns": ["word"]},
            "data.target_columns: rows.csv: column 'word' holds large_string; numbers are needed",
        ),
        ({"target_columns": ["a"], "target": "word"}, "data.target and data.target_columns are both set"),
        ({"columns": ["a", "a"]}, r"data.columns: rows.csv: \['a', 'a'\] are no different columns"),
    ):
        with pytest.raises(DlrunError, match=says):
            build(path, **({"window": 4} | settings))


def test_new_windows_are_encoded_or_refused_by_row(tmp_path):
    dataset = counted(tmp_path)
    window = whole(dataset.splits["test"])["series"][0].tolist()
    batch = dataset.inputs.encode([{"series": window}, {"series": [[0.0, 0.0], *window]}])
    assert torch.equal(batch["series"][0], batch["series"][1])
    for row, says in (
        ({}, "row 0 has no 'series'"),
        ({"series": window[:2]}, r"row 0: 'series' has the shape \[2, 2\]; \[4, 2\] is needed"),
        ({"series": [["x", 1]] * 4}, "row 0: 'series' is no table of numbers"),
        ({"series": [[float("nan"), 1.0]] * 4}, "row 0: 'series' holds a number that is not finite"),
    ):
        with pytest.raises(DlrunError, match=says):
            dataset.inputs.encode([row])


# ---------------------------------------------------------------- forecasts


def made(**settings):
    return waves.build(SimpleNamespace(seed=0, assets=None), **settings)


@pytest.fixture(scope="module")
def dataset():
    return made(size=600, window=30, horizon=5)


def models(spec) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "linear_forecast": linear_forecast.build(spec),
        "series_rnn": series_rnn.build(spec, hidden=8, bidirectional=True, layers=2),
        "tcn": tcn.build(spec, channels=(4, 8)),
        "series_transformer": series_transformer.build(spec, depth=1, width=8, heads=2, patch=2),
    }


def test_waves_are_the_same_every_time(dataset):
    assert dataset.fingerprint == made(size=600, window=30, horizon=5).fingerprint
    assert dataset.fingerprint != made(size=600, window=30, horizon=5, wave_seed=1).fingerprint
    assert dataset.spec.labels == ("heat", "load") and dataset.spec.assets["season"] == 24


def test_a_model_begins_with_no_change_and_every_parameter_learns(dataset):
    batch = dataset.inputs.prepare(dataset.splits["train"].gather(torch.arange(8)))
    for name, model in models(dataset.spec).items():
        model.eval()
        expected = batch["series"][:, -1:].expand(8, 5, 2)
        torch.testing.assert_close(model(batch["series"]), expected, msg=name)
        torch.nn.init.normal_(model.head.linear.weight)
        model(batch["series"]).square().sum().backward()
        still = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
        assert still == [], name


def test_a_temporal_convolution_does_not_look_ahead():
    block = tcn.Block(2, 3, 3, 2, 0.0)
    x = torch.randn(1, 2, 20)
    later = x.clone()
    later[..., 12:] += 1
    before, after = block(x), block(later)
    assert torch.equal(before[..., :12], after[..., :12]) and not torch.equal(before[..., 12:], after[..., 12:])
    reach = tcn.build(made(size=200, window=30).spec, channels=(2, 2), kernel=3).eval()
    assert 1 + sum(2 * block.reach for block in reach.blocks) == 1 + 2 * 2 * (2**2 - 1)


def test_the_naive_forecast_is_the_last_season_and_mase_is_a_share_of_its_training_error(dataset):
    task, split = forecasting.build(dataset.spec), dataset.splits["test"]
    stored = whole(split)
    model = models(dataset.spec)["tcn"].eval()
    outputs = task.outputs(model, dataset.inputs.prepare(stored))
    expected = stored["series"][:, 30 - 24 : 30 - 24 + 5]
    torch.testing.assert_close(outputs.fields["naive"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.fields["prediction"][:, 0], stored["series"][:, -1], rtol=1e-4, atol=1e-4)
    metric = task.metrics()[0]
    metric.update(outputs)
    found = metric.compute()
    table_N2 = split.values_NC[:420].double()
    scale = (table_N2[24:] - table_N2[:-24]).abs().mean(0)
    assert dataset.spec.assets["scale"] == pytest.approx(scale.tolist(), rel=1e-5)
    error = (expected - stored["future"]).double()
    assert found["mae_naive"] == pytest.approx(float(error.abs().mean((0, 1)).mean()), rel=1e-4)
    assert found["mase_naive"] == pytest.approx(float((error.abs().mean((0, 1)) / scale).mean()), rel=1e-4)
    assert found["rmse_naive"] == pytest.approx(float(error.square().mean((0, 1)).sqrt().mean()), rel=1e-4)
    assert {"loss", "mae", "rmse", "mase", "mae_linear", "rmse_linear", "mase_linear"} <= found.keys()
    assert found["loss"] == pytest.approx(found["mae"], rel=1e-6)


def test_the_linear_baseline_is_the_least_squares_forecast_of_the_changes_from_the_last_row(dataset):
    task, stored = forecasting.build(dataset.spec), whole(dataset.splits["train"])
    outputs = task.outputs(models(dataset.spec)["tcn"].eval(), dataset.inputs.prepare(stored))
    series, future = stored["series"].double().numpy(), stored["future"].double().numpy()
    last = series[:, -1:]
    changes = np.c_[(series[:, :-1] - last).reshape(len(series), -1), np.ones(len(series))]
    weights = np.linalg.lstsq(changes, (future - last).reshape(len(series), -1), rcond=None)[0]
    expected = (changes @ weights).reshape(future.shape) + last
    np.testing.assert_allclose(outputs.fields["linear"].numpy(), expected, atol=2e-3)
    assert BASELINE_FILE in dataset.spec.files


def test_the_linear_baseline_goes_along_with_a_level_it_never_saw(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 2)).cumsum(0)
    made = build(table(tmp_path / "walk.csv", {"a": noise[:, 0].tolist(), "b": noise[:, 1].tolist()}),
                 window=6, horizon=2, target_columns=["b"])  # fmt: skip
    task, batch = forecasting.build(made.spec), whole(made.splits["test"])
    higher = batch | {"series": batch["series"] + 1000}
    with torch.no_grad():
        low, high = (
            task.outputs(linear_forecast.build(made.spec), made.inputs.prepare(given)).fields["linear"]
            for given in (batch, higher)
        )
    torch.testing.assert_close(high - low, torch.full_like(low, 1000.0), rtol=1e-4, atol=1e-3)


def test_a_line_is_foretold_exactly_by_the_linear_baseline(tmp_path):
    lines = counted(tmp_path)
    task = forecasting.build(lines.spec)
    outputs = task.outputs(linear_forecast.build(lines.spec), lines.inputs.prepare(whole(lines.splits["test"])))
    torch.testing.assert_close(outputs.fields["linear"], outputs.fields["target"], rtol=1e-4, atol=1e-3)
    assert outputs.fields["naive"][0, :, 0].tolist() == pytest.approx([31, 31], rel=1e-5)


@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
def test_the_loss_is_counted_in_standard_deviations(loss, dataset):
    task = forecasting.build(dataset.spec, loss=loss, huber_delta=0.5)
    batch = dataset.inputs.prepare(dataset.splits["train"].gather(torch.arange(6)))
    model = models(dataset.spec)["linear_forecast"]
    with torch.no_grad():
        found = task.loss(model, batch)
        mean, std = (torch.tensor(dataset.spec.assets[name]) for name in ("mean", "std"))
        error = (model(batch["series"]) - (batch["future"] - mean) / std).abs()
    expected = {"mae": error, "mse": error**2, "huber": torch.where(error < 0.5, error**2 / 2, 0.5 * (error - 0.25))}
    assert float(found.sum) == pytest.approx(float(expected[loss].sum()), rel=1e-4) and found.count == 6 * 5 * 2


def test_forecasts_are_named_by_column(dataset, tmp_path):
    task = forecasting.build(dataset.spec)
    batch = dataset.inputs.prepare(dataset.splits["test"].gather(torch.tensor([0])))
    with torch.no_grad():
        row = task.rows(task.outputs(models(dataset.spec)["tcn"].eval(), batch))[0]
    assert row["forecast"].keys() == row["truth"].keys() == {"heat", "load"} and len(row["forecast"]["heat"]) == 5
    one = counted(tmp_path, target_columns=["a"], horizon=1)
    new = one.inputs.prepare(one.inputs.encode([{"series": [[row, 2.5] for row in range(4)]}]))
    with torch.no_grad():
        row = forecasting.build(one.spec).rows(
            forecasting.build(one.spec).outputs(linear_forecast.build(one.spec), new)
        )
    assert row == [{"id": 0, "forecast": pytest.approx(3.0, rel=1e-5)}]


def test_what_does_not_fit_is_refused(dataset):
    pictures = DataSpec(("image",), "label", {"classes": 3}, {"image": (1, 8, 8)})
    with pytest.raises(DlrunError, match="needs data with 'horizon'; this data set has classes=3"):
        forecasting.build(pictures)
    for component in (tcn, series_rnn, series_transformer, linear_forecast):
        with pytest.raises(DlrunError, match="needs windows of a series; this data has image"):
            component.build(pictures)
    with pytest.raises(DlrunError, match=r"task.huber_delta: 0 is not above 0"):
        forecasting.build(dataset.spec, huber_delta=0)
    with pytest.raises(DlrunError, match=r"model.patch: expected an integer in 1..30, got 31"):
        series_transformer.build(dataset.spec, patch=31)
    with pytest.raises(DlrunError, match=r"model.kernel: expected an integer of at least 2, got 1"):
        tcn.build(dataset.spec, kernel=1)
    batch = dataset.inputs.prepare(dataset.splits["test"].gather(torch.tensor([0])))
    with pytest.raises(DlrunError, match=r"the model gives \[1, 30, 2\]; forecasting needs \[1, 5, 2\]"):
        forecasting.build(dataset.spec).loss(torch.nn.Identity(), batch)

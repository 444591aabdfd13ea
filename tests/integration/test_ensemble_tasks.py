"""Ensembles of every kind of task from the command line: made, evaluated, asked about something new; and of sweeps."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun import predictor
from dlrun import runs as run_folders

pytestmark = pytest.mark.slow

GPT = ("model=gpt", "model.depth=1", "model.heads=2", "model.width=16")
WORDS = ("data=number_words", "data.size=80", "data.largest=999", "data.batch_size=8", "data.split_seed=0")


@pytest.fixture
def ensemble(train, dlrun) -> Callable:
    """ensemble([overrides of a member, …], "ensemble=vote") -> the folder of the ensemble, which was evaluated again
    from its members' weights."""

    def make(members: list[tuple[str, ...]], *words: str) -> Path:
        made = []
        for index, overrides in enumerate(members):
            short = (f"seed={index}", "train.evaluate_every=8 steps", "train.duration=8 steps", "hardware.threads=1")
            made.append(train(*short, *overrides))
        code, out, err = dlrun("ensemble", *(run.id for run in made), *words, "--json")
        assert code == 0, err
        shown = json.loads(out)
        folder = Path(shown["run_dir"])
        for place in (folder, *(run.folder for run in made)):
            shutil.rmtree(place / "predictions", ignore_errors=True)
        code, out, err = dlrun("evaluate", shown["run_id"], "--json")
        assert code == 0, err
        again = json.loads(out)["metrics"]
        known = {name: value for name, value in again.items() if value is not None}
        assert known == pytest.approx({name: shown["metrics"][name] for name in known}, rel=1e-4)
        assert shown["goal"]["name"] in {name.partition("/")[2] for name in known}
        return folder

    return make


@pytest.fixture
def predictions(dlrun) -> Callable:
    """predictions(folder, "picture.png") -> what the run says of each."""

    def ask(folder: Path, *arguments: str) -> list[dict]:
        code, out, err = dlrun("predict", folder.parent.name, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)["predictions"]

    return ask


def of_members(folder: Path, split: str = "test") -> list:
    """The members' Outputs of a split, by id."""
    plan = run_folders.read_json(folder / "plan.json")
    places = [folder.parents[1] / each["run"] / "artifacts" for each in plan["members"]]
    return [predictor.load(place).predict_split(split).by_id() for place in places]


def picture(path: Path, size: tuple[int, int]) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def report(folder: Path) -> dict:
    return run_folders.read_json(folder / "report" / "ensemble.json")


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("boxes", ["fusion", "nms"])
def test_detectors_become_one_that_finds_boxes_in_new_pictures(ensemble, predictions, tmp_path, boxes):
    scenes = ("task=detection", "data=scenes", "data.num_train=64", "data.num_valid=12", "data.num_test=12",
              "data.image_size=64", "data.batch_size=8", "model=center", "optimizer.lr=0.01",
              "train.duration=24 steps", "train.evaluate_every=24 steps")  # fmt: skip
    folder = ensemble(
        [(*scenes, "model.width=8"), (*scenes, "model.width=12", "model.stride=8")], f"ensemble.boxes={boxes}"
    )
    found = report(folder)
    assert found["goal"]["name"] in ("ap50", "map") and len(found["members"]) == 2
    said = predictor.load(folder).predict_split("test").by_id().fields
    members = [each.fields for each in of_members(folder)]
    assert said["scores"].shape[1] == max(each["scores"].shape[1] for each in members)
    for name in ("true_boxes", "true_labels"):
        assert torch.equal(said[name], members[0][name])
    assert bool((said["labels"] >= 0).any())
    [row] = predictions(folder, picture(tmp_path / "new.png", (80, 120)), "--out", str(tmp_path / "out"))
    assert {"input", "objects"} <= set(row) and list((tmp_path / "out").rglob("*"))


def test_classes_of_pixels_are_averaged_also_of_new_pictures(ensemble, predictions, tmp_path):
    roads = ("task=segmentation", "data=roads", "data.target=mask", "data.num_pictures=60", "data.batch_size=8",
             "model=unet", "model.width=8", "model.stem_stride=2", "optimizer.lr=0.02")  # fmt: skip
    folder = ensemble([(*roads, "model.depth=2"), (*roads, "model.depth=1")])
    found = report(folder)
    assert found["goal"]["name"] == "mean_iou" and found["gain"]["over_mean_member"]["low"] is not None
    members = [each.fields["log_probabilities"].float().exp() for each in of_members(folder)]
    said = predictor.load(folder).predict_split("test").by_id().fields["log_probabilities"].float().exp()
    torch.testing.assert_close(said, torch.stack(members).mean(0), atol=2e-3, rtol=0)
    rows = predictions(folder, picture(tmp_path / "new.png", (60, 140)), "--out", str(tmp_path / "out"))
    assert len(rows) == 1
    sizes = []
    for path in (tmp_path / "out").rglob("*.png"):
        with Image.open(path) as drawn:
            sizes.append(drawn.size)
    assert (140, 60) in sizes


# ---------------------------------------------------------------- numbers and items


def test_numbers_have_a_variance_and_a_likelihood(ensemble, predictions, tmp_path):
    roads = ("task=regression", "data=roads", "data.num_pictures=100", "data.batch_size=16", "optimizer.lr=0.01")
    folder = ensemble([(*roads, "model=mlp", "model.widths=[8]"), (*roads, "model=logistic")])
    assert "nll" in report(folder)["ensemble"]
    first, second = (each.fields["prediction"] for each in of_members(folder))
    said = predictor.load(folder).predict_split("test").by_id().fields
    torch.testing.assert_close(said["prediction"], (first + second) / 2)
    torch.testing.assert_close(said["variance"], ((first - second) / 2) ** 2, atol=1e-6, rtol=1e-4)
    [row] = predictions(folder, picture(tmp_path / "new.png", (48, 96)))
    alone = [predictor.load(folder.parents[1] / each["run"] / "artifacts") for each in
             run_folders.read_json(folder / "plan.json")["members"]]  # fmt: skip
    asked = [{"image": np.asarray(Image.open(tmp_path / "new.png"))}]
    one, two = (float(each.predict_rows(asked).fields["prediction"]) for each in alone)
    assert (row["prediction"], row["std"]) == pytest.approx(((one + two) / 2, abs(one - two) / 2), rel=1e-3)


@pytest.mark.parametrize("method", ["average", "greedy"])
def test_recommenders_rank_by_the_mean_of_their_scores(ensemble, predictions, tmp_path, method):
    taste = ("task=ranking", "task.loss=bce", "data=made_ratings", "data.num_users=60", "data.num_items=60",
             "data.negatives=10", "data.split_seed=0", "optimizer.lr=0.01")  # fmt: skip
    folder = ensemble(
        [(*taste, "model=matrix_factorization", "model.width=8"), (*taste, "model=neumf")], f"ensemble={method}"
    )
    if method == "average":
        first, second = (each.fields["scores"].double() for each in of_members(folder))
        said = predictor.load(folder).predict_split("test").by_id().fields["scores"].double()
        torch.testing.assert_close(said, (first + second) / 2, atol=1e-5, rtol=1e-5)
    (tmp_path / "users.csv").write_text("user\nu0\nu1\n")
    rows = predictions(folder, str(tmp_path / "users.csv"))
    assert [len(row["items"]) for row in rows] == [10, 10]
    if method == "average":
        plan = run_folders.read_json(folder / "plan.json")
        asked = [{"user": "u0"}, {"user": "u1"}]
        places = [folder.parents[1] / each["run"] / "artifacts" for each in plan["members"]]
        first, second = (predictor.load(place).predict_rows(asked).fields["all_scores"] for place in places)
        best = ((first + second) / 2).topk(10, 1).values
        assert list(rows[1]["items"].values()) == pytest.approx(best[1].tolist(), abs=1e-5)


def test_forecasts_are_averaged(ensemble, predictions, tmp_path):
    waves = ("data=waves", "data.size=400", "data.window=24", "data.horizon=3", "data.batch_size=32",
             "task=forecasting")  # fmt: skip
    folder = ensemble([(*waves, "model=linear_forecast"), (*waves, "model=tcn", "model.channels=[8]")])
    first, second = (each.fields["prediction"] for each in of_members(folder))
    said = predictor.load(folder).predict_split("test").by_id().fields["prediction"]
    torch.testing.assert_close(said, (first + second) / 2)
    (tmp_path / "hours.csv").write_text("heat,load\n" + "1,2\n3,4\n" * 12)
    rows = predictions(folder, str(tmp_path / "hours.csv"))
    assert len(rows) == 1 and len(rows[0]["forecast"]["heat"]) == 3


# ---------------------------------------------------------------- what is said token by token


def test_language_models_of_two_kinds_go_on_with_a_text_together(ensemble, predictions):
    lines = ("task=language_model", *WORDS, "data.kind=language", "data.context=32")
    folder = ensemble([(*lines, *GPT), (*lines, "model=gru_language", "model.width=16", "model.hidden=16")])
    found = report(folder)
    assert found["kind"] == "tokens" and found["goal"]["name"] == "loss"
    # The logarithm is concave: the mean's loss is at most the mean of the losses.
    assert found["ensemble"]["value"] <= np.mean([row["value"] for row in found["members"]]) + 1e-6
    [row] = predictions(folder, "--prompt", "twenty", "--max-tokens", "6", "--temperature", "0")
    assert 0 < len(row["text"]) <= 6


def test_translators_agree_on_every_token_with_beams(ensemble, predictions):
    pairs = ("task=translation", "task.max_tokens=6", "task.beams=2", *WORDS)
    folder = ensemble([
        (*pairs, "model=seq2seq_gru", "model.width=16", "model.hidden=16"),
        (*pairs, "model=transformer", "model.width=16", "model.heads=2", "model.depth=1"),
    ])  # fmt: skip
    found = report(folder)
    assert found["ensemble"]["value"] <= np.mean([row["value"] for row in found["members"]]) + 1e-6
    rows = predictions(folder, "--prompt", "one", "--prompt", "two")
    assert [row["prompt"] for row in rows] == ["one", "two"]


def test_a_conversation_is_answered_by_several_models(ensemble, predictions):
    talk = ("task=chat", *WORDS, "data.kind=chat", "data.context=64", *GPT)
    folder = ensemble([talk, talk])
    [row] = predictions(folder, "--prompt", "one", "--max-tokens", "4")
    assert set(row) == {"prompt", "text"}


def test_posteriors_of_ctc_are_averaged_before_they_are_read(ensemble, predictions, tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="the extra 'audio' is not installed")
    pytest.importorskip("jiwer", reason="the extra 'audio' is not installed")
    rng = np.random.default_rng(0)
    times = np.arange(1600) / 8000
    place = tmp_path / "words"
    place.mkdir()
    rows = []
    for index in range(40):
        letters = rng.choice(list("ab"), 2)
        samples = np.concatenate([0.4 * np.sin(2 * np.pi * {"a": 400, "b": 900}[each] * times) for each in letters])
        soundfile.write(place / f"{index}.wav", samples, 8000)
        rows.append(f"{index}.wav,{''.join(letters)}")
    (place / "metadata.csv").write_text("file_name,transcription\n" + "\n".join(rows) + "\n")
    sound = ("task=speech_recognition", "data=speech", f"data.path={place}", "data.transcript=transcription",
             "data.sample_rate=8000", "data.split_seed=0", "data.batch_size=8", "data.valid_size=6",
             "data.test_size=6", "model=conv_gru_ctc", "model.channels=[4,4]", "model.hidden=16",
             "model.layers=1")  # fmt: skip
    folder = ensemble([(*sound, "model.width=16"), (*sound, "model.width=12")])
    found = report(folder)
    assert found["kind"] == "tokens" and len(found["members"]) == 2
    [row] = predictions(folder, str(place / "0.wav"))
    assert set(row["text"]) <= set("ab ")


def test_a_soup_of_runs_with_lora_is_the_mean_of_what_they_became(train, dlrun):
    pytest.importorskip("peft", reason="the extra 'text' is not installed")

    def asked(*words: str) -> dict:
        code, out, err = dlrun(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    lines = ("task=language_model", *WORDS, "data.kind=language", "data.context=32", *GPT, "train.duration=8 steps",
             "hardware.threads=1")  # fmt: skip
    whole = train(*lines)
    given = ("transfer=lora", "transfer.rank=2", f"transfer.from=run:{whole.id}", "optimizer.lr=0.01")
    first, second = (train(*lines, *given, f"seed={seed}") for seed in (1, 2))
    shown = asked("ensemble", first.id, second.id, "ensemble=soup")
    one, two, mixed = (
        predictor.load(folder).model.state_dict() for folder in (first.folder, second.folder, Path(shown["run_dir"]))
    )
    assert one.keys() == mixed.keys() and any(not torch.equal(one[name], two[name]) for name in one)
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    again = asked("ensemble", first.id, first.id, "ensemble=soup")["metrics"]
    alone = asked("evaluate", first.id)["metrics"]
    assert {name: again[name] for name in alone} == alone


# ---------------------------------------------------------------- a sweep's best


def command(runs: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dlrun", *arguments, "--runs", str(runs)], capture_output=True, text=True, timeout=300
    )


def test_the_best_of_a_sweep_by_greedy_selection_are_at_least_as_good_as_the_best(tmp_path):
    runs = tmp_path / "runs"
    swept = command(
        runs, "sweep", "model=mlp", "model.width=8,16", "optimizer.lr=tag(log, interval(1e-3,1e-1))", "search=random",
        "search.trials=4", "search.keep=3", "train.duration=2 epochs", "hardware.device=cpu", "hardware.threads=1",
        "tracking.system_metrics=false", "data.split_seed=0", "--json",
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    sweep = json.loads(swept.stdout)
    done = sorted((row for row in sweep["trials"] if row["state"] == "complete"), key=lambda row: -row["values"][0])
    made = command(runs, "ensemble", sweep["run_id"], "--top", "3", "ensemble=greedy", "--json")
    assert made.returncode == 0, made.stderr
    shown = json.loads(made.stdout)
    assert {member["run_id"] for member in shown["members"]} == {row["run"] for row in done[:3]}
    assert shown["metrics"]["valid/accuracy"] >= sweep["goal"]["value"] == done[0]["values"][0]
    refused = command(runs, "ensemble", sweep["run_id"], "--top", "4", "ensemble=greedy")
    assert refused.returncode == 4
    assert f"the weights of {done[3]['run'][:8]} are gone (search.keep)" in refused.stderr
    assert "use --top 3, or sweep again with search.keep=4" in refused.stderr
    more = command(runs, "ensemble", sweep["run_id"], "--top", "9")
    assert more.returncode != 0 and "Traceback" not in more.stderr, more.stderr

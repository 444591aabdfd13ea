"""What a user gets for bad input: one or two lines on stderr, the right exit code, and nothing lost."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dlrun.training import checkpoint

QUICK = ("train.duration=1 epoch", "model=logistic", "hardware.device=cpu", "tracking.system_metrics=false")


def check_said(result: tuple[int, str, str], code: int, *words: str) -> None:
    """The command failed with this code, said these words, and kept it short."""
    found, out, err = result
    message = err[err.index("error:") :] if "error:" in err else err
    assert found == code, err
    for word in words:
        assert word in message, message
    assert "Traceback" not in err
    assert len(message.strip().splitlines()) <= 3, message
    assert out == ""


@pytest.mark.parametrize(("override", "words"), [
    ("modle=mlp", ("unknown setting 'modle'", "did you mean model")),
    ("model=resnet21", ("no choice 'resnet21'", "did you mean resnet")),
    ("model.dropuot=0.1", ("unknown setting 'model.dropuot' of model 'mlp'", "did you mean model.dropout")),
    ("optimizer.lr=fast", ("optimizer.lr", "'fast' was given", "a number is expected")),
    ("data.batch_size=0", ("data.batch_size", "at least 1")),
    ("train.precision=bf61", ("one of fp32, bf16, fp16", "did you mean bf16")),
    ("train.duration=10", ("train.duration: 10 was given", "10 epochs")),
    ("train.duration=3 epocs", ("unknown unit", "did you mean epoch")),
    ("seed=1,2", ("several values", "dlrun sweep")),
    ("hydra.run.dir=x", ("hydra.*",)),
    ("optimizer.lr=", ("has no value",)),
    ("optimizer.lr=[1,2", ("cannot be read",)),
    ("optimizer.lr=${nowhere}", ("nowhere",)),
    ("data.augment.flop.probability=1", ("unknown augmentation 'data.augment.flop'", "did you mean flip")),
    ("task=regression", ("needs data with 'targets'", "classes=10")),
    ("data.batch_size=5000", ("is larger than the 1257 training examples",)),
])  # fmt: skip
def test_a_wrong_override_is_named_with_the_right_spelling(dlrun, override, words):
    check_said(dlrun("train", override), 2, *words)


def test_several_mistakes_are_reported_at_once(dlrun):
    code, _, err = dlrun("train", "modle=mlp", "optimizer.lrr=1", "data.batch_size=-1")
    assert code == 2
    for word in ("modle", "optimizer.lrr", "data.batch_size"):
        assert word in err


def test_a_config_error_leaves_no_run_behind(dlrun, runs):
    dlrun("train", "modle=mlp")
    assert list(runs.glob("*/artifacts")) == []


def test_missing_and_unreadable_data(dlrun, tmp_path):
    check_said(dlrun("train", "data=files", "data.path=nowhere"), 4, "nowhere")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is not parquet")
    check_said(dlrun("train", "data=files", f"data.path={tmp_path / 'broken.parquet'}"), 4, "broken.parquet")
    (tmp_path / "one.csv").write_text("a,label\n" + "1,x\n" * 40)
    check_said(dlrun("train", "data=files", f"data.path={tmp_path / 'one.csv'}"), 4, "class")
    (tmp_path / "none.csv").write_text("a,b\n" + "1,2\n" * 40)
    check_said(dlrun("train", "data=files", f"data.path={tmp_path / 'none.csv'}"), 2, "data.target")


@pytest.fixture
def pictures(tmp_path):
    """Two classes of twenty pictures; one of them is cut short."""
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            pixels = draws.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    bad = tmp_path / "pictures" / "dog" / "7.png"
    bad.write_bytes(bad.read_bytes()[:60])
    return tmp_path / "pictures"


@pytest.mark.parametrize("memory", ["always", "never"])
def test_a_corrupt_picture_is_named_or_skipped_within_the_budget(dlrun, pictures, memory):
    data = ("data=files", f"data.path={pictures}", "data.batch_size=4", "data.workers=1", f"data.memory={memory}")
    check_said(dlrun("train", *QUICK, *data), 4, "7.png")
    code, out, err = dlrun("train", *QUICK, *data, "data.on_bad=skip", "--json")
    assert code == 0, err
    assert json.loads(out)["status"] == "FINISHED"
    check_said(dlrun("train", *QUICK, *data, "data.on_bad=skip", "data.max_bad=0"), 4, "7.png")


def test_unknown_runs_and_runs_of_a_newer_format(dlrun, train, runs):
    check_said(dlrun("evaluate", "latest"), 2, "there are no runs")
    run = train("name=first")
    check_said(dlrun("evaluate", "frist"), 2, "unknown run 'frist'", "did you mean first")
    record = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**record, "format": 99}))
    check_said(dlrun("evaluate", run.id), 2, "made by a newer dlrun")


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(dlrun, train):
    run = train("train.duration=2 epochs")
    last = (run.checkpoints / "last").resolve()
    file = last / "weights.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    (run.folder / "result.json").unlink()
    run.update(status="KILLED")
    code, _, err = dlrun("train", "--resume", run.short_id)
    assert code == 0, err
    assert f"checkpoint {last.name} is damaged" in err and "weights.safetensors" in err
    assert checkpoint.damage(last) is None


def test_no_valid_checkpoint_is_an_error_and_not_a_fresh_start(dlrun, train):
    run = train()
    for path in run.checkpoints.glob("0*"):
        (path / "state.json").write_text("{}")
    run.update(status="KILLED")
    (run.folder / "result.json").unlink()
    check_said(dlrun("train", "--resume", run.short_id), 4, "state.json", "no valid checkpoint is left")
    check_said(dlrun("evaluate", run.short_id), 4, "no valid checkpoint is left")


@pytest.mark.parametrize(("change", "word"), [
    ("model:\n  _target_: os.system\n", "_target_"),
    ("model:\n  name: ../../x\n", "../../x"),
    ("model:\n  name: ${oc.env:HOME}\n", "interpolation"),
    ("model: !!python/object/apply:os.system ['true']\n", "not plain YAML"),
])  # fmt: skip
def test_a_run_folders_config_is_refused_before_anything_is_imported(dlrun, train, change, word):
    run = train()
    lines = (run.folder / "config.yaml").read_text()
    start, end = lines.index("model:"), lines.index("optimizer:")
    (run.folder / "config.yaml").write_text(lines[:start] + change + lines[end:])
    (run.folder / "config.sha256").unlink()
    code, _, err = dlrun("evaluate", run.short_id)
    assert code in (2, 4)
    assert word in err


def test_a_full_disk_ends_with_its_own_code_and_keeps_what_was_saved(dlrun, monkeypatch, runs):
    real, calls = checkpoint.free_disk_bytes, []

    def filling_up(folder):
        calls.append(folder)
        return real(folder) if len(calls) <= 1 else 100

    monkeypatch.setattr(checkpoint, "free_disk_bytes", filling_up)
    code, _, err = dlrun("train", *QUICK, "train.duration=3 epochs")
    assert code == 6, err
    assert "training goes on with the checkpoint before it" in err
    [folder] = runs.glob("*/artifacts")
    assert len(list((folder / "checkpoints").glob("0*"))) == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "FAILED"
    monkeypatch.undo()


def test_a_second_resume_of_a_running_run_is_refused(dlrun, train):
    from dlrun.runs import hold

    run = train()
    with hold(run.folder):
        run.update(status="RUNNING")
        code, _, err = dlrun("train", "--resume", run.short_id)
    assert code == 2 and "still running in another process" in err


def test_resume_changes_only_what_it_may(dlrun, train):
    run = train()
    check_said(dlrun("train", "--resume", run.short_id, "optimizer.lr=0.5"), 2, "--resume cannot change optimizer.lr")
    check_said(dlrun("train", "--resume", run.short_id, "train.duration=1 epoch"), 2, "can only make the run longer")
    code, out, err = dlrun("train", "--resume", run.short_id, "train.duration=4 epochs", "--json")
    assert code == 0, err
    assert json.loads(out)["run_id"] == run.id
    assert "train.duration" in (run.folder / "resumes.jsonl").read_text()


def test_the_required_tracking_store_must_be_there(dlrun, runs):
    check_said(dlrun("train", *QUICK, "tracking.uri=http://127.0.0.1:9", "--require-tracking"), 8, "unreachable")
    assert list(runs.glob("*/artifacts/run.json")) == []


def test_a_run_folder_that_was_moved_is_still_found(dlrun, train, tmp_path):
    run = train()
    shutil.copytree(run.folder, tmp_path / "elsewhere" / "copy", symlinks=True)
    code, out, err = dlrun("evaluate", str(tmp_path / "elsewhere" / "copy"), "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["test/accuracy"] == pytest.approx(run.result["metrics"]["test/accuracy"])

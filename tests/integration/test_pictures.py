"""Pictures in the run: validation examples at each evaluation; what `predict --out` writes of new ones."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from dlrun.contracts import WithPictures
from dlrun.tasks.classification import ClassificationTask

SHORT = ("train.duration=3 steps", "train.pictures=0", "name=marks")

MARKED = '''"""Classification that writes each picture again, with its label."""

from dlrun import pictures
from dlrun.tasks import classification


class Marked(classification.ClassificationTask):
    def files(self, names, batch, outputs):
        for name, image_CHW, row in zip(names, batch["image"], self.rows(outputs), strict=True):
            yield f"{name}.png", pictures.png_bytes(pictures.to_pil(image_CHW))
            yield f"{name}.txt", row["label"].encode()

    def index(self, names, pictures, outputs):
        rows = self.rows(outputs)
        return "labels.json", [[name, row["id"], row["label"]] for name, row in zip(names, rows, strict=True)]


def build(spec):
    """Settings are those of its parent's defaults."""
    made = classification.build(spec)
    return Marked(made.spec, made.num_classes, made.label_smoothing, made.top_k, made.weights_C)
'''


@pytest.fixture
def components(tmp_path) -> Path:
    folder = tmp_path / "components"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "marked.py").write_text(MARKED)
    return folder


def drawn(run) -> list[str]:
    return sorted(path.name for path in (run.folder / "figures").glob("validation-*"))


# ---------------------------------------------------------------- at each evaluation


def test_each_evaluation_leaves_a_picture_of_sixteen_examples(train):
    run = train("data.batch_size=256", "train.duration=2 epochs")
    steps = [int(name[11:19]) for name in drawn(run)]
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert steps == [row["step"] for row in rows if "valid/accuracy" in row["values"]]
    with Image.open(run.folder / "figures" / drawn(run)[-1]) as image:
        assert image.format == "PNG"
        assert image.width == 4 * 144 + 5 * 12
        assert image.height > 4 * 144


def test_no_pictures_are_drawn_where_none_are_wanted(train):
    assert drawn(train("train.pictures=0", "train.duration=3 steps")) == []


def test_a_table_of_numbers_has_no_pictures(train):
    Path("numbers.csv").write_text("size,kind\n" + "".join(f"{(-1) ** i * (i % 7 + 1)},{'ab'[i % 2]}\n"
                                                           for i in range(120)))  # fmt: skip
    run = train("data=files", "data.path=numbers.csv", "data.target=kind", "data.batch_size=16",
                "train.duration=3 steps")  # fmt: skip
    assert drawn(run) == []
    assert run.status == "FINISHED"


def test_the_first_and_the_twenty_newest_are_kept_and_the_best_is_there(train):
    run = train("train.duration=26 steps", "train.evaluate_every=1 steps", "train.save_every=26 steps",
                "train.pictures=1", "optimizer.lr=3", "seed=2")  # fmt: skip
    steps = {int(name[11:19]) for name in drawn(run)}
    best = run.result["best_step"]
    assert {1, best, *range(8, 27)} <= steps <= {1, best, *range(7, 27)}
    assert len(steps) <= 22


def test_pictures_change_nothing_that_is_trained(train):
    settings = ("model=mlp", "model.dropout=0.3", "train.ema=0.9", "train.duration=30 steps",
                "train.evaluate_every=5 steps")  # fmt: skip
    with_pictures, without = train(*settings), train(*settings, "train.pictures=0")
    assert len(drawn(with_pictures)) == 6 and drawn(without) == []
    for name in ("weights.safetensors", "raw.safetensors", "optimizer.safetensors"):
        one, other = (run.checkpoints / "last" / name for run in (with_pictures, without))
        assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest(), name
    states = [json.loads((run.checkpoints / "last" / "state.json").read_text()) for run in (with_pictures, without)]
    assert states[0]["rng"] == states[1]["rng"]


def test_a_drawing_that_fails_is_a_note_and_training_goes_on(dlrun, runs, monkeypatch):
    def fail(*_):
        raise ValueError("no such colour\nas this")

    monkeypatch.setattr(ClassificationTask, "pictures", fail)
    code, out, err = dlrun("train", "model=logistic", "train.duration=2 epochs", "hardware.device=cpu",
                           "tracking.system_metrics=false", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["status"] == "FINISHED"
    assert err.count("no more pictures of validation examples: no such colour") == 1
    assert list(runs.glob("*/artifacts/figures/validation-*")) == []


def test_a_task_that_draws_nothing_leaves_no_file(train, monkeypatch):
    monkeypatch.setattr(ClassificationTask, "pictures", lambda *_: [])
    assert drawn(train("train.duration=3 steps")) == []


def test_the_pictures_show_what_the_model_says_of_evenly_spread_rows(train, monkeypatch):
    shown = []

    def remember(self, batch, outputs):
        shown.append((batch, outputs))
        return [Image.new("RGB", (150, 150))] * len(outputs.ids)

    monkeypatch.setattr(ClassificationTask, "pictures", remember)
    run = train("train.duration=4 steps", "train.evaluate_every=4 steps", "train.pictures=9")
    from dlrun import predictor

    loaded = predictor.load(run.folder, "cpu")
    split = loaded.dataset.split("valid")
    rows = torch.arange(9) * len(split) // 9
    expected = split.gather(rows)
    outputs = loaded.task.outputs(loaded.model, loaded.inputs.prepare(dict(expected)))
    assert len(shown) == 1 and isinstance(loaded.task, WithPictures)
    for name, field in expected.items():
        assert torch.equal(shown[0][0][name], field)
    said = shown[0][1].fields["log_probabilities"]
    torch.testing.assert_close(said, outputs.fields["log_probabilities"].detach())


# ---------------------------------------------------------------- predict --out


def write_pictures(folder: Path, count: int) -> list[Path]:
    paths = []
    for index in range(count):
        path = folder / f"{index % 2}" / f"photo{index // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (8, 8), generator=torch.Generator().manual_seed(index)).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        paths.append(path)
    return paths


def test_the_files_of_every_example_are_written_under_names_of_their_own(train, dlrun, components):
    train("task.name=marked", "data.batch_size=32", *SHORT, components=components)
    paths = write_pictures(Path("photos"), 140)  # more than one batch of 64
    code, out, err = dlrun("predict", "marks", "photos", "--out", "said/here", "--components", str(components),
                           "--json")  # fmt: skip
    assert code == 0, err
    said = json.loads(out)
    folder = Path("said/here")
    assert said["files"] == len(list(folder.iterdir())) == 2 * 140 + 1
    assert said["folder"] == str(folder.absolute())
    assert "281 files are in said/here" in err
    index = json.loads((folder / "labels.json").read_text())
    assert [row[1] for row in index] == list(range(140))
    assert [row[2] for row in index] == [row["label"] for row in said["predictions"]]
    names = [row[0] for row in index]
    assert len(set(names)) == 140 and names[0] == "photo0" and "photo0-2" in names
    for (name, _, label), row in zip(index, said["predictions"], strict=True):
        assert (folder / f"{name}.txt").read_text() == label
        assert (folder / f"{name}.png").exists() and Path(row["input"]) in paths
    with Image.open(folder / f"{names[70]}.png") as mine, Image.open(said["predictions"][70]["input"]) as given:
        assert mine.convert("L").tobytes() == given.tobytes()


def test_rows_of_a_table_are_named_after_their_pictures_or_their_numbers(train, dlrun, components):
    train("task.name=marked", *SHORT, components=components)
    path, *_ = write_pictures(Path("photos"), 1)
    Path("rows.csv").write_text(f"image\n{path}\n{path}\n")
    Path("more.jsonl").write_text(json.dumps({"image": [[0] * 8] * 8}) + "\n")
    code, out, err = dlrun("predict", "marks", "rows.csv", "more.jsonl", str(path), "--out", "said", "--components",
                           str(components))  # fmt: skip
    assert code == 0, err
    names = [row[0] for row in json.loads(Path("said/labels.json").read_text())]
    assert names == ["photo0", "photo0-2", "more-0", "photo0-3"]
    assert out.splitlines()[0].split()[:2] == ["input", "row"]


def test_a_task_without_files_says_what_there_is_instead(train, dlrun):
    train("train.duration=3 steps", "name=plain")
    [path] = write_pictures(Path("photos"), 1)
    code, out, err = dlrun("predict", "plain", str(path), "--out", "said")
    assert (code, out) == (2, "")
    assert err == (
        "error: --out: task 'classification' gives no files, only rows\n"
        "  hint: --output FILE writes the rows as csv or json lines\n"
    )
    assert not Path("said").exists()


def test_a_folder_that_cannot_be_made_is_named(train, dlrun, components):
    train("task.name=marked", *SHORT, components=components)
    [path] = write_pictures(Path("photos"), 1)
    Path("said").write_text("a file is in the way")
    code, _, err = dlrun("predict", "marks", str(path), "--out", "said", "--components", str(components))
    assert code == 6
    assert re.search(r"error: said: cannot be written: File exists\n  hint: choose another --out", err)


def test_a_picture_that_cannot_be_read_is_named_and_the_files_before_it_are_whole(train, dlrun, components):
    train("task.name=marked", "data.batch_size=32", *SHORT, components=components)
    paths = write_pictures(Path("photos"), 64)
    Path("bad.png").write_text("no picture")
    code, _, err = dlrun("predict", "marks", "photos", "bad.png", "--out", "said", "--components", str(components))
    assert code == 4 and "error: bad.png: not a picture" in err
    files = list(Path("said").iterdir())
    assert len(files) == 2 * len(paths) and not [path for path in files if path.suffix == ".tmp"]
    for path in files:
        if path.suffix == ".png":
            Image.open(io.BytesIO(path.read_bytes())).load()

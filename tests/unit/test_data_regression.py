"""Numbers to predict: columns with fractions, several of them, blocks of time, and cells that are no numbers."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.contracts import DataSpec
from dlrun.data import files
from dlrun.errors import DlrunError, Exit


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build(path, spec: DataSpec | None = None, **settings):
    return files.build(SimpleNamespace(seed=0, assets=None, spec=spec), path=str(path), **settings)


def whole(split):
    return split.gather(torch.arange(len(split)))


@pytest.fixture
def table(tmp_path):
    """A csv of 20 rows: x, y = x / 4, z = 10 - x, and the count n, all numbers."""
    path = tmp_path / "numbers.csv"
    path.write_text("x,y,z,n\n" + "".join(f"{x},{x / 4},{10 - x},{x % 3}\n" for x in range(20)))
    return path


@pytest.fixture
def frames(tmp_path):
    """A parquet of 20 grey pictures of 4 x 6 pixels, whose level is their row, and an angle."""
    import datasets

    cells = []
    for row in range(20):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 6), row, dtype=np.uint8)).save(buffer, format="PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(decode=False), "angle": datasets.Value("float64")})
    rows = {"image": cells, "angle": [row / 8 for row in range(20)]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "frames.parquet")
    return tmp_path / "frames.parquet"


def test_a_column_with_fractions_is_a_number_to_predict(table):
    dataset = build(table, target="y")
    assert dataset.spec.target == "target"
    assert dataset.spec.labels == ("y",)
    assert dataset.spec.sizes == {"targets": 1, "features": 3}
    assert dataset.spec.num_outputs == 1
    batch = whole(dataset.split("train"))
    assert batch["target"].dtype == torch.float32
    assert torch.equal(batch["target"], (batch["id"] / 4).float().unsqueeze(1))
    said = "target: y holds numbers with fractions, so a number is predicted (guessed; data.target_kind)"
    assert said in dataset.notes
    assert any(note.startswith("valid: 2 rows held out of the 20 of train (seed 0)") for note in dataset.notes)


def test_a_list_of_columns_is_predicted_together(table):
    dataset = build(table, target=["z", "y"])
    assert dataset.spec.sizes == {"targets": 2, "features": 2}
    assert dataset.spec.labels == ("z", "y")
    assert dataset.spec.assets["columns"] == ["x", "n"]
    batch = whole(dataset.split("train"))
    assert torch.equal(batch["target"], torch.stack([10 - batch["id"], batch["id"] / 4], 1).float())
    deviations = batch["target"].double().std(0, correction=0).tolist()
    assert dataset.spec.assets["target_std"] == pytest.approx(deviations)
    assert "target_std" not in build(table, target="y").spec.assets  # one keeps its unit


def test_whole_numbers_are_classes_unless_they_are_said_to_be_numbers(table):
    assert build(table, target="n").spec.sizes["classes"] == 3
    assert build(table, target="n", target_kind="number").spec.labels == ("n",)
    assert build(table, target=["n"]).spec.sizes["targets"] == 1
    assert build(table, target=["n"], target_kind="class").spec.sizes["classes"] == 3


def test_a_task_for_numbers_hints_at_the_kind_of_the_target(table):
    with pytest.raises(DlrunError, match="needs data with 'targets'") as caught:
        build(table, target="n").spec.size("targets")
    assert caught.value.hint == "it has that too: data.target_kind=number"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": ["y", "z"], "target_kind": "class"}, "data.target_kind=class goes with one column"),
        ({"target": []}, "data.target: [] is not a list of different columns"),
        ({"target": ["y", "y"]}, "is not a list of different columns"),
        ({"target": ["y", "w"]}, "data.target: numbers.csv has no column 'w'"),
        ({"target": ["y"], "columns": ["x", "y"]}, "data.columns: 'y' is the target, and cannot be a feature too"),
    ],
)
def test_targets_that_cannot_be_are_named(table, settings, message):
    with pytest.raises(DlrunError) as error:
        build(table, **settings)
    assert message in error.value.message


def test_words_are_no_numbers_to_predict(tmp_path):
    (tmp_path / "train.csv").write_text("x,town\n" + "1,a\n2,b\n" * 10)
    with pytest.raises(DlrunError, match=r"data.target: train.csv: not numbers: town"):
        build(tmp_path, target="town", target_kind="number")


def test_a_target_that_is_no_number_makes_a_bad_row(tmp_path):
    rows = [f"{x},{x / 4}" for x in range(20)]
    rows[3], rows[5] = "3,", "5,1e400"
    (tmp_path / "train.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    with pytest.raises(DlrunError, match=r"train.csv, row 3: no finite number in column 'y'") as error:
        build(tmp_path, target=["y"])
    assert error.value.code == Exit.DATA
    dataset = build(tmp_path, target=["y"], on_bad="skip", valid_fraction=0, test_fraction=0)
    assert whole(dataset.split("train"))["id"].tolist() == [row for row in range(20) if row not in (3, 5)]
    assert "2 rows that cannot be read are left out" in dataset.notes[-1]


def test_a_word_among_numbers_makes_a_bad_row(tmp_path):
    rows = [f"{x},{x / 4}" for x in range(40)]
    rows[3], rows[5] = "3,cheap", "many,1"
    (tmp_path / "train.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    with pytest.raises(DlrunError, match=r"train.csv, row 5: 'many' in column 'x' is no number") as error:
        build(tmp_path, target="y", valid_fraction=0, test_fraction=0)
    assert error.value.code == Exit.DATA
    dataset = build(tmp_path, target="y", on_bad="skip", valid_fraction=0, test_fraction=0)
    assert whole(dataset.split("train"))["id"].tolist() == [row for row in range(40) if row not in (3, 5)]
    assert dataset.spec.sizes == {"targets": 1, "features": 1}


def test_frames_are_split_by_blocks_and_streamed_as_they_are_held(frames):
    settings = {"target": "angle", "blocks": 5, "valid_blocks": [3], "test_blocks": [0]}
    held, streamed = (build(frames, memory=memory, **settings) for memory in ("always", "never"))
    assert whole(held.split("valid"))["id"].tolist() == [12, 13, 14, 15]
    assert whole(held.split("test"))["id"].tolist() == [0, 1, 2, 3]
    assert held.fingerprint == streamed.fingerprint
    assert held.spec == streamed.spec
    one, other = whole(held.split("train")), whole(streamed.split("train"))
    assert one.keys() == {"id", "image", "target"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(one["target"][:, 0], one["image"][:, 0, 0, 0] / 8)


def test_the_fingerprint_changes_with_a_target(table):
    before = build(table, target="y").fingerprint
    table.write_text(table.read_text().replace("4.75", "4.5"))
    assert build(table, target="y").fingerprint != before


def test_a_derived_run_predicts_the_numbers_of_its_source(table, tmp_path):
    spec = DataSpec.from_json(build(table, target=["z", "y"]).spec.to_json())
    other = tmp_path / "other.csv"
    other.write_text("x,y,z,n,w\n" + "".join(f"{x},{x},{x},{x},{-x}\n" for x in range(20)))
    dataset = build(other, spec=spec)
    assert dataset.spec == spec
    batch = whole(dataset.split("train"))
    assert torch.equal(batch["target"], torch.stack([batch["id"]] * 2, 1).float())
    assert torch.equal(
        whole(build(other, spec=spec, target=["w", "y"]).split("train"))["target"][:, 0], -batch["id"].float()
    )
    with pytest.raises(DlrunError, match="the run was trained to predict 2 numbers, not 1"):
        build(other, spec=spec, target="y")

"""Local files: tables and pictures are found, read, split and refused as they should be."""

import gzip
import io
import json
import os
import pickle
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.contracts import DataSpec
from dlrun.data import files, hub
from dlrun.data._images import BadPicture, Decoder, strictly
from dlrun.errors import DlrunError, Exit


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build(path, spec: DataSpec | None = None, seed: int = 0, **settings):
    return files.build(SimpleNamespace(seed=seed, assets=None, spec=spec), path=str(path), **settings)


def whole(split):
    return split.gather(torch.arange(len(split)))


def png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG file of these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures(count: int, seed: int = 0, channels: int = 1, size: int = 6) -> np.ndarray:
    """uint8 [count, size, size] or [count, size, size, channels]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def write_parquet(path, cells: list, labels: list) -> None:
    """A table of picture bytes (or any bytes) and labels, with the features `datasets` writes."""
    import datasets

    label = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(decode=False), "label": label})
    rows = {"image": [{"bytes": cell, "path": f"{index}.png"} for index, cell in enumerate(cells)], "label": labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(path)


def write_csv(path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def write_class_folders(folder, counts: dict[str, int], seed: int = 0) -> None:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index, pixels in enumerate(pictures(count, seed)):
            (folder / name / f"{index}.png").write_bytes(png(pixels))


@pytest.fixture
def numbers(tmp_path):
    """A csv of 40 rows: two features and a label in words."""
    path = tmp_path / "numbers.csv"
    write_csv(path, "x,y,label", [f"{index},{index * 0.5},{'odd' if index % 2 else 'even'}" for index in range(40)])
    return path


# Pictures in parquet


def test_parquet_pictures_are_the_stored_pixels_and_ids_are_row_numbers(tmp_path):
    pixels = pictures(20)
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pixels], [0, 1] * 10)
    dataset = build(tmp_path)
    assert dataset.spec.labels == ("cat", "dog")
    assert dataset.spec.sizes == {"classes": 2, "channels": 1, "height": 6, "width": 6}
    assert set(dataset.splits) == {"train", "valid", "test"}
    for split in dataset.splits.values():
        batch = whole(split)
        assert np.array_equal(batch["image"][:, 0].numpy(), pixels[batch["id"].numpy()])
        assert torch.equal(batch["label"], batch["id"] % 2)


def test_streamed_and_held_splits_give_the_same_batches_and_fingerprint(tmp_path):
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pictures(30, channels=3)], [0, 1, 1] * 10)
    held, streamed = (build(tmp_path, memory=memory) for memory in ("always", "never"))
    assert held.split("train").in_memory
    assert not streamed.split("train").in_memory
    assert held.fingerprint == streamed.fingerprint
    assert held.spec == streamed.spec
    for name in ("train", "valid", "test"):
        rows = torch.randperm(len(held.split(name)))[:7]
        one, other = held.split(name).gather(rows), streamed.split(name).gather(rows)
        assert one.keys() == other.keys() == {"id", "image", "label"}
        assert all(torch.equal(one[field], other[field]) and one[field].dtype == other[field].dtype for field in one)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_streamed_split_can_be_gathered_in_worker_processes(tmp_path, method):
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pictures(20)], [0, 1] * 10)
    split = build(tmp_path, memory="never").split("train")
    here = whole(split)  # before: what was opened here must not hinder sending it
    loader = torch.utils.data.DataLoader(
        [0], batch_size=None, num_workers=1, multiprocessing_context=method, collate_fn=Gathering(split)
    )
    there = next(iter(loader))
    assert all(torch.equal(here[name], there[name]) for name in here)


class Gathering:
    def __init__(self, split):
        self.split = split

    def __call__(self, _):
        return whole(self.split)


def test_a_streamed_split_is_sent_by_reference_and_not_by_value(tmp_path):
    noise = [png(image) for image in pictures(40, size=64)]
    write_parquet(tmp_path / "train.parquet", noise, [0, 1] * 20)
    assert len(pickle.dumps(build(tmp_path, memory="never").split("train"))) < sum(map(len, noise)) / 10


def test_the_fingerprint_changes_with_a_pixel_a_label_and_the_rows_of_a_split(tmp_path):
    pixels, labels = pictures(20), [0, 1] * 10
    prints = []
    for change in ("nothing", "pixel", "label"):
        changed, words = pixels.copy(), list(labels)
        if change == "pixel":
            changed[3, 0, 0] ^= 1
        if change == "label":
            words[3] ^= 1
        write_parquet(tmp_path / f"{change}.parquet", [png(image) for image in changed], words)
        prints.append(build(tmp_path / f"{change}.parquet").fingerprint)
    prints.append(build(tmp_path / "nothing.parquet", split_seed=1).fingerprint)
    assert len(set(prints)) == 4
    assert build(tmp_path / "nothing.parquet").fingerprint == prints[0]


def test_mean_and_std_are_those_of_the_training_pixels(tmp_path):
    pixels = pictures(20, channels=3)
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pixels], [0, 1] * 10)
    dataset = build(tmp_path)
    train = pixels[whole(dataset.split("train"))["id"].numpy()] / 255
    assert dataset.spec.assets["mean"] == pytest.approx(train.mean((0, 1, 2)), abs=1e-12)
    assert dataset.spec.assets["std"] == pytest.approx(train.std((0, 1, 2)), abs=1e-12)
    given = build(tmp_path, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    assert given.spec.assets["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [0.5]}, "data.mean and data.std go together"),
        ({"mean": [0.5, 0.5], "std": [1, 1]}, "have 2 and 2 numbers; the data needs 1 each"),
        ({"mean": [0.5], "std": [0]}, "each std above 0"),
        ({"channels": 2}, "data.channels: 2 is neither 1 (grey) nor 3 (colour)"),
        ({"image_size": 0}, "data.image_size: 0 is not a number of pixels above 0"),
        ({"image_size": [8]}, "data.image_size: [8] is not [height, width] in pixels above 0"),
        ({"image_size": [8, -1]}, "data.image_size: [8, -1] is not [height, width] in pixels above 0"),
        ({"target": "labl"}, "has no column 'labl'"),
        ({"image": "picture"}, "data.image: train.parquet has no column 'picture'"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, settings, message):
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pictures(20)], [0, 1] * 10)
    with pytest.raises(DlrunError) as error:
        build(tmp_path, **settings)
    assert message in error.value.message
    assert error.value.code == Exit.USAGE


def test_pictures_of_several_sizes_are_an_error_unless_they_are_to_be_scaled(tmp_path):
    cells = [png(image) for image in pictures(19)] + [png(pictures(1, size=9)[0])]
    write_parquet(tmp_path / "train.parquet", cells, [0, 1] * 10)
    with pytest.raises(DlrunError, match=r"row 0 \(0.png\) is 6x6, .*row 19.* is 9x9") as error:
        build(tmp_path, valid_fraction=0, test_fraction=0)
    assert "data.image_size=6" in error.value.hint
    assert build(tmp_path, image_size=8).spec.shapes == {"image": (1, 8, 8)}
    assert build(tmp_path, image_size=[4, 10]).spec.shapes == {"image": (1, 4, 10)}


def test_only_the_part_that_is_asked_for_is_kept_and_new_pictures_are_cut_alike(tmp_path):
    cells = pictures(20, size=8)
    write_parquet(tmp_path / "train.parquet", [png(image) for image in cells], [0, 1] * 10)
    dataset = build(tmp_path, crop=[0.5, 0.25, 1, 0.75], image_size=4, valid_fraction=0, test_fraction=0)
    assert np.array_equal(whole(dataset.splits["train"])["image"][:, 0].numpy(), cells[:, 4:, 2:6])
    spec = DataSpec.from_json(dataset.spec.to_json())
    assert np.array_equal(files.inputs(spec).encode([png(cells[3])])["image"][0, 0].numpy(), cells[3, 4:, 2:6])
    again = build(tmp_path, spec, valid_fraction=0, test_fraction=0)
    assert torch.equal(whole(again.splits["train"])["image"], whole(dataset.splits["train"])["image"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"crop": [0.5, 0, 0.5, 1], "image_size": 4},
            r"data.crop: \[0.5, 0, 0.5, 1\] is not \[top, left, bottom, right\]",
        ),
        ({"crop": [0, 0, 140, 320], "image_size": 4}, "in shares of the picture"),
        ({"crop": ["a", 0, 1, 1], "image_size": 4}, "in shares of the picture"),
        ({"crop": [0.5, 0, 1, 1]}, "data.crop needs the size that the rest is scaled to"),
    ],
)
def test_a_part_that_cannot_be_kept_is_refused(tmp_path, settings, message):
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pictures(20)], [0, 1] * 10)
    with pytest.raises(DlrunError, match=message):
        build(tmp_path, **settings)


def test_a_size_that_the_sample_did_not_show_is_found_while_decoding(tmp_path):
    cells = [png(image) for image in pictures(150)]
    cells[1] = png(pictures(1, size=9)[0])
    write_parquet(tmp_path / "train.parquet", cells, [0, 1] * 75)
    with pytest.raises(DlrunError, match=r"row 1 \(1.png\): pictures of several sizes: 6x6 and 9x9"):
        build(tmp_path, valid_fraction=0, test_fraction=0)


def test_a_coloured_picture_among_grey_ones_is_not_made_grey_unasked(tmp_path):
    cells = [png(image) for image in pictures(150)]
    cells[1] = png(pictures(1, channels=3)[0])
    write_parquet(tmp_path / "train.parquet", cells, [0, 1] * 75)
    with pytest.raises(DlrunError, match=r"row 1 .*grey and coloured pictures"):
        build(tmp_path, valid_fraction=0, test_fraction=0)
    assert build(tmp_path, channels=1).spec.sizes["channels"] == 1
    assert build(tmp_path, channels=3).spec.sizes["channels"] == 3


# Pictures that cannot be read


def test_a_corrupt_picture_is_named_by_file_and_row(tmp_path):
    cells = [png(image) for image in pictures(20)]
    cells[7] = cells[7][:50]
    write_parquet(tmp_path / "train.parquet", cells, [0, 1] * 10)
    with pytest.raises(DlrunError, match=r"^train.parquet, row 7 \(7.png\): ") as error:
        build(tmp_path)
    assert error.value.code == Exit.DATA
    assert "data.on_bad=skip" in error.value.hint


@pytest.mark.parametrize("memory", ["always", "never"])
def test_bad_pictures_are_left_out_within_the_budget(tmp_path, memory):
    cells = [png(image) for image in pictures(20)]
    cells[7], cells[8] = b"nonsense", b""
    write_parquet(tmp_path / "train.parquet", cells, [0, 1] * 10)
    dataset = build(tmp_path, memory=memory, on_bad="skip", max_bad=2, valid_fraction=0, test_fraction=0)
    split = dataset.split("train")
    batch = split.gather(torch.arange(len(split)))
    assert batch["id"].tolist() == [*range(7), *range(9, 20)]
    assert batch["label"].tolist() == [row % 2 for row in batch["id"].tolist()]
    assert len(batch["image"]) == 18
    assert any("2 rows that cannot be read are left out" in note for note in dataset.notes)


def test_rows_that_are_held_and_bad_are_no_rows_of_the_split(tmp_path):
    cells = [png(image) for image in pictures(20)]
    cells[7], cells[8] = b"nonsense", b""
    write_parquet(tmp_path / "train.parquet", cells, [0, 1] * 10)
    dataset = build(tmp_path, memory="always", on_bad="skip", valid_fraction=0, test_fraction=0)
    split = dataset.split("train")
    assert len(split) == 18
    assert all(len(split.gather(torch.tensor([row]))["id"]) == 1 for row in range(18))
    blocks = {"blocks": 20, "test_blocks": [7, 8]}
    with pytest.raises(
        DlrunError, match=r"^data: test has no rows; 2 rows .* the first is train.parquet, row 7"
    ) as error:
        build(tmp_path, memory="always", on_bad="skip", valid_fraction=0, **blocks)
    assert error.value.code == Exit.DATA


@pytest.mark.parametrize("memory", ["always", "never"])
def test_more_bad_pictures_than_the_budget_end_the_run(tmp_path, memory):
    cells = [png(image) for image in pictures(20)]
    cells[7], cells[8] = b"nonsense", b""
    write_parquet(tmp_path / "train.parquet", cells, [0, 1] * 10)
    with pytest.raises(DlrunError, match=r"more than data.max_bad=1 rows .*; the first is .*row 7") as error:
        build(tmp_path, memory=memory, on_bad="skip", max_bad=1, valid_fraction=0, test_fraction=0)
    assert error.value.code == Exit.DATA


def bomb() -> bytes:
    """A PNG header that promises 60,000 x 60,000 pixels."""
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + header
        + zlib.crc32(header).to_bytes(4, "big")
        + bytes(3)
        + b"\x04IDAT"
        + bytes(8)
    )


def test_unreadable_pictures_say_why(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    decoder = Decoder(1, 6, 6)
    reasons = {
        "no picture": None,
        "0 bytes": b"",
        "not a picture in a known format, or damaged": b"GIF87a?",
        "no such file": "absent.png",
        "not a file": "pipe.png",
        "exceeds limit": bomb(),
        "expected H x W": np.zeros((2, 3, 6, 6)),
        "pixels in 0..300": np.full((6, 6), 300),
        "pixels in 0..1; expected 0..255": np.full((6, 6), 0.5),
    }
    for reason, given in reasons.items():
        with strictly(), pytest.raises(BadPicture) as error:
            decoder.decode(np.pad(given, 1) if reason.startswith("pixels in 0..300") else given, tmp_path)
        assert reason in str(error.value)


def test_every_way_to_store_pixels_is_read():
    def decoded(picture: Image.Image, kind: str = "PNG", channels: int = 3, **options) -> np.ndarray:
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, **options)
        return Decoder(channels, picture.height, picture.width).decode(buffer.getvalue()).pixels

    colour = Image.fromarray(pictures(1, channels=3)[0])
    grey = Image.fromarray(pictures(1)[0])
    flat = np.asarray(colour).transpose(2, 0, 1)
    assert np.array_equal(decoded(colour), flat)
    assert np.array_equal(decoded(colour.convert("RGBA")), flat)
    palette = colour.convert("P")
    assert np.array_equal(decoded(palette), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    assert np.array_equal(decoded(grey, channels=1)[0], np.asarray(grey))
    assert np.array_equal(decoded(grey, channels=3), np.stack([np.asarray(grey)] * 3))
    assert np.array_equal(decoded(grey.convert("LA"), channels=1)[0], np.asarray(grey))
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.array_equal(decoded(wide, channels=1)[0], np.asarray(grey))
    black = Image.new("CMYK", (4, 4), (0, 0, 0, 255))
    assert decoded(black, "JPEG").max() <= 2
    assert decoded(Image.new("L", (1, 1), 7), channels=1).tolist() == [[[7]]]
    bits = grey.convert("1")
    assert set(np.unique(decoded(bits, channels=1))) <= {0, 255}


def test_the_orientation_in_exif_is_followed():
    picture = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 8, axis=0).repeat(8, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", exif=exif, quality=95)
    pixels = Decoder(1, 16, 8).decode(buffer.getvalue()).pixels[0]
    assert pixels[:6].max() < 20
    assert pixels[10:].min() > 235


# Class folders


def test_class_folders_are_labels_and_other_files_are_passed_over(tmp_path):
    write_class_folders(tmp_path / "pets", {"dog": 8, "cat": 8})
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not a picture")
    dataset = build(tmp_path / "pets", valid_fraction=0.25, test_fraction=0.25)
    assert dataset.spec.labels == ("cat", "dog")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 8, "valid": 4, "test": 4}


def test_folders_named_after_splits_are_the_splits(tmp_path):
    for split, counts in (("train", {"a": 6, "b": 6}), ("val", {"a": 2, "b": 2}), ("test", {"b": 3})):
        write_class_folders(tmp_path / split, counts)
    dataset = build(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 12, "valid": 4, "test": 3}
    assert whole(dataset.split("test"))["label"].tolist() == [1, 1, 1]
    assert any("valid is val" in note for note in dataset.notes)


def test_a_damaged_file_in_a_class_folder_is_named_by_its_path(tmp_path):
    write_class_folders(tmp_path / "pets", {"dog": 3, "cat": 3})
    (tmp_path / "pets" / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(DlrunError, match=r"pets, row 4 \(dog/1.png\): 0 bytes"):
        build(tmp_path / "pets")


def test_pictures_without_class_folders_have_no_labels(tmp_path):
    (tmp_path / "1.png").write_bytes(png(pictures(1)[0]))
    with pytest.raises(DlrunError, match="have no labels") as error:
        build(tmp_path)
    assert "folder of its own" in error.value.hint


def test_a_csv_can_name_picture_files_beside_it(tmp_path):
    folder = tmp_path / "set"
    write_class_folders(folder / "files", {"a": 10})
    write_csv(folder / "train.csv", "file,label", [f"files/a/{index}.png,{'xy'[index % 2]}" for index in range(10)])
    dataset = build(folder / "train.csv", test_fraction=0.2, valid_fraction=0.2)
    assert dataset.spec.assets["image_column"] == "file"
    batch = whole(dataset.split("train"))
    assert np.array_equal(batch["image"][:, 0].numpy(), pictures(10)[batch["id"].numpy()])


# Tables of numbers


def test_numeric_columns_become_features_normalised_by_the_training_rows(numbers):
    dataset = build(numbers)
    assert dataset.spec.inputs == ("features",)
    assert dataset.spec.sizes == {"classes": 2, "features": 2}
    assert dataset.spec.labels == ("even", "odd")
    assert "features: x, y" in dataset.notes
    batch = whole(dataset.split("train"))
    assert torch.equal(batch["features"], torch.stack([batch["id"], batch["id"] * 0.5], 1).float())
    prepared = dataset.inputs.prepare(batch)["features"]
    assert prepared.mean(0).abs().max() < 1e-6
    assert (prepared.std(0, correction=0) - 1).abs().max() < 1e-5


def test_tables_streamed_and_held_give_the_same_batches(numbers):
    held, streamed = (build(numbers, memory=memory) for memory in ("always", "never"))
    rows = torch.tensor([5, 0, 3, 3])
    one, other = held.split("train").gather(rows), streamed.split("train").gather(rows)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert held.fingerprint == streamed.fingerprint
    assert held.spec == streamed.spec


@pytest.mark.parametrize("name", [f"train.{kind}" for kind in ("csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "json")])
def test_every_text_format_gives_the_same_table(tmp_path, name):
    rows = [{"x": index, "y": index / 4, "label": "NA" if index % 3 else "None"} for index in range(12)]
    if "json" in name:
        text = json.dumps(rows) if name == "train.json" else "\n".join(map(json.dumps, rows))
    else:
        mark = "\t" if "tsv" in name else ","
        text = "\n".join([mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    dataset = build(tmp_path, valid_fraction=0, test_fraction=0)
    assert dataset.spec.labels == ("NA", "None")
    assert whole(dataset.split("train"))["features"].tolist() == [[row["x"], row["y"]] for row in rows]


def test_a_column_that_turns_from_whole_numbers_to_fractions_late_is_read(tmp_path):
    rows = [f"{index},{index % 2}" for index in range(12000)]
    rows[11000] = "0.5,0"
    write_csv(tmp_path / "train.csv", "x,label", rows)
    assert len(build(tmp_path).split("train")) == 9600


def test_columns_of_words_are_refused_by_name_with_those_that_would_do(tmp_path):
    write_csv(tmp_path / "train.csv", "x,town,label", [f"{index},a,{index % 2}" for index in range(20)])
    with pytest.raises(DlrunError, match="not numbers: town") as error:
        build(tmp_path)
    assert "'data.columns=[x]'" in error.value.hint
    assert build(tmp_path, columns=["x"]).spec.sizes["features"] == 1


def test_declared_sound_is_not_taken_for_pictures(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sound = [{"bytes": b"RIFF", "path": f"{index}.wav"} for index in range(10)]
    features = {"clip": {"_type": "Audio"}, "label": {"_type": "Value", "dtype": "int64"}}
    table = pa.table({"clip": sound, "label": [0, 1] * 5})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "train.parquet",
    )
    with pytest.raises(DlrunError, match=r"not numbers: clip \(audio\)") as error:
        build(tmp_path)
    assert error.value.hint == "pictures and columns of numbers are read here, not text or sound"


def test_an_empty_cell_is_named_and_can_be_skipped(tmp_path):
    rows = [f"{index},{index % 2}" for index in range(20)]
    rows[4] = ",0"
    write_csv(tmp_path / "train.csv", "x,label", rows)
    with pytest.raises(DlrunError, match=r"train.csv, row 4: no finite number in column 'x'"):
        build(tmp_path)
    dataset = build(tmp_path, on_bad="skip", valid_fraction=0, test_fraction=0)
    assert whole(dataset.split("train"))["id"].tolist() == [*range(4), *range(5, 20)]


def test_numbers_as_labels_are_classes_in_order_of_size(tmp_path):
    write_csv(tmp_path / "train.csv", "x,label", [f"{index},{(10, 2, 1)[index % 3]}" for index in range(21)])
    dataset = build(tmp_path)
    assert dataset.spec.labels == ("1", "2", "10")
    batch = whole(dataset.split("train"))
    assert batch["label"].tolist() == [(2, 1, 0)[row % 3] for row in batch["id"].tolist()]


def test_a_constant_feature_does_not_divide_by_zero(tmp_path):
    write_csv(tmp_path / "train.csv", "x,one,label", [f"{index},0.1,{index % 2}" for index in range(20)])
    dataset = build(tmp_path)
    assert dataset.spec.assets["std"][1] == 1
    assert dataset.inputs.prepare(whole(dataset.split("train")))["features"][:, 1].abs().max() < 1e-6


def test_a_small_deviation_beside_a_large_mean_is_measured(tmp_path):
    write_csv(tmp_path / "train.csv", "x,label", [f"{65536 + index % 2},{index % 2}" for index in range(20)])
    assert build(tmp_path).spec.assets["std"] == pytest.approx([0.5])


# Labels


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1,", "2,a", "3,b", "4,a"], "train.csv: 1 row has no label in column 'label' (the first: row 0)"),
        (["1,a", "2,a", "3,a", "4,a"], "train.csv: every row has the label 'a' in column 'label'"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(tmp_path, rows, message):
    write_csv(tmp_path / "train.csv", "x,label", rows)
    with pytest.raises(DlrunError) as error:
        build(tmp_path, valid_fraction=0, test_fraction=0)
    assert message in error.value.message


def test_numbers_with_fractions_are_no_classes(tmp_path):
    write_csv(tmp_path / "train.csv", "x,label", ["1,0.5", "2,1.5", "3,1", "4,1"])
    with pytest.raises(DlrunError, match="column 'label' holds numbers with fractions") as error:
        build(tmp_path, target_kind="class")
    assert "data.target_kind=number" in error.value.hint


def test_a_label_column_that_is_not_obvious_has_to_be_named(tmp_path):
    write_csv(tmp_path / "train.csv", "x,kind", [f"{index},{index % 2}" for index in range(20)])
    with pytest.raises(DlrunError, match=r"which column is the label\? It has x, kind") as error:
        build(tmp_path)
    assert "data.target=COLUMN" in error.value.hint
    assert build(tmp_path, target="kind").spec.sizes["classes"] == 2
    with pytest.raises(DlrunError, match="no column 'kin'") as error:
        build(tmp_path, target="kin")
    assert error.value.hint == "did you mean kind?"


def test_a_class_without_training_rows_is_remarked(tmp_path):
    write_csv(tmp_path / "train.csv", "x,label", [f"{index},{'ab'[index % 2]}" for index in range(20)])
    write_csv(tmp_path / "test.csv", "x,label", ["1,c", "2,a"])
    dataset = build(tmp_path)
    assert dataset.spec.labels == ("a", "b", "c")
    assert "no training row has the label c" in dataset.notes


# Splits


def test_one_file_may_be_said_to_be_the_test_split(tmp_path):
    write_csv(tmp_path / "rows.csv", "x,label", [f"{index},{index % 2}" for index in range(20)])
    spec = build(tmp_path / "rows.csv").spec
    assert len(build(tmp_path / "rows.csv", spec, splits={"test": "rows.csv"}).split("test")) == 20
    with pytest.raises(DlrunError, match="there is a test split, but no training rows"):
        build(tmp_path / "rows.csv", splits={"test": "rows.csv"})
    with pytest.raises(DlrunError, match=r"data\.splits goes with a folder"):
        build(tmp_path / "rows.csv", splits={"test": "others.csv"})


def test_names_of_files_are_guessed_and_shards_belong_together(tmp_path):
    for name in ("train-00000-of-00002.csv", "train-00001-of-00002.csv", "validation.csv", "labels.json", "test.csv"):
        write_csv(tmp_path / name, "x,label", [f"{index},{index % 2}" for index in range(10)])
    dataset = build(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 20, "valid": 10, "test": 10}


def test_the_given_validation_rows_can_be_the_test_set(tmp_path):
    for name, count in (("train.csv", 40), ("validation.csv", 10)):
        write_csv(tmp_path / name, "x,label", [f"{index},{index % 2}" for index in range(count)])
    dataset = build(tmp_path, splits={"train": "train", "test": "validation"}, valid_size=6)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 34, "valid": 6, "test": 10}
    assert any(note.startswith("valid: 6 rows held out of the 40 of train") for note in dataset.notes)


def test_words_inside_names_are_guessed_if_they_are_clear(tmp_path):
    for name in ("adult_train.csv", "adult_test.csv"):
        write_csv(tmp_path / name, "x,label", [f"{index},{index % 2}" for index in range(20)])
    assert len(build(tmp_path).split("test")) == 20


def test_splits_can_be_patterns_and_folders(tmp_path):
    for name in ("a/1.csv", "a/2.csv", "b/1.csv"):
        write_csv(tmp_path / name, "x,label", [f"{index},{index % 2}" for index in range(10)])
    write_csv(tmp_path / "c.csv", "x,label", [f"{index},{index % 2}" for index in range(10)])
    dataset = build(tmp_path, splits={"train": "a/*.csv", "valid": "b", "test": "c.csv"})
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 20, "valid": 10, "test": 10}


@pytest.mark.parametrize(
    ("splits", "message", "hint"),
    [
        ({"train": "trian"}, "nothing in", "did you mean train?"),
        ({"train": "train", "tset": "test"}, "data.splits: no split is called 'tset'", "did you mean test?"),
        ({"test": "test"}, "there is a test split, but no training rows", "data.splits.train=NAME"),
    ],
)
def test_unknown_splits_are_named(tmp_path, splits, message, hint):
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path / name, "x,label", [f"{index},{index % 2}" for index in range(10)])
    with pytest.raises(DlrunError) as error:
        build(tmp_path, splits=splits)
    assert message in error.value.message
    assert hint in error.value.hint
    assert error.value.code == Exit.USAGE


def test_two_candidates_for_the_training_rows_are_not_guessed_between(tmp_path):
    for name in ("left.csv", "right.csv"):
        write_csv(tmp_path / name, "x,label", ["1,0"])
    with pytest.raises(DlrunError, match=r"which of the files in .*\? It has left, right") as error:
        build(tmp_path)
    assert "data.splits={train: left}" in error.value.hint


# Paths


def test_home_and_relative_paths_work(numbers, monkeypatch):
    monkeypatch.setenv("HOME", str(numbers.parent))
    monkeypatch.chdir(numbers.parent)
    assert build("~/numbers.csv").fingerprint == build("numbers.csv").fingerprint


def test_a_read_only_folder_is_read_and_nothing_is_written_beside_the_data(tmp_path):
    folder = tmp_path / "set"
    write_csv(folder / "train.csv", "x,label", [f"{index},{index % 2}" for index in range(20)])
    folder.chmod(0o500)
    build(folder)
    folder.chmod(0o700)
    assert [entry.name for entry in folder.iterdir()] == ["train.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "empty.csv is empty (0 bytes)"),
        ("header.csv", b"x,label\n", "header.csv has no rows"),
        ("ragged.csv", b"x,label\n1,0\n1,2,3\n", "ragged.csv cannot be read: Error tokenizing data"),
        ("binary.csv", b"x,label\n\xff\xfe,1\n", "binary.csv cannot be read: 'utf-8' codec"),
        ("cut.parquet", b"PAR1 and no more", "cut.parquet cannot be read: "),
        ("cut.jsonl", b'{"x": 1, "label": 1}\n{"x": 2, "la', "cut.jsonl cannot be read: JSON parse error"),
        ("cut.csv.gz", gzip.compress(b"x,label\n1,0\n" * 50, mtime=0)[:30], "cut.csv.gz cannot be read: "),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DlrunError) as error:
        build(tmp_path / name)
    assert error.value.message.startswith(message)
    assert "\n" not in error.value.message
    assert error.value.code == Exit.DATA
    assert capfd.readouterr().err == ""  # datasets has nothing to add


def test_paths_that_are_not_data_say_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("some words")
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "1.wav").write_bytes(b"RIFF")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pets.zip").write_bytes(b"PK")
    (tmp_path / "fashion.csv").write_text("x,label\n1,0\n")
    for path, message, hint, code in (
        ("", "data.path is not set", "data.path=FILE or data.path=FOLDER", Exit.USAGE),
        ("fashon.csv", "no such file or folder: fashon.csv", "did you mean fashion.csv?", Exit.DATA),
        ("words.txt", "words.txt: plain text is not read here", "what can be read: parquet", Exit.USAGE),
        ("sound", "holds audio; pictures and tables of numbers are read", "what can be read", Exit.USAGE),
        ("empty", "it holds nothing", "what can be read", Exit.DATA),
        ("pets.zip", "pets.zip: unknown kind of file", "unpack it", Exit.USAGE),
    ):
        with pytest.raises(DlrunError) as error:
            build(path)
        assert message in error.value.message
        assert hint in error.value.hint
        assert error.value.code == code


# Runs that stand on another run


def test_a_derived_run_uses_the_labels_and_statistics_of_its_source(tmp_path):
    write_csv(tmp_path / "first.csv", "x,label", [f"{index},{'abc'[index % 3]}" for index in range(30)])
    write_csv(tmp_path / "second.csv", "x,label", [f"{index * 10},{'cb'[index % 2]}" for index in range(30)])
    spec = build(tmp_path / "first.csv").spec
    dataset = build(tmp_path / "second.csv", spec=spec)
    assert dataset.spec == spec
    assert set(whole(dataset.split("train"))["label"].tolist()) == {1, 2}


def test_a_label_that_the_source_run_does_not_know_is_named(tmp_path):
    write_csv(tmp_path / "first.csv", "x,label", [f"{index},{'ab'[index % 2]}" for index in range(30)])
    write_csv(tmp_path / "second.csv", "x,label", [f"{index},{'az'[index % 2]}" for index in range(30)])
    spec = build(tmp_path / "first.csv").spec
    with pytest.raises(DlrunError, match=r"second.csv, row 1: 'z' in column 'label' is none of the classes") as error:
        build(tmp_path / "second.csv", spec=spec)
    assert error.value.hint == "the classes are a, b"
    assert error.value.code == Exit.DATA


def test_a_derived_run_needs_no_training_rows(tmp_path):
    write_csv(tmp_path / "train.csv", "x,label", [f"{index},{'ab'[index % 2]}" for index in range(30)])
    write_csv(tmp_path / "test.csv", "x,label", ["1,b", "2,b"])
    spec = build(tmp_path).spec
    assert set(build(tmp_path, spec=spec, splits={"test": "test"}).splits) == {"test"}


# New rows


def test_new_pictures_are_taken_in_every_form(tmp_path):
    pixels = pictures(20)
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pixels], [0, 1] * 10)
    inputs = files.inputs(DataSpec.from_json(build(tmp_path).spec.to_json()))
    (tmp_path / "new.png").write_bytes(png(pixels[0]))
    forms = [
        str(tmp_path / "new.png"),
        tmp_path / "new.png",
        png(pixels[0]),
        {"bytes": png(pixels[0]), "path": None},
        Image.fromarray(pixels[0]),
        pixels[0],
        pixels[0][:, :, None],
        pixels[0].astype(np.float32),
        pixels[0].tolist(),
    ]
    batch = inputs.encode([{"image": form} for form in forms])
    assert batch["id"].tolist() == list(range(len(forms)))
    assert all(np.array_equal(image[0].numpy(), pixels[0]) for image in batch["image"])


def test_new_pictures_are_scaled_and_made_grey_as_the_model_needs(tmp_path):
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pictures(20)], [0, 1] * 10)
    inputs = build(tmp_path).inputs
    large = np.full((50, 30, 3), 200, dtype=np.uint8)
    assert inputs.encode([{"image": large}])["image"].tolist() == np.full((1, 1, 6, 6), 200).tolist()


def test_new_rows_that_cannot_be_used_are_named(tmp_path, numbers):
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pictures(20)], [0, 1] * 10)
    (tmp_path / "new.png").write_bytes(b"nonsense")
    inputs = build(tmp_path / "train.parquet").inputs
    for row, message in (
        ({"image": str(tmp_path / "new.png")}, "new.png: not a picture in a known format"),
        ({"image": "absent.png"}, "absent.png: no such file"),
        ({"image": None}, "row 0: no picture"),
        ({"pixels": 3}, "row 0 has no 'image'; it has pixels"),
    ):
        with pytest.raises(DlrunError, match=message):
            inputs.encode([row])
    table = build(numbers).inputs
    assert table.encode([{"y": "2", "x": 1, "label": "odd"}])["features"].tolist() == [[1, 2]]
    for row, message in (
        ({"x": 1}, "row 0 has no 'y'"),
        ({"x": 1, "y": "many"}, "row 0: 'y' is 'many'; a finite number is needed"),
    ):
        with pytest.raises(DlrunError, match=message):
            table.encode([row])


def test_prepare_is_pixels_over_255_less_the_mean_over_the_deviation(tmp_path):
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pictures(20, channels=3)], [0, 1] * 10)
    dataset = build(tmp_path, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.125])
    batch = whole(dataset.split("train"))
    expected = (batch["image"].float() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.5, 0.25, 0.125]
    ).view(1, 3, 1, 1)
    before = batch["image"].clone()
    torch.testing.assert_close(dataset.inputs.prepare(batch)["image"], expected, rtol=1e-5, atol=1e-5)
    floats = batch | {"image": batch["image"].float()}
    torch.testing.assert_close(dataset.inputs.prepare(floats)["image"], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(batch["image"], before)
    assert torch.equal(floats["image"], before.float())


# The hub


def test_a_hub_data_set_that_cannot_be_reached_is_one_line():
    tools = SimpleNamespace(seed=0, assets=None)
    with pytest.raises(DlrunError) as error:
        hub.build(tools, path="some/where")
    assert error.value.message == "hub data set some/where: the hub cannot be reached"
    assert error.value.code == Exit.DATA


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "data.path is not set"),
        (".", "data.path: . is on this machine, not on the hub"),
        ("a/b/c", "data.path: a/b/c is no name of a data set on the hub"),
    ],
)
def test_names_that_are_not_on_the_hub_are_refused(path, message):
    with pytest.raises(DlrunError) as error:
        hub.build(SimpleNamespace(seed=0, assets=None), path=path)
    assert error.value.message == message
    assert error.value.code == Exit.USAGE


def test_hub_splits_are_guessed_or_named(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"x": list(range(20)), "label": [0, 1] * 10})
    found = datasets.DatasetDict({"training": rows, "val": rows, "extra": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, revision: found)
    tools = SimpleNamespace(seed=0, assets=None)
    dataset = hub.build(tools, path="some/where")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 18, "valid": 20, "test": 2}
    assert "the hub cannot be reached; the copy in the cache is used" in dataset.notes
    assert len(hub.build(tools, path="some/where", splits={"train": "extra"}).split("train")) == 16
    with pytest.raises(DlrunError, match="the data set has no split 'extr'") as error:
        hub.build(tools, path="some/where", splits={"train": "extr"})
    assert error.value.hint == "did you mean extra?"

"""Pictures with masks: folders and tables of them, values to classes, sizes kept, and what cannot be used is named."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.contracts import IGNORED, DataSpec
from dlrun.data import masks
from dlrun.data._coding import Coding, mask_values
from dlrun.data._images import BadPicture
from dlrun.errors import DlrunError, Exit


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build(path, spec: DataSpec | None = None, **settings):
    return masks.build(SimpleNamespace(seed=0, assets=None, spec=spec), path=str(path), **settings)


def whole(split):
    return split.gather(torch.arange(len(split)))


def save(path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(row: int, height: int = 6, width: int = 8) -> np.ndarray:
    """uint8 [height, width, 3] whose level is its row."""
    return np.full((height, width, 3), row, dtype=np.uint8)


def mask(row: int, values=(0, 1, 2), height: int = 6, width: int = 8) -> np.ndarray:
    """uint8 [height, width] of these values, in places that depend on the row."""
    return np.random.default_rng(row).choice(np.array(values, dtype=np.uint8), (height, width))


def write_pairs(pictures, masks, count: int, values=(0, 1, 2)) -> None:
    for row in range(count):
        save(pictures / f"{row:02}.png", picture(row))
        save(masks / f"{row:02}.png", mask(row, values))


def write_parquet(path, count: int = 10, values=(0, 1, 2), change=None) -> None:
    """Rows of an image, a mask and its name; change: {row: the mask's bytes}."""
    import datasets

    kind = datasets.Image(decode=False)
    features = datasets.Features({"photo": kind, "mask": kind, "name": datasets.Value("string")})
    cells = {row: png(mask(row, values)) for row in range(count)} | (change or {})
    rows = {
        "photo": [{"bytes": png(picture(row)), "path": None} for row in range(count)],
        "mask": [{"bytes": cells[row], "path": f"{row}.png"} for row in range(count)],
        "name": [str(row) for row in range(count)],
    }
    datasets.Dataset.from_dict(rows, features).to_parquet(path)


def test_tables_give_pictures_masks_and_the_pictures_own_sizes(tmp_path):
    write_parquet(tmp_path / "train.parquet")
    dataset = build(tmp_path, image_size=[3, 4], ignored=[2], classes=["sky", "road"])
    assert dataset.spec.inputs == ("image",)
    assert dataset.spec.target == "mask"
    assert dataset.spec.labels == ("sky", "road")
    assert dataset.spec.sizes == {
        "channels": 3, "height": 3, "width": 4, "pixel_classes": 2, "mask_height": 6, "mask_width": 8,
    }  # fmt: skip
    assert DataSpec.from_json(dataset.spec.to_json()) == dataset.spec
    assert {"mask column: mask (guessed)", "image column: photo (guessed)"} <= set(dataset.notes)
    batch = whole(dataset.split("train"))
    assert batch["image"].shape == (8, 3, 3, 4)
    assert batch["size"].tolist() == [[6, 8]] * 8
    assert batch["mask"].dtype == torch.uint8
    expected = np.stack([mask(row) for row in batch["id"].tolist()])
    assert np.array_equal(batch["mask"].numpy(), np.where(expected == 2, IGNORED, expected))


def test_streamed_and_held_masks_are_equal(tmp_path):
    write_parquet(tmp_path / "train.parquet")
    held, streamed = (build(tmp_path, memory=memory) for memory in ("always", "never"))
    assert held.spec == streamed.spec
    assert held.fingerprint == streamed.fingerprint
    one, other = whole(held.split("train")), whole(streamed.split("train"))
    assert one.keys() == other.keys() == {"id", "image", "mask", "size"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_read_by_several_threads_are_in_order(tmp_path, monkeypatch):
    from dlrun.data import _held

    monkeypatch.setattr(_held, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    write_parquet(tmp_path / "train.parquet", change={4: b"bad", 7: b"worse"})
    dataset = build(tmp_path, on_bad="skip", valid_fraction=0, test_fraction=0, classes=["a", "b", "c"])
    batch = whole(dataset.split("train"))
    assert batch["id"].tolist() == [0, 1, 2, 3, 5, 6, 8, 9]
    assert batch["image"][:, 0, 0, 0].tolist() == batch["id"].tolist()
    assert dataset.notes[-1].startswith("2 rows that cannot be read are left out; the first is train.parquet, row 4")
    with pytest.raises(DlrunError, match=r"train.parquet, row 4 \(4.png\)"):
        build(tmp_path, classes=["a", "b", "c"])


@pytest.mark.parametrize(
    "layout",
    ["{split}/images {split}/masks", "images/{split} masks/{split}", "{split} {split}annot", "{split} {split}_labels"],
)
def test_folders_of_pictures_beside_folders_of_masks_are_found(tmp_path, layout):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        pictures, beside = (tmp_path / part for part in layout.format(split=split).split())
        write_pairs(pictures, beside, count)
    dataset = build(tmp_path)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 4, "valid": 2, "test": 3}
    assert np.array_equal(whole(dataset.split("train"))["mask"].numpy(), np.stack([mask(row) for row in range(4)]))
    assert len(build(tmp_path, splits={"train": "train", "test": "val"}, valid_fraction=0).split("test")) == 2


def test_one_pair_of_folders_is_train_and_the_rest_is_held_out(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", 10)
    (tmp_path / "images" / "notes.txt").write_text("not a picture")
    dataset = build(tmp_path, valid_size=2, test_size=3)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 5, "valid": 2, "test": 3}
    assert "splits: train is images and masks (guessed)" in dataset.notes


def test_pictures_and_masks_are_matched_by_their_names(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", 4)
    (tmp_path / "images" / "01.png").unlink()
    assert "masks without a picture in images, passed over: 1 of masks" in build(tmp_path, valid_fraction=0).notes
    (tmp_path / "masks" / "02.png").unlink()
    with pytest.raises(DlrunError, match=r"^images, row 1 \(images/02.png\): no mask\n") as error:
        build(tmp_path)
    assert error.value.code == Exit.DATA
    dataset = build(tmp_path, on_bad="skip", valid_fraction=0, test_fraction=0)
    assert whole(dataset.split("train"))["id"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (png(mask(0, height=3, width=4)), "the mask is 4x3, and its picture is 8x6"),
        (png(mask(0, (0, 1, 7))), "the mask has the value 7, which is no class"),
        (png(np.random.default_rng(0).integers(0, 9, (6, 8, 3), dtype=np.uint8)), "a mask in colours (mode RGB)"),
        (b"nonsense", "not a picture in a known format, or damaged"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named_and_can_be_skipped(tmp_path, bad, reason):
    write_parquet(tmp_path / "train.parquet", change={5: bad})
    settings = {"classes": ["a", "b", "c"], "valid_fraction": 0, "test_fraction": 0, "mask_size": [6, 8]}
    with pytest.raises(DlrunError) as error:
        build(tmp_path, **settings)
    assert error.value.message.startswith("train.parquet, row 5 (5.png): ")
    assert reason in error.value.message
    assert error.value.code == Exit.DATA
    assert "data.on_bad=skip" in error.value.hint
    dataset = build(tmp_path, on_bad="skip", **settings)
    assert whole(dataset.split("train"))["id"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]


@pytest.mark.parametrize("image_size", [None, 6])
def test_a_mask_of_another_size_than_its_picture_is_a_bad_row_before_sizes_are_compared(tmp_path, image_size):
    write_pairs(tmp_path / "images", tmp_path / "masks", 8)
    save(tmp_path / "masks" / "03.png", mask(3, height=3))
    settings = {"image_size": image_size, "valid_fraction": 0, "test_fraction": 0}
    with pytest.raises(
        DlrunError, match=r"^images, row 3 \(masks/03.png\): the mask is 8x3, .* picture is 8x6"
    ) as error:
        build(tmp_path, **settings)
    assert error.value.code == Exit.DATA and "data.on_bad=skip" in error.value.hint
    dataset = build(tmp_path, on_bad="skip", **settings)
    assert whole(dataset.split("train"))["id"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert any(note.startswith("1 row that cannot be read is left out") for note in dataset.notes)


def test_masks_that_are_all_of_another_size_than_their_pictures_are_an_error(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", 3)
    for row in range(3):
        save(tmp_path / "masks" / f"{row:02}.png", mask(row, height=3))
    with pytest.raises(DlrunError, match="images: no mask looked at has the size of its picture") as error:
        build(tmp_path, on_bad="skip", valid_fraction=0, test_fraction=0)
    assert error.value.code == Exit.DATA


def test_masks_of_several_sizes_are_an_error_unless_they_are_to_be_scaled(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", 3)
    save(tmp_path / "images" / "1.png", picture(1, 12, 16))
    save(tmp_path / "masks" / "1.png", mask(1, (0, 1, 2), 12, 16))
    with pytest.raises(DlrunError, match=r"^masks of several sizes: images, row 0 .*masks/00.png.* is 8x6, ") as error:
        build(tmp_path, image_size=6)
    assert error.value.hint == "scale them all: 'data.mask_size=[6,8]'"
    batch = whole(build(tmp_path, image_size=6, mask_size=[6, 8], valid_fraction=0, test_fraction=0).split("train"))
    assert batch["size"].tolist() == [[6, 8], [6, 8], [6, 8], [12, 16]]
    nearest = np.asarray(Image.fromarray(mask(1, (0, 1, 2), 12, 16)).resize((8, 6), Image.Resampling.NEAREST))
    assert np.array_equal(batch["mask"][3].numpy(), nearest)


# What values mean


def test_classes_are_guessed_from_the_values_of_the_masks(tmp_path):
    write_parquet(tmp_path / "train.parquet", values=(0, 1, 4))
    dataset = build(tmp_path)
    assert dataset.spec.labels == ("0", "1", "2", "3", "4")
    assert "classes: mask values 0, 1, 2, 3, 4 (guessed; data.classes names them)" in dataset.notes


def test_black_and_white_masks_are_two_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", values=(0, 255))
    dataset = build(tmp_path)
    assert dataset.spec.labels == ("0", "255")
    batch = whole(dataset.split("train"))
    assert np.array_equal(batch["mask"].numpy() * 255, np.stack([mask(row, (0, 255)) for row in batch["id"].tolist()]))


def test_the_value_255_among_several_others_does_not_count(tmp_path):
    write_parquet(tmp_path / "train.parquet", values=(0, 1, 2, 255))
    dataset = build(tmp_path)
    assert dataset.spec.labels == ("0", "1", "2")
    assert "mask value 255 does not count (guessed; data.ignored)" in dataset.notes
    batch = whole(dataset.split("train"))
    expected = np.stack([mask(row, (0, 1, 2, 255)) for row in batch["id"].tolist()])
    assert np.array_equal(batch["mask"].numpy(), np.where(expected == 255, IGNORED, expected))


def test_values_can_be_named_in_another_order(tmp_path):
    write_parquet(tmp_path / "train.parquet", values=(3, 5, 9))
    dataset = build(tmp_path, values=[9, 3], ignored=[5], classes=["car", "road"])
    batch = whole(dataset.split("train"))
    expected = np.stack([mask(row, (3, 5, 9)) for row in batch["id"].tolist()])
    assert np.array_equal(batch["mask"].numpy(), np.select([expected == 9, expected == 3], [0, 1], IGNORED))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["a"]}, "data.classes: 1 classes; a mask has 2 to 254"),
        ({"classes": ["a", "a"]}, "data.classes: a name is there twice: a, a"),
        ({"classes": ["a", "b"], "values": [1, 2, 3]}, "data.classes has 2 names, and data.values has 3 numbers"),
        ({"values": [1, 1]}, "data.values: [1, 1] is not a list of different whole numbers in 0..65535"),
        ({"ignored": [-1]}, "data.ignored: [-1] is not a list of different whole numbers in 0..65535"),
        ({"values": [0, 1], "ignored": [1]}, "data.ignored: 1 is the value of a class"),
        ({"mask": "maks"}, "data.mask: train.parquet has no column 'maks'"),
        ({"mask_size": 0}, "data.mask_size: 0 is not a number of pixels above 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, settings, message):
    write_parquet(tmp_path / "train.parquet")
    with pytest.raises(DlrunError) as error:
        build(tmp_path, **settings)
    assert message in error.value.message
    assert error.value.code == Exit.USAGE


def test_every_way_to_store_a_mask_is_read():
    values = mask(0, (0, 1, 200))

    def read(stored: Image.Image) -> np.ndarray:
        buffer = io.BytesIO()
        stored.save(buffer, format="PNG")
        return mask_values(buffer.getvalue())

    grey = Image.fromarray(values)
    palette = Image.fromarray(values, mode=None)
    palette.putpalette([0] * 768)  # a palette: the indices count, not its colours
    assert np.array_equal(read(grey), values)
    assert np.array_equal(read(palette), values)
    assert np.array_equal(read(grey.convert("RGB")), values)
    assert np.array_equal(read(grey.convert("RGBA")), values)
    assert np.array_equal(read(grey.convert("LA")), values)
    assert np.array_equal(read(Image.fromarray(values > 100)), values > 100)
    wide = values.astype(np.uint16) * 300
    assert np.array_equal(read(Image.fromarray(wide)), wide)
    assert Coding((0, 300), (60000,)).encode(wide).max() == IGNORED
    with pytest.raises(BadPicture, match="the mask has the value 60000, which is no class"):
        Coding((0, 300)).encode(wide)


# Paths, derived runs and new pictures


def test_a_table_without_an_obvious_mask_has_to_name_it(tmp_path):
    write_parquet(tmp_path / "train.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "train.parquet").rename_columns(["photo", "regions", "name"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DlrunError, match=r"train.parquet: which column is the mask\? It has photo, regions, name"):
        build(tmp_path)
    assert build(tmp_path, mask="regions").spec.assets["mask_column"] == "regions"


def test_a_name_that_is_neither_here_nor_on_the_hub_says_both():
    with pytest.raises(DlrunError, match="hub data set some/where: the hub cannot be reached") as error:
        build("some/where")
    assert error.value.hint == "no file or folder is called some/where here either"
    with pytest.raises(DlrunError, match=r"no such file or folder: absent\.parquet"):
        build("absent.parquet")


def test_a_derived_run_keeps_classes_sizes_and_statistics(tmp_path):
    write_parquet(tmp_path / "first.parquet")
    write_parquet(tmp_path / "second.parquet", values=(1, 2))
    spec = build(tmp_path / "first.parquet", image_size=4, ignored=[0]).spec
    dataset = build(tmp_path / "second.parquet", spec=DataSpec.from_json(spec.to_json()))
    assert dataset.spec == spec
    batch = whole(dataset.split("train"))
    assert batch["mask"].shape[1:] == (6, 8)
    assert np.array_equal(batch["mask"].numpy(), np.stack([mask(row, (1, 2)) for row in batch["id"].tolist()]) - 1)


def test_new_pictures_come_with_their_own_sizes(tmp_path):
    write_parquet(tmp_path / "train.parquet")
    inputs = masks.inputs(build(tmp_path, image_size=4).spec)
    batch = inputs.encode([{"photo": png(picture(3))}, {"image": picture(5, 20, 10)}])
    assert batch["size"].tolist() == [[6, 8], [20, 10]]
    assert batch["image"].shape == (2, 3, 4, 4)
    assert inputs.prepare(batch)["image"].dtype == torch.float32

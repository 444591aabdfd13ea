"""Pictures with boxes from COCO's json and from tables: found, scaled, padded; what cannot be used is named."""

import io
import json
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.contracts import DataSpec
from dlrun.data import coco, objects
from dlrun.errors import DlrunError, Exit

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]  # in order of their ids: cat, dog


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build(path, spec: DataSpec | None = None, component=coco, **settings):
    return component.build(SimpleNamespace(seed=0, assets=None, spec=spec), path=str(path), **settings)


def whole(split):
    return split.gather(torch.arange(len(split)))


def png(height: int, width: int, level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), level, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def document(boxes: list[list], size=(10, 20), first: int = 0, **more) -> dict:
    """COCO's json for these boxes of pictures of this height and width: for each picture [category, x, y, w, h]."""
    images = [
        {"id": 100 + row, "file_name": f"{first + row}.png", "height": size[0], "width": size[1]}
        for row in range(len(boxes))
    ]
    annotations = [
        {"id": 1000 + 10 * row + index, "image_id": 100 + row, "category_id": category, "bbox": box}
        for row, mine in enumerate(boxes)
        for index, (category, *box) in enumerate(mine)
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES} | more


# Two boxes, none, and one; in pixels of 10 x 20.
BOXES = [[[7, 2, 1, 4, 5], [2, 0, 0, 20, 10]], [], [[2, 10, 5, 10, 5]]]


def write(folder, name: str, content: dict, pictures: str = "images", size=(10, 20)) -> None:
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    for level, image in enumerate(content["images"]):
        (folder / pictures / image["file_name"]).write_bytes(png(*size, level))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "set", "annotations/instances_train2017.json", document(BOXES), "train2017")
    write(tmp_path / "set", "annotations/instances_val2017.json", document([[[7, 1, 2, 3, 4]]], first=50), "val2017")
    (tmp_path / "set" / "annotations" / "captions_train2017.json").write_text("{}")
    return tmp_path / "set"


def test_coco_boxes_are_corners_in_pixels_of_the_scaled_picture(folder):
    dataset = build(folder, image_size=[20, 10], test_fraction=0)
    assert dataset.spec.inputs == ("image",)
    assert dataset.spec.target == "boxes"
    assert dataset.spec.labels == ("cat", "dog")
    assert dataset.spec.sizes == {"box_classes": 2, "boxes": 2, "channels": 3, "height": 20, "width": 10}
    assert DataSpec.from_json(dataset.spec.to_json()) == dataset.spec
    batch = whole(dataset.split("train"))
    assert {name: value.dtype for name, value in batch.items()} == {
        "id": torch.int64, "image": torch.uint8, "size": torch.int64,
        "boxes": torch.float32, "box_labels": torch.int64, "box_crowd": torch.bool,
    }  # fmt: skip
    none = [0, 0, 0, 0]
    assert batch["boxes"].tolist() == [[[1, 2, 3, 12], [0, 0, 10, 20]], [none, none], [[5, 10, 10, 20], none]]
    assert batch["box_labels"].tolist() == [[1, 0], [-1, -1], [0, -1]]
    assert batch["size"].tolist() == [[10, 20]] * 3
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert "pictures: train2017 (guessed)" in dataset.notes
    assert whole(dataset.split("valid"))["boxes"].tolist() == [[[0.5, 4, 2, 12], none]]


def test_streamed_and_held_boxes_are_equal(folder):
    held, streamed = (build(folder, memory=memory, test_fraction=0) for memory in ("always", "never"))
    assert held.spec == streamed.spec
    assert held.fingerprint == streamed.fingerprint
    one, other = whole(held.split("train")), whole(streamed.split("train"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_fingerprint_changes_with_a_box(folder):
    before = build(folder, test_fraction=0).fingerprint
    file = folder / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace("[2, 1, 4, 5]", "[2, 1, 4, 6]"))
    assert build(folder, test_fraction=0).fingerprint != before


def test_a_folder_for_each_split_with_its_json_is_found(tmp_path):
    heading = [{"id": 0, "name": "pets", "supercategory": "none"}]
    below = [category | {"supercategory": "pets"} for category in CATEGORIES]
    for split in ("train", "valid", "test"):
        content = document(BOXES, categories=[*heading, *below])
        write(tmp_path, f"{split}/_annotations.coco.json", content, split)
    dataset = build(tmp_path)
    assert set(dataset.splits) == {"train", "valid", "test"}
    assert dataset.spec.labels == ("cat", "dog")  # the heading has no boxes, and is no class
    assert {f"pictures: {split} (guessed)" for split in dataset.splits} <= set(dataset.notes)


def zipped(path, folder) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, "top/" + file.relative_to(folder).as_posix())


@pytest.mark.parametrize("memory", ["always", "never"])
def test_a_zip_file_is_read_as_its_folder_and_nothing_is_unpacked(folder, tmp_path, memory):
    zipped(tmp_path / "set.zip", folder)
    before = sorted(tmp_path.rglob("*"))
    one, other = (build(path, memory=memory, test_fraction=0) for path in (folder, tmp_path / "set.zip"))
    assert one.spec == other.spec
    first, second = whole(one.split("train")), whole(other.split("train"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


def test_a_streamed_zip_file_can_be_gathered_in_worker_processes(folder, tmp_path):
    zipped(tmp_path / "set.zip", folder)
    split = build(tmp_path / "set.zip", memory="never", test_fraction=0).split("train")
    here = whole(split)  # before: the archive is open here, and a forked process must not share it
    loader = torch.utils.data.DataLoader(
        [0, 1], batch_size=None, num_workers=2, multiprocessing_context="fork", collate_fn=lambda _: whole(split)
    )
    for there in loader:
        assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.parametrize("name", ["../out.json", "/etc/out.json", "a\\..\\out.json", "C:/out.json"])
def test_an_archive_with_names_that_lead_out_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(DlrunError, match=r"set.zip: '.*out.json' is a name that leads out of the archive"):
        build(tmp_path / "set.zip")


def test_a_damaged_member_of_an_archive_is_a_bad_row(folder, tmp_path):
    zipped(tmp_path / "set.zip", folder)
    content = bytearray((tmp_path / "set.zip").read_bytes())
    start = content.index(b"top/train2017/1.png") + len("top/train2017/1.png")
    content[start + 5 : start + 15] = bytes(10)
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(DlrunError, match=r"instances_train2017.json, row 1 \(top/train2017/1.png\): set.zip: .*cannot"):
        build(tmp_path / "set.zip", image_size=8, test_fraction=0)


# What cannot be used


def bad(folder, boxes: list[list], **more) -> None:
    file = folder / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(document(boxes, **more)))


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([7, 5, 5, 0, 3], "the box from 5,5 to 5,8 has no area"),
        ([7, 5, 5, 3, -1], "the box from 5,5 to 8,4 has no area"),
        ([7, 25, 2, 3, 3], "the box from 25,2 to 28,5 is outside the picture of 20x10"),
        ([7, 15, 2, 8, 3], "reaches out of the picture of 20x10; data.clip_boxes=true cuts such boxes"),
        ([7, -2, 2, 8, 3], "reaches out of the picture of 20x10"),
        ([9, 5, 5, 3, 3], "is of category 9, which is none of the classes"),
        ([7, 5, 5, 3], "the box is not four finite numbers"),
        ([7, 5, 5, 3, "x"], "the box is not four finite numbers"),
        ([7, 5, 5, 3, float("nan")], "the box is not four finite numbers"),
        ([7, 5, 5, 3, 10**400], "the box is not four finite numbers"),
        ([[7], 5, 5, 3, 3], "is of category [7], which is none of the classes"),
    ],
)
def test_a_bad_box_is_named_and_can_be_left_out_alone(folder, box, reason):
    bad(folder, [[[2, 1, 1, 2, 2], box], [], [[2, 0, 0, 1, 1]]])
    with pytest.raises(DlrunError) as error:
        build(folder, test_fraction=0)
    place = "instances_train2017.json, row 0 (train2017/0.png), annotation 1001: "
    assert error.value.message.startswith(place)
    assert reason in error.value.message
    assert error.value.code == Exit.DATA
    assert error.value.hint == "leave such rows or boxes out, up to data.max_bad=10: data.on_bad=skip"
    dataset = build(folder, test_fraction=0, on_bad="skip")
    batch = whole(dataset.split("train"))
    assert batch["box_labels"].tolist() == [[0], [-1], [0]]
    assert batch["boxes"].tolist() == [[[1, 1, 3, 3]], [[0, 0, 0, 0]], [[0, 0, 1, 1]]]
    assert any(note.startswith("1 row or box that cannot be read is left out; the first is") for note in dataset.notes)


def test_rounding_is_moved_in_and_more_is_cut_if_asked_for(folder):
    bad(folder, [[[2, -0.5, 0, 4, 10.9]], [[7, 15, -4, 10, 6]], []])
    with pytest.raises(DlrunError, match=r"row 1 .*reaches out"):
        build(folder, test_fraction=0)
    batch = whole(build(folder, test_fraction=0, clip_boxes=True).split("train"))
    assert batch["boxes"][:, 0].tolist() == [[0, 0, 3.5, 10], [15, 0, 20, 2], [0, 0, 0, 0]]


def test_bad_boxes_and_bad_pictures_spend_one_budget(folder):
    bad(folder, [[[9, 1, 1, 2, 2]], [[7, 5, 5, 0, 3]], [[2, 0, 0, 1, 1]]])
    (folder / "train2017" / "2.png").write_bytes(b"nonsense")
    with pytest.raises(DlrunError, match=r"more than data.max_bad=2 rows or boxes cannot be read; the first is"):
        build(folder, image_size=8, test_fraction=0, on_bad="skip", max_bad=2)
    dataset = build(folder, image_size=8, test_fraction=0, on_bad="skip", max_bad=3)
    assert whole(dataset.split("train"))["id"].tolist() == [0, 1]


def test_a_picture_of_another_size_than_stated_is_a_bad_row(folder):
    (folder / "train2017" / "1.png").write_bytes(png(10, 30))
    message = r"row 1 \(train2017/1.png\): the picture is 30x10, and its boxes are for one of 20x10"
    with pytest.raises(DlrunError, match=message):
        build(folder, image_size=8, test_fraction=0)
    dataset = build(folder, image_size=8, test_fraction=0, on_bad="skip")
    assert whole(dataset.split("train"))["id"].tolist() == [0, 2]


def test_an_absent_picture_is_a_bad_row(folder):
    (folder / "train2017" / "1.png").unlink()
    with pytest.raises(DlrunError, match=r"row 1 \(train2017/1.png\): no such file"):
        build(folder, image_size=8, test_fraction=0)


@pytest.mark.parametrize("number", [5, [5], {"a": 5}])
def test_a_box_of_no_picture_is_named(folder, number):
    content = document(BOXES)
    content["annotations"][1]["image_id"] = number
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    message = f"annotation 1001: image {number} is not in the list of images"
    with pytest.raises(DlrunError, match=re.escape(message)):
        build(folder, test_fraction=0)
    batch = whole(build(folder, test_fraction=0, on_bad="skip").split("train"))
    assert (batch["box_labels"] >= 0).sum() == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "instances_train2017.json cannot be read: "),
        ("[]", "is not in COCO's format: it has no list 'images'"),
        (json.dumps(document(BOXES) | {"categories": 3}), "it has no list 'categories'"),
        (json.dumps(document([])), "instances_train2017.json: its list of images is empty"),
        (json.dumps(document([[], []])), "instances_train2017.json: there are no boxes to train on"),
        (json.dumps(document(BOXES) | {"images": [{"id": 1}]}), "image 0: file_name None is no path inside a folder"),
        (json.dumps(document(BOXES)).replace("0.png", "../0.png"), "file_name '../0.png' is no path inside a folder"),
        (json.dumps(document(BOXES)).replace('"id": 101', '"id": 100'), "two images have the same id"),
        (json.dumps(document(BOXES)).replace("dog", "cat"), "two categories have the same name"),
        (json.dumps(document(BOXES)).replace('"id": 101', '"id": [1]'), "image 1: its id is a list or an object"),
        (json.dumps(document(BOXES)).replace('"id": 2,', '"id": {},'), "category 1: its id is a list or an object"),
        (json.dumps(document(BOXES)).replace(".png", ".gif"), "where are its pictures? 0.gif is nowhere in set"),
    ],
)  # fmt: skip
def test_a_json_file_that_cannot_be_used_is_named(folder, content, message):
    (folder / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(DlrunError) as error:
        build(folder, test_fraction=0)
    assert message in error.value.message
    assert error.value.code == Exit.DATA


def test_a_size_too_large_to_be_one_is_that_of_the_picture(folder):
    content = document(BOXES)
    content["images"][0]["height"] = 10**400
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    assert whole(build(folder, test_fraction=0).split("train"))["size"].tolist() == [[10, 20]] * 3


def test_a_split_without_pictures_is_left_out_where_bad_rows_are(folder):
    empty = document([])
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(empty))
    with pytest.raises(DlrunError, match=r"instances_val2017.json: its list of images is empty") as error:
        build(folder, test_fraction=0)
    assert error.value.hint == "leave such a split out: data.on_bad=skip"
    dataset = build(folder, test_fraction=0, valid_fraction=0, on_bad="skip")
    assert set(dataset.splits) == {"train"}
    note = "valid is left out: the list of images of annotations/instances_val2017.json is empty"
    assert note in dataset.notes
    with pytest.raises(DlrunError, match=r"instances_val2017.json: its list of images is empty"):
        build(folder, spec=dataset.spec, splits={"test": "instances_val2017"}, on_bad="skip")
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(empty))
    with pytest.raises(DlrunError, match=r"instances_train2017.json: its list of images is empty") as error:
        build(folder, on_bad="skip")
    assert error.value.code == Exit.DATA and not error.value.hint


def test_splits_and_pictures_can_be_named(folder, tmp_path):
    dataset = build(folder, splits={"train": "instances_val2017", "test": "annotations/instances_train2017.json"},
                    images={"train": "val2017", "test": str(folder / "train2017")}, valid_fraction=0)  # fmt: skip
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 1, "test": 3}
    for settings, message, hint in (
        ({"splits": {"train": "instances_vla2017"}}, "no json file is called 'instances_vla2017'", "did you mean"),
        ({"splits": {"trian": "x"}}, "no split is called 'trian'", "did you mean train?"),
        ({"images": "val2017"}, "0.png is nowhere in set/val2017/", "data.images=FOLDER"),
        ({"images": str(tmp_path / "absent")}, "data.images: no such folder", ""),
    ):
        with pytest.raises(DlrunError) as error:
            build(folder, **settings)
        assert message in error.value.message
        assert hint in error.value.hint


def test_two_files_that_may_be_a_split_are_not_guessed_between(folder):
    (folder / "annotations" / "instances_minitrain_train.json").write_text("{}")
    with pytest.raises(DlrunError, match=r"minitrain_train.json and .*train2017.json may both be train") as error:
        build(folder)
    assert "data.splits=" in error.value.hint


def test_a_name_of_the_hub_is_sent_to_the_data_that_reads_it(tmp_path):
    with pytest.raises(DlrunError, match="no such file or folder: some/where") as error:
        build("some/where")
    assert error.value.hint.endswith("data=objects data.path=some/where")
    with pytest.raises(DlrunError) as error:
        build(tmp_path / "absent")
    assert "data=objects" not in error.value.hint


def test_a_path_without_json_is_no_coco(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DlrunError, match=r"which json file has the training pictures?"):
        build(tmp_path)
    with pytest.raises(DlrunError, match="is neither a folder nor a zip file"):
        build(tmp_path / "notes.txt")


def test_crowds_are_marked_and_unseen_classes_remarked(folder):
    content = document([[[2, 1, 1, 2, 2], [2, 0, 0, 20, 10]], [], []])
    content["annotations"][1]["iscrowd"] = 1
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    dataset = build(folder, test_fraction=0)
    assert whole(dataset.split("train"))["box_crowd"].tolist() == [[False, True], [False, False], [False, False]]
    assert "no training box is of the class dog" in dataset.notes


def test_a_derived_run_keeps_classes_and_pads_as_its_source_did(folder, tmp_path):
    spec = DataSpec.from_json(build(folder, test_fraction=0, image_size=8).spec.to_json())
    other = document([[[4, 1, 1, 2, 2]]], categories=[{"id": 4, "name": "dog"}])
    write(tmp_path / "other", "train.json", other)
    dataset = build(tmp_path / "other", spec=spec, valid_fraction=0, test_fraction=0)
    assert dataset.spec == spec
    assert whole(dataset.split("train"))["box_labels"].tolist() == [[1, -1]]
    write(tmp_path / "cows", "train.json", document([[[4, 1, 1, 2, 2]]], categories=[{"id": 4, "name": "cow"}]))
    with pytest.raises(DlrunError, match="is of class 'cow', which is none of the classes"):
        build(tmp_path / "cows", spec=spec, valid_fraction=0, test_fraction=0)


def test_new_pictures_come_with_their_own_sizes(folder):
    inputs = coco.inputs(build(folder, test_fraction=0, image_size=8).spec)
    batch = inputs.encode([{"image": png(30, 40)}])
    assert batch["size"].tolist() == [[30, 40]]
    assert batch["image"].shape == (1, 3, 8, 8)


# Tables of objects


def write_table(path, cells: list[dict | list], names=None, size=(10, 20)) -> None:
    """A parquet of pictures and objects; the categories are declared if there are names."""
    import datasets

    kind = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    box = datasets.List(datasets.Value("float32"))
    inside = {"bbox": box, "category": kind}
    whole = isinstance(cells[0], dict)
    described = {name: datasets.List(each) for name, each in inside.items()} if whole else datasets.List(inside)
    features = datasets.Features({"image": datasets.Image(decode=False), "objects": described})
    rows = {"image": [{"bytes": png(*size, row), "path": None} for row in range(len(cells))], "objects": cells}
    datasets.Dataset.from_dict(rows, features).to_parquet(path)


@pytest.mark.parametrize("names", [None, ["dog", "cat"]])
@pytest.mark.parametrize("whole_rows", [True, False])
def test_tables_of_objects_give_the_boxes_in_them(tmp_path, names, whole_rows):
    words = ["dog", "cat", "dog"]
    labels = [names.index(word) for word in words] if names else words
    cells = [
        {"bbox": [[2, 1, 4, 5], [0, 0, 20, 10]], "category": labels[:2]},
        {"bbox": [], "category": []},
        {"bbox": [[10, 5, 10, 5]], "category": labels[2:]},
    ]
    if not whole_rows:
        cells = [
            [{"bbox": box, "category": label} for box, label in zip(cell["bbox"], cell["category"], strict=True)]
            for cell in cells
        ]
    write_table(tmp_path / "train.parquet", cells, names)
    dataset = build(tmp_path, component=objects, valid_fraction=0, test_fraction=0, image_size=[20, 10])
    assert dataset.spec.labels == (("dog", "cat") if names else ("cat", "dog"))
    assert "image column: image (guessed)" in dataset.notes
    batch = whole(dataset.split("train"))
    none = [0, 0, 0, 0]
    assert batch["boxes"].tolist() == [[[1, 2, 3, 12], [0, 0, 10, 20]], [none, none], [[5, 10, 10, 20], none]]
    named = [[dataset.spec.labels[code] if code >= 0 else "" for code in row] for row in batch["box_labels"].tolist()]
    assert named == [["dog", "cat"], ["", ""], ["dog", ""]]
    assert batch["size"].tolist() == [[10, 20]] * 3


def test_json_lines_of_corners_and_paths_are_read(tmp_path):
    (tmp_path / "0.png").write_bytes(png(10, 20))
    row = {"file": "0.png", "things": {"boxes": [[2, 1, 6, 6]], "label": [5]}}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    dataset = build(tmp_path, component=objects, objects="things", bbox_format="voc", valid_fraction=0, test_fraction=0)
    assert dataset.spec.labels == ("5",)
    assert whole(dataset.split("train"))["boxes"].tolist() == [[[2, 1, 6, 6]]]


def test_text_in_a_box_makes_a_bad_box(tmp_path):
    (tmp_path / "0.png").write_bytes(png(10, 20))
    boxes = [["2", "1", "wide", "5"], ["2", "1", "6", "5"]]
    row = {"image": "0.png", "objects": {"bbox": boxes, "category": ["a", "b"]}}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    settings = {"component": objects, "valid_fraction": 0, "test_fraction": 0}
    with pytest.raises(DlrunError, match=r"row 0 \(0.png\), box 0: the box is not four finite numbers"):
        build(tmp_path, **settings)
    batch = whole(build(tmp_path, on_bad="skip", **settings).split("train"))
    assert batch["boxes"].tolist() == [[[2, 1, 8, 6]]] and batch["box_labels"].tolist() == [[1]]


def test_a_bad_object_is_named_by_its_row(tmp_path):
    cells = [{"bbox": [[0, 0, 1, 1], [3, 3, 0, 0]], "category": ["a", "b"]}]
    write_table(tmp_path / "train.parquet", cells)
    with pytest.raises(DlrunError, match=r"train.parquet, row 0, box 1: the box from 3,3 to 3,3 has no area"):
        build(tmp_path, component=objects, valid_fraction=0, test_fraction=0)
    write_table(tmp_path / "train.parquet", [{"bbox": [[0, 0, 1, 1]], "category": ["a", "b"]}, *cells])
    with pytest.raises(DlrunError, match=r"train.parquet, row 0: 1 boxes, and 2 categories") as error:
        build(tmp_path, component=objects, valid_fraction=0, test_fraction=0)
    assert error.value.code == Exit.DATA and "data.on_bad=skip" in error.value.hint
    for memory in ("always", "never"):
        settings = {"valid_fraction": 0, "test_fraction": 0, "memory": memory, "on_bad": "skip"}
        batch = whole(build(tmp_path, component=objects, **settings).split("train"))
        assert batch["id"].tolist() == [1] and batch["box_labels"].tolist() == [[0]]
    with pytest.raises(DlrunError, match="has no column 'things'"):
        build(tmp_path, component=objects, objects="things")
    with pytest.raises(DlrunError, match=r"column 'image' of train.parquet holds bytes, path"):
        build(tmp_path, component=objects, objects="image", image="image")

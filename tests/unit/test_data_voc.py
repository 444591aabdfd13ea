"""Pictures with boxes as Pascal VOC has them: lists, XML files, and what cannot be read is named."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import voc
from dlrun.errors import DlrunError, Exit


def build(path, **settings):
    return voc.build(SimpleNamespace(seed=0, assets=None), path=str(path), **settings)


def whole(split):
    return split.gather(torch.arange(len(split)))


def jpeg(height: int = 10, width: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


def annotation(*objects: tuple, size=(10, 20)) -> str:
    """XML of these objects: name, left, top, right, bottom, difficult."""
    each = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{left}</xmin>"
        f"<ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom, difficult in objects
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{each}</annotation>"


@pytest.fixture
def folder(tmp_path):
    """VOC2007 with pictures a, b, c of train and d of val; b has no objects."""
    top = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (top / name).mkdir(parents=True)
    content = {
        "a": annotation(("dog", 2, 1, 6, 6, 0), ("cat", 0, 0, 20, 10, 1)),
        "b": annotation(),
        "c": annotation(("cat", 10, 5, 20, 10, 0)),
        "d": annotation(("dog", 1, 1, 3, 3, 0)),
    }
    for stem, text in content.items():
        (top / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg())
        (top / "Annotations" / f"{stem}.xml").write_text(text)
    for name, stems in {"train": "a\nb\nc\n", "val": "d\n", "trainval": "a\nb\nc\nd\n", "cat_train": "a 1\n"}.items():
        (top / "ImageSets" / "Main" / f"{name}.txt").write_text(stems)
    return top


def test_voc_boxes_are_read_and_difficult_ones_are_crowds(folder):
    for path in (folder, folder.parent):
        dataset = build(path, test_fraction=0)
        assert dataset.spec.labels == ("cat", "dog")
        assert dataset.spec.sizes == {"box_classes": 2, "boxes": 2, "channels": 3, "height": 10, "width": 20}
        assert "splits: train is train, valid is val (guessed)" in dataset.notes
        batch = whole(dataset.split("train"))
        none = [0, 0, 0, 0]
        assert batch["boxes"].tolist() == [[[2, 1, 6, 6], [0, 0, 20, 10]], [none, none], [[10, 5, 20, 10], none]]
        assert batch["box_labels"].tolist() == [[1, 0], [-1, -1], [0, -1]]
        assert batch["box_crowd"].tolist() == [[False, True], [False, False], [False, False]]
        assert len(dataset.split("valid")) == 1


def test_a_zip_file_of_voc_gives_the_same(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "voc.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path).as_posix())
    one, other = (whole(build(path, test_fraction=0).split("train")) for path in (folder, tmp_path / "voc.zip"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lists_can_be_named_and_are_not_needed(folder):
    dataset = build(folder, splits={"train": "trainval", "valid": "val"}, test_fraction=0)
    assert len(dataset.split("train")) == 4
    with pytest.raises(DlrunError, match="there is no list 'trainvla'") as error:
        build(folder, splits={"train": "trainvla"})
    assert "did you mean trainval?" in error.value.hint
    (folder / "ImageSets" / "Main" / "train.txt").unlink()
    assert len(build(folder, test_fraction=0).split("train")) == 4  # trainval
    for file in (folder / "ImageSets" / "Main").iterdir():
        file.unlink()
    assert len(build(folder, valid_size=1, test_size=1).split("train")) == 2


def test_original_voc_counts_pixels_from_one(folder):
    (folder / "Annotations" / "c.xml").write_text(annotation(("cat", 1, 1, 20, 10, 0)))
    batch = whole(build(folder, one_based=True, on_bad="skip", test_fraction=0).split("train"))
    assert batch["boxes"][2, 0].tolist() == [0, 0, 20, 10]


def test_a_box_of_zero_size_is_named_by_list_picture_and_file(folder):
    (folder / "Annotations" / "c.xml").write_text(annotation(("cat", 1, 1, 3, 3, 0), ("dog", 5, 6, 5, 6, 0)))
    with pytest.raises(DlrunError) as error:
        build(folder, test_fraction=0)
    assert error.value.message == (
        "train.txt, row 2 (JPEGImages/c.jpg), object 1 of c.xml: the box from 5,6 to 5,6 has no area"
    )
    assert error.value.code == Exit.DATA
    batch = whole(build(folder, on_bad="skip", test_fraction=0).split("train"))
    assert batch["box_labels"].tolist() == [[1, 0], [-1, -1], [0, -1]]


def test_an_object_without_box_or_name_is_a_bad_box(folder):
    (folder / "Annotations" / "c.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    with pytest.raises(DlrunError, match="the box is not four finite numbers"):
        build(folder, test_fraction=0)
    (folder / "Annotations" / "c.xml").write_text(annotation(("", 1, 1, 3, 3, 0)))
    with pytest.raises(DlrunError, match="is of no class, which is none of the classes"):
        build(folder, test_fraction=0)


def test_sizes_that_are_not_stated_are_those_of_the_pictures(folder):
    (folder / "Annotations" / "c.xml").write_text(annotation(("cat", 10, 5, 25, 10, 0), size=(0, 0)))
    with pytest.raises(DlrunError, match="reaches out of the picture of 20x10"):
        build(folder, test_fraction=0)
    batch = whole(build(folder, clip_boxes=True, test_fraction=0).split("train"))
    assert batch["boxes"][2, 0].tolist() == [10, 5, 20, 10]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation>", "VOCdevkit/VOC2007/Annotations/b.xml cannot be read: no element found"),
        (b'<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>', "declares a document type or entities"),
        ('<!DOCTYPE a [<!ENTITY b "b">]><annotation/>'.encode("utf-16"), "declares a document type or entities"),
        (None, "VOCdevkit/VOC2007/Annotations/b.xml cannot be read: No such file"),
    ],
)
def test_an_xml_file_that_cannot_be_read_is_a_bad_row(folder, content, message):
    if content is None:
        (folder / "Annotations" / "b.xml").unlink()
    else:
        (folder / "Annotations" / "b.xml").write_bytes(content)
    with pytest.raises(DlrunError) as error:
        build(folder.parents[1], test_fraction=0)
    assert error.value.message.startswith("train.txt, b: ")
    assert message in error.value.message
    dataset = build(folder.parents[1], on_bad="skip", test_fraction=0)
    assert whole(dataset.split("train"))["box_labels"].tolist() == [[1, 0], [0, -1]]


def test_paths_that_are_not_voc_say_what_was_expected(folder, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(DlrunError, match="other has no folder Annotations with XML files") as error:
        build(tmp_path / "other")
    assert error.value.hint == "expected Annotations/, JPEGImages/ and ImageSets/Main/"
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations").mkdir(parents=True)
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "a.xml").write_text(annotation())
    with pytest.raises(DlrunError, match="VOCdevkit has folders VOC2007, VOC2012 of that kind"):
        build(tmp_path / "VOCdevkit")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(DlrunError, match=r"ImageSets/Main/train.txt: its list of images is empty"):
        build(folder)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("")
    with pytest.raises(DlrunError, match=r"ImageSets/Main/train.txt: its list of images is empty"):
        build(folder, on_bad="skip")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    dataset = build(folder, on_bad="skip", valid_fraction=0, test_fraction=0)
    assert set(dataset.splits) == {"train"}
    assert "valid is left out: the list of images of ImageSets/Main/val.txt is empty" in dataset.notes
    (folder / "ImageSets" / "Main" / "train.txt").write_text("../a\n")
    with pytest.raises(DlrunError, match=r"train.txt: '../a' is no name of a picture"):
        build(folder)

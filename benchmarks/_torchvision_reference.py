"""The loops of torchvision's reference training scripts, for one process: what dlrun's speed is measured against.

Written after references/segmentation and references/detection of pytorch/vision: a DataLoader with two workers over PIL
pictures, its presets of transforms, SGD with momentum; evaluation by a confusion matrix, and by pycocotools.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CELLS = ("Platelets", "RBC", "WBC")


class Roads(Dataset):
    """CamVid: bytes of a picture and of its mask to what the preset makes of them."""

    def __init__(self, folder: Path, split: str, transform: Callable) -> None:
        import pyarrow.parquet

        self.rows = pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        mask = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
        return self.transform(image, tv_tensors.Mask(torch.from_numpy(mask.astype(np.int64))))


def segmentation_transforms(height: int, width: int, *, training: bool) -> Callable:
    """The presets: random size from half to twice, mirror, crop; or the size alone."""
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if not training:
        return v2.Compose([v2.Resize([height, width]), *finish])
    fill: dict[type | str, Any] = {Image.Image: 0, tv_tensors.Mask: 11, "others": 0}
    return v2.Compose([
        v2.RandomResize(height // 2, 2 * height), v2.RandomHorizontalFlip(),
        v2.RandomCrop((height, width), pad_if_needed=True, fill=fill), *finish,
    ])  # fmt: skip


def segmentation_loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    return F.cross_entropy(model(images)["out"], masks, ignore_index=11)


@torch.inference_mode()
def mean_iou(model: nn.Module, loader: Iterable, classes: int = 11) -> float:
    """By a confusion matrix over all pixels but those of class 11."""
    model.eval()
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for images, masks in loader:
        said = model(images)["out"].argmax(1)
        known = masks < classes
        matrix += torch.bincount(masks[known] * classes + said[known], minlength=classes**2).reshape(classes, classes)
    hit = matrix.diag().float()
    return float((hit / (matrix.sum(0) + matrix.sum(1) - hit).clamp(min=1)).mean())


class Cells(Dataset):
    """BCCD: bytes of a picture and its boxes to what the preset makes of them."""

    def __init__(self, archive: Path, split: str, transform: Callable) -> None:
        with zipfile.ZipFile(archive) as packed:
            names = packed.read(f"BCCD/ImageSets/Main/{split}.txt").decode().split()
            self.pictures = [packed.read(f"BCCD/JPEGImages/{name}.jpg") for name in names]
            trees = [ElementTree.fromstring(packed.read(f"BCCD/Annotations/{name}.xml")) for name in names]
        self.boxes = [[_box(item) for item in tree.findall("object")] for tree in trees]
        self.boxes = [[box for box in boxes if box[2] > box[0] and box[3] > box[1]] for boxes in self.boxes]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image = Image.open(io.BytesIO(self.pictures[index])).convert("RGB")
        boxes = torch.tensor([box[:4] for box in self.boxes[index]], dtype=torch.float32)
        size = (image.height, image.width)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # type: ignore[call-overload]
            "labels": torch.tensor([box[4] + 1 for box in self.boxes[index]]),
        }
        image, target = self.transform(image, target)
        return image, target | {"image_id": index}

    def truth(self) -> dict[str, Any]:
        """As COCO json."""
        found = [
            {"image_id": image, "category_id": box[4] + 1, "iscrowd": 0, "area": (box[2] - box[0]) * (box[3] - box[1]),
             "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            for image, boxes in enumerate(self.boxes) for box in boxes
        ]  # fmt: skip
        return {
            "info": {}, "images": [{"id": index} for index in range(len(self))],
            "annotations": [item | {"id": index + 1} for index, item in enumerate(found)],
            "categories": [{"id": index + 1, "name": name} for index, name in enumerate(CELLS)],
        }  # fmt: skip


def _box(item: ElementTree.Element) -> tuple[float, float, float, float, int]:
    left, top, right, bottom = (
        float(item.findtext(f"bndbox/{side}", "0")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return left, top, right, bottom, CELLS.index(item.findtext("name", ""))


def detection_transforms(size: int, *, training: bool) -> Callable:
    """The preset `hflip`, after the scaling that the model would else do itself."""
    mirror = [v2.RandomHorizontalFlip()] if training else []
    return v2.Compose([*mirror, v2.Resize([size, size]), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])


def detection_loss(model: nn.Module, images: Sequence[Tensor], targets: Sequence[dict]) -> Tensor:
    return torch.stack(list(model(list(images), list(targets)).values())).sum()


@torch.inference_mode()
def average_precision(model: nn.Module, loader: Iterable, truth: dict[str, Any], size: int) -> float:
    """AP50, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    model.eval()
    found = []
    for images, targets in loader:
        for said, target in zip(model(list(images)), targets, strict=True):
            wide = said["boxes"] * torch.tensor([640 / size, 480 / size, 640 / size, 480 / size])
            for box, label, score in zip(wide.tolist(), said["labels"].tolist(), said["scores"].tolist(), strict=True):
                found.append({"image_id": target["image_id"], "category_id": label, "score": score,
                              "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})  # fmt: skip
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        known: Any = COCO()
        known.dataset = truth
        known.createIndex()
        scored = COCOeval(known, known.loadRes(found), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return float(scored.stats[1])


def together(batch: list) -> tuple:
    """Detection's collate: pictures and targets side by side."""
    return tuple(zip(*batch, strict=True))


def loader_of(data: Dataset, batch: int, *, shuffled: bool, collate: Callable | None = None) -> DataLoader:
    """As the scripts make it, with two workers that stay."""
    return DataLoader(data, batch, shuffled, num_workers=2, collate_fn=collate, drop_last=shuffled,
                      persistent_workers=True)  # fmt: skip


def endless(loader: DataLoader) -> Iterable:
    while True:
        yield from loader


def training_rate(
    model: nn.Module, loader: DataLoader, loss_of: Callable[..., Tensor], *, steps: int, batch: int, skip: int
) -> float:
    """Pictures a second of SGD with momentum, after `skip` steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-4)
    model.train()
    start = 0.0
    for step, parts in enumerate(endless(loader)):
        if step == skip:
            start = time.perf_counter()
        if step == skip + steps:
            break
        loss = loss_of(model, *parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # the scripts log it at every step
    return steps * batch / (time.perf_counter() - start)


def loading_rate(loader: DataLoader, *, steps: int, batch: int, skip: int) -> float:
    """Pictures a second of loading and augmenting alone."""
    start = 0.0
    for step, _ in enumerate(endless(loader)):
        if step == skip:
            start = time.perf_counter()
        if step == skip + steps:
            break
    return steps * batch / (time.perf_counter() - start)

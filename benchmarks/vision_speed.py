"""Segmentation and detection against torchvision's own reference loops, for the same model, as ratios in one run.

DLRUN_TEST_DATA=FOLDER python benchmarks/vision_speed.py [--parts segmentation detection] [--rounds 3] [--steps 20]

FOLDER holds camvid/ and bccd/. LR-ASPP at 180 x 240 and SSDlite at 320 x 320, batches of 8, fp32: training (loading and
augmentation included), loading and augmentation alone, and evaluation of a split with its metrics.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import _torchvision_reference as reference
import torch
from _measure import data_folder, dlrun_rate, in_turn, median, ratio
from torchvision import models

BATCH, SKIP = 8, 3
COMMON = [f"data.batch_size={BATCH}", "optimizer=sgd", "optimizer.lr=0.002", "optimizer.momentum=0.9",
          "tracking.uri=null", "train.pictures=0"]  # fmt: skip


class Contest(NamedTuple):
    """What is run on both sides: overrides for dlrun, and three calls for the reference."""

    overrides: list[str]
    training: Callable[[int], float]
    loading: Callable[[int], float]
    evaluation: Callable[[], float]


def segmentation(folder: Path) -> Contest:
    """LR-ASPP on CamVid."""
    source = folder / "camvid"
    named = "Sky,Building,Pole,Road,Pavement,Tree,SignSymbol,Fence,Car,Pedestrian,Bicyclist"
    train = reference.loader_of(
        reference.Roads(source, "train", reference.segmentation_transforms(180, 240, training=True)),
        BATCH,
        shuffled=True,
    )
    test = reference.loader_of(
        reference.Roads(source, "test", reference.segmentation_transforms(180, 240, training=False)),
        2 * BATCH,
        shuffled=False,
    )

    def model() -> torch.nn.Module:
        return models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=11)

    kept = model()
    return Contest(
        ["task=segmentation", "data=masks", "model=lraspp", f"data.path={source}", f"data.classes=[{named}]",
         "data.ignored=[11]", "data.image_size=[180,240]", "data.mask_size=[180,240]",
         "data.augment={flip: {}, random_affine: {scale: [0.5, 2.0], translate: 0.25}}"],
        lambda steps: reference.training_rate(
            model(), train, reference.segmentation_loss, steps=steps, batch=BATCH, skip=SKIP),
        lambda steps: reference.loading_rate(train, steps=steps, batch=BATCH, skip=SKIP),
        lambda: rate(lambda: reference.mean_iou(kept, test), len(test.dataset)),  # type: ignore[arg-type]
    )  # fmt: skip


def detection(folder: Path) -> Contest:
    """SSDlite on blood cells."""
    source = folder / "bccd" / "BCCD.zip"
    train = reference.loader_of(
        reference.Cells(source, "train", reference.detection_transforms(320, training=True)), BATCH, shuffled=True,
        collate=reference.together,
    )  # fmt: skip
    held = reference.Cells(source, "test", reference.detection_transforms(320, training=False))
    test = reference.loader_of(held, 2 * BATCH, shuffled=False, collate=reference.together)

    def model() -> torch.nn.Module:
        return models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4, detections_per_img=100, score_thresh=0.01
        )

    kept, truth = model(), held.truth()
    return Contest(
        ["task=detection", "data=coco", "model=ssdlite320", f"data.path={source}", "data.image_size=320",
         "data.augment={flip: {}}"],
        lambda steps: reference.training_rate(
            model(), train, reference.detection_loss, steps=steps, batch=BATCH, skip=SKIP),
        lambda steps: reference.loading_rate(train, steps=steps, batch=BATCH, skip=SKIP),
        lambda: rate(lambda: reference.average_precision(kept, test, truth, 320), len(held)),
    )  # fmt: skip


def rate(work: Callable[[], object], pictures: int) -> float:
    """Pictures a second."""
    start = time.perf_counter()
    work()
    return pictures / (time.perf_counter() - start)


def own_parts(overrides: list[str]) -> Any:
    """A run's data, task and model, put together as a run puts them together."""
    from dlrun import assembly
    from dlrun.commands.train import Options, composed
    from dlrun.registry import Registry
    from dlrun.training.distributed import World

    with tempfile.TemporaryDirectory() as folder:
        options = Options(Path(folder), Registry())
        config = composed(overrides, options)
        return assembly.assemble(config, options.registry, World(0, 1, torch.device("cpu")), Path(folder), None)


def own_loading(parts: Any, steps: int) -> float:
    """Pictures a second of dlrun's loading and augmenting alone."""
    start = 0.0
    for step, _ in enumerate(parts.feed.steps_from(0)):
        if step == SKIP:
            start = time.perf_counter()
        if step == SKIP + steps:
            break
    return steps * BATCH / (time.perf_counter() - start)


def own_evaluation(parts: Any) -> float:
    """Pictures a second of dlrun's evaluation of the test split."""
    from dlrun.training.distributed import World
    from dlrun.training.evaluate import batches, evaluate

    split = parts.dataset.splits["test"]
    stream = batches(split, parts.dataset.inputs, batch_size=2 * BATCH, place=parts.feed.place)
    world = World(0, 1, torch.device("cpu"))
    return rate(
        lambda: evaluate(parts.state.weights, parts.full_task, stream, parts.state.precision, world), len(split)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    makers = {"segmentation": segmentation, "detection": detection}
    parser.add_argument("--parts", nargs="+", default=list(makers), choices=list(makers))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    for part in options.parts:
        contest = makers[part](data_folder())
        overrides = [*contest.overrides, *COMMON]
        parts = own_parts(overrides)
        pairs = {
            "training": (
                lambda: dlrun_rate(*overrides, f"train.duration={options.steps + SKIP} steps"),  # noqa: B023
                lambda: contest.training(options.steps),  # noqa: B023
            ),
            "loading and augmentation": (
                lambda: own_loading(parts, options.steps),  # noqa: B023
                lambda: contest.loading(options.steps),  # noqa: B023
            ),
            "evaluation": (lambda: own_evaluation(parts), lambda: contest.evaluation()),  # noqa: B023
        }
        for what, (own, other) in pairs.items():
            found = in_turn({"dlrun": own, "torchvision's reference": other}, options.rounds)
            own_rates, others = found.values()
            print(f"{part}, {what:<26} {median(own_rates):7.1f} images/s against {median(others):7.1f}:"
                  f" {ratio(own_rates, others):.2f} x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

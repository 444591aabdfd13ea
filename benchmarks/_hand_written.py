"""The loop one would write by hand over tensors in memory: what dlrun is measured against."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """uint8 images [N, C, H, W] and labels [N] of a parquet split."""
    import numpy
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(next(folder.glob(f"{split}*.parquet")))
    images = [numpy.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    stacked = torch.from_numpy(numpy.stack(images))
    stacked = stacked.unsqueeze(1) if stacked.dim() == 3 else stacked.permute(0, 3, 1, 2).contiguous()
    return stacked, torch.tensor(table["label"].to_pylist())


def rate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch: int = 128,
    skip: int = 5,
    flip_and_crop: int = 0,
) -> float:
    """Samples a second of plain fp32 training with AdamW, after a few steps of warm-up."""
    mean = images[:5000].float().mean((0, 2, 3), keepdim=True) / 255
    std = images[:5000].float().std((0, 2, 3), keepdim=True) / 255
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    start = 0.0
    order = torch.randperm(len(images))
    for step in range(steps):
        if step == skip:
            start = time.perf_counter()
        rows = order[step * batch % (len(images) - batch) :][:batch]
        inputs = ((images[rows].float() / 255) - mean) / std
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels[rows])
        loss.backward()
        optimizer.step()
    return (steps - skip) * batch / (time.perf_counter() - start)


def main() -> None:
    """Train the small CNN for some steps in a process of its own: its peak memory is the reference."""
    from dlrun import build
    from dlrun.config.schema import ModelConfig
    from dlrun.contracts import DataSpec
    from dlrun.registry import Registry

    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    images, labels = read(folder, "train")
    spec = DataSpec(
        ("image",), "label", {"classes": 10, "channels": 1, "height": 28, "width": 28}, {"image": (1, 28, 28)}
    )
    print(rate(build.model(ModelConfig("cnn"), Registry(), spec, 0), images, labels, steps=steps))


if __name__ == "__main__":
    main()

"""Training speed on real data, as ratios in one run: dlrun against a hand-written loop, Lightning and HF Trainer.

DLRUN_TEST_DATA=FOLDER python benchmarks/training_speed.py [--rounds 5] [--steps 150] [--parts default small …]

Two sizes of the same network: `model=cnn` as it comes (six convolutions: nearly all of a step is arithmetic that all
contenders share), and one of two convolutions, where what a tool adds around the arithmetic shows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _hand_written as hand
import torch
from _measure import data_folder, dlrun_rate, in_turn, median, peak_megabytes, ratio
from PIL import Image
from torch import Tensor, nn

from dlrun import build
from dlrun.config.schema import ModelConfig
from dlrun.contracts import DataSpec
from dlrun.registry import Registry

BATCH = 128


SIZES = {"default": {}, "small": {"channels": (16, 32), "convolutions": 1}}


def small_cnn(size: str = "default") -> nn.Module:
    spec = DataSpec(
        ("image",), "label", {"classes": 10, "channels": 1, "height": 28, "width": 28}, {"image": (1, 28, 28)}
    )
    return build.model(ModelConfig("cnn", SIZES[size]), Registry(), spec, 0)


def resnet20() -> nn.Module:
    spec = DataSpec(
        ("image",), "label", {"classes": 10, "channels": 3, "height": 32, "width": 32}, {"image": (3, 32, 32)}
    )
    return build.model(ModelConfig("resnet", {"depth": 20}), Registry(), spec, 0)


class Samples(torch.utils.data.Dataset):
    """Fashion-MNIST one example at a time, as torchvision.datasets gives it: a PIL image, then its transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms

        self.images, self.labels = images, labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.286,), (0.353,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        picture = Image.fromarray(self.images[index, 0].numpy())
        return {"pixels": self.transform(picture), "labels": self.labels[index]}


class Ticks:
    """Samples a second between the sixth and the last step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        self.times.append(time.perf_counter())

    def rate(self) -> float:
        return (len(self.times) - 6) * BATCH / (self.times[-1] - self.times[5])


def lightning_rate(data: Samples, steps: int, size: str) -> float:
    import lightning

    ticks = Ticks()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_cnn(size)

        def training_step(self, batch, _index):
            return nn.functional.cross_entropy(self.model(batch["pixels"]), batch["labels"])

        def on_train_batch_end(self, *_args) -> None:
            ticks.tick()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=0)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    return ticks.rate()


def transformers_rate(data: Samples, steps: int, size: str) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ticks = Ticks()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_cnn(size)

        def forward(self, pixels, labels=None):
            logits = self.model(pixels)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    class Callback(TrainerCallback):
        def on_step_end(self, *_args, **_kwargs) -> None:
            ticks.tick()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            learning_rate=1e-3,
        )
        Trainer(Wrapped(), arguments, train_dataset=data, callbacks=[Callback()]).train()
    return ticks.rate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--parts", nargs="*", default=["default", "small", "bf16", "mirror", "memory"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    folder = data_folder()
    for size in SIZES:
        if size in options.parts:
            compare(size, folder, options)
    if "bf16" in options.parts:
        bf16(folder, options)
    if "mirror" in options.parts:
        mirror(folder)
    if "memory" in options.parts:
        memory(folder)


def compare(size: str, folder: Path, options: argparse.Namespace) -> None:
    """dlrun, the hand-written loop and the peers on Fashion-MNIST with one size of network."""
    images, labels = hand.read(folder / "fashion_mnist", "train")
    fashion = (
        "data=files",
        f"data.path={folder / 'fashion_mnist'}",
        "model=cnn",
        *(f"model.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in SIZES[size].items()),
        "data.batch_size=128",
        "optimizer.lr=1e-3",
        f"train.duration={options.steps} steps",
        "hardware.device=cpu",
        "schedule=constant",
    )
    contenders: dict[str, Callable[[], float]] = {
        "hand-written loop": lambda: hand.rate(small_cnn(size), images, labels, steps=options.steps),
        "dlrun": lambda: dlrun_rate(*fashion),
        "dlrun, not mirrored": lambda: dlrun_rate(*fashion, "tracking.system_metrics=false", mirrored=False),
    }
    samples = Samples(images, labels)
    for name, peer in (("lightning", lightning_rate), ("accelerate", transformers_rate)):
        try:
            __import__(name)
            label = "transformers.Trainer" if name == "accelerate" else name
            contenders[label] = lambda peer=peer: peer(samples, options.steps, size)
        except ImportError:
            print(f"{name} is not installed and left out: pip install -e '.[bench]'", file=sys.stderr)
    found = in_turn(contenders, options.rounds)
    for name, rates in found.items():
        print(
            f"cnn, {size}: {name:<24} {median(rates):8.0f} samples/s"
            f"   dlrun is {ratio(found['dlrun'], rates):.2f} x as fast"
        )


def bf16(folder: Path, options: argparse.Namespace) -> None:
    """ResNet-20 in bf16 and channels-last against the hand-written fp32 loop."""
    images, labels = hand.read(folder / "cifar10_jpeg", "train")
    cifar = (
        "data=files",
        f"data.path={folder / 'cifar10_jpeg'}",
        "model=resnet20",
        "data.batch_size=128",
        "optimizer.lr=1e-3",
        "schedule=constant",
        f"train.duration={options.steps // 2} steps",
        "hardware.device=cpu",
    )
    found = in_turn({
        "hand-written fp32": lambda: hand.rate(resnet20(), images, labels, steps=options.steps // 2),
        "dlrun fp32": lambda: dlrun_rate(*cifar),
        "dlrun channels-last": lambda: dlrun_rate(*cifar, "hardware.channels_last=true"),
        "dlrun bf16 channels-last": lambda: dlrun_rate(*cifar, "train.precision=bf16", "hardware.channels_last=true"),
    }, max(3, options.rounds - 2))  # fmt: skip
    for name, rates in found.items():
        print(
            f"ResNet-20: {name:<28} {median(rates):8.0f} samples/s"
            f"   {ratio(rates, found['hand-written fp32']):.2f} x the loop"
        )


def mirror(folder: Path) -> None:
    """Processor seconds of the threads that mirror to MLflow and sample the system, in a minute of training.

    Two runs side by side differ by more than the mirror can cost; the threads' own clocks do not.
    """
    import threading

    spent: dict[str, float] = {}
    run = threading.Thread.run

    def timed(thread: threading.Thread) -> None:
        try:
            run(thread)
        finally:
            spent[thread.name] = time.thread_time()

    threading.Thread.run = timed
    try:
        arguments = (f"data.path={folder / 'fashion_mnist'}", "hardware.device=cpu", "train.duration=1 minutes")
        dlrun_rate("data=files", "model=cnn", *arguments)
    finally:
        threading.Thread.run = run
    for name, seconds in spent.items():
        if name.startswith("dlrun-"):
            print(f"{name}: {seconds:.2f} processor seconds in 60 of training ({seconds / 60:.1%})")


def memory(folder: Path) -> None:
    """Peak memory of whole processes: the hand-written loop, then dlrun (children are counted by their maximum)."""
    loop = peak_megabytes([sys.executable, "benchmarks/_hand_written.py", str(folder / "fashion_mnist"), "60"])
    with tempfile.TemporaryDirectory() as runs:
        mine = peak_megabytes(
            [
                sys.executable,
                "-m",
                "dlrun",
                "train",
                "data=files",
                f"data.path={folder / 'fashion_mnist'}",
                "model=cnn",
                "train.duration=60 steps",
                "--runs",
                runs,
            ]
        )
    print(f"peak memory: hand-written {loop:.0f} MB, dlrun at most {mine:.0f} MB, ratio {mine / loop:.2f}")


if __name__ == "__main__":
    main()

"""How much faster eight small networks predict and train together (vmap over stacked weights) than one after the other.

python benchmarks/ensemble_speed.py [--members 8] [--batch 256] [--rounds 9] [--device cpu]

Prints the ratio of rates, together over one after the other, for `model=cnn` on pictures of 28 x 28 and of 8 x 8,
and for MLPs, and how far the two differ. Two ways to predict together: vmap as it is, and in chunks of two members.
Training is that of `model.copies` (batches of a quarter the size, AdamW) against plain models in the same process.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from _measure import in_turn, ratio
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from dlrun import build
from dlrun.config import convert
from dlrun.config.compose import compose
from dlrun.contracts import DataSpec
from dlrun.copies import Copies, EachCopy
from dlrun.registry import Registry
from dlrun.tasks import classification


def data_of(size: int) -> DataSpec:
    """Grey pictures of ten classes."""
    sizes = {"classes": 10, "channels": 1, "height": size, "width": size}
    return DataSpec(("image",), "label", sizes, {"image": (1, size, size)}, tuple("0123456789"))


def members(name: str, size: int, count: int) -> list[nn.Module]:
    """Networks of one config with different weights."""
    spec = data_of(size)
    config = convert.to_config(compose([f"model={name}"]).values, Registry())
    return [build.model(config.model, Registry(), spec, seed).eval() for seed in range(count)]


def together(models: list[nn.Module], chunk: int | None) -> Callable[[Tensor], Tensor]:
    """One call for all: [B, …] -> [M, B, C]."""
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def one(own_parameters: dict, own_buffers: dict, given: Tensor) -> Tensor:
        return functional_call(skeleton, (own_parameters, own_buffers), (given,))

    joined = vmap(one, in_dims=(0, 0, None), chunk_size=chunk)
    return lambda given: joined(parameters, buffers, given)


def seconds(call: Callable[[Tensor], object], given: Tensor, least: float = 0.5) -> float:
    """Of one call, after a warm-up."""
    call(given)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < least:
        call(given)
        if given.is_cuda:
            torch.cuda.synchronize()
        count += 1
    return (time.perf_counter() - started) / count


def measure(name: str, size: int, count: int, batch: int, rounds: int, device: str) -> None:
    """Print one line a way."""
    models = [model.to(device) for model in members(name, size, count)]
    given = torch.randn(batch, 1, size, size, device=device)
    ways: dict[str, Callable[[Tensor], object]] = {"one after the other": lambda x: [model(x) for model in models]}
    ways |= {"vmap": together(models, None), "vmap, chunks of two": together(models, 2)}
    with torch.no_grad():
        apart = torch.stack([model(given) for model in models])
        difference = float((apart - together(models, None)(given)).abs().max())
    ways = {way: torch.no_grad()(call) for way, call in ways.items()}
    rates = in_turn({way: lambda call=call: batch * count / seconds(call, given) for way, call in ways.items()}, rounds)
    print(f"{count} x {name}, {size} x {size}, batch {batch}, {device}: largest difference {difference:.1e}")
    for way in ways:
        if way != "one after the other":
            print(f"  {way:<22} {ratio(rates[way], rates['one after the other']):.2f} of one after the other")


def training(name: str, size: int, count: int, batch: int, rounds: int, device: str) -> None:
    """Print how training steps of all members together compare with theirs one after the other."""
    spec, alone = data_of(size), [model.to(device) for model in members(name, size, count)]
    task, copies = classification.build(spec), Copies(alone, "classes")
    given = {
        "id": torch.arange(batch, device=device),
        "image": torch.randn(batch, 1, size, size, device=device),
        "label": torch.randint(10, (batch,), device=device),
    }

    def stepper(model: nn.Module, task: object) -> Callable[[Tensor], object]:
        optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3, fused=True)

        def step(_: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = task.loss(model, given)  # type: ignore[attr-defined]
            (loss.sum / loss.count).backward()
            optimizer.step()

        return step

    steppers = [stepper(model, task) for model in alone]
    ways = {"apart": lambda x: [step(x) for step in steppers], "together": stepper(copies, EachCopy(task, count))}
    rates = in_turn({way: lambda call=call: 1 / seconds(call, given["image"]) for way, call in ways.items()}, rounds)
    print(f"training {count} x {name}, {size} x {size}, batch {batch}, {device}: together"
          f" {ratio(rates['together'], rates['apart']):.2f} of one after the other")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    for name, size in (("cnn", 28), ("cnn", 8), ("mlp", 28), ("mlp", 8)):
        measure(name, size, given.members, given.batch, given.rounds, given.device)
        training(name, size, given.members, given.batch // 4, given.rounds, given.device)


if __name__ == "__main__":
    main()

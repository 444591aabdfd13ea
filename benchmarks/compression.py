"""Compression against the float model, one row a part: size, drop on test, throughput on this machine.

python benchmarks/compression.py --runs RUNS [--parts fashion_static,…]      each part trains its run if RUNS has none

Each part trains (or finds) its source by name, compresses it, and prints the numbers with what is asked of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DATA = os.environ.get("DLRUN_TEST_DATA", "data")


def dlrun(*words: str) -> dict[str, Any]:
    """The JSON object of a command. Progress goes to stderr."""
    done = subprocess.run([sys.executable, "-m", "dlrun", *words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"dlrun {' '.join(words)}: exit code {done.returncode}")
    return json.loads(done.stdout)


class Bench:
    """runs: the folder.   sources: runs that were trained, by name."""

    def __init__(self, runs: Path) -> None:
        self.flags = ["--runs", str(runs)]

    def source(self, name: str, *overrides: str) -> str:
        """The id of the finished train run of this name, trained if there is none."""
        known = dlrun("runs", "--limit", "0", *self.flags)["runs"]
        found = [run for run in known if run.get("name") == name and run["status"] == "FINISHED"]
        return found[0]["run_id"] if found else dlrun("train", *overrides, f"name={name}", *self.flags)["run_id"]

    def compress(self, run: str, *words: str) -> dict[str, Any]:
        """The result of a compression."""
        return dlrun("compress", run, *words, *self.flags)


def row(part: str, said: dict[str, Any], checks: Sequence[tuple[str, float, float]]) -> bool:
    """Print one part. checks: (what, found, at least)."""
    goal = said["goal"]
    good = all(found >= least for _, found, least in checks)
    numbers = "  ".join(f"{what} {found:.4g} (at least {least:g})" for what, found, least in checks)
    print(f"{part:<22} {goal['name']} {goal['value']:.4f}  {numbers}  {'ok' if good else 'MISSED'}", flush=True)
    return good


def lost(said: dict[str, Any]) -> float:
    """By how much the goal on test is worse."""
    name = f"{said['goal']['split']}/{said['goal']['name']}"
    before, after = said["before"]["metrics"][name], said["after"]["metrics"][name]
    return after - before if said["goal"]["name"] in ("loss", "perplexity") else before - after


def fashion(bench: Bench) -> str:
    """A resnet-20 of 0.27 M parameters on Fashion-MNIST."""
    return bench.source(
        "compress-fashion", "data=files", f"data.path={DATA}/fashion_mnist", "model=resnet20",
        "train.duration=5 epochs", "optimizer=sgd", "optimizer.lr=0.1", "schedule=one_cycle", "data.augment={flip: {}}",
        "hardware.channels_last=true",
    )  # fmt: skip


def same_runtime(bench: Bench, run: str, said: dict[str, Any]) -> float:
    """Throughput of the int8 graph over that of the float graph on ONNX Runtime, full batches."""
    program = """
import json, sys, time, torch
from pathlib import Path
from dlrun import predictor
from dlrun.compression import _onnx_graph
from dlrun.contracts import DataSpec
runs, float_run, small_run = sys.argv[1:]
plain, small = (predictor.load(Path(runs) / each / "artifacts", "cpu") for each in (float_run, small_run))
split = plain.dataset.split("test")
batch = plain.inputs.prepare(split.gather(torch.arange(128)))
class Tools:
    spec = plain.spec
    def batches(self, name, limit=None): return iter([batch])
graph = _onnx_graph.as_module(_onnx_graph.plain(plain.model, Tools()))
given = [batch[name] for name in plain.spec.inputs]
def seconds(model):
    times = []
    for _ in range(25):
        start = time.perf_counter(); model(*given); times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
with torch.no_grad():
    pairs = [(seconds(graph), seconds(small.model)) for _ in range(3)]
print(json.dumps(sorted(a / b for a, b in pairs)[1]))
"""
    words = [sys.executable, "-c", program, bench.flags[1], run, said["run_id"]]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def fashion_static(bench: Bench) -> bool:
    run = fashion(bench)
    said = bench.compress(run, "compression=quantize_static")
    return row("fashion_static", said, [("smaller", said["ratios"]["bytes"], 3.5), ("gain", -lost(said), -0.005),
                                        ("faster than fp32", same_runtime(bench, run, said), 1.5)])  # fmt: skip


def fashion_pruned(bench: Bench) -> bool:
    said = bench.compress(fashion(bench), "compression=prune_channels", "compression.prune_channels.macs=0.5",
                          "compression.prune_channels.finetune=5 epochs")  # fmt: skip
    return row("fashion_pruned", said, [("MACs", said["ratios"]["macs"], 1.9), ("gain", -lost(said), -0.01),
                                        ("faster", said["ratios"]["samples_per_second"], 1.4)])  # fmt: skip


def fashion_stack(bench: Bench) -> bool:
    said = bench.compress(
        fashion(bench), "compression=[prune_channels,distill,quantize_static]", "compression.prune_channels.macs=0.35",
        "compression.distill.duration=8 epochs", "compression.distill.lr_scale=0.3",
    )  # fmt: skip
    return row("fashion_stack", said, [("smaller", said["ratios"]["bytes"], 10), ("gain", -lost(said), -0.015)])


def sst2_bilstm(bench: Bench) -> bool:
    run = bench.source("compress-bilstm", "experiment=sst2_bilstm")
    said = bench.compress(run, "compression=quantize_dynamic")
    return row("sst2_bilstm", said, [("smaller", said["ratios"]["bytes"], 3), ("gain", -lost(said), -0.005)])


def sst2_minilm(bench: Bench) -> bool:
    run = bench.source("compress-minilm", "experiment=sst2_minilm")
    said = bench.compress(run, "compression=quantize_dynamic", "compression.quantize_dynamic.backend=onnxruntime")
    return row("sst2_minilm", said, [("smaller", said["ratios"]["bytes"], 3), ("gain", -lost(said), -0.01),
                                     ("faster", said["ratios"]["samples_per_second"], 1.5)])  # fmt: skip


def gpt_dynamic(bench: Bench) -> bool:
    run = bench.source("compress-gpt", "experiment=shakespeare_gpt")
    said = bench.compress(run, "compression=quantize_dynamic")
    return row("gpt_dynamic", said, [("gain", -lost(said), -0.03), ("smaller", said["ratios"]["bytes"], 3)])


def gpt_distilled(bench: Bench) -> bool:
    run = bench.source("compress-gpt", "experiment=shakespeare_gpt")
    alone = dlrun("train", "experiment=shakespeare_gpt", "model.width=64", *bench.flags)
    said = bench.compress(run, "compression=distill", "model@compression.distill.student=gpt",
                          "compression.distill.student.width=64", "compression.distill.duration=10 epochs",
                          "compression.distill.temperature=1", "compression.distill.weight=0.5")  # fmt: skip
    return row("gpt_distilled", said, [("better than alone", alone["goal"]["value"] - said["goal"]["value"], 0.0)])


def ensemble(bench: Bench) -> bool:
    words = ("data=files", f"data.path={DATA}/fashion_mnist", "model=cnn", "train.duration=5 epochs")
    members = [bench.source(f"compress-member-{seed}", *words, f"seed={seed}") for seed in range(5)]
    made = dlrun("ensemble", *members, *bench.flags)
    said = bench.compress(made["run_id"], "compression=distill", "model@compression.distill.student=cnn",
                          "compression.distill.duration=10 epochs")  # fmt: skip
    each = [dlrun("evaluate", member, *bench.flags)["goal"]["value"] for member in members]
    mean = sum(each) / len(each)
    kept = (said["goal"]["value"] - mean) / max(1e-9, made["goal"]["value"] - mean)
    return row("ensemble", said, [("share of the gain", kept, 0.5)])


def cifar_search(bench: Bench) -> bool:
    run = bench.source("compress-resnet20", "experiment=cifar10_resnet20")
    said = bench.compress(run, "compression=prune_channels", "compression.prune_channels.finetune=2 epochs",
                          "--max-drop", "0.01")  # fmt: skip
    return row("cifar_search", said, [("gain", -lost(said), -0.02), ("MACs", said["ratios"]["macs"] or 0, 1.0)])


PARTS: dict[str, Callable[[Bench], bool]] = {
    part.__name__: part
    for part in (fashion_static, fashion_pruned, fashion_stack, sst2_bilstm, sst2_minilm, gpt_dynamic, gpt_distilled,
                 ensemble, cifar_search)
}  # fmt: skip


def main() -> None:
    """Run the parts; the exit code says whether all that was asked for was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    bench = Bench(arguments.runs.absolute())
    results = [PARTS[part](bench) for part in arguments.parts.split(",")]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

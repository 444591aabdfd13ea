"""Compression against the float model, one row a part: size, drop on test, throughput on this machine.

python benchmarks/compression.py --runs RUNS [--parts fashion_static,…]      each part trains its run if RUNS has none

Each part trains (or finds) its source by name, compresses it, and prints the numbers with what is asked of them. Five
runs distilled into one student are a recipe: recipes/fashion_ensemble.
`--quick` goes through the parts with a few rows and steps, to see that they run: its numbers say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DATA = "DLRUN_TEST_DATA"
_FEW_STEPS = "4 steps"
_FEW_ROWS = {"train": 2000, "other": 200}  # of a table
_FEW_CHARACTERS = 20_000


def dlrun(*words: str) -> dict[str, Any]:
    """The JSON object of a command. Progress goes to stderr."""
    done = subprocess.run([sys.executable, "-m", "dlrun", *words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"dlrun {' '.join(words)}: exit code {done.returncode}")
    return json.loads(done.stdout)


class Bench:
    """runs: the folder.   data: the folder of the data sets.   quick: every training ends after a few steps."""

    def __init__(self, runs: Path, data: Path, quick: bool) -> None:
        self.flags, self.data, self.quick = ["--runs", str(runs)], data, quick

    def source(self, name: str, *overrides: str) -> str:
        """The id of the finished train run of this name, trained if there is none."""
        known = dlrun("runs", "--limit", "0", *self.flags)["runs"]
        found = [run for run in known if run.get("name") == name and run["status"] == "FINISHED"]
        few = [f"train.duration={_FEW_STEPS}"] if self.quick else []
        return found[0]["run_id"] if found else dlrun("train", *overrides, *few, f"name={name}", *self.flags)["run_id"]

    def compress(self, run: str, *words: str) -> dict[str, Any]:
        """The result of a compression."""
        if self.quick:
            words = tuple(re.sub(r"(\.(duration|finetune)=).*", rf"\g<1>{_FEW_STEPS}", word) for word in words)
        return dlrun("compress", run, *words, *self.flags)

    def value(self, run: str, split: str) -> float:
        """The goal of a run on a split."""
        return dlrun("evaluate", run, "--split", split, *self.flags)["goal"]["value"]


def row(bench: Bench, part: str, said: dict[str, Any], checks: Sequence[tuple[str, float, float]]) -> bool:
    """Print one part. checks: (what, found, at least). Returns whether all are met; of --quick that it ran."""
    goal = said["goal"]
    good = all(found >= least for _, found, least in checks)
    numbers = "  ".join(f"{what} {found:.4g} (at least {least:g})" for what, found, least in checks)
    verdict = "ran" if bench.quick else "ok" if good else "MISSED"
    print(f"{part:<22} {goal['name']} {goal['value']:.4f}  {numbers}  {verdict}", flush=True)
    return good or bench.quick


def lost(said: dict[str, Any]) -> float:
    """By how much the goal on test is worse."""
    name = f"{said['goal']['split']}/{said['goal']['name']}"
    before, after = said["before"]["metrics"][name], said["after"]["metrics"][name]
    return after - before if said["goal"]["name"] in ("loss", "perplexity") else before - after


def fashion(bench: Bench) -> str:
    """A resnet-20 of 0.27 M parameters on Fashion-MNIST."""
    return bench.source(
        "compress-fashion", "data=files", f"data.path={bench.data}/fashion_mnist", "model=resnet20",
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
    return row(bench, "fashion_static", said, [("smaller", said["ratios"]["bytes"], 3.5), ("gain", -lost(said), -0.005),
                                        ("faster than fp32", same_runtime(bench, run, said), 1.5)])  # fmt: skip


def fashion_pruned(bench: Bench) -> bool:
    said = bench.compress(fashion(bench), "compression=prune_channels", "compression.prune_channels.macs=0.5",
                          "compression.prune_channels.finetune=5 epochs")  # fmt: skip
    return row(bench, "fashion_pruned", said, [("MACs", said["ratios"]["macs"], 1.9), ("gain", -lost(said), -0.01),
                                        ("faster", said["ratios"]["samples_per_second"], 1.4)])  # fmt: skip


def fashion_stack(bench: Bench) -> bool:
    said = bench.compress(
        fashion(bench), "compression=[prune_channels,distill,quantize_static]", "compression.prune_channels.macs=0.2",
        "compression.distill.duration=8 epochs", "compression.distill.lr_scale=0.3",
    )  # fmt: skip
    return row(bench, "fashion_stack", said, [("smaller", said["ratios"]["bytes"], 10), ("gain", -lost(said), -0.015)])


def sst2_bilstm(bench: Bench) -> bool:
    run = bench.source("compress-bilstm", "experiment=sst2_bilstm")
    said = bench.compress(run, "compression=quantize_dynamic")
    return row(bench, "sst2_bilstm", said, [("smaller", said["ratios"]["bytes"], 3), ("gain", -lost(said), -0.005)])


def sst2_minilm(bench: Bench) -> bool:
    run = bench.source("compress-minilm", "experiment=sst2_minilm")
    said = bench.compress(run, "compression=quantize_dynamic", "compression.quantize_dynamic.backend=onnxruntime")
    return row(bench, "sst2_minilm", said, [("smaller", said["ratios"]["bytes"], 3), ("gain", -lost(said), -0.01),
                                     ("faster than fp32", same_runtime(bench, run, said), 1.5)])  # fmt: skip


GPT = ("experiment=shakespeare_gpt", "schedule.warmup=5 %")


def gpt_dynamic(bench: Bench) -> bool:
    run = bench.source("compress-gpt", *GPT)
    said = bench.compress(run, "compression=quantize_dynamic")
    return row(bench, "gpt_dynamic", said, [("gain", -lost(said), -0.03), ("smaller", said["ratios"]["bytes"], 3)])


def gpt_distilled(bench: Bench) -> bool:
    run = bench.source("compress-gpt", *GPT)
    alone = bench.source("compress-gpt-alone", *GPT, "model.width=64")
    said = bench.compress(run, "compression=distill", "model@compression.distill.student=gpt_llama",
                          "compression.distill.student.width=64", "compression.distill.duration=2000 steps",
                          "compression.distill.temperature=1", "compression.distill.weight=0.5")  # fmt: skip
    gained = bench.value(alone, said["goal"]["split"]) - said["goal"]["value"]
    return row(bench, "gpt_distilled", said, [("better than alone", gained, 0.0)])


def cifar_search(bench: Bench) -> bool:
    """The promise is of validation; on test it is kept if the interval of what is left reaches it."""
    held_out = ["data.valid_size=200"] if bench.quick else []
    # fp32: bf16 is many times slower on a processor without instructions for it
    run = bench.source("compress-resnet20", "experiment=cifar10_resnet20", "train.duration=8 epochs",
                       "train.precision=fp32", *held_out)  # fmt: skip
    allowed = "1" if bench.quick else "0.01"
    said = bench.compress(run, "compression=prune_channels", "compression.prune_channels.finetune=2 epochs",
                          "--max-drop", allowed)  # fmt: skip
    before = said["goal"]["value"] + lost(said)
    reaches = said["after"]["goal_interval"][1] - before
    return row(bench, "cifar_search", said, [("gain, upper end", reaches, -float(allowed)),
                                             ("MACs", said["ratios"]["macs"] or 0, 1.0)])  # fmt: skip


PARTS: dict[str, Callable[[Bench], bool]] = {
    part.__name__: part
    for part in (fashion_static, fashion_pruned, fashion_stack, sst2_bilstm, sst2_minilm, gpt_dynamic, gpt_distilled,
                 cifar_search)
}  # fmt: skip


def few_rows(data: Path, folder: Path) -> None:
    """Write the first rows of the data sets that the parts read."""
    import pyarrow.parquet as parquet

    for name in ("fashion_mnist", "sst2", "cifar10_jpeg"):
        (folder / name).mkdir()
        for path in sorted((data / name).glob("*.parquet")):
            kept = _FEW_ROWS["train" if path.name.startswith("train") else "other"]
            parquet.write_table(parquet.read_table(path).slice(0, kept), folder / name / path.name)
    (folder / "tiny_shakespeare").mkdir()
    text = (data / "tiny_shakespeare" / "input.txt").read_text()
    (folder / "tiny_shakespeare" / "input.txt").write_text(text[:_FEW_CHARACTERS])


def main() -> None:
    """Run the parts; the exit code says whether all that was asked for was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="see that the parts run, on a few rows")
    arguments = parser.parse_args()
    data = Path(os.environ.get(DATA, "data"))
    small = Path(tempfile.mkdtemp()) if arguments.quick else None
    try:
        if small is not None:
            few_rows(data, small)
            os.environ[DATA] = str(small)
        runs = small / "runs" if small is not None else arguments.runs.absolute()  # never beside runs that count
        bench = Bench(runs, small or data, arguments.quick)
        results = [PARTS[part](bench) for part in arguments.parts.split(",")]
    finally:
        if small is not None:
            shutil.rmtree(small)
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

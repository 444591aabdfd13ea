"""The methods that prune and factorise, through the command: what is proven of a run is what it then says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrun import predictor

PICTURES = ("model=cnn", "model.channels=[8,16]", "model.convolutions=1", "train.duration=1 epoch")
TEXTS = (
    "task=classification", "data=number_words", "data.kind=classification", "data.size=200",
    "model=transformer_classifier", "model.width=16", "model.depth=3", "train.duration=1 epoch",
)  # fmt: skip
CASES = {
    "prune_magnitude": (PICTURES, ["prune_magnitude.finetune=4 steps"]),
    "prune_movement": (PICTURES, ["prune_movement.finetune=4 steps"]),
    "prune_channels": (PICTURES, ["prune_channels.finetune=2 steps", "prune_channels.macs=0.6"]),
    "low_rank": (PICTURES, ["low_rank.finetune=2 steps", "low_rank.rank=0.3"]),
    "cluster": (PICTURES, ["cluster.finetune=2 steps"]),
    "drop_layers": (TEXTS, ["drop_layers.finetune=2 steps", "drop_layers.share=0.34"]),
    "drop_heads": (TEXTS, ["drop_heads.finetune=2 steps"]),
    "[prune_magnitude,cluster]": (PICTURES, ["prune_magnitude.finetune=null"]),
}
cases = pytest.mark.parametrize("method", CASES)


@pytest.mark.slow
@cases
def test_a_compressed_run_scores_what_its_proof_says(train, dlrun, method):
    made, settings = CASES[method]
    source = train(*made)
    overrides = [f"compression.{setting}" for setting in settings]
    code, said, told = dlrun("compress", source.id, f"compression={method}", *overrides, "--json")
    assert code == 0, told
    proof = json.loads(said)
    assert proof["parents"] == [source.id]
    code, said, told = dlrun("evaluate", proof["run_id"], "--json")
    assert code == 0, told
    scored = json.loads(said)["metrics"]
    proven = {name.removeprefix("test/"): value for name, value in proof["after"]["metrics"].items()}
    assert {name.removeprefix("test/"): value for name, value in scored.items()}.items() >= proven.items()


@pytest.mark.slow
def test_patience_does_not_cut_a_pruning_short(train, dlrun, short_timing):
    run = train("model=mlp")
    words = ("compression=prune_magnitude", "compression.prune_magnitude.finetune=5 epochs",
             "compression.prune_magnitude.lr_scale=1e-9", "compression.prune_magnitude.sparsity=0.05")  # fmt: skip
    ends = []
    for patience in ("null", "1"):
        code, said, told = dlrun("compress", run.id, *words, f"train.patience={patience}", "--json")
        assert code == 0, told
        rows = (Path(json.loads(said)["run_dir"]) / "metrics.jsonl").read_text().splitlines()
        ends.append(max(json.loads(row)["step"] for row in rows))
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_a_stack_is_read_back_with_each_steps_shapes(train, dlrun, runs):
    source = train(*PICTURES)
    code, said, told = dlrun(
        "compress", source.id, "compression=[prune_channels,low_rank,cluster]", "compression.prune_channels.macs=0.7",
        "compression.prune_channels.finetune=null", "compression.low_rank.rank=0.3",
        "compression.low_rank.finetune=null", "compression.cluster.smallest=32", "--json",
    )  # fmt: skip
    assert code == 0, told
    run = predictor.load(runs / json.loads(said)["run_id"] / "artifacts")
    before = predictor.load(source.folder)
    assert run.model.stages[1][0][0].out_channels < 16
    assert "stages.1.0.1.parametrizations.weight.original0" in run.model.state_dict()
    assert sum(p.numel() for p in run.model.parameters()) < sum(p.numel() for p in before.model.parameters()) / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method", "says"),
    [("logistic", "prune_channels", "prune_channels: "), ("cnn", "drop_layers", "drop_layers: Cnn has no stack"),
     ("mlp", "drop_heads", "drop_heads: Mlp has no attention")],
)  # fmt: skip
def test_a_method_that_does_not_apply_ends_with_a_sentence_and_no_run(train, dlrun, runs, model, method, says):
    source = train(f"model={model}")
    before = {path.name for path in runs.iterdir()}
    code, _, told = dlrun("compress", source.id, f"compression={method}")
    assert code == 2
    assert says in told
    assert {path.name for path in runs.iterdir()} == before

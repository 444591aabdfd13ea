"""`dlrun compress`: a run from a run, read back as it was saved."""

import hashlib
import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from dlrun import predictor

QUIET = ("hardware.device=cpu", "tracking.system_metrics=false")

pytestmark = pytest.mark.usefixtures("short_timing")


def compressed(dlrun, folder, run, *words):
    code, out, err = dlrun("compress", run.id, *words, "--runs", str(folder), "--json")
    assert code == 0, err
    return json.loads(out)


def outputs(folder, run_id, split="test"):
    return predictor.load(folder / run_id / "artifacts", "cpu").predict_split(split).fields


def test_a_compressed_run_says_what_scripts_rely_on_and_reads_back(runs, train, dlrun):
    run = train("model=mlp")
    said = compressed(dlrun, runs, run, "compression=quantize_dynamic")
    assert {"run_id", "run_dir", "status", "goal", "metrics", "seconds", "rate", "parents"} <= said.keys()
    assert said["parents"] == [run.id] and said["status"] == "FINISHED"
    assert {"low", "high", "value"} <= said["gain"].keys() and isinstance(said["remarks"], list)
    for side in ("before", "after"):
        assert {"bytes", "parameters", "macs", "latency_seconds", "metrics"} <= said[side].keys()
    assert said["before"]["macs"] == said["after"]["macs"] > 1000
    assert said["before"]["parameters"] == said["after"]["parameters"]
    assert said["ratios"]["bytes"] > 2
    first, second = outputs(runs, said["run_id"]), outputs(runs, said["run_id"])
    assert all(torch.equal(first[name], second[name]) for name in first)
    _, out, _ = dlrun("evaluate", said["run_id"], "--runs", str(runs), "--json")
    assert json.loads(out)["metrics"]["test/accuracy"] == said["metrics"]["test/accuracy"]


@pytest.mark.slow
def test_a_static_graph_reads_back_bit_for_bit(runs, train, dlrun):
    run = train("model=cnn", "model.channels=[8,16]", "model.convolutions=1")
    said = compressed(dlrun, runs, run, "compression=quantize_static", "compression.quantize_static.examples=64")
    assert said["after"]["parameters"] == said["before"]["parameters"]
    assert abs(said["metrics"]["test/accuracy"] - said["before"]["metrics"]["test/accuracy"]) < 0.03
    first, second = outputs(runs, said["run_id"]), outputs(runs, said["run_id"])
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_run_that_is_one_graph_names_the_run_to_start_from(runs, train, dlrun):
    run = train("model=mlp")
    static = ("compression=quantize_static", "compression.quantize_static.examples=32")
    said = compressed(dlrun, runs, run, *static)
    for method in ("quantize_static", "quantize_weights", "prune_channels", "finetune"):
        code, _, err = dlrun("compress", said["run_id"], f"compression={method}", "--runs", str(runs))
        assert code == 2 and f"run {said['run_id'][:8]} is kept as one graph, which no further method can change" in err
        assert f"start from the run before it: dlrun compress {run.short_id}" in err
    words = ("compression=[quantize_static,quantize_weights]", static[1], "--runs", str(runs))
    code, _, err = dlrun("compress", run.id, *words)
    assert (
        code == 2 and "quantize_weights: quantize_static leaves one graph" in err and "quantize_static be last" in err
    )


@pytest.mark.slow
def test_a_stack_keeps_its_order_and_its_student(runs, train, dlrun):
    run = train("model=mlp")
    words = ("compression=[distill,quantize_dynamic]", "model@compression.distill.student=logistic",
             "compression.distill.duration=1 epoch")  # fmt: skip
    said = compressed(dlrun, runs, run, *words)
    folder = runs / said["run_id"] / "artifacts"
    plan = json.loads((folder / "plan.json").read_text())
    assert [step["name"] for step in plan["steps"]] == ["distill", "quantize_dynamic"]
    assert "logistic" in (folder / "config.yaml").read_text()
    assert predictor.load(folder, "cpu").config.model.name == "logistic"


@pytest.mark.slow
def test_the_strongest_setting_that_keeps_the_promise_is_found(runs, train, dlrun):
    run = train("model=mlp")
    words = ("compression=prune_magnitude", "compression.prune_magnitude.finetune=null")
    said = compressed(dlrun, runs, run, *words, "--max-drop", "0.05")
    found = said["search"]
    chosen = max(each["strength"] for each in found["tried"] if each["passes"])
    assert 0 < chosen < 1
    assert all(each["drop"] > 0.05 for each in found["tried"] if each["strength"] > chosen)
    assert said["after"]["nonzero"] < said["before"]["nonzero"]


@pytest.mark.parametrize(
    ("words", "says"),
    [(("prune_magnitude.sparsity=0.1",), "--max-drop looks for compression.prune_magnitude.sparsity by itself"),
     (("prune_magnitude.scope=n_m", "prune_magnitude.n=1"), "looks for compression.prune_magnitude.n by itself"),
     ((), "--max-drop: '' is no number")],
)  # fmt: skip
def test_what_a_search_could_not_keep_to_is_refused(runs, train, dlrun, words, says):
    run = train("model=mlp")
    given = [f"compression.{word}" for word in words]
    code, _, err = dlrun("compress", run.id, "compression=prune_magnitude", *given, "--max-drop", "5%" if words else "",
                         "--runs", str(runs))  # fmt: skip
    assert code == 2 and says in err
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 1


@pytest.mark.slow
def test_a_method_without_a_layer_to_work_on_ends_with_code_2(runs, train, dlrun):
    run = train("model=mlp")
    code, _, err = dlrun("compress", run.id, "compression=drop_heads", "--runs", str(runs))
    assert code == 2 and "drop_heads" in err


def test_a_run_made_before_a_setting_was_there_is_compressed(runs, train, dlrun):
    run = train("model=mlp")
    plain = (run.folder / "config.yaml").read_text()
    assert "  label_smoothing: 0.0\n" in plain
    (run.folder / "config.yaml").write_text(plain.replace("  label_smoothing: 0.0\n", ""))
    digest = hashlib.sha256((run.folder / "config.yaml").read_bytes()).hexdigest()
    (run.folder / "config.sha256").write_text(f"{digest}\n")
    compressed(dlrun, runs, run, "compression=quantize_weights", "train.log_every=7")


def test_what_the_weights_were_made_with_cannot_be_changed(runs, train, dlrun):
    run = train("model=mlp")
    words = ("compression=quantize_weights", "model.width=7", "--runs", str(runs))
    code, _, err = dlrun("compress", run.id, *words)
    assert code == 2 and "model.width" in err
    code, _, err = dlrun("compress", run.id, "compression=[quantize_weights,quantize_weights]", "--runs", str(runs))
    assert code == 2 and "quantize_weights is named twice" in err
    code, _, err = dlrun("compress", run.id, "--runs", str(runs))
    assert code == 2 and "compression: nothing is chosen" in err
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 1


def test_a_list_of_no_steps_and_a_wrong_setting_of_a_later_one_end_before_the_first(runs, train, dlrun):
    run = train("model=mlp")
    code, _, err = dlrun("compress", run.id, "compression=[]", "--runs", str(runs))
    assert code == 2 and "compression: the list is empty" in err
    words = ("compression=[prune_magnitude,cluster]", "compression.cluster.clusters=1", "--runs", str(runs))
    code, _, err = dlrun("compress", run.id, *words)
    assert code == 2 and "compression.cluster.clusters: expected an integer from 2 to 256, got 1" in err
    assert "prune_magnitude" not in err
    later = (("finetune=10 minutes", "write epochs or steps"), ("lr_scale=0", "expected a number above 0, got 0"))
    for setting, says in later:
        words = (
            "compression=[finetune,prune_magnitude]",
            f"compression.prune_magnitude.{setting}",
            "--runs",
            str(runs),
        )
        code, _, err = dlrun("compress", run.id, *words)
        assert code == 2 and says in err and "finetune …" not in err
    code, _, err = dlrun("compress", run.id, "compression=cluster", "compression.clusters=4", "--runs", str(runs))
    assert code == 2 and "unknown setting 'compression.clusters'" in err and "compression.cluster.clusters" in err
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 1


def test_a_missing_extra_of_a_later_step_is_named_before_the_first(runs, train, dlrun, monkeypatch):
    run = train("model=mlp")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    code, _, err = dlrun("compress", run.id, "compression=[finetune,prune_channels]", "--runs", str(runs))
    assert code == 2 and 'pip install "dlrun[compress]"' in err and "finetune …" not in err
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 1


@pytest.mark.slow
def test_an_ensemble_is_distilled_within_what_may_be_lost_and_the_front_is_on_stdout(runs, train, dlrun):
    members = [train("model=mlp", "data.split_seed=0", f"seed={seed}").id for seed in (0, 1)]
    assert dlrun("ensemble", *members, "--runs", str(runs))[0] == 0
    words = ("compression=distill", "model@compression.distill.student=logistic",
             "compression.distill.duration=1 epoch", "--max-drop", "0.9", "--runs", str(runs))  # fmt: skip
    code, out, err = dlrun("compress", "latest", *words)
    assert code == 0, err
    assert "The front:" in out and "as given" in out
    words = ("compression=prune_magnitude", "compression.prune_magnitude.finetune=null", "--max-drop", "0.05")
    code, out, err = dlrun("compress", members[0], *words, "--runs", str(runs))
    assert code == 0 and "The front:" in out and "as it was" in out and "The front:" not in err


def test_a_changed_plan_is_not_read(runs, train, dlrun):
    run = train("model=mlp")
    said = compressed(dlrun, runs, run, "compression=quantize_weights")
    plan = runs / said["run_id"] / "artifacts" / "plan.json"
    plan.write_text(plan.read_text().replace("int8", "int4"))
    code, _, err = dlrun("evaluate", said["run_id"], "--runs", str(runs))
    assert code == 4 and "is not the plan these weights were saved with" in err


@pytest.mark.slow
def test_a_fresh_process_reads_it_back_bit_for_bit_and_it_can_be_compressed_on(runs, train, dlrun, tmp_path):
    run = train("model=mlp")
    said = compressed(dlrun, runs, run, "compression=prune_magnitude", "compression.prune_magnitude.finetune=1 epoch")
    said = compressed(dlrun, runs, predictor.runs.find(runs, said["run_id"]), "compression=[finetune,quantize_dynamic]")
    program = (
        "import sys, torch; from pathlib import Path; from dlrun import predictor; "
        "from safetensors.torch import save_file; torch.set_num_threads(1); "
        "save_file(predictor.load(Path(sys.argv[1]), 'cpu').predict_split('test').fields, sys.argv[2])"
    )
    folder, file = runs / said["run_id"] / "artifacts", tmp_path / "said.safetensors"
    subprocess.run([sys.executable, "-c", program, str(folder), str(file)], check=True)
    torch.set_num_threads(1)
    here, there = outputs(runs, said["run_id"]), load_file(file)
    assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.slow
def test_a_compressed_run_is_combined_and_exported_with_a_card_of_what_was_done(runs, train, dlrun, tmp_path):
    run = train("model=mlp")
    said = compressed(dlrun, runs, run, "compression=low_rank", "compression.low_rank.energy=0.8")
    code, out, err = dlrun("ensemble", run.id, said["run_id"], "--runs", str(runs), "--json")
    assert code == 0 and json.loads(out)["parents"] == [run.id, said["run_id"]], err
    folder = tmp_path / "exported"
    words = ("--format", "onnx", "--check", "--output", str(folder), "--runs", str(runs))
    code, _, err = dlrun("export", said["run_id"], *words)
    assert code == 0, err
    card = (folder / "README.md").read_text()
    assert "made by `dlrun compress`" in card and "By `low_rank` (energy=0.8" in card
    for name, key in (("parameters", "parameters"), ("bytes of the file", "bytes")):
        assert f"| {name} | {said['before'][key]:,} | {said['after'][key]:,} | " in card
    before = said["before"]["metrics"]["test/accuracy"]
    assert f"| test/accuracy | {before:.4f} | {said['goal']['value']:.4f} | " in card
    assert "Both were timed in turns, on cpu" in card


@pytest.mark.slow
def test_a_killed_compression_is_no_finished_run(runs, train, dlrun):
    run = train("model=mlp")
    words = [
        "compress",
        run.id,
        "compression=finetune",
        "compression.finetune.duration=2000 epochs",
        "--runs",
        str(runs),
    ]
    process = subprocess.Popen([sys.executable, "-m", "dlrun", *words], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            made = [path for path in runs.glob("*/artifacts/metrics.jsonl") if path.parent.parent.name != run.id]
            if made and made[0].stat().st_size:
                break
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    found = predictor.runs.load(made[0].parent)
    assert found.status == "KILLED" and found.result is None
    code, _, err = dlrun("evaluate", found.id, "--runs", str(runs))
    assert code == 4 and "has no checkpoint" in err and "dlrun compress --resume" in err

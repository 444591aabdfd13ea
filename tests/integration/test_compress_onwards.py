"""What a compressed run can become: trained on where it keeps floats, refused where it does not; a promise not kept."""

from __future__ import annotations

import json
import re

import pytest
import torch

from dlrun import predictor
from dlrun import runs as folders

MLP = ("model=mlp", "train.duration=1 epoch")
ON = ("compression=finetune", "compression.finetune.duration=4 steps", "compression.finetune.lr_scale=1.0")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timing")]


@pytest.fixture
def compress(runs, dlrun):
    """compress(run, *words) -> the finished run."""

    def make(run: folders.Run, *words: str) -> folders.Run:
        code, out, told = dlrun("compress", run.id, *words, "--json")
        assert code == 0, told
        return folders.find(runs, json.loads(out)["run_id"])

    return make


def weights(run: folders.Run) -> dict[str, torch.Tensor]:
    return dict(predictor.load(run.folder, "cpu").model.state_dict())


def num_made(runs) -> int:
    return len([path for path in runs.iterdir() if path.is_dir()])


# ---------------------------------------------------------------- trained on


@pytest.mark.parametrize("method", ["prune_magnitude", "prune_movement"])
def test_what_was_pruned_stays_zero_while_the_rest_trains_on(train, compress, method):
    few = f"compression.{method}.finetune=2 steps"
    pruned = compress(train(*MLP), f"compression={method}", f"compression.{method}.sparsity=0.7", few)
    before, after = weights(pruned), weights(compress(pruned, *ON))
    matrices = [name for name, tensor in before.items() if tensor.dim() > 1]
    assert sum(int((before[name] == 0).sum()) for name in matrices) > 0.6 * sum(before[n].numel() for n in matrices)
    for name in matrices:
        zero = before[name] == 0
        assert bool((after[name][zero] == 0).all())
        assert not torch.equal(after[name], before[name])


def test_zeros_stay_through_the_later_steps_of_a_stack(train, compress):
    words = ("compression=[prune_magnitude,qat,finetune]", "compression.prune_magnitude.finetune=null",
             "compression.prune_magnitude.sparsity=0.6", "compression.qat.duration=2 steps",
             "compression.finetune.duration=2 steps")  # fmt: skip
    after = weights(compress(train(*MLP), *words))
    matrices = [tensor for tensor in after.values() if tensor.dim() > 1]
    assert sum(int((each == 0).sum()) for each in matrices) >= 0.6 * sum(each.numel() for each in matrices) - 1


def test_a_student_begins_without_the_zeros_of_what_was_pruned_before(train, compress):
    words = ("compression=[prune_magnitude,distill]", "compression.prune_magnitude.finetune=null",
             "model@compression.distill.student=mlp", "compression.distill.duration=2 steps")  # fmt: skip
    after = weights(compress(train(*MLP), *words))
    assert all(int((tensor == 0).sum()) == 0 for tensor in after.values() if tensor.dim() > 1)


def test_thin_layers_train_on_in_their_shape(train, compress):
    thin = compress(
        train(*MLP), "compression=low_rank", "compression.low_rank.rank=0.3", "compression.low_rank.finetune=null"
    )
    before, after = weights(thin), weights(compress(thin, *ON))
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_codebooks_train_on_and_every_weight_keeps_its_number(train, compress):
    words = ("compression=[prune_magnitude,cluster]", "compression.prune_magnitude.finetune=null")
    clustered = compress(train(*MLP), *words)
    before, after = weights(clustered), weights(compress(clustered, *ON))
    numbers = [name for name in before if name.endswith("original0")]
    values = [name for name in before if name.endswith("0.values")]
    assert numbers and all(torch.equal(before[name], after[name]) for name in numbers)
    assert any(not torch.equal(before[name], after[name]) for name in values)
    assert all(bool((after[name][before[name] == 0] == 0).all()) for name in values)
    assert any(bool((before[name] == 0).any()) for name in values)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "words",
    [["quantize_weights"], ["quantize_weights", "compression.quantize_weights.format=bf16"], ["quantize_dynamic"]],
)
def test_weights_that_are_no_floats_are_not_trained(train, compress, dlrun, runs, words):
    method, *settings = words
    small = compress(train(*MLP), f"compression={method}", *settings)
    made = num_made(runs)
    code, _, told = dlrun("compress", small.id, *ON)
    assert code == 2 and "these weights are kept in integers, in 16 bits or in a graph: they cannot be trained" in told
    code, _, told = dlrun("train", *MLP, "transfer=finetune", f"transfer.from=run:{small.id}")
    assert code == 2 and f"run {small.short_id} does not keep its weights as floats" in told
    assert f"dlrun lineage {small.short_id}" in told
    code, _, told = dlrun("train", "--resume", small.id)
    assert code == 2 and f"run {small.short_id} is a compress, and only a train run is resumed here" in told
    assert sum((path / "artifacts" / "result.json").exists() for path in runs.iterdir() if path.is_dir()) == made


def test_another_shape_is_no_start_for_a_config_and_the_way_on_is_named(train, compress, dlrun):
    source = train(*MLP)
    thin = compress(
        source, "compression=low_rank", "compression.low_rank.rank=0.3", "compression.low_rank.finetune=null"
    )
    shared = compress(source, "compression=cluster")
    for run in (thin, shared):
        code, _, told = dlrun("train", *MLP, "transfer=finetune", f"transfer.from=run:{run.id}")
        assert code == 2 and f"run {run.short_id} was compressed into another shape" in told
        assert f"dlrun compress {run.short_id} compression=finetune" in told


def test_weights_of_a_pruned_run_start_another_training(train, compress, dlrun):
    words = ("compression=prune_magnitude", "compression.prune_magnitude.finetune=null")
    pruned = compress(train(*MLP), *words)
    words = ("transfer=finetune", f"transfer.from=run:{pruned.id}", "hardware.device=cpu", "--json")
    code, out, told = dlrun("train", *MLP, *words)
    assert code == 0, told
    assert json.loads(out)["parents"] == [pruned.id]


# ---------------------------------------------------------------- a promise that nothing keeps


def test_a_promise_that_nothing_keeps_ends_with_code_7_and_the_nearest_miss(train, dlrun, runs):
    """A student that is taught for a step at a millionth of the rate says what it says at random."""
    source = train("model=mlp", "train.duration=4 epochs")
    student = ("model@compression.distill.student=logistic", "compression.distill.duration=1 step",
               "compression.distill.lr_scale=1e-6", "--max-drop", "0.05")  # fmt: skip
    code, out, told = dlrun("compress", source.id, "compression=distill", *student)
    assert code == 7, told
    assert "at most 0.05 may be lost. The front:" in out and "as it was" in out
    found = re.search(r"no setting loses at most 0\.05 of valid/accuracy; the nearest loses (0\.\d+)", told)
    assert found is not None and float(found[1]) > 0.3
    code, _, told = dlrun("compress", source.id, "compression=[prune_magnitude,distill]",
                          "compression.prune_magnitude.finetune=null", *student)  # fmt: skip
    assert code == 7, told
    assert re.search(r"the nearest loses 0\.\d+ \(sparsity=0\.\d+\)", told)
    assert told.count("loses too much") == 7
    code, out, _ = dlrun("compress", source.id, "compression=distill", *student, "--json")
    found = json.loads(out)
    assert code == 7 and found["status"] == "FAILED" and found["search"]["chosen"] is None
    assert found["search"]["nearest"] == found["search"]["tried"][0] and len(found["search"]["front"]) == 2
    statuses = [folders.load(path / "artifacts").status for path in runs.iterdir() if path.is_dir()]
    assert sorted(statuses) == ["FAILED", "FAILED", "FAILED", "FINISHED"]

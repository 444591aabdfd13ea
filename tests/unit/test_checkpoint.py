"""Checkpoints: what is written is what is read, and every damage is noticed and named."""

import json
import random

import pytest
import torch
from torch import nn

from dlrun.errors import DlrunError, Exit
from dlrun.training import checkpoint
from dlrun.training.checkpoint import Contents


def contents(value: float = 1.0) -> Contents:
    return Contents(
        {"weights": {"a": torch.full((64,), value), "b": torch.arange(6).reshape(2, 3)}}, {"progress": {"step": 1}}
    )


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path):
    saved = checkpoint.save(tmp_path, 7, contents())
    found, warnings = checkpoint.newest_valid(tmp_path)
    assert found == saved and not warnings
    read = checkpoint.read_tensors(found, "weights")
    assert torch.equal(read["a"], torch.ones(64)) and torch.equal(read["b"], torch.arange(6).reshape(2, 3))
    assert (tmp_path / "last").resolve() == saved.resolve()


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "MANIFEST.json"])
def test_every_flipped_bit_is_noticed_and_the_one_before_is_used(tmp_path, name):
    older, newer = checkpoint.save(tmp_path, 1, contents(1.0)), checkpoint.save(tmp_path, 2, contents(2.0))
    whole = (newer / name).read_bytes()
    draws = random.Random(0)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[draws.randrange(len(damaged))] ^= 1 << draws.randrange(8)
        (newer / name).write_bytes(damaged)
        found, warnings = checkpoint.newest_valid(tmp_path)
        if found == newer:  # only the manifest can change without meaning: in its white space
            assert name == "MANIFEST.json"
            assert json.loads(damaged)["files"] == json.loads(whole)["files"]
        else:
            assert found == older and "00000002 is damaged" in warnings[0]


def test_truncated_and_missing_files_are_named(tmp_path):
    saved = checkpoint.save(tmp_path, 3, contents())
    file = saved / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert checkpoint.damage(saved) == "weights.safetensors"
    file.unlink()
    assert checkpoint.damage(saved) == "weights.safetensors"
    with pytest.raises(DlrunError, match=r"weights\.safetensors; no valid checkpoint is left of 1") as error:
        checkpoint.newest_valid(tmp_path)
    assert error.value.code == Exit.DATA


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path):
    assert checkpoint.newest_valid(tmp_path / "none") == (None, [])


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, contents())
        if step == 2:
            checkpoint.point(tmp_path, "best", step)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("0*")) == ["00000002", "00000004", "00000005"]


def test_a_full_disk_leaves_the_older_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, contents())
    monkeypatch.setattr(checkpoint, "free_disk_bytes", lambda folder: 10)
    with pytest.raises(DlrunError, match="a checkpoint needs") as error:
        checkpoint.save(tmp_path, 2, contents())
    assert error.value.code == Exit.DISK
    assert [path.name for path in tmp_path.glob(".tmp*")] == []
    assert checkpoint.newest_valid(tmp_path)[0] == tmp_path / "00000001"


@pytest.mark.parametrize("call", ["save_file", "write_json", "_sync_file", "sync_folder"])
def test_an_error_at_any_call_of_a_save_leaves_the_older_checkpoint(tmp_path, monkeypatch, call):
    checkpoint.save(tmp_path, 1, contents())

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, call, fail)
    with pytest.raises(DlrunError, match="No space left"):
        checkpoint.save(tmp_path, 2, contents())
    assert checkpoint.newest_valid(tmp_path)[0] == tmp_path / "00000001"


def test_tied_weights_are_kept_once_and_come_back_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

    model = Tied()
    tensors = checkpoint.model_tensors(model)
    assert list(tensors) == ["embed.weight"]
    other = Tied()
    checkpoint.load_model(other, {name: tensor.clone() for name, tensor in tensors.items()}, "here")
    assert torch.equal(other.out.weight, model.embed.weight) and other.out.weight is other.embed.weight


def test_loading_names_what_does_not_fit():
    model = nn.Linear(3, 2)
    with pytest.raises(DlrunError, match="here: misses bias"):
        checkpoint.load_model(model, {"weight": torch.zeros(2, 3)}, "here")
    with pytest.raises(DlrunError, match="has another shape for weight"):
        checkpoint.load_model(model, {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, "here")


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.99)),
    lambda p: torch.optim.NAdam(p, lr=0.01),
    lambda p: torch.optim.Adafactor(p, lr=0.01),
])  # fmt: skip
def test_an_optimizer_goes_on_as_if_nothing_had_happened(make, tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(12, 8, 4)

    def trained(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            model(inputs[step]).square().mean().backward()
            optimizer.step()

    straight, broken = nn.Linear(4, 3), nn.Linear(4, 3)
    broken.load_state_dict(straight.state_dict())
    first = make(straight.named_parameters())
    trained(straight, first, range(12))
    second = make(broken.named_parameters())
    trained(broken, second, range(6))
    tensors, plain = checkpoint.optimizer_contents(second)
    saved = checkpoint.save(tmp_path, 6, Contents({"optimizer": tensors}, {"optimizer": plain}))
    third = make(broken.named_parameters())
    checkpoint.load_optimizer(
        third, checkpoint.read_tensors(saved, "optimizer"), checkpoint.read_state(saved)["optimizer"]
    )
    trained(broken, third, range(6, 12))
    assert torch.equal(straight.weight, broken.weight) and torch.equal(straight.bias, broken.bias)


def test_an_overflow_at_the_first_step_does_not_harm_the_momentum():
    from dlrun.training.precision import Precision

    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    precision = Precision.of("fp16", torch.device("cpu"))
    before = model.weight.detach().clone()
    for overflow in (True, False):
        optimizer.zero_grad()
        precision.backward(model(torch.ones(2, 4)).sum())
        if overflow:
            model.weight.grad.fill_(float("inf"))
        precision.step(optimizer)
        assert torch.isfinite(model.weight).all()
        assert torch.equal(model.weight, before) == overflow

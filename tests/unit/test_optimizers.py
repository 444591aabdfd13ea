"""Optimizers against torch's plain implementations and by hand, their state, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from dlrun.errors import DlrunError
from dlrun.optimizers import adam, adamw, sgd, torch_optim

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
BUILDS = {"sgd": sgd.build, "adam": adam.build, "adamw": adamw.build, "torch_optim": torch_optim.build}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def groups(model: nn.Module) -> list[dict]:
    """As a run makes them: named, and norms and biases without decay."""
    named = list(model.named_parameters())
    return [{"params": [item for item in named if item[1].dim() > 1]},
            {"params": [item for item in named if item[1].dim() <= 1], "weight_decay": 0.0}]  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, layout=torch.contiguous_format) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 3, 8, 8, generator=generator).contiguous(memory_format=layout)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("build", "settings", "reference"), [
    (sgd.build, {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0}, torch.optim.SGD),
    (sgd.build, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}, torch.optim.SGD),
    (sgd.build, {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}, torch.optim.SGD),
    (adam.build, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}, torch.optim.Adam),
    (adam.build, {"lr": 0.01, "betas": (0.9, 0.99), "amsgrad": True}, torch.optim.Adam),
    (adamw.build, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}, torch.optim.AdamW),
])  # fmt: skip
def test_optimizer_equals_torchs_plain_loop_over_tensors(build, settings, reference):
    model = network()
    other = copy.deepcopy(model)
    train(model, build(groups(model), **settings), range(5))
    train(other, reference(groups(other), foreach=False, fused=False, **settings), range(5))
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


def test_nesterov_step_by_hand():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = sgd.build([{"params": [weight]}], lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.01)
    weight.grad = torch.tensor([[1.0]])
    optimizer.step()
    gradient = 1.0 + 0.01 * 2.0
    assert weight.item() == pytest.approx(2.0 - 0.1 * (gradient + 0.5 * gradient))


def test_decay_spares_the_groups_that_say_so():
    model = network()
    bias = model[4].bias
    optimizer = adamw.build(groups(model), lr=0.1, weight_decay=0.5)
    before = model[0].weight.detach().clone(), bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(bias, before[1])


def test_parameters_keep_their_names():
    model = network()
    optimizer = sgd.build(groups(model))
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "4.weight"]


def test_the_fused_kernels_are_used_and_repeat_bit_for_bit():
    results = []
    for _ in range(2):
        model = network()
        optimizer = adamw.build(groups(model))
        assert all(group["fused"] for group in optimizer.param_groups)
        train(model, optimizer, range(5))
        results.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize("build", [sgd.build, adam.build, adamw.build])
def test_state_that_was_stored_contiguous_continues_a_channels_last_model_exactly(build):
    whole = network().to(memory_format=torch.channels_last)
    train(whole, build(groups(whole), lr=0.01), range(6), torch.channels_last)

    model = network().to(memory_format=torch.channels_last)
    optimizer = build(groups(model), lr=0.01)
    train(model, optimizer, range(3), torch.channels_last)
    stored = optimizer.state_dict()
    for state in stored["state"].values():
        for name, value in state.items():
            state[name] = value.contiguous() if torch.is_tensor(value) else value
    resumed = build(groups(model), lr=0.01)
    resumed.load_state_dict(stored)
    train(model, resumed, range(3, 6), torch.channels_last)
    for parameter, expected in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_choice_of_the_optimizer_group_makes_a_loss_smaller(path):
    settings = yaml.safe_load(path.read_text())
    weight = nn.Parameter(torch.tensor([[3.0, -2.0]]))
    optimizer = BUILDS[settings.pop("name")]([{"params": [("weight", weight)]}], **settings)
    for _ in range(30):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.square().sum() < 13.0


def test_algorithms_are_torchs_but_for_those_no_loop_can_drive():
    known = torch_optim.algorithms()
    assert {"SGD", "Adam", "RAdam", "NAdam", "Adagrad", "Adadelta", "Adamax", "RMSprop", "Rprop", "ASGD"} <= set(known)
    assert not {"LBFGS", "SparseAdam", "Optimizer"} & set(known)


def test_options_reach_the_class_and_lists_become_tuples():
    optimizer = torch_optim.build(
        groups(network()), algorithm="NAdam", options={"betas": [0.8, 0.9], "weight_decay": 0.1}
    )
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_muon_takes_a_model_of_matrices():
    if "Muon" not in torch_optim.algorithms():
        pytest.skip("the installed torch has no Muon")
    model = nn.Linear(4, 4, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch_optim.build([{"params": list(model.named_parameters())}], algorithm="Muon", lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize(("build", "settings", "message"), [
    (sgd.build, {"momentum": 1.5}, "optimizer.momentum: expected a number in [0, 1), got 1.5"),
    (sgd.build, {"momentum": 0.0, "nesterov": True}, "optimizer.nesterov: needs a momentum above 0"),
    (sgd.build, {"lr": -1.0}, "optimizer: SGD: Invalid learning rate: -1.0"),
    (adam.build, {"betas": [0.9]}, "optimizer.betas: expected two numbers, got [0.9]"),
    (adamw.build, {"betas": [0.9, 1.5]}, "optimizer: AdamW: Invalid beta parameter at index 1: 1.5"),
    (torch_optim.build, {"algorithm": "RAdm"}, "torch.optim has no 'RAdm'\n  hint: did you mean RAdam?"),
    (torch_optim.build, {"algorithm": "LBFGS"}, "LBFGS cannot be used: it evaluates the loss several times a step"),
    (torch_optim.build, {"algorithm": "SparseAdam"}, "SparseAdam cannot be used: it needs sparse gradients"),
    (torch_optim.build, {"algorithm": "RMSprop", "options": {"momentun": 0.9}},
     "optimizer.options: RMSprop has no 'momentun'\n  hint: did you mean momentum?"),
    (torch_optim.build, {"algorithm": "RMSprop", "options": {"lr": 0.1}},
     "the learning rate is a setting of its own\n  hint: optimizer.lr=0.1"),
    (torch_optim.build, {"algorithm": "Adamax", "options": {"eps": "small"}}, "optimizer: Adamax: "),
    (torch_optim.build, {"algorithm": "Muon"},
     "Muon takes matrices only; this model has 4 parameters of another shape (the first: 8x3x3x3)"),
])  # fmt: skip
def test_refusals_name_the_setting(build, settings, message):
    with pytest.raises(DlrunError) as caught:
        build(groups(network()), **settings)
    assert message in str(caught.value)

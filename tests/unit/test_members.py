"""Members that share a model's weights, against the models that each of them is alone."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.contracts import DataSpec, HoldsMembers
from dlrun.errors import DlrunError
from dlrun.models import cnn, mlp, resnet
from dlrun.models._members import Members, Shared

SIZES = {"classes": {"classes": 3}, "labels": {"labels": 4}, "numbers": {"targets": 2}}


def spec(kind: str = "classes") -> DataSpec:
    return DataSpec(("image",), "label", SIZES[kind], {"image": (2, 8, 8)})


def made(name: str, members: int = 3, kind: str = "classes", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    small = {
        "mlp": lambda: mlp.build(spec(kind), widths=(8, 8), members=members, **settings),
        "cnn": lambda: cnn.build(spec(kind), channels=(4, 8), head_width=5, members=members, **settings),
        "resnet": lambda: resnet.build(
            spec(kind), depth=8, width=4, shortcut="projection", members=members, **settings
        ),
    }
    return small[name]()


WITHOUT_DROPOUT: dict[str, Any] = {"mlp": {}, "cnn": {"dropout": 0.0}, "resnet": {}}


def stirred(model: nn.Module) -> nn.Module:
    """With vectors that are no signs, biases that are not zero, and norms that have seen something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("s_MI", "r_MO", "bias")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.train()
    model(torch.randn(12, 2, 8, 8, generator=generator))
    return model


PICTURES = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_what_is_said_is_the_mean_of_what_the_written_out_members_say(name):
    model = stirred(made(name)).eval()
    assert isinstance(model, Members) and isinstance(model, HoldsMembers)
    alone = [model.member(index).eval() for index in range(3)]
    plain = made(name, members=1)
    for member in alone:
        assert not any(isinstance(module, Shared) for module in member.modules())
        assert [*member.state_dict()] == [*plain.state_dict()]  # as a model of its own
    each = torch.stack([member(PICTURES).softmax(1) for member in alone])
    assert (each[0] - each[1]).abs().max() > 1e-3
    torch.testing.assert_close(model(PICTURES).exp(), each.mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_labels_have_the_mean_probability_and_numbers_the_mean(kind):
    model = stirred(made("mlp", kind=kind)).eval()
    assert isinstance(model, Members)
    each = torch.stack([model.member(index)(PICTURES) for index in range(3)])
    if kind == "labels":
        torch.testing.assert_close(model(PICTURES).sigmoid(), each.sigmoid().mean(0))
    else:
        torch.testing.assert_close(model(PICTURES), each.mean(0))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_while_it_trains_a_row_is_one_members_and_moves_no_others_vectors(name):
    model = stirred(made(name, norm="none", **WITHOUT_DROPOUT[name]))
    assert isinstance(model, Members)
    said = model.train()(PICTURES)
    for row in range(5):
        alone = model.member(row % 3).train()(PICTURES[row : row + 1])
        torch.testing.assert_close(said[row : row + 1], alone, atol=1e-5, rtol=1e-4)
    model.zero_grad()
    model(PICTURES)[1].sum().backward()
    for module in model.modules():
        if isinstance(module, Shared):
            for vectors in (module.s_MI, module.r_MO):
                assert vectors.grad is not None
                assert not vectors.grad[[0, 2]].any()
            assert module.layer.weight.grad is not None


def test_layers_of_groups_are_written_out_group_by_group():
    torch.manual_seed(0)
    layer = Shared(nn.Conv2d(4, 6, 3, groups=2), 2)
    with torch.no_grad():
        layer.s_MI.normal_()
        layer.r_MO.normal_()
    x = torch.randn(2, 4, 5, 5)
    said = layer(x)
    for index in range(2):
        torch.testing.assert_close(said[index : index + 1], layer.member(index)(x[index : index + 1]))


def test_one_member_is_the_plain_model_and_fewer_are_refused():
    plain = made("mlp", members=1)
    assert isinstance(plain, mlp.Mlp)
    with pytest.raises(DlrunError, match=r"model\.members: expected an integer of at least 1, got 0"):
        made("mlp", members=0)


def test_members_begin_apart_by_signs_and_cost_two_vectors_a_layer():
    model, plain = made("mlp"), made("mlp", members=1)
    first = next(module for module in model.modules() if isinstance(module, Shared))
    assert first.s_MI.abs().eq(1).all() and not torch.equal(first.s_MI[0], first.s_MI[1])
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 3 * sum(sum(p.shape) for p in plain.parameters() if p.dim() == 2)


def test_the_weights_are_stored_and_read_as_any_models():
    model, other = stirred(made("cnn")).eval(), copy.deepcopy(made("cnn"))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(PICTURES), other.eval()(PICTURES))


@pytest.mark.slow
def test_the_graph_of_a_batch_ensemble_takes_any_number_of_rows():
    model = stirred(made("cnn")).eval()
    rows = torch.export.Dim("rows", min=1)
    graph = torch.export.export(model, (PICTURES,), dynamic_shapes={"x": {0: rows}}).module()
    for count in (1, 2, 5):
        torch.testing.assert_close(graph(PICTURES[:count]), model(PICTURES[:count]))

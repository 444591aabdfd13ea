"""Low rank: equality at full rank, the best approximation below it, only where it saves, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tests.unit.fake_compression import IMAGES, TEXTS, Tools, images_net, read_back, said, texts_net, windows_net
from torch import nn

from dlrun.compression import low_rank
from dlrun.errors import DlrunError

LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 6)),
    "linear without a bias": (nn.Linear(6, 4, bias=False), (3, 6)),
    "1x1": (nn.Conv2d(6, 4, 1), (2, 6, 5, 5)),
    "3x3": (nn.Conv2d(6, 4, 3, stride=2, padding=1, dilation=2), (2, 6, 9, 9)),
    "in one dimension": (nn.Conv1d(6, 4, 5), (2, 6, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_two_layers_equal_the_one(name):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pair = low_rank.filled(layer, low_rank.decomposed(low_rank.matrix(layer)), rank=4)
    torch.testing.assert_close(pair(x), layer(x), rtol=1e-5, atol=1e-5)


def test_the_error_of_a_rank_is_the_singular_values_left_out():
    layer = nn.Linear(8, 6)
    factors = low_rank.decomposed(low_rank.matrix(layer))
    pair = low_rank.filled(layer, factors, rank=2)
    error = torch.linalg.norm(layer.weight - pair[1].weight @ pair[0].weight)
    assert float(error.detach()) == pytest.approx(float(factors.sizes_R[2:].square().sum().sqrt()), rel=1e-5)


def test_the_energy_kept_decides_the_rank():
    sizes = torch.tensor([3.0, 2.0, 1.0, 0.0])  # squared: 9, 4, 1, 0 of 14
    ranks = [low_rank.build(IMAGES, energy=energy)._rank_of(sizes) for energy in (0.5, 9 / 14, 0.7, 13 / 14, 1.0)]
    assert ranks == [1, 1, 2, 2, 3]


def test_all_of_the_energy_is_the_identity():
    model = images_net()
    before = said(model, IMAGES)
    smaller, plan = low_rank.build(IMAGES, energy=1.0).compress(model, Tools(IMAGES))
    assert plan["ranks"] == {}
    assert torch.equal(said(smaller, IMAGES), before)


def test_only_layers_that_get_smaller_are_replaced():
    model, tools = images_net("resnet"), Tools(IMAGES)
    smaller, plan = low_rank.build(IMAGES, rank=0.6, finetune="1 epoch").compress(model, tools)
    report = plan["report"]
    assert tools.trained == 1
    assert report["parameters"][1] < report["parameters"][0]
    assert report["parameters"][1] == sum(p.numel() for p in smaller.parameters())
    assert "stages.2.0.conv1" in plan["ranks"] and "stem.0" in report["left"]  # 5 (8 + 9) > 8 x 9


@pytest.mark.parametrize(
    ("make", "spec"),
    [(lambda: images_net("resnet"), IMAGES), (texts_net, TEXTS), (lambda: texts_net("transformers"), TEXTS)],
    ids=["resnet", "transformer_classifier", "bert"],
)  # fmt: skip
def test_a_factorised_model_is_read_back_bit_for_bit(make, spec):
    method = low_rank.build(spec, rank=0.3, finetune="1 epoch")
    smaller, plan = method.compress(make(), Tools(spec))
    assert plan["ranks"]
    assert torch.equal(said(read_back(method, smaller, plan, make()), spec), said(smaller, spec))


def test_gpt2s_transposed_layers_are_factorised_too():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(6, 4)  # outputs, inputs
    x = torch.randn(3, 4)
    pair = low_rank.filled(layer, low_rank.decomposed(low_rank.matrix(layer)), rank=4)
    torch.testing.assert_close(pair(x), layer(x), rtol=1e-5, atol=1e-6)


def test_a_head_keeps_its_rank():
    _, plan = low_rank.build(IMAGES, rank=0.3, finetune=None).compress(images_net(), Tools(IMAGES))
    assert "head" not in plan["ranks"] and "stages.1.0" in plan["ranks"]


def test_a_head_tied_to_an_embedding_is_left_alone():
    from tests.unit.fake_compression import WINDOWS

    smaller, plan = low_rank.build(WINDOWS, rank=0.3, finetune=None).compress(windows_net(), Tools(WINDOWS))
    assert "head" not in plan["ranks"] and "blocks.0.attention.qkv" in plan["ranks"]
    assert smaller.head.weight is smaller.tokens.weight


class Reads(nn.Module):
    """A model that uses a layer's weight itself, and perhaps calls the layer too."""

    def __init__(self, calls: bool) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 3)
        self.calls = calls

    def forward(self, x):
        x = nn.functional.linear(x.flatten(1), self.layer.weight)
        return self.head(self.layer(x) if self.calls else x)


def test_a_layer_whose_weight_is_read_and_that_is_never_called_stays():
    _, plan = low_rank.build(IMAGES, rank=0.2).compress(Reads(calls=False), Tools(IMAGES))
    assert plan["ranks"] == {}


def test_a_model_that_reads_past_a_layer_it_calls_is_refused():
    with pytest.raises(DlrunError, match="low_rank: Reads reads past a layer that was factorised"):
        low_rank.build(IMAGES, rank=0.2).compress(Reads(calls=True), Tools(IMAGES))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(DlrunError) as error:
        low_rank.build(TEXTS).compress(nn.LSTM(4, 4), Tools(TEXTS))
    assert error.value.message == "low_rank: LSTM has no linear or convolution layer to factorise"


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"energy": 0.0}, "compression.low_rank.energy: expected a number in (0, 1], got 0.0"),
     ({"rank": 1.5}, "compression.low_rank.rank: expected a number in (0, 1], or null, got 1.5")],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings, says):
    with pytest.raises(DlrunError) as error:
        low_rank.build(IMAGES, **settings)
    assert error.value.message == says

"""Channel pruning: what may be taken out without a change, targets that are met, and plans that rebuild the model."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from tests.unit.fake_compression import (
    IMAGES,
    PAIRS,
    TEXTS,
    WINDOWS,
    Tools,
    images_net,
    pairs_net,
    read_back,
    rows,
    said,
    texts_net,
    windows_net,
)  # fmt: skip
from torch import nn

from dlrun.compression import cluster, prune_channels, quantize_weights
from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import unet

with warnings.catch_warnings(action="ignore"):
    pytest.importorskip("torch_pruning", reason="the extra 'compress' is not installed")

MODELS = {
    "cnn": (images_net, IMAGES),
    "cnn with layer norm": (lambda: images_net(norm="layer"), IMAGES),
    "resnet": (lambda: images_net("resnet"), IMAGES),
    "resnet with projections": (lambda: images_net("resnet", shortcut="projection"), IMAGES),
    "transformer_classifier": (texts_net, TEXTS),
    "bert": (lambda: texts_net("transformers"), TEXTS),
    "gpt": (lambda: windows_net(activation="swiglu", positions="rope", norm="rms"), WINDOWS),
    "transformer": (pairs_net, PAIRS),
}
models = pytest.mark.parametrize("name", MODELS)


def pruned(name: str, **settings: Any):
    make, spec = MODELS[name]
    method = prune_channels.build(spec, **{"finetune": None} | settings)
    model, plan = method.compress(make(), Tools(spec))
    return method, model, plan, spec


@models
def test_all_macs_are_the_identity(name):
    make, spec = MODELS[name]
    _, model, plan, _ = pruned(name, macs=1.0)
    assert plan["tensors"] == plan["modules"] == plan["report"]["layers"] == {}
    assert torch.equal(said(model, spec), said(make(), spec))


@models
def test_the_target_is_met_and_barely_so(name):
    target = 0.5 if name.startswith(("cnn", "resnet")) else 0.85  # attention keeps its own
    _, model, plan, spec = pruned(name, macs=target)
    before, after = plan["report"]["macs"]
    assert 0.75 * target * before < after <= target * before
    assert plan["report"]["parameters"][1] == sum(p.numel() for p in model.parameters())
    assert said(model, spec).shape == said(MODELS[name][0](), spec).shape


@models
def test_a_pruned_model_is_read_back_bit_for_bit_without_tracing(name, monkeypatch):
    method, model, plan, spec = pruned(name, macs=0.85, finetune="1 epoch")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    again = read_back(method, model, plan, MODELS[name][0]())
    assert torch.equal(said(again, spec), said(model, spec))


def test_channels_that_say_nothing_can_go_without_a_change():
    model = images_net("resnet")
    before = _silence(model, ["stages.0.0.conv1", "stages.1.0.conv1", "stages.2.0.conv1"], 0.25)
    smaller, plan = prune_channels.build(
        IMAGES, ratio=0.25, finetune=None, ignore=["stem.0", "stages.*.conv2"]
    ).compress(model, Tools(IMAGES))
    assert plan["report"]["layers"] == {
        "stages.0.0.conv1": [8, 6], "stages.1.0.conv1": [16, 12], "stages.2.0.conv1": [32, 24],
    }  # fmt: skip
    torch.testing.assert_close(said(smaller, IMAGES), before, rtol=1e-5, atol=1e-5)


def _silence(model: Any, names: list[str], share: float):
    """Let every fourth or so channel of these convolutions, and of the norms after them, be zero; the answer then."""
    with torch.no_grad():
        for name in names:
            conv = model.get_submodule(name)
            norm = model.get_submodule(name.replace("conv1", "norm1"))
            quiet = slice(1, None, round(1 / share))
            conv.weight[quiet] = 0.0
            norm.weight[quiet] = norm.bias[quiet] = 0.0
    return said(model, IMAGES)


def test_channels_of_the_stream_go_with_what_is_padded_to_them():
    model: Any = images_net("resnet")
    smaller, plan = prune_channels.build(IMAGES, ratio=0.5, finetune=None).compress(model, Tools(IMAGES))
    first, second = smaller.stages[0][0].conv2.out_channels, smaller.stages[1][0].conv2.out_channels
    assert second == first + smaller.stages[1][0].shortcut.new_channels
    assert plan["report"]["layers"]["stem.0"] == [8, 4]


def test_units_of_a_gated_feed_forward_go_in_pairs():
    _, model, plan, _ = pruned("gpt", ratio=0.5)
    layer: Any = model.get_submodule("blocks.0.feed_forward")
    assert layer.gate.out_features == layer.up.out_features == layer.down.in_features == 24
    assert "blocks.0.attention.qkv" not in plan["report"]["layers"]


def test_gated_units_that_say_nothing_can_go_without_a_change():
    model: Any = MODELS["gpt"][0]()
    with torch.no_grad():
        for block in model.blocks:
            hidden = block.feed_forward.down.in_features
            for unit in range(0, hidden, 2):
                for layer in (block.feed_forward.gate, block.feed_forward.up):
                    layer.weight[unit] = layer.bias[unit] = 0.0
                block.feed_forward.down.weight[:, unit] = 0.0
    before = said(model, WINDOWS)
    smaller, plan = prune_channels.build(WINDOWS, ratio=0.5, finetune=None).compress(model, Tools(WINDOWS))
    assert plan["report"]["layers"]["blocks.0.feed_forward.up"] == [48, 24]
    torch.testing.assert_close(said(smaller, WINDOWS), before, rtol=1e-5, atol=1e-5)


def test_channels_are_a_multiple_of_what_is_asked():
    _, _, plan, _ = pruned("resnet", macs=0.4, round_to=4)
    assert all(after % 4 == 0 for _, after in plan["report"]["layers"].values())


def test_a_net_for_pixels_is_pruned_and_keeps_its_classes():
    spec = DataSpec(("image",), "mask", {"pixel_classes": 3, "channels": 1}, {"image": (1, 8, 8)})
    network = lambda: unet.build(spec, width=8, depth=2).eval()  # noqa: E731

    class PixelTools(Tools):
        def __init__(self) -> None:
            self.spec, self.rows = spec, {name: rows(IMAGES)[name] for name in ("id", "image")}

    torch.manual_seed(0)
    method = prune_channels.build(spec, macs=0.5, finetune=None)
    model, plan = method.compress(network(), PixelTools())
    assert said(model, IMAGES).shape == (64, 3, 8, 8)
    assert torch.equal(said(read_back(method, model, plan, network()), IMAGES), said(model, IMAGES))


def test_it_trains_afterwards():
    tools = Tools(IMAGES)
    prune_channels.build(IMAGES, macs=0.5, finetune="1 epoch").compress(images_net(), tools)
    assert tools.trained == 1


def test_a_recurrent_model_is_refused():
    with pytest.raises(DlrunError) as error:
        prune_channels.build(TEXTS).compress(texts_net("rnn"), Tools(TEXTS))
    assert error.value.message == "prune_channels: Rnn has no convolution or hidden layer whose channels could go"


def test_a_model_whose_only_layer_is_its_head_is_refused_before_torch_pruning_meets_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(DlrunError, match="Rnn has no convolution or hidden layer whose channels could go"):
        prune_channels.build(TEXTS, finetune=None).compress(texts_net("rnn"), Tools(TEXTS))


@pytest.mark.parametrize("before", [cluster.build(IMAGES, smallest=64), quantize_weights.build(IMAGES, smallest=64)])
def test_weights_that_are_kept_otherwise_are_refused_with_the_order_to_take(before):
    model, _ = before.compress(images_net(), Tools(IMAGES))
    with pytest.raises(DlrunError, match="are kept in codebooks or in fewer bits") as error:
        prune_channels.build(IMAGES, finetune=None).compress(model, Tools(IMAGES))
    assert error.value.hint == "let prune_channels come first: compression=[prune_channels,…]"


def test_a_target_that_cannot_be_met_says_how_far_it_goes():
    with pytest.raises(DlrunError, match=r"prune_channels: Classifier keeps 0\.\d\d of its MACs when all is taken out"):
        prune_channels.build(TEXTS, macs=0.05).compress(texts_net(), Tools(TEXTS))


def test_a_network_that_cannot_be_followed_is_refused():
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 3)

        def forward(self, x):
            return self.head(nn.functional.unfold(self.first(x), 4).detach().flatten(1)[:, :36])

    with pytest.raises(DlrunError, match=r"prune_channels: (torch-pruning cannot follow )?Untraceable"):
        prune_channels.build(IMAGES).compress(Untraceable(), Tools(IMAGES))


def test_without_torch_pruning_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(DlrunError) as error:
        prune_channels.build(IMAGES).compress(images_net(), Tools(IMAGES))
    assert (error.value.message, error.value.hint) == (
        "prune_channels needs torch-pruning",
        'pip install "dlrun[compress]"',
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"macs": 0.0}, "compression.prune_channels.macs: expected a number in (0, 1], got 0.0"),
     ({"ratio": 1.0}, "compression.prune_channels.ratio: expected a number in [0, 1), or null, got 1.0"),
     ({"round_to": 0}, "compression.prune_channels.round_to: expected an integer of at least 1, got 0")],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings, says):
    with pytest.raises(DlrunError) as error:
        prune_channels.build(IMAGES, **settings)
    assert error.value.message == says

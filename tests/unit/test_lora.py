"""LoRA: what is added, what trains, and that folding the additions into the weights changes no answer."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec, Weights
from dlrun.errors import DlrunError
from dlrun.models import cnn, gpt, transformers
from dlrun.registry import Registry
from dlrun.transfer import lora

pytest.importorskip("peft", reason="the extra 'text' is not installed")

CLASSES = DataSpec(
    ("tokens", "lengths"), "label", {"classes": 3, "vocabulary": 20, "length": 12}, {"tokens": (12,), "lengths": ()}
)
WINDOWS = DataSpec(("tokens",), "targets", {"vocabulary": 20, "context": 8}, {"tokens": (8,)})
IMAGES = DataSpec(("image",), "label", {"classes": 3}, {"image": (1, 8, 8)})
SETTINGS: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": None}
TOKENS = torch.randint(1, 20, (4, 8), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([8, 3, 5, 1])


class Given:
    """Tools that lend a model's own weights."""

    seed, assets = 0, None

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def weights(self, source: str) -> Weights:
        return Weights(self.tensors, source)


def bert() -> nn.Module:
    options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.build(CLASSES, architecture="bert", options=options).eval()


def gpt2() -> nn.Module:
    return transformers.build(WINDOWS, architecture="gpt2", options={"n_embd": 16, "n_layer": 2, "n_head": 2}).eval()


def own_gpt() -> nn.Module:
    return gpt.build(WINDOWS, depth=2, heads=2, width=16).eval()


MODELS = {"bert": (bert, CLASSES), "gpt2": (gpt2, WINDOWS), "gpt": (own_gpt, WINDOWS)}
models = pytest.mark.parametrize("name", MODELS)


def said(model: nn.Module, spec: DataSpec) -> Tensor:
    return model(TOKENS, LENGTHS) if "lengths" in spec.inputs else model(TOKENS)


def adapted(name: str, **settings: Any):
    """A model with adapters, its spec, and the result of the transfer."""
    torch.manual_seed(1)
    make, spec = MODELS[name]
    model = make()
    result = lora.build(model, spec, Given(model), "x", **SETTINGS | settings)
    return result.model, spec, result


def perturb(model: nn.Module) -> None:
    """What training does: B is no longer zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@models
def test_untrained_adapters_change_no_answer(name):
    torch.manual_seed(1)
    make, spec = MODELS[name]
    plain = make()
    model = lora.build(copy.deepcopy(plain), spec, Given(plain), "x", **SETTINGS).model
    torch.testing.assert_close(said(model, spec), said(plain, spec))


@models
def test_folded_adapters_give_the_same_answers_and_the_plain_tree(name):
    model, spec, _ = adapted(name)
    names = MODELS[name][0]().state_dict().keys()
    before = said(model, spec)
    perturb(model)
    after = said(model, spec)
    assert not torch.allclose(after, before)
    plain = lora.merged(model)
    assert plain.state_dict().keys() == names
    torch.testing.assert_close(said(plain, spec), after, rtol=1e-4, atol=1e-5)


@models
def test_a_checkpoint_is_read_into_a_reshaped_model(name):
    model, spec, _ = adapted(name)
    perturb(model)
    again = lora.reshape(MODELS[name][0](), **SETTINGS, replace_head=None, train_head=None)
    again.load_state_dict(model.state_dict())
    assert torch.equal(said(again, spec), said(model, spec))


@models
def test_every_adapter_is_asked(name):
    model, spec, _ = adapted(name)
    perturb(model)  # where B is zero A has no gradient
    said(model, spec).logsumexp(-1).sum().backward()
    trains = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trains.items() if parameter.grad is None or not parameter.grad.any()] == []


def test_adapters_and_the_head_alone_train():
    model, _, result = adapted("bert")
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trains if ".lora_A." in name or ".lora_B." in name}
    assert trains - adapters == {"head.weight", "head.bias"}
    assert len(adapters) == 2 * 6 * 2  # A and B of query, key, value, output and two of the feed-forward, two layers
    assert result.frozen == () and result.loaded


def test_the_head_of_a_language_model_stays_unless_it_is_asked_for():
    model, _, _ = adapted("gpt")
    assert [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" not in name
    ] == []
    model, _, _ = adapted("bert", train_head=False)
    assert not model.get_submodule("head").weight.requires_grad


def test_rank_and_alpha_are_those_of_the_paper():
    model, _, _ = adapted("bert", rank=3, alpha=6.0)
    perturb(model)
    layer: Any = model.get_submodule("body.encoder.layer.0.attention.self.query")
    assert layer.lora_A.default.weight.shape == (3, 16)
    x = torch.randn(2, 16)
    addition = x @ layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 6.0 / 3 * addition)


@pytest.mark.parametrize(("name", "targets", "ends"), [
    ("bert", ["query", "value"], {"query", "value"}), ("gpt2", ["c_attn"], {"c_attn"}),
    ("gpt", ["attention.*"], {"qkv", "out"}), ("gpt", ["blocks.1.*.qkv"], {"qkv"}),
])  # fmt: skip
def test_targets_are_ends_of_names_or_patterns(name, targets, ends):
    model, _, _ = adapted(name, targets=targets)
    found = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert {name.rpartition(".")[2] for name in found} == ends
    if targets == ["blocks.1.*.qkv"]:
        assert found == {"blocks.1.attention.qkv"}


def test_the_seed_decides_the_adapters():
    first, second = adapted("bert")[0], adapted("bert")[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_statistics_of_norms_stay_still():
    model = cnn.build(IMAGES)
    model.add_module("mixing", nn.Linear(4, 4))
    result = lora.build(model, IMAGES, Given(model), "x", **SETTINGS)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and list(result.frozen) == norms


@pytest.mark.parametrize(("settings", "message", "hint"), [
    ({"rank": 0}, "transfer.rank: expected an integer of at least 1, got 0", ""),
    ({"alpha": 0.0}, "transfer.alpha: expected a number above 0, got 0.0", ""),
    ({"dropout": 1.0}, "transfer.dropout: expected a number in [0, 1), got 1.0", ""),
    ({"targets": ["qery"]}, "transfer.targets: no linear layer of the body is called 'qery'", "did you mean query?"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message, hint):
    with pytest.raises(DlrunError) as caught:
        adapted("bert", **settings)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_model_without_linear_layers_has_nothing_to_adapt():
    model = cnn.build(IMAGES)
    with pytest.raises(DlrunError, match="the model has no linear layer but its head"):
        lora.build(model, IMAGES, Given(model), "x", **SETTINGS)


def test_without_peft_the_line_that_installs_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DlrunError, match="transfer=lora needs peft") as caught:
        adapted("bert")
    assert caught.value.hint == 'pip install "dlrun[text]"'


# ---------------------------------------------------------------- whole runs


def test_a_run_with_adapters_is_resumed_evaluated_and_handed_on(train, runs):
    from dlrun import build, launch, predictor
    from dlrun.config import check
    from dlrun.worker import Silent

    body = train("model=mlp", "model.depth=2", "train.duration=20 steps")
    settings = ("model=mlp", "model.depth=2", "transfer=lora", f"transfer.from=run:{body.id}", "transfer.rank=2")
    whole = train(*settings, "train.duration=6 steps", "train.save_every=3 steps", "train.evaluate_every=3 steps")
    loaded = predictor.load(whole.folder)
    assert loaded.model.state_dict().keys() == predictor.load(body.folder).model.state_dict().keys()
    result = whole.result or {}
    accuracy = {name.partition("/")[2]: value for name, value in result["metrics"].items() if name.startswith("test/")}
    assert loaded.evaluate("test") == pytest.approx(accuracy, abs=1e-4)

    tensors = build.RunTools(0, runs, Registry()).weights(f"run:{whole.id}").tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in loaded.model.state_dict().items())

    stopped = train(*settings, "train.duration=6 steps", "train.save_every=3 steps", "train.evaluate_every=3 steps")
    step_6 = stopped.checkpoints / "00000006"
    expected = (step_6 / "MANIFEST.json").read_text()
    for path in sorted(step_6.iterdir()):
        path.unlink()
    step_6.rmdir()
    for name in ("best", "last"):
        (stopped.checkpoints / name).unlink()
    launch.execute(stopped, check.read(stopped.folder, Registry()), Registry(), Silent())
    weights = '"weights.safetensors": {'
    assert (step_6 / "MANIFEST.json").read_text().partition(weights)[2][:140] == expected.partition(weights)[2][:140]

"""Quantizing: int8 and int4 weights, int8 products, ONNX graphs; each read back from its plan bit for bit."""

import copy
import json

import pytest
import torch
from tests.unit.fake_compression import IMAGES, TEXTS, WINDOWS, Tools, images_net, texts_net, windows_net
from torch import nn

from dlrun.compression import (
    _onnx_graph,
    _quantized,
    distill,
    finetune,
    qat,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
)
from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import rnn
from dlrun.training import checkpoint


def read_back(method, model: nn.Module, small: nn.Module, plan) -> nn.Module:
    """The model from its plan, and the file's tensors."""
    plan = json.loads(json.dumps(plan))
    again = method.reshape(copy.deepcopy(model), plan, None)
    tensors = {name: tensor.clone() for name, tensor in checkpoint.model_tensors(small).items()}
    checkpoint.load_model(again, tensors, "here")
    return again.eval()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 40)).eval()


def text_net() -> nn.Module:
    torch.manual_seed(0)
    return rnn.build(TEXTS, width=16, hidden=16, dropout=0.0).eval()


@pytest.mark.parametrize("form", ["int8", "int4", "bf16", "fp16"])
def test_weights_kept_in_fewer_bits_are_read_back_bit_for_bit(form):
    method = quantize_weights.build(IMAGES, format=form)
    model, inputs = mlp(), torch.randn(5, 64)
    small, plan = method.compress(copy.deepcopy(model), Tools(IMAGES))
    again = read_back(method, model, small, plan)
    assert torch.equal(again(inputs), small(inputs))
    assert not any(tensor.dtype == torch.float32 and tensor.dim() == 2 and tensor.numel() > 1000
                   for tensor in small.state_dict().values())  # fmt: skip
    largest = {"int8": 0.01, "int4": 0.2, "bf16": 0.01, "fp16": 0.001}[form]
    assert (small(inputs) - model(inputs)).norm() < largest * model(inputs).norm()


def test_a_group_longer_than_a_row_is_a_row():
    sizes = []
    for group in (64, 8192):
        small, _ = quantize_weights.build(IMAGES, format="int4", group=group).compress(mlp(), Tools(IMAGES))
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in small.state_dict().values()))
    assert sizes[0] == sizes[1]


def test_an_int8_weight_is_off_by_half_a_scale_at_most():
    weight = torch.randn(7, 33)
    scale = _quantized.scales(weight, 127)
    assert ((_quantized.rounded(weight, scale, 127) * scale - weight).abs() <= scale / 2 + 1e-7).all()


def test_an_int8_product_is_the_product_of_the_rounded_numbers():
    layer = nn.Linear(20, 9)
    small = _quantized.Int8Linear.of(layer.weight, layer.bias)
    inputs = torch.randn(6, 20)
    scale = inputs.abs().amax(1, keepdim=True) / 127
    expected = (inputs / scale).round() @ small.weight_int8.float().t() * small.scale * scale + layer.bias
    assert torch.allclose(small(inputs), expected, atol=1e-5)


def test_what_is_said_of_an_example_depends_on_no_other_one():
    small, _ = quantize_dynamic.build(IMAGES).compress(mlp(), Tools(IMAGES))
    inputs = torch.randn(8, 64) * torch.arange(1, 9)[:, None]
    assert torch.equal(small(inputs)[:3], small(inputs[:3]))


def test_a_recurrent_model_is_int8_in_the_file_and_reads_back():
    method = quantize_dynamic.build(TEXTS)
    model, (tokens, lengths) = text_net(), (torch.randint(1, 20, (4, 8)), torch.tensor([8, 3, 5, 1]))
    small, plan = method.compress(copy.deepcopy(model), Tools(TEXTS))
    again = read_back(method, model, small, plan)
    assert torch.equal(again(tokens, lengths), small(tokens, lengths))
    sizes = [sum(t.numel() * t.element_size() for t in checkpoint.model_tensors(m).values()) for m in (model, small)]
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "pt2e"])
def test_a_graph_reads_back_and_stays_near_the_model(backend):
    method = quantize_static.build(IMAGES, backend=backend, examples=16, compile=False)
    model = images_net()
    small, plan = method.compress(copy.deepcopy(model), Tools(IMAGES))
    again = read_back(method, model, small, plan)
    images = next(iter(Tools(IMAGES).batches("train", 16)))["image"]
    for size in (1, 3):
        inputs = images[:size]
        assert torch.equal(again(inputs), small(inputs))
        assert (small(inputs) - model(inputs)).norm() < 0.2 * model(inputs).norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rnn", "transformer_classifier"])
@pytest.mark.parametrize("room", [quantize_static, quantize_dynamic])
def test_a_graph_that_reads_texts_is_read_back_bit_for_bit(room, name):
    method, model = room.build(TEXTS, backend="onnxruntime"), texts_net(name)
    small, plan = method.compress(copy.deepcopy(model), Tools(TEXTS))
    again = read_back(method, model, small, plan)
    tokens, lengths = torch.randint(1, 20, (4, 8)), torch.tensor([8, 3, 5, 1])
    assert torch.equal(again(tokens, lengths), small(tokens, lengths))
    assert torch.equal(again(tokens[:1, :5], torch.tensor([5])), small(tokens[:1, :5], torch.tensor([5])))


@pytest.mark.slow
def test_a_graph_of_torch_reads_texts_of_one_length_only():
    class Ragged(Tools):
        def batches(self, split, limit=None):
            yield {name: tensor[:limit] for name, tensor in self.rows.items()}
            yield {name: tensor[:4, :6] if tensor.dim() == 2 else tensor[:4] for name, tensor in self.rows.items()}

    with pytest.raises(DlrunError, match="quantize_static: the graph that torch makes") as refused:
        quantize_static.build(WINDOWS, backend="pt2e", compile=False).compress(windows_net(), Ragged(WINDOWS))
    assert "backend=onnxruntime" in refused.value.hint


def test_a_model_that_is_no_graph_is_refused_by_what_needs_one():
    class Forks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 8)

        def forward(self, images):
            said = self.layer(images).flatten(1)
            return said if float(said.sum()) > 0 else -said

    for backend in ("onnxruntime", "pt2e"):
        with pytest.raises(DlrunError, match="quantize_static: Forks cannot be written as one graph"):
            quantize_static.build(IMAGES, backend=backend).compress(Forks(), Tools(IMAGES))
    with pytest.raises(DlrunError, match="qat: ReLU has no"):
        qat.build(IMAGES).compress(nn.ReLU(), Tools(IMAGES))


@pytest.mark.parametrize("settings", [{"ignore": ["head"]}, {"embeddings": False}, {"smallest": 1}])
def test_onnx_runtime_is_refused_settings_that_it_would_not_keep_to(settings):
    with pytest.raises(DlrunError, match="takes none of embeddings, smallest and ignore"):
        quantize_dynamic.build(TEXTS, backend="onnxruntime", **settings).require_ready()  # type: ignore[attr-defined]


def test_a_copy_of_a_graph_runs():
    small = _onnx_graph.as_module(_onnx_graph.plain(images_net(), Tools(IMAGES)))
    inputs = torch.randn(2, 1, 8, 8)
    said = small(inputs)
    assert torch.equal(copy.deepcopy(small)(inputs), said)
    assert torch.allclose(said, images_net()(inputs), atol=1e-4)


def test_what_has_no_layer_for_a_method_is_refused():
    tools = Tools(IMAGES)
    with pytest.raises(DlrunError, match="quantize_dynamic: Conv2d has no linear or recurrent layer"):
        quantize_dynamic.build(IMAGES).compress(nn.Conv2d(16, 16, 3), tools)
    with pytest.raises(DlrunError, match="quantize_weights: ReLU has no weight matrix"):
        quantize_weights.build(IMAGES).compress(nn.ReLU(), tools)
    with pytest.raises(DlrunError, match=r"compression.quantize_weights.group: expected an even number"):
        quantize_weights.build(IMAGES, group=3)


def test_a_taught_student_is_nearer_to_its_teacher_than_before():
    tools, teacher = Tools(IMAGES), images_net()
    student = images_net("resnet")
    tools.predictor = lambda _: type("Known", (), {"model": copy.deepcopy(teacher), "spec": IMAGES})()  # type: ignore[method-assign]
    batch = next(tools.batches("valid"))["image"]

    def distance() -> float:
        said, wanted = (model.eval()(batch).detach().log_softmax(1) for model in (student, teacher))
        return float((wanted.exp() * (wanted - said)).sum(1).mean())

    before = distance()
    method = distill.build(IMAGES, duration="10 epochs", weight=1.0, features=0.1)
    student, plan = method.compress(student, tools)
    assert distance() < 0.5 * before
    assert "model" not in plan and plan["report"]["teachers"] == 1
    assert not any(part._forward_pre_hooks for part in student.modules())


def test_a_teacher_of_other_classes_is_refused():
    tools = Tools(IMAGES)
    other = DataSpec(("image",), "label", {"classes": 4, "channels": 1}, {"image": (1, 8, 8)})
    tools.predictor = lambda _: type("Known", (), {"model": images_net(), "spec": other})()  # type: ignore[method-assign]
    with pytest.raises(DlrunError, match="the teacher reads or says other things"):
        distill.build(IMAGES).compress(images_net(), tools)


def test_finetuning_changes_weights_and_no_shape():
    tools, model = Tools(IMAGES), images_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned, plan = finetune.build(IMAGES).compress(model, tools)
    assert finetune.build(IMAGES).reshape(model, plan, None) is model
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tuned.state_dict().items())


def test_training_with_rounded_weights_hands_on_floats_of_the_same_shape():
    tools, model = Tools(IMAGES), images_net()
    names = list(model.state_dict())
    trained, plan = qat.build(IMAGES, duration="1 epoch", examples=8).compress(model, tools)
    assert sorted(trained.state_dict()) == sorted(names) and plan["report"]["layers"] == 3
    assert not any(part._forward_pre_hooks for part in trained.modules())
    assert "note" not in plan["report"]


def test_training_with_rounded_weights_says_which_layers_it_left():
    _, plan = qat.build(TEXTS, duration="1 step", examples=8).compress(text_net(), Tools(TEXTS))
    assert plan["report"]["note"] == "recurrent layers were not rounded: recurrent.kernel"


def test_a_rounded_weight_is_the_one_a_quantizer_gives_and_passes_its_gradient():
    weight = torch.randn(5, 12, requires_grad=True)
    scale = _quantized.scales(weight, 127)
    rounded = qat.Rounded()(weight)
    assert torch.allclose(rounded, _quantized.rounded(weight, scale, 127) * scale, atol=1e-6)
    rounded.sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones_like(weight))

"""The image models: shapes, parameter counts against the papers, initial weights, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, cnn, logistic, mlp, resnet
from dlrun.models import torchvision as front
from dlrun.registry import Registry

OWN = {
    "logistic": logistic.build,
    "mlp": mlp.build,
    "cnn": cnn.build,
    "resnet": lambda spec: resnet.build(spec, depth=8),
}


def spec(*shape: int, classes: int = 10) -> DataSpec:
    return DataSpec(("image",), "label", {"classes": classes}, {"image": shape})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 5, 9)])
@pytest.mark.parametrize("name", OWN)
def test_every_own_model_turns_images_into_logits_and_trains_all_its_parameters(name, shape):
    model = OWN[name](spec(*shape, classes=7))
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", OWN)
def test_every_own_model_ends_in_a_linear_head(name):
    model = OWN[name](spec(1, 8, 8, classes=7))
    assert isinstance(model.head, nn.Linear)
    assert model.head.out_features == 7


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_flat_models_take_any_shape(name):
    assert OWN[name](spec(13, classes=2))(torch.randn(3, 13)).shape == (3, 2)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_channels_last_changes_nothing_but_the_layout(name):
    model = OWN[name](spec(3, 16, 16)).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    moved = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_every_own_model_is_one_graph(name):
    model = OWN[name](spec(1, 8, 8)).eval()
    x = torch.randn(2, 1, 8, 8)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    y = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(exported.module()(y), model(y))


# ---------------------------------------------------------------- logistic and mlp


def test_logistic_regression_begins_with_equal_probabilities():
    model = logistic.build(spec(1, 8, 8, classes=4))
    probabilities = model(torch.randn(5, 1, 8, 8)).softmax(1)
    assert torch.equal(probabilities, torch.full((5, 4), 0.25))
    assert count(model) == 64 * 4 + 4


def test_mlp_equals_its_layers_written_out():
    model = mlp.build(spec(6, classes=3), widths=(5, 4), activation="tanh", init="xavier")
    first, second = model.hidden[0].linear, model.hidden[1].linear
    x = torch.randn(2, 6)
    by_hand = torch.tanh(x @ first.weight.T + first.bias)
    by_hand = torch.tanh(by_hand @ second.weight.T + second.bias) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), by_hand)


def test_mlp_of_depth_zero_is_one_linear_layer():
    assert count(mlp.build(spec(6, classes=3), depth=0)) == 6 * 3 + 3


def test_widths_replace_depth_and_width():
    same = mlp.build(spec(6), depth=2, width=8), mlp.build(spec(6), widths=[8, 8], depth=5)
    assert count(same[0]) == count(same[1])


def test_mlp_skip_adds_the_input_scaled_by_depth():
    model = mlp.build(spec(8), depth=2, width=8, skip=True)
    x = torch.randn(3, 8)
    hidden = model.hidden[0]
    expected = x + torch.relu(hidden.linear(x)) / math.sqrt(2)
    torch.testing.assert_close(hidden(x), expected)


def first_to_last_gradient(**settings) -> float:
    """Gradient norm of the first hidden layer's weights over that of the last one's, 24 layers deep."""
    torch.manual_seed(0)
    model = mlp.build(spec(32), depth=24, width=32, **settings)
    x, labels = torch.randn(64, 32), torch.randint(0, 10, (64,))
    nn.functional.cross_entropy(model(x), labels).backward()
    norms = [hidden.linear.weight.grad.norm().item() for hidden in model.hidden]
    return norms[1] / norms[-1]


def test_gradients_vanish_in_a_deep_sigmoid_mlp_and_each_cure_brings_them_back():
    assert first_to_last_gradient(activation="sigmoid", init="default") < 1e-9
    assert first_to_last_gradient(activation="relu", init="kaiming") > 0.1
    assert first_to_last_gradient(activation="sigmoid", norm="batch", skip=True) > 0.1
    assert first_to_last_gradient(activation="sigmoid", skip=True) > 0.01


# ---------------------------------------------------------------- cnn


def test_cnn_halves_the_image_right_after_the_first_convolution_of_a_stage():
    model = cnn.build(spec(1, 28, 28), channels=(4, 6), convolutions=2)
    kinds = [type(layer).__name__ for layer in model.stages[0]]
    assert kinds == ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]
    assert model.stages(torch.randn(1, 1, 28, 28)).shape == (1, 6, 7, 7)


def test_cnn_parameters_by_hand():
    model = cnn.build(spec(1, 8, 8), channels=(2,), convolutions=1, kernel=5, head_width=3)
    convolution, norm = 1 * 2 * 25, 2 * 2
    assert count(model) == convolution + norm + (2 * 4 * 4 * 3 + 3) + (3 * 10 + 10)


def test_cnn_halves_an_image_to_two_pixels_at_the_least_and_so_trains_on_a_batch_of_one():
    model = cnn.build(spec(1, 8, 8), channels=(2, 2, 2, 2, 2))
    assert model.stages(torch.randn(1, 1, 8, 8)).shape == (1, 2, 2, 2)


def test_cnn_with_average_readout_has_a_head_of_its_channels_whatever_the_image():
    sizes = {count(cnn.build(spec(1, side, side), readout="average")) for side in (8, 28)}
    assert len(sizes) == 1


# ---------------------------------------------------------------- resnet


@pytest.mark.parametrize(("depth", "millions", "exact"), [
    (20, 0.27, 269_722), (32, 0.46, 464_154), (44, 0.66, 658_586), (56, 0.85, 853_018), (110, 1.7, 1_727_962),
])  # fmt: skip
def test_resnet_parameters_are_those_of_table_6(depth, millions, exact):
    with torch.device("meta"):
        parameters = count(resnet.build(spec(3, 32, 32), depth=depth))
    assert parameters == exact
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)


def test_resnet_without_skips_has_the_same_parameters():
    assert count(resnet.build(spec(3, 32, 32), depth=8, skip=False)) == count(resnet.build(spec(3, 32, 32), depth=8))


def test_resnet_depth_counts_its_layers_with_weights():
    model = resnet.build(spec(3, 32, 32), depth=20)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 20


def test_pad_shortcut_takes_every_second_pixel_and_adds_empty_channels():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    y = resnet.PadShortcut(new_channels=3, stride=2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()


def test_block_equals_torchvisions_basic_block():
    from torchvision.models.resnet import BasicBlock

    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    reference = BasicBlock(4, 8, stride=2, downsample=shortcut)
    own = resnet.Block(4, 8, 2, "relu", "batch", shortcut)
    for part, other in (("conv1", "conv1"), ("norm1", "bn1"), ("conv2", "conv2"), ("norm2", "bn2")):
        own.get_submodule(part).load_state_dict(reference.get_submodule(other).state_dict())
    x = torch.randn(3, 4, 9, 9)
    torch.testing.assert_close(own(x), reference(x))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_zero_init_residual_starts_every_block_as_its_shortcut(norm):
    model = resnet.build(spec(3, 16, 16), depth=14, norm=norm, zero_init_residual=True)
    x = torch.rand(2, 16, 8, 8)  # not negative: relu leaves it
    assert torch.equal(model.stages[0](x), x)


def test_plain_network_ignores_its_input_where_a_layer_gives_zero_and_the_residual_one_does_not():
    for skip, passes in ((True, True), (False, False)):
        model = resnet.build(spec(3, 16, 16), depth=8, skip=skip).eval()
        nn.init.zeros_(model.stages[1][0].conv2.weight)
        logits = model(torch.randn(2, 3, 16, 16))
        assert torch.allclose(logits[0], logits[1]) is not passes


# ---------------------------------------------------------------- initialisation and settings


def weights_of(init: str, activation: str = "relu") -> tuple[torch.Tensor, torch.Tensor]:
    """A hidden layer's and the head's initial weights, 400 inputs each."""
    torch.manual_seed(0)
    model = mlp.build(spec(400, classes=300), widths=[400], init=init, activation=activation)
    return model.hidden[0].linear.weight, model.head.weight


@pytest.mark.parametrize(("init", "activation", "variance"), [
    ("kaiming", "relu", 2 / 400),
    ("kaiming", "tanh", (5 / 3) ** 2 / 400),
    ("kaiming", "sigmoid", 1 / 400),
    ("lecun", "selu", 1 / 400),
    ("xavier", "relu", 2 / 800),
    ("default", "relu", 1 / (3 * 400)),
])  # fmt: skip
def test_initial_variance_is_what_the_paper_says(init, activation, variance):
    assert weights_of(init, activation)[0].var().item() == pytest.approx(variance, rel=0.02)


def test_the_head_has_gain_one():
    assert weights_of("kaiming")[1].var().item() == pytest.approx(1 / 400, rel=0.02)


def test_orthogonal_initialisation_keeps_lengths_times_the_gain():
    weight = weights_of("orthogonal")[0]
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(400), rtol=0, atol=1e-4)


def test_kaiming_keeps_the_size_of_activations_through_a_deep_network():
    torch.manual_seed(0)
    model = mlp.build(spec(256), depth=30, width=256)
    x = torch.randn(512, 256)
    assert 0.2 < model.hidden(x).square().mean() / x.square().mean() < 5


def test_initial_biases_are_zero():
    model = cnn.build(spec(1, 8, 8), norm="none")
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_the_same_seed_gives_the_same_weights():
    def make() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return list(resnet.build(spec(3, 16, 16), depth=8).parameters())

    assert all(torch.equal(first, second) for first, second in zip(make(), make(), strict=True))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_every_choice_of_a_setting_builds(name):
    build = {"mlp": mlp.build, "cnn": cnn.build, "resnet": resnet.build}[name]
    small = {"resnet": {"depth": 8, "width": 4}, "cnn": {"channels": (3, 4)}, "mlp": {"width": 8}}[name]
    for setting in Registry().component("model", name).settings.values():
        for choice in setting.choices:
            model = build(spec(3, 8, 8), **small, **{setting.name: choice})
            assert model(torch.randn(2, 3, 8, 8)).isfinite().all(), (setting.name, choice)


def test_activations_offered_are_those_that_exist():
    for name in ("mlp", "cnn", "resnet"):
        assert set(Registry().component("model", name).settings["activation"].choices) == set(_layers._ACTIVATIONS)


@pytest.mark.parametrize(("build", "settings", "message"), [
    (mlp.build, {"depth": -1}, "model.depth: expected an integer of at least 0, got -1"),
    (mlp.build, {"widths": [8, 0]}, "model.widths: expected a list of integers of at least 1, got [8, 0]"),
    (mlp.build, {"dropout": 1.0}, "model.dropout: expected a number in [0, 1), got 1.0"),
    (cnn.build, {"kernel": 4}, "model.kernel: expected an odd number of pixels, got 4"),
    (cnn.build, {"channels": []}, "model.channels: expected at least one stage, got []"),
    (cnn.build, {"channels": ["a"]}, "model.channels: expected a list of integers of at least 1, got ['a']"),
    (resnet.build, {"depth": 21}, "model.depth: expected 6n + 2 with n of at least 1, got 21\n  hint: model.depth=20"),
    (resnet.build, {"skip": False, "zero_init_residual": True}, "without skips every block would give zero"),
    (resnet.build, {"norm": "bach"}, "model.norm: unknown 'bach'\n  hint: did you mean batch?"),
])  # fmt: skip
def test_settings_out_of_range_are_named(build, settings, message):
    with pytest.raises(DlrunError) as caught:
        build(spec(1, 8, 8), **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("build", [cnn.build, resnet.build])
def test_image_models_refuse_what_is_no_image(build):
    with pytest.raises(DlrunError, match=r"needs images \(channels x height x width\); 'image' is 13") as caught:
        build(spec(13))
    assert caught.value.hint == "model=mlp takes any shape"


def test_a_model_says_what_the_data_has_when_there_are_no_classes():
    data = DataSpec(("image",), "price", {"channels": 1}, {"image": (1, 8, 8)})
    with pytest.raises(DlrunError, match="needs data with 'classes'; this data set has channels=1"):
        logistic.build(data)


# ---------------------------------------------------------------- torchvision


@pytest.mark.parametrize("architecture", ["alexnet", "vgg11", "vgg16_bn", "resnet18", "efficientnet_b0"])
def test_torchvision_models_differ_from_the_published_ones_by_their_head(architecture):
    from torchvision import models

    with torch.device("meta"):
        model = front.build(spec(3, 224, 224), architecture=architecture)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    published = models.get_model_weights(architecture)["DEFAULT"].meta["num_params"]
    assert head.out_features == 10
    assert count(model) == published - 990 * (head.in_features + 1)


def test_torchvision_models_take_grey_images():
    model = front.build(spec(1, 28, 28), architecture="resnet18")
    assert count(model) == 11_689_512 - 990 * 513 - 64 * 2 * 49
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert model.conv1.weight.var().item() == pytest.approx(2 / (64 * 49), rel=0.1)  # He's, over what goes out


@pytest.mark.parametrize("architecture", ["vit_b_32", "squeezenet1_1", "swin_t", "shufflenet_v2_x0_5", "googlenet"])
def test_torchvision_models_of_every_build_take_small_images_in_training(architecture):
    with torch.device("meta"):  # shapes alone
        model = front.build(spec(1, 32, 32, classes=3), architecture=architecture)
        assert model.training
        assert model(torch.empty(2, 1, 32, 32)).shape == (2, 3)


def test_torchvision_options_reach_the_architecture():
    model = front.build(spec(3, 8, 8), architecture="mobilenet_v3_small", options={"dropout": 0.7})
    assert 0.7 in [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize(("side", "settings", "message"), [
    (32, {"architecture": "resnet81"}, "torchvision has no 'resnet81'\n  hint: did you mean resnet18?"),
    (32, {"architecture": "mobilenet_v3_small", "options": {"dropuot": 0.1}},
     "model.options: mobilenet_v3_small has no 'dropuot'\n  hint: did you mean dropout?"),
    (32, {"architecture": "resnet18", "options": {"weights": "DEFAULT"}},
     "weights come through transfer\n  hint: transfer=finetune transfer.from=torchvision:resnet18"),
    (28, {"architecture": "alexnet"},
     "alexnet needs images of at least 63x63; the data has 28x28\n  hint: data.image_size=224"),
    (28, {"architecture": "vgg11_bn"}, "vgg11_bn needs images of at least 32x32; the data has 28x28"),
    (33, {"architecture": "vit_b_16"}, "vit_b_16 does not work on images of 33x33: Input shape indivisible"),
    (32, {"architecture": "resnet18", "options": {"groups": 2}},
     "resnet18 with groups=2 does not work on images of 32x32: BasicBlock only supports groups=1"),
])  # fmt: skip
def test_torchvision_refusals_say_what_to_type(side, settings, message):
    with torch.device("meta"), pytest.raises(DlrunError) as caught:
        front.build(spec(3, side, side), **settings)
    assert message in str(caught.value)

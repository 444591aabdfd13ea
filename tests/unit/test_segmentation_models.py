"""Models of a class a pixel: shapes for any image, the U-Net by its parts, torchvision's own answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, torchvision_segmentation, unet
from dlrun.registry import Registry
from dlrun.transfer import _layout

SMALL = {"width": 4, "depth": 2}


def spec(*shape: int, classes: int = 5) -> DataSpec:
    return DataSpec(("image",), "mask", {"pixel_classes": classes}, {"image": shape})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------- U-Net


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (5, 1), (1, 1)])
@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
def test_unet_gives_logits_of_the_size_of_any_image(size, upsampling):
    model = unet.build(spec(3, *size), **SMALL, upsampling=upsampling)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, *size)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("stride", "size", "smaller"), [
    (2, (16, 24), (8, 12)), (2, (17, 23), (9, 12)), (4, (18, 21), (5, 6)),
])  # fmt: skip
def test_a_stem_with_a_stride_works_on_less_and_the_head_spreads_out_again(stride, size, smaller):
    model = unet.build(spec(3, *size), **SMALL, stem_stride=stride)
    x = torch.randn(1, 3, *size)
    assert model.stem(x).shape == (1, 4, *smaller)
    assert model(x).shape == (1, 5, *size)
    seen = []
    model.head.register_forward_hook(lambda module, given, said: seen.append(said))
    logits = model(x)
    for row in range(stride):
        for column in range(stride):  # each pixel of the smaller image says a square of the larger one
            said = seen[0].unflatten(1, (5, stride, stride))[:, :, row, column, 1, 1]
            assert torch.equal(logits[:, :, stride + row, stride + column], said)


def test_a_fresh_head_says_the_same_of_all_pixels_of_a_square():
    logits = unet.build(spec(3, 16, 16), **SMALL, stem_stride=2)(torch.randn(2, 3, 16, 16))
    squares = logits.unflatten(3, (8, 2)).unflatten(2, (8, 2))
    assert torch.equal(squares, squares[:, :, :, :1, :, :1].expand_as(squares))
    assert not torch.equal(logits[:, 0], logits[:, 1])


def test_unet_with_the_papers_settings_has_the_papers_parameters():
    with torch.device("meta"):
        model = unet.build(
            spec(1, 572, 572, classes=2), width=64, most_channels=1024, upsampling="transposed", norm="none"
        )
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in [(1, 64), (64, 128), (128, 256), (256, 512), (512, 1024)])
    up = sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in (512, 256, 128, 64))
    assert count(model) == down + up + 64 * 2 + 2 == 31_030_658


def test_unet_has_23_convolutions_as_in_the_paper():
    model = unet.build(spec(1, 16, 16), width=2, depth=4, upsampling="transposed")
    assert sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in model.modules()) == 23


def test_no_level_is_wider_than_most_channels():
    model = unet.build(spec(3, 16, 16), width=4, depth=3, most_channels=8)
    assert max(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)) == 8


def test_a_level_up_joins_what_the_way_down_saw_first():
    level = unet.Up(nn.Upsample(scale_factor=2), nn.Identity())
    below, seen = torch.randn(1, 2, 2, 2), torch.randn(1, 3, 3, 4)
    joined = level(below, seen)
    assert joined.shape == (1, 5, 3, 4)
    assert torch.equal(joined[:, :3], seen)
    assert torch.equal(joined[:, 3:, 0, 0], below[:, :, 0, 0]) and torch.equal(joined[:, 3:, 2, 3], below[:, :, 1, 1])


@pytest.mark.parametrize(("before", "after"), [(3, 3), (3, 4)])
def test_a_residual_level_adds_its_input_before_the_last_activation(before, after):
    block = unet.Block(before, after, 2, "none", "relu", residual=True)
    x = torch.randn(2, before, 5, 5)
    nn.init.zeros_(block.branch[3].weight)
    nn.init.zeros_(block.branch[3].bias)
    torch.testing.assert_close(block(x), torch.relu(block.shortcut(x)))
    assert isinstance(block.shortcut, nn.Identity) is (before == after)


def test_bilinear_upsampling_before_and_after_a_1x1_convolution_is_the_same():
    up, x = unet.Bilinear(4, 2), torch.randn(1, 4, 3, 5)
    expected = up.convolution(functional.interpolate(x, scale_factor=2.0, mode="bilinear"))
    torch.testing.assert_close(up(x), expected)


@pytest.mark.slow
def test_unet_learns_where_a_square_is():
    torch.manual_seed(0)
    images = torch.zeros(8, 1, 16, 16)
    for index in range(8):
        images[index, :, index : index + 6, 8 - index : 14 - index] = 1
    images = images + 0.3 * torch.randn(images.shape)
    masks = (functional.avg_pool2d(images, 3, 1, 1)[:, 0] > 0.5).long()
    model = unet.build(spec(1, 16, 16, classes=2), width=8, depth=2)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), masks)
        loss.backward()
        optimizer.step()
    assert (model.eval()(images).argmax(1) == masks).float().mean() > 0.95


def test_unet_is_one_graph_and_its_memory_format_changes_nothing_but_the_layout():
    model, x = unet.build(spec(3, 17, 22), **SMALL, stem_stride=2).eval(), torch.randn(2, 3, 17, 22)
    expected = model(x)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(exported.module()(x[:1]), expected[:1])
    moved = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_every_choice_of_a_setting_builds():
    settings = Registry().component("model", "unet").settings
    assert set(settings["activation"].choices) == set(_layers._ACTIVATIONS)
    for setting in settings.values():
        for choice in setting.choices:
            model = unet.build(spec(3, 16, 16), **SMALL, **{setting.name: choice})
            assert model(torch.randn(2, 3, 16, 16)).isfinite().all(), (setting.name, choice)


@pytest.mark.parametrize(("settings", "message"), [
    ({"depth": 0}, "model.depth: expected an integer of at least 1, got 0"),
    ({"width": 0}, "model.width: expected an integer of at least 1, got 0"),
    ({"width": 64, "most_channels": 32}, "model.most_channels: expected at least the width, 64, got 32"),
    ({"convolutions": 0}, "model.convolutions: expected an integer of at least 1, got 0"),
    ({"dropout": 1.0}, "model.dropout: expected a number in [0, 1), got 1.0"),
])  # fmt: skip
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(DlrunError) as caught:
        unet.build(spec(3, 16, 16), **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("build", [
    unet.build, lambda spec: torchvision_segmentation.build(spec, architecture="fcn_resnet50"),
])  # fmt: skip
def test_data_without_masks_or_images_is_refused_with_a_sentence(build):
    classes = DataSpec(("image",), "label", {"classes": 3}, {"image": (3, 16, 16)})
    with pytest.raises(DlrunError, match="needs data with 'pixel_classes'; this data set has classes=3"):
        build(classes)
    with pytest.raises(DlrunError, match=r"needs images \(channels x height x width\); 'image' is 13"):
        build(spec(13))


# ---------------------------------------------------------------- torchvision

ARCHITECTURES = ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_segmenter_gives_what_torchvision_gives_before_its_resizing(architecture):
    from torchvision import models

    torch.manual_seed(0)
    own = torchvision_segmentation.build(spec(3, 32, 48), architecture=architecture).eval()
    reference = models.get_model(architecture, weights=None, weights_backbone=None, num_classes=5).eval()
    reference.load_state_dict(own.state_dict())  # the same names, so that published weights fit
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        resized = functional.interpolate(own(x), (32, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(resized, reference(x)["out"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_published_parameters_are_those_of_21_classes_and_the_auxiliary_classifier(architecture):
    from torchvision import models

    options = {"aux_loss": True} if "lraspp" not in architecture else None
    with torch.device("meta"):
        model = torchvision_segmentation.build(spec(3, 64, 64, classes=21), architecture=architecture, options=options)
    assert count(model) == models.get_model_weights(architecture)["DEFAULT"].meta["num_params"]


def test_the_auxiliary_classifier_is_off_unless_asked_for_and_speaks_in_training_only():
    with torch.device("meta"):
        plain = torchvision_segmentation.build(spec(3, 64, 64), architecture="fcn_resnet50")
        assert isinstance(plain(torch.empty(2, 3, 64, 64)), torch.Tensor)
        model = torchvision_segmentation.build(spec(3, 64, 64), architecture="fcn_resnet50", options={"aux_loss": True})
        logits = model(torch.empty(2, 3, 64, 64))
        assert [part.shape for part in logits] == [(2, 5, 8, 8)] * 2
        assert model.eval()(torch.empty(2, 3, 64, 64)).shape == (2, 5, 8, 8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_of_another_number_of_channels_fit(architecture):
    with torch.device("meta"):
        model = torchvision_segmentation.build(spec(4, 64, 64), architecture=architecture)
        assert model(torch.empty(2, 4, 64, 64)).shape[:2] == (2, 5)


def test_transfer_finds_the_last_layer_of_every_model():
    with torch.device("meta"):
        assert _layout.find_head(unet.build(spec(3, 16, 16))) == "head"
        for architecture in ARCHITECTURES:
            model = torchvision_segmentation.build(spec(3, 64, 64), architecture=architecture)
            assert model.get_submodule(_layout.find_head(model)).out_channels == 5


@pytest.mark.parametrize(("settings", "message"), [
    ({"architecture": "fcn_resnet5"},
     "torchvision has no 'fcn_resnet5' for segmentation\n  hint: did you mean fcn_resnet50?"),
    ({"architecture": "zzz"}, "hint: one of deeplabv3_mobilenet_v3_large, deeplabv3_resnet101, deeplabv3_resnet50"),
    ({"architecture": "fcn_resnet50", "options": {"aux_los": True}},
     "model.options: fcn_resnet50 has no 'aux_los'\n  hint: did you mean aux_loss?"),
    ({"architecture": "lraspp_mobilenet_v3_large", "options": {"aux_loss": True}},
     "model.options: lraspp_mobilenet_v3_large has no 'aux_loss'\n  hint: it has no options"),
    ({"architecture": "fcn_resnet50", "options": {"weights_backbone": "DEFAULT"}},
     "weights come through transfer\n  hint: transfer=finetune transfer.from=torchvision:fcn_resnet50"),
])  # fmt: skip
def test_torchvision_refusals_say_what_to_type(settings, message):
    with torch.device("meta"), pytest.raises(DlrunError) as caught:
        torchvision_segmentation.build(spec(3, 64, 64), **settings)
    assert message in str(caught.value)


def test_deeplab_says_why_it_cannot_train_on_a_batch_of_one():
    model = torchvision_segmentation.build(spec(3, 32, 32), architecture="deeplabv3_mobilenet_v3_large")
    with pytest.raises(DlrunError, match="a batch of one has no deviation") as refused:
        model.train()(torch.zeros(1, 3, 32, 32))
    assert refused.value.code == 2 and "data.batch_size" in refused.value.hint
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape[:2] == (1, 5)

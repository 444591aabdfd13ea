"""Transfer: what loads, what starts anew, what is frozen or slowed down, and which sources are refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from dlrun.contracts import DataSpec, Weights
from dlrun.errors import DlrunError, Exit
from dlrun.models import cnn, logistic, mlp, resnet, torchvision_detection, torchvision_segmentation
from dlrun.models import torchvision as front
from dlrun.transfer import _layout, _sources, feature_extraction, finetune


def spec(*shape: int, classes: int = 10, prefix: str = "digit") -> DataSpec:
    labels = tuple(f"{prefix} {index}" for index in range(classes))
    return DataSpec(("image",), "label", {"classes": classes}, {"image": shape}, labels)


class Given:
    """Tools that lend these weights, whatever is asked for."""

    seed, assets = 0, None

    def __init__(self, tensors: dict[str, Tensor], labels: tuple[str, ...] = ()) -> None:
        self.tensors, self.labels = tensors, labels

    def weights(self, source: str) -> Weights:
        return Weights({name: tensor.clone() for name, tensor in self.tensors.items()}, source, self.labels)


def small(data: DataSpec, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnet.build(data, depth=8, width=4)


OLD = spec(3, 16, 16, classes=10, prefix="cloth")
TRAINED = small(OLD, seed=7)


def trained(labels: tuple[str, ...] = OLD.labels) -> Given:
    return Given(dict(TRAINED.state_dict()), labels)


# ---------------------------------------------------------------- what loads


def test_weights_of_the_same_model_and_classes_load_entirely():
    model = small(OLD)
    result = finetune.build(model, OLD, trained(), "x")
    assert (result.missing, result.unexpected, result.head) == ([], [], "")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(x), TRAINED.eval()(x))


@pytest.mark.parametrize("new", [spec(3, 16, 16, classes=4), spec(3, 16, 16, classes=10)])
def test_the_head_of_other_classes_starts_anew(new):
    model = small(new)
    before = model.head.weight.detach().clone()
    result = finetune.build(model, new, trained(), "x")
    assert result.head == "head"
    assert result.missing == ["head.weight", "head.bias"]
    assert result.unexpected == ["head.bias", "head.weight"]
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.stem[0].weight, TRAINED.stem[0].weight)


def test_a_head_of_the_same_size_is_kept_where_the_old_classes_are_unknown_or_it_is_asked_for():
    new = spec(3, 16, 16)
    assert finetune.build(small(new), new, trained(labels=()), "x").head == ""
    assert finetune.build(small(new), new, trained(), "x", replace_head=False).head == ""
    assert finetune.build(small(OLD), OLD, trained(), "x", replace_head=True).head == "head"


def test_a_head_that_cannot_be_kept_is_refused():
    new = spec(3, 16, 16, classes=4)
    with pytest.raises(DlrunError, match="the head 'head' of the weights does not fit 4 classes"):
        finetune.build(small(new), new, trained(), "x", replace_head=False)


def test_prefixes_of_wrappers_are_taken_off():
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in TRAINED.state_dict().items()}
    assert finetune.build(small(OLD), OLD, Given(wrapped), "x").missing == []


def test_half_precision_weights_become_the_models_type():
    half = {name: t.half() if t.is_floating_point() else t for name, t in TRAINED.state_dict().items()}
    model = small(OLD)
    finetune.build(model, OLD, Given(half), "x")
    assert model.stem[0].weight.dtype == torch.float32
    torch.testing.assert_close(model.stem[0].weight, TRAINED.stem[0].weight, rtol=1e-3, atol=1e-3)


def test_colour_weights_see_a_grey_image_as_one_of_three_equal_channels():
    grey = spec(1, 16, 16, prefix="cloth")
    model = small(grey)
    result = finetune.build(model, grey, trained(), "x")
    assert "stem.0.weight" in result.loaded
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(model.eval()(x), TRAINED.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_grey_weights_see_a_colour_image_as_its_mean_over_channels():
    colour = small(OLD)
    grey = small(spec(1, 16, 16, prefix="cloth"), seed=3)
    finetune.build(colour, OLD, Given(dict(grey.state_dict())), "x")
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(colour.eval()(x), grey.eval()(x.mean(1, keepdim=True)), rtol=1e-4, atol=1e-5)


def test_tensors_of_another_shape_are_reported_on_both_sides():
    wider = resnet.build(OLD, depth=8, width=8)
    tensors = dict(TRAINED.state_dict()) | {"extra": torch.zeros(1)}
    tensors["stages.0.0.conv1.weight"] = wider.stages[0][0].conv1.weight.detach()
    result = finetune.build(small(OLD), OLD, Given(tensors), "x")
    assert result.missing == ["stages.0.0.conv1.weight"]
    assert result.unexpected == ["extra", "stages.0.0.conv1.weight"]


@pytest.mark.parametrize(
    ("name", "part"),
    [("resnet18", "backbone.body"), ("mobilenet_v3_small", "backbone.body")],
)
def test_a_classifiers_weights_become_the_backbone_of_a_detector(name, part):
    published = models.get_model(name, num_classes=7)
    boxes = DataSpec(("image",), "boxes", {"box_classes": 2}, {"image": (3, 64, 64)}, ("cell", "dot"))
    detector = torchvision_detection.build(boxes, detector="faster_rcnn", backbone=name)
    result = feature_extraction.build(detector, boxes, Given(dict(published.state_dict())), "x")
    assert (result.body, result.frozen, result.cache_features) == (part, (part,), False)
    assert [name.removeprefix(f"{part}.") for name in result.loaded if not name.startswith(f"{part}.")] == []
    assert result.missing and not any(name.startswith(f"{part}.") for name in result.missing)
    assert all(name.startswith((f"{part}.fc", f"{part}.classifier")) for name in result.unexpected)
    first, own = next(published.parameters()), next(detector.get_submodule(part).parameters())
    assert torch.equal(own, first)
    assert {name for name, parameter in detector.named_parameters() if not parameter.requires_grad} == {
        name for name, _ in detector.named_parameters() if name.startswith(f"{part}.")
    }


def test_a_classifiers_weights_become_the_backbone_of_a_segmenter():
    published = models.get_model("mobilenet_v3_large", num_classes=7)
    pixels = DataSpec(("image",), "mask", {"pixel_classes": 3}, {"image": (3, 64, 64)}, ("a", "b", "c"))
    segmenter = torchvision_segmentation.build(pixels, architecture="lraspp_mobilenet_v3_large")
    result = finetune.build(segmenter, pixels, Given(dict(published.state_dict())), "x")
    assert (result.body, result.frozen) == ("backbone", ())
    assert [name for name in result.missing if name.startswith("backbone.")] == []
    assert torch.equal(segmenter.backbone["0"][0].weight, published.features[0][0].weight)


def test_a_source_that_fits_nothing_is_refused_with_examples():
    tensors = {"stage.0.0.conv1.weight": torch.zeros(4, 4, 3, 3), "fc.weight": torch.zeros(10, 16)}
    with pytest.raises(DlrunError) as caught:
        finetune.build(small(OLD), OLD, Given(tensors), "other.safetensors")
    assert "none of the 2 tensors of other.safetensors fits one of the model's 44" in caught.value.message
    assert "the weights have e.g. stage.0.0.conv1.weight 4x4x3x3, fc.weight 10x16" in caught.value.message
    assert "the model has e.g. stem.0.weight 4x3x3x3" in caught.value.message
    assert "stage.0.0.conv1.weight is nearest to stages.0.0.conv1.weight" in caught.value.hint


def test_a_model_that_is_nothing_but_a_head_has_nothing_to_transfer():
    source = Given(dict(logistic.build(OLD).state_dict()), OLD.labels)
    new = spec(3, 16, 16, classes=3)
    with pytest.raises(DlrunError, match="the model is nothing but a head"):
        finetune.build(logistic.build(new), new, source, "x")


# ---------------------------------------------------------------- heads and parts


@pytest.mark.parametrize(("architecture", "head", "num_parts"), [
    ("resnet18", "fc", 9), ("alexnet", "classifier.6", 7), ("vgg11", "classifier.6", 10),
    ("vgg11_bn", "classifier.6", 10), ("efficientnet_b0", "classifier.1", 18), ("vit_b_16", "heads.head", 13),
    ("mobilenet_v3_small", "classifier.3", 14), ("swin_t", "head", 16), ("densenet121", "classifier", 8),
    ("squeezenet1_1", "classifier.1", 9), ("convnext_tiny", "classifier.2", 22), ("googlenet", "fc", 12),
    ("regnet_y_400mf", "fc", 17),
])  # fmt: skip
def test_heads_and_parts_of_torchvisions_models(architecture, head, num_parts):
    with torch.device("cpu" if architecture.startswith("regnet") else "meta"):
        model = front.build(spec(3, 224, 224, classes=5), architecture=architecture)
    assert _layout.find_head(model) == head
    parts = _layout.body_parts(model, head)
    assert len(parts) == num_parts
    covered = {name for name, _ in model.named_parameters() for part in parts for prefix in part
               if _layout.inside(name, prefix)}  # fmt: skip
    assert covered == {name for name, _ in model.named_parameters() if not _layout.inside(name, head)}


def test_parts_of_the_own_models_go_from_input_to_output():
    blocks = [[f"stages.{stage}.{block}"] for stage in range(3) for block in range(2)]
    assert _layout.body_parts(resnet.build(OLD, depth=14), "head") == [["stem.0", "stem.1"], *blocks]
    perceptron = mlp.build(spec(4), widths=[8, 8, 8])
    assert _layout.body_parts(perceptron, "head") == [["hidden.0"], ["hidden.1"], ["hidden.2"]]


def test_a_model_without_a_linear_layer_has_no_head():
    with pytest.raises(DlrunError, match="Conv2d has no linear layer that could be its head"):
        _layout.find_head(nn.Conv2d(1, 1, 1))


# ---------------------------------------------------------------- feature extraction


def test_feature_extraction_trains_the_head_alone():
    new = spec(3, 16, 16, classes=4)
    model = small(new)
    result = feature_extraction.build(model, new, trained(), "x")
    assert result.frozen == ("stem", "stages")
    assert result.head == "head"
    assert result.cache_features
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    assert not model.stages.training
    assert model.head.training


def test_the_layers_beside_a_nested_head_are_frozen_one_by_one():
    new = spec(3, 32, 32, classes=4)
    model = front.build(new, architecture="mobilenet_v3_small")
    result = feature_extraction.build(model, new, Given(dict(model.state_dict())), "x", cache_features=False)
    assert result.frozen == ("features", "avgpool", "classifier.0", "classifier.1", "classifier.2")
    assert not result.cache_features


def test_the_features_before_a_linear_head_give_the_logits():
    for model in (small(OLD), cnn.build(OLD), mlp.build(OLD, depth=1)):
        result = feature_extraction.build(model, OLD, Given(dict(model.state_dict())), "x")
        seen = []
        handle = model.head.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        logits = model.eval()(torch.randn(3, 3, 16, 16))
        handle.remove()
        assert result.cache_features
        assert torch.equal(model.head(seen[0]), logits)


def test_features_before_a_convolution_head_are_not_cached():
    new = spec(3, 32, 32, classes=4)
    model = front.build(new, architecture="squeezenet1_1")
    result = feature_extraction.build(model, new, Given(dict(model.state_dict())), "x")
    assert (result.head, result.cache_features) == ("classifier.1", False)


def test_a_head_without_a_body_cannot_be_extracted_from():
    model = logistic.build(OLD)
    with pytest.raises(DlrunError, match="there is no body to freeze"):
        feature_extraction.build(model, OLD, Given(dict(model.state_dict())), "x")


# ---------------------------------------------------------------- fine-tuning


def test_finetune_alone_trains_everything_alike_from_the_start():
    result = finetune.build(small(OLD), OLD, trained(), "x")
    assert (result.frozen, result.lr_scales, result.unfreeze_at) == ((), {}, {})


def test_layer_decay_slows_every_part_further_from_the_head():
    model = mlp.build(spec(4), widths=[8, 8, 8])
    result = finetune.build(model, spec(4), Given(dict(model.state_dict())), "x", layer_decay=0.5, head_lr_scale=3.0)
    assert result.lr_scales == {"head": 3.0, "hidden.2": 0.5, "hidden.1": 0.25, "hidden.0": 0.125}


def test_gradual_unfreezing_lets_parts_join_from_the_head_down():
    model = mlp.build(spec(4), widths=[8, 8, 8])
    result = finetune.build(model, spec(4), Given(dict(model.state_dict())), "x", gradual_unfreezing=0.6)
    assert result.unfreeze_at == pytest.approx({"hidden.2": 0.2, "hidden.1": 0.4, "hidden.0": 0.6})


@pytest.mark.parametrize(("settings", "message"), [
    ({"layer_decay": 2.6}, "transfer.layer_decay: expected a number in (0, 1], got 2.6"),
    ({"head_lr_scale": 0.0}, "transfer.head_lr_scale: expected a number above 0, got 0.0"),
    ({"gradual_unfreezing": 1.5}, "transfer.gradual_unfreezing: expected a fraction of the run in [0, 1], got 1.5"),
])  # fmt: skip
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(DlrunError) as caught:
        finetune.build(small(OLD), OLD, trained(), "x", **settings)
    assert str(caught.value) == message


# ---------------------------------------------------------------- local sources


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def assert_reads(source: Path) -> None:
    read = _sources.read(str(source))
    assert read.origin == str(source)
    assert read.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(read.tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "pytorch_model.bin"])
def test_a_folder_is_read_by_the_file_it_holds(tmp_path, name):
    (save_file if name.endswith("safetensors") else torch.save)(TENSORS, tmp_path / name)
    assert_reads(tmp_path)
    assert_reads(tmp_path / name)


def test_numbered_parts_of_a_folder_are_put_together(tmp_path):
    for number, name in enumerate(TENSORS, start=1):
        save_file({name: TENSORS[name]}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    assert_reads(tmp_path)


@pytest.mark.parametrize("wrapping", [
    lambda tensors: {"state_dict": tensors, "epoch": 3},
    lambda tensors: {"model": {"state_dict": tensors}, "arch": "resnet"},
    lambda tensors: {**tensors, "step": 3},
])  # fmt: skip
def test_a_trainers_file_is_unwrapped(tmp_path, wrapping):
    path = tmp_path / "checkpoint.pth"
    torch.save(wrapping(TENSORS), path)
    assert_reads(path)


class Payload:
    """Would make a folder if it were unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(DlrunError) as caught:
        _sources.read(str(tmp_path / "evil.pt"))
    assert "evil.pt holds more than tensors (posix.mkdir): code, which is never run" in caught.value.message
    assert caught.value.code == Exit.DATA
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Payload(tmp_path / "ran")}))
    with pytest.raises(DlrunError, match=r"plain\.pt"):
        _sources.read(str(tmp_path / "plain.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["cut.safetensors", "cut.pt", "words.pt", "words.safetensors", "empty.pth", "page.bin"]
)
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    if name.startswith("cut"):
        (save_file if name.endswith("safetensors") else torch.save)(TENSORS, path)
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.write_bytes({"w": b"hello, these are words", "e": b"", "p": b"<html>404</html>"}[name[0]])
    with pytest.raises(DlrunError) as caught:
        _sources.read(str(path))
    assert caught.value.message.startswith(f"transfer.from: {path} cannot be read: ")
    assert caught.value.code == Exit.DATA
    assert "weights_only" not in str(caught.value)


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DlrunError, match=r"list\.pt holds no tensors by name"):
        _sources.read(str(tmp_path / "list.pt"))


def test_a_missing_file_gets_the_nearest_name(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    with pytest.raises(DlrunError) as caught:
        _sources.read(str(tmp_path / "weigths.safetensors"))
    assert caught.value.hint == "did you mean weights.safetensors?"


def test_an_unknown_kind_of_source_says_what_there_is(tmp_path):
    with pytest.raises(DlrunError, match="no file or folder 'hf://x/y'") as caught:
        _sources.read("hf://x/y")
    assert "torchvision:NAME[/WEIGHTS], hub:ORG/NAME[@REVISION], or run:<id>" in caught.value.hint
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(DlrunError, match=r"notes\.txt is of no known kind"):
        _sources.read(str(tmp_path / "notes.txt"))


def test_a_runs_folder_is_pointed_to_as_a_run(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DlrunError, match="holds no weights") as caught:
        _sources.read(str(tmp_path))
    assert caught.value.hint == f"transfer.from=run:{tmp_path}"


# ---------------------------------------------------------------- published sources, without a network


@pytest.fixture
def torch_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch.hub, from which nothing can be fetched."""

    def refuse(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_torchvisions_weights_come_with_their_classes(torch_cache):
    torch.save(TENSORS, torch_cache / "resnet18-f37072fd.pth")
    for source in ("torchvision:resnet18", "torchvision:resnet18/IMAGENET1K_V1"):
        read = _sources.read(source)
        assert read.origin == "torchvision:resnet18/IMAGENET1K_V1"
        assert read.tensors.keys() == TENSORS.keys()
        assert (len(read.labels), read.labels[0]) == (1000, "tench")
    assert _sources.read("torchvision:", architecture="resnet18").origin == "torchvision:resnet18/IMAGENET1K_V1"


def test_old_names_of_densenets_weights_become_those_of_the_model(torch_cache):
    old = {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(1), "features.norm0.weight": torch.ones(1)}
    torch.save(old, torch_cache / "densenet121-a639ec97.pth")
    names = _sources.read("torchvision:densenet121").tensors.keys()
    assert names == {"features.denseblock1.denselayer1.norm1.weight", "features.norm0.weight"}


@pytest.mark.parametrize(("source", "message", "hint"), [
    ("torchvision:resnet18", "torchvision:resnet18/IMAGENET1K_V1 could not be fetched: <urlopen error no network>",
     "without a network: fetch https://download.pytorch.org/models/resnet18-f37072fd.pth elsewhere"),
    ("torchvision:resnet81", "torchvision has no 'resnet81'", "did you mean resnet18?"),
    ("torchvision:resnet18/V2", "resnet18 has no weights 'V2'", "known: IMAGENET1K_V1"),
    ("hub:bert", "'hub:bert' names no repository", "hub:ORG/NAME or hub:ORG/NAME@REVISION"),
])  # fmt: skip
def test_published_weights_that_cannot_be_had_say_why(torch_cache, source, message, hint):
    with pytest.raises(DlrunError) as caught:
        _sources.read(source)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hugging Face hub, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_repository_is_read_from_the_cache(hub_cache, name):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub_cache / "models--org--name"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (save_file if name.endswith("safetensors") else torch.save)(TENSORS, repository / "snapshots" / commit / name)
    for source in ("hub:org/name", f"hub:org/name@{commit}"):
        assert _sources.read(source).tensors.keys() == TENSORS.keys()


def test_a_hub_repository_without_a_network_is_a_sentence(hub_cache):
    with pytest.raises(DlrunError) as caught:
        _sources.read("hub:org/name")
    assert caught.value.message.startswith("transfer.from: hub:org/name could not be fetched: ")
    assert "https://huggingface.co/org/name" in caught.value.hint
    assert caught.value.code == Exit.DATA

"""Every choice of a model as one graph, which says what the model says, at other sizes than its own example too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from dlrun import build, exporting
from dlrun._exporting_agreement import agreement
from dlrun.config import conf_folders, convert
from dlrun.config.compose import compose
from dlrun.contracts import Batch, Dataset, DataSpec
from dlrun.errors import DlrunError
from dlrun.registry import Registry
from dlrun.training.features import AsStored

REGISTRY, CONF = Registry(), conf_folders.packaged_conf()
NEEDED = {"torchvision": ["model.architecture=squeezenet1_1"]}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
}  # fmt: skip
SMALL = {  # of the published sizes only the wiring matters
    "bert": BERT, "roberta": BERT, "transformers": BERT, "bart": BART, "marian": BART,
    "llama": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
              "intermediate_size": 16},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
}  # fmt: skip
FORMS = ("pixels", "boxes", "classes of a picture", "classes of a text", "next tokens", "sequences", "sound", "table")
OWN_FAST = ("logistic", "mlp", "textcnn", "gpt_llama")


def spec_of(form: str, choice: str) -> DataSpec:
    """Data that a model of this form is made for."""
    side = 224 if choice in ("vit_b_16", "swin_t", "alexnet") or choice.startswith("vgg") else 64
    side = 300 if choice == "ssd300" else side
    picture = {"channels": 3, "height": side, "width": side}
    shapes = {"image": (3, side, side)}
    tokens = {"vocabulary": 30, "length": 16}
    return {
        "pixels": DataSpec(("image",), "mask", {"pixel_classes": 3, **picture}, shapes),
        "boxes": DataSpec(("image",), "boxes", {"box_classes": 2, "boxes": 3, **picture}, shapes),
        "classes of a picture": DataSpec(("image",), "label", {"classes": 3, **picture}, shapes),
        "classes of a text": DataSpec(("tokens", "lengths"), "label", {"classes": 3, **tokens}, {}),
        "next tokens": DataSpec(("tokens",), "targets", {"vocabulary": 30, "context": 16}, {"tokens": (16,)}),
        "sequences": DataSpec(
            ("source", "source_lengths", "tokens"), "targets",
            {**tokens, "target_vocabulary": 30, "target_length": 16}, {}, assets={"shared_vocabulary": True},
        ),
        "sound": DataSpec(
            ("spectrogram", "frames"), "label", {"classes": 3, "features": 8, "length": 12},
            {"spectrogram": (12, 8), "frames": ()},
        ),
        "table": DataSpec(
            ("numbers", "categories"), "label", {"classes": 3, "numbers": 4, "categories": 2},
            {"numbers": (4,), "categories": (2,)}, assets={"kind": "tabular", "cardinalities": [5, 7]},
        ),
    }[form]  # fmt: skip


def rows_of(spec: DataSpec) -> Batch:
    """Seven examples. Lengths differ from row to row, and the longest comes first."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 7, 3, 12, 1, 5, 9])

    def tokens(lengths_B: Tensor) -> Tensor:
        made = torch.randint(1, 30, (7, 12), generator=random)
        return made.masked_fill(torch.arange(12) >= lengths_B[:, None], 0)

    fields = {
        "image": lambda: torch.randn(7, *spec.shapes["image"], generator=random),
        "tokens": lambda: tokens(lengths),
        "source": lambda: tokens(lengths),
        "lengths": lambda: lengths,
        "source_lengths": lambda: lengths,
        "frames": lambda: lengths,
        "spectrogram": lambda: torch.randn(7, 12, 8, generator=random),
        "numbers": lambda: torch.randn(7, 4, generator=random),
        "categories": lambda: torch.randint(0, 5, (7, 2), generator=random),
    }
    return {"id": torch.arange(7)} | {name: fields[name]() for name in spec.inputs}


class Rows:
    in_memory = True

    def __init__(self, fields: Batch) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return len(self.fields["id"])

    def gather(self, rows_B: Tensor) -> Batch:
        return {name: field[rows_B] for name, field in self.fields.items()}


def source_of(choice: str) -> exporting.Source:
    """A model on the first data that it takes."""
    config = convert.to_config(compose([f"model={choice}", *NEEDED.get(choice, [])]).values, REGISTRY)
    if choice in SMALL:
        options = config.model.options | {"options": SMALL[choice]}
        config = replace(config, model=replace(config.model, options=options))
    for form in FORMS:
        spec = spec_of(form, choice)
        try:
            model = build.model(config.model, REGISTRY, spec, seed=0).eval().requires_grad_(False)
        except DlrunError:
            continue
        return around(model, Dataset(spec, {"valid": Rows(rows_of(spec))}, AsStored()))
    pytest.skip(f"no data of this test suits {choice}")


def around(model: torch.nn.Module, data: Dataset) -> exporting.Source:
    return exporting.Source(model, data.inputs, data.spec, None, 4, lambda: data)  # type: ignore[arg-type]


CHOICES = [name for name in conf_folders.choices("model") if name != "pretrained"]


def marked(names: list[str]) -> list:
    return [name if name in OWN_FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_the_fast_ones_are_choices():
    assert set(OWN_FAST) <= set(CHOICES)


@pytest.mark.parametrize("choice", marked(CHOICES))
def test_a_model_as_a_graph_is_the_model_at_other_sizes_too(choice):
    source = source_of(choice)
    traced = exporting.traced(source)
    module = traced.program.module()
    agreed = agreement(traced, lambda given: module(**given))
    assert agreed.holds, agreed
    assert all(fact.shape[0] == "batch" for fact in traced.inputs)
    if choice not in ("center",):
        assert all("batch" in fact.shape for fact in traced.outputs)
    if "tokens" in source.spec.inputs:
        tokens = next(fact for fact in traced.inputs if fact.name == "tokens")
        assert isinstance(tokens.shape[1], str), "any length"


ONNX = [
    name
    for name in CHOICES
    if yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["name"] != "torchvision"
    or name in ("resnet18", "mobilenet_v3_small")
]


@pytest.mark.parametrize("choice", [name if name == "mlp" else pytest.param(name, marks=pytest.mark.slow)
                                    for name in ONNX])  # fmt: skip
def test_a_model_as_an_onnx_file_is_the_model_at_other_sizes_too(choice, tmp_path: Path):
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    from dlrun import _exporting_onnx

    traced = exporting.traced(source_of(choice))
    assert _exporting_onnx.write(traced, tmp_path, ("a", "b"))["opset"] >= 18
    agreed = agreement(traced, _exporting_onnx.runner(tmp_path))
    assert agreed.holds, agreed

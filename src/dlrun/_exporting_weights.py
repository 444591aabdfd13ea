"""What goes out without a graph: weights and their description, a folder of transformers, an MLflow model."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun import runs, serving
from dlrun.compression import _quantized
from dlrun.config import convert
from dlrun.contracts import Publishable
from dlrun.errors import DlrunError
from dlrun.exporting import Source, quietly
from dlrun.predictor import TrainedModel
from dlrun.tokens import FILE, PADDING, TARGET_FILE
from dlrun.training import checkpoint

WEIGHTS = "model.safetensors"
HEAD = "head.safetensors"
_ROLES = {  # what AutoTokenizer calls the special tokens of our vocabularies and of the usual ones
    "<pad>": "pad_token", "[PAD]": "pad_token", "<unk>": "unk_token", "[UNK]": "unk_token", "[CLS]": "cls_token",
    "[SEP]": "sep_token", "[MASK]": "mask_token", "<mask>": "mask_token", "<s>": "bos_token", "</s>": "eos_token",
    "<|endoftext|>": "eos_token",
}  # fmt: skip
_RUN_FILES = ("run.json", "config.yaml", "config.sha256", "spec.json", "environment.json", "plan.json", "result.json")


# ---------------------------------------------------------------- safetensors


def write_safetensors(predictor: TrainedModel, folder: Path) -> None:
    """model.safetensors, config.json (model and task, with all settings), spec.json with its files, labels.json."""
    _save(checkpoint.model_tensors(predictor.model), folder / WEIGHTS)
    plain = convert.to_plain(predictor.config)
    runs.write_json(folder / "config.json", {"dlrun": {name: plain[name] for name in ("model", "task")}})
    predictor.spec.save(folder)
    if predictor.spec.labels:
        runs.write_json(folder / "labels.json", list(predictor.spec.labels))
    if (predictor.run.folder / "plan.json").is_file():
        shutil.copyfile(predictor.run.folder / "plan.json", folder / "plan.json")


def read_safetensors(predictor: TrainedModel, folder: Path) -> nn.Module:
    """The predictor's architecture with the weights of the folder, and nothing else of it."""
    from safetensors.torch import load_file

    model = _emptied(predictor.model)
    checkpoint.load_model(model, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
    return model


def _emptied(model: nn.Module) -> nn.Module:
    """A copy with zeros for weights: what a file does not bring is seen to be missing."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in checkpoint.model_tensors(model).values():
            tensor.zero_()
    return model


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path, {"format": "pt"})


# ---------------------------------------------------------------- transformers


def write_transformers(source: Source, folder: Path) -> dict[str, Any]:
    """What `from_pretrained` loads: config.json, model.safetensors, the tokenizer; and a head of ours, if there is one.

    Weights in codebooks or few bits go out as floats. Returns {"auto_class": the class of the library that loads it}.
    Raises: DlrunError for another architecture, and for one that was compressed into another shape.
    """
    model = source.model
    if not isinstance(model, Publishable):
        raise DlrunError(
            f"export: {type(model).__name__} is no architecture of the transformers library",
            "--format safetensors, onnx or torch",
        )
    written: Any = _quantized.written_out(model)
    network, head = written.published()
    _require_the_librarys(network)
    whole = _with_classes(source, network, head)
    published: Any = whole if whole is not None else network
    if source.spec.labels and whole is not None:
        published.config.id2label = dict(enumerate(source.spec.labels))
        published.config.label2id = {label: index for index, label in enumerate(source.spec.labels)}
    with _library_quiet():
        published.save_pretrained(folder)
    if head and whole is None:
        _save(head, folder / HEAD)
    _write_tokenizer(source, folder)
    runs.write_json(folder / "spec.json", source.spec.to_json())
    return {"auto_class": _auto_class(published), "head": HEAD if head and whole is None else None}


def _require_the_librarys(network: Any) -> None:
    """Raises: DlrunError unless the library makes of the config a model whose tensors have these names and shapes."""
    kind, own = type(network), {}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        own["add_pooling_layer"] = getattr(network, "pooler", None) is not None
    with torch.device("meta"):
        wanted = kind(copy.deepcopy(network.config), **own)
    if _shapes(network) != _shapes(wanted):
        raise DlrunError(
            f"export: this {kind.__name__} was compressed into a shape that transformers has no class for",
            "--format onnx or safetensors",
        )


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def _library_quiet() -> Generator[None]:
    """Without transformers' bars."""
    from transformers.utils import logging

    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quietly():
            yield
    finally:
        if shows:
            logging.enable_progress_bar()


def _with_classes(source: Source, network: Any, head: Mapping[str, Tensor]) -> nn.Module | None:
    """The library's own model of classes, where with our weights it says what ours says; else None.

    Tried only where both read the first token: the library's heads differ from architecture to architecture.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as known

    if not head or getattr(source.model, "pooling", "") != "cls" or type(network.config) not in known:
        return None
    from transformers import AutoModelForSequenceClassification

    config = type(network.config)(**(network.config.to_dict() | {"num_labels": len(head["head.bias"])}))
    whole: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    classifier = getattr(whole, "classifier", None)
    if not isinstance(classifier, nn.Linear) or classifier.weight.shape != head["head.weight"].shape:
        return None
    left = whole.base_model.load_state_dict(network.state_dict(), strict=False)
    if left.missing_keys or left.unexpected_keys:
        return None
    classifier.load_state_dict({name.removeprefix("head."): tensor for name, tensor in head.items()})
    batch = source.inputs.prepare(source.rows(2))
    inputs = [batch[name] for name in source.spec.inputs]
    with torch.no_grad():
        wanted, said = source.model(*inputs), _asked(whole, inputs)
    return whole if torch.allclose(wanted, said, atol=1e-4) else None


def _asked(whole: Any, inputs: list[Tensor]) -> Tensor:
    """A library's model of classes, called as ours is."""
    from dlrun.models._transformers_networks import is_real

    is_real_BT = is_real(inputs[0], inputs[1] if len(inputs) > 1 else None)
    padding = whole.config.pad_token_id or PADDING
    return whole(input_ids=inputs[0].masked_fill(~is_real_BT, padding), attention_mask=is_real_BT.long()).logits


def _auto_class(network: nn.Module) -> str:
    name = type(network).__name__
    for ending in ("ForSequenceClassification", "ForMaskedLM", "ForConditionalGeneration"):
        if name.endswith(ending):
            return {"ForConditionalGeneration": "AutoModelForSeq2SeqLM"}.get(ending, f"AutoModel{ending}")
    return "AutoModelForCausalLM" if name.endswith(("ForCausalLM", "LMHeadModel")) else _seq2seq_or_body(name)


def _seq2seq_or_body(name: str) -> str:
    return "AutoModelForSeq2SeqLM" if name.endswith("MTModel") else "AutoModel"


def _write_tokenizer(source: Source, folder: Path) -> None:
    """tokenizer.json, and the description with which AutoTokenizer reads it."""
    if FILE not in source.spec.files:
        return
    (folder / FILE).write_bytes(source.spec.files[FILE])
    if TARGET_FILE in source.spec.files:
        (folder / TARGET_FILE).write_bytes(source.spec.files[TARGET_FILE])
    added = json.loads(source.spec.files[FILE]).get("added_tokens") or []
    special = {_ROLES[token["content"]]: token["content"] for token in added if token["content"] in _ROLES}
    runs.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def read_transformers(source: Source, folder: Path, facts: Mapping[str, Any]) -> nn.Module:
    """The folder read back by the library, called as the run's model is called."""
    import transformers
    from safetensors.torch import load_file

    with _library_quiet():
        read: Any = getattr(transformers, facts["auto_class"]).from_pretrained(folder, dtype=torch.float32).eval()
    if facts["auto_class"] == "AutoModelForSequenceClassification":
        return _Classes(read)
    model: Any = _emptied(_quantized.written_out(source.model))
    network, _ = model.published()
    network.load_state_dict(read.state_dict(), strict=False)
    if facts["head"]:
        model.load_state_dict(load_file(folder / HEAD), strict=False)
    return model


class _Classes(nn.Module):
    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, *inputs: Tensor) -> Tensor:
        return _asked(self.whole, list(inputs))


# ---------------------------------------------------------------- MLflow


def write_mlflow(predictor: TrainedModel, folder: Path) -> None:
    """The run's folder with what a prediction needs and nothing else: MLmodel, config, spec, best weights."""
    run = predictor.run
    for name in _RUN_FILES:
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, folder / name)
    for name in ("assets", "components"):
        if (run.folder / name).is_dir():
            shutil.copytree(run.folder / name, folder / name)
    found = run.checkpoints / f"{predictor.step:08d}"
    contents = checkpoint.Contents({"weights": checkpoint.read_tensors(found, "weights")}, checkpoint.read_state(found))
    checkpoint.save(folder / "checkpoints", predictor.step, contents)
    checkpoint.point(folder / "checkpoints", "best", predictor.step)
    serving.write_mlmodel(folder, run_id=run.id)

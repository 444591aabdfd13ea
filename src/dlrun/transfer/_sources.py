"""Weights from outside: local files and folders, torchvision's published weights, Hugging Face repositories."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun import pretrained
from dlrun.contracts import Weights
from dlrun.errors import DlrunError, Exit, did_you_mean

_FORMS = "a file or folder, package:NAME, torchvision:NAME[/WEIGHTS], hub:ORG/NAME[@REVISION], or run:<id>"
_CONFIG = "config.json"
_IN_FOLDERS = ("model.safetensors", "weights.safetensors", "pytorch_model.bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # keys under which trainers put the tensors
_PICKLED = (".pt", ".pth", ".bin")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # published before modules' names had no dots


def read(source: str, architecture: str | None = None) -> Weights:
    """The tensors a source names, on the CPU.

    architecture: the torchvision model meant by `torchvision` alone.
    Raises: DlrunError; with code DATA if a file is damaged, holds code, or cannot be fetched.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "torchvision":
        return _torchvision(rest or architecture or "")
    if scheme == "hub":
        return _hub(rest)
    if scheme == "package":
        return _weights_of(pretrained.packaged(rest, "transfer.from"), source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _weights_of(path, str(path))
    if path.is_file():
        return Weights(_read_file(path), str(path))
    raise DlrunError(f"transfer.from: no file or folder '{source}'", _nearest_source(source, path))


# ---------------------------------------------------------------- local


def _nearest_source(source: str, path: Path) -> str:
    neighbours = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, neighbours, otherwise=f"expected {_FORMS}")
    return hint if neighbours else f"expected {_FORMS}"


def _weights_of(folder: Path, origin: str) -> Weights:
    """The weights of a folder, and the architecture its config.json names, if there is one."""
    try:
        described = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError):
        described = None  # weights alone are enough
    known = described.get("model_type", "") if isinstance(described, dict) else ""
    return Weights(_read_folder(folder), origin, architecture=known if isinstance(known, str) else "")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights file of a folder, or all its numbered safetensors parts."""
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return _read_file(folder / name)
    parts = sorted(folder.glob("model-*-of-*.safetensors"))
    if not parts:
        run = (folder / "run.json").is_file() or (folder / "artifacts" / "run.json").is_file()
        hint = f"transfer.from=run:{folder}" if run else f"it needs one of {', '.join(_IN_FOLDERS)}"
        raise DlrunError(f"transfer.from: {folder} holds no weights", hint)
    return {name: tensor for part in parts for name, tensor in _read_file(part).items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in _PICKLED:
        tensors = _unwrapped(_read_torch(path))
    else:
        raise DlrunError(f"transfer.from: {path} is of no known kind", "expected .safetensors, .pt, .pth or .bin")
    if not tensors:
        raise DlrunError(f"transfer.from: {path} holds no tensors by name", code=Exit.DATA)
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    """A file of torch.save, its tensors and plain values only: nothing in it is run."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's own thoughts on old pickles
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise _damaged(path, "it is no file of torch.save") from error
        raise DlrunError(
            f"transfer.from: {path} holds more than tensors ({named[1]}): code, which is never run",
            "save its state_dict alone, best as .safetensors",
            Exit.DATA,
        ) from error
    except (RuntimeError, OSError) as error:
        raise _damaged(path, error) from error
    except (EOFError, LookupError, ValueError, AttributeError, TypeError) as error:
        raise _damaged(path, "it is no file of torch.save") from error


def _damaged(path: Path, error: Exception | str) -> DlrunError:
    reason = (str(error).splitlines() or ["it is empty"])[0]
    return DlrunError(f"transfer.from: {path} cannot be read: {reason}", "fetch or copy the file again", Exit.DATA)


def _unwrapped(stored: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, also where a trainer put it under a key of its own."""
    while isinstance(stored, Mapping):
        inner = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
        stored = inner
    return {}


# ---------------------------------------------------------------- published


def _torchvision(wanted: str) -> Weights:
    """`resnet18`, or `resnet18/IMAGENET1K_V1`: torchvision's published weights, checked against their hash."""
    from torchvision import models

    architecture, _, version = wanted.partition("/")
    known = models.list_models()
    if architecture not in known:
        raise DlrunError(f"transfer.from: torchvision has no '{architecture}'", did_you_mean(architecture, known))
    published = models.get_model_weights(architecture)
    names = [weights.name for weights in published]
    if version and version not in names:
        raise DlrunError(f"transfer.from: {architecture} has no weights '{version}'", did_you_mean(version, names))
    if not names:
        raise DlrunError(f"transfer.from: torchvision publishes no weights for {architecture}")
    chosen = published[version or "DEFAULT"]
    try:
        tensors = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        origin = f"torchvision:{architecture}/{chosen.name}"
        raise pretrained.not_fetched("transfer.from", origin, chosen.url, error) from error
    tensors = {_OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in tensors.items()}
    return Weights(tensors, f"torchvision:{architecture}/{chosen.name}", tuple(chosen.meta.get("categories") or ()))


def _hub(wanted: str) -> Weights:
    """`org/name` or `org/name@revision`: safetensors of a Hugging Face repository, else its pytorch_model.bin."""
    for pattern in ("*.safetensors", "pytorch_model.bin"):
        folder = pretrained.fetched(wanted, "transfer.from", [pattern, _CONFIG])
        if any(folder.glob(pattern)):
            return _weights_of(folder, f"hub:{wanted}")
    raise DlrunError(f"transfer.from: hub:{wanted} holds no safetensors and no pytorch_model.bin")

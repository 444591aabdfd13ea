"""Checkpoints that prove themselves: written aside, digested, renamed; verified before anything is loaded.

checkpoints/00000120/{weights.safetensors, raw.safetensors (with EMA), optimizer.safetensors, state.json, MANIFEST.json}
checkpoints/best -> 00000120     checkpoints/last -> 00000120
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dlrun.errors import DlrunError, Exit
from dlrun.machine import free_disk_bytes
from dlrun.runs import read_json, sync_folder, write_json

FORMAT = 1
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: named tensor files and one JSON state."""

    tensors: dict[str, dict[str, Tensor]]  # file stem -> name -> tensor
    state: dict[str, Any]


# ---------------------------------------------------------------- writing


def save(folder: Path, step: int, contents: Contents) -> Path:
    """Write a checkpoint so that a crash at any moment leaves it whole or absent.

    Raises: DlrunError with code DISK; nothing but the new temporary folder is touched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, aside = folder / f"{step:08d}", folder / f".tmp-{step}-{os.getpid()}"
    try:
        _check_space(folder, contents)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for stem, tensors in contents.tensors.items():
            save_file(
                {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
                aside / f"{stem}.safetensors",
            )
            _sync_file(aside / f"{stem}.safetensors")
        write_json(aside / "state.json", contents.state)
        write_json(aside / MANIFEST, {"format": FORMAT, "step": step, "files": _digests(aside)})
        sync_folder(aside)
        shutil.rmtree(final, ignore_errors=True)  # only ever a damaged one, or the same step
        os.replace(aside, final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise DlrunError(
            f"{final}: the checkpoint cannot be written: {reason}",
            "free some space, or choose another folder: --runs DIR",
            Exit.DISK,
        ) from error
    except DlrunError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    point(folder, "last", step)
    return final


def _check_space(folder: Path, contents: Contents) -> None:
    tensors = sum(t.numel() * t.element_size() for tensors in contents.tensors.values() for t in tensors.values())
    need, free = 1.1 * tensors + 65_536, free_disk_bytes(folder)
    if free < need:
        raise DlrunError(
            f"{folder}: a checkpoint needs {need / 1e6:.1f} MB and {free / 1e6:.1f} MB are free",
            "free some space, or choose another folder: --runs DIR",
            Exit.DISK,
        )


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def point(folder: Path, name: str, step: int) -> None:
    """Let `best` or `last` point to a step's folder, atomically."""
    link = folder / f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(f"{step:08d}")
    os.replace(link, folder / name)
    sync_folder(folder)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that `best` and `last` point to."""
    pointed = {_target(folder, name) for name in ("best", "last")}
    for path in _steps(folder)[keep:]:
        if path.name not in pointed:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------- reading


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), reverse=True) if folder.is_dir() else []


def _target(folder: Path, name: str) -> str | None:
    """The step folder that `best` or `last` stands for; in a copied run the link may have become a folder."""
    link = folder / name
    if link.is_symlink():
        return os.readlink(link)
    return f"{read_json(link / MANIFEST)['step']:08d}" if (link / MANIFEST).exists() else None


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints of a run, in ascending order; damaged ones too."""
    return sorted(int(path.name) for path in _steps(folder))


def damage(path: Path) -> str | None:
    """The name of the first file of a checkpoint that is not what its manifest says, or None."""
    try:
        manifest = read_json(path / MANIFEST)
        files = manifest["files"]
        if manifest["format"] > FORMAT:
            return f"{MANIFEST} (made by a newer dlrun)"
        for name, stated in files.items():
            file = path / Path(name).name
            if not file.is_file() or file.stat().st_size != stated["bytes"] or _sha256(file) != stated["sha256"]:
                return name
    except (DlrunError, KeyError, TypeError, AttributeError, OSError):
        return MANIFEST
    return None


def newest_valid(folder: Path, *, first: str | None = None) -> tuple[Path | None, list[str]]:
    """The checkpoint to load, and one line for each damaged one that was passed over.

    first: a pointer ("best") to be tried before the newest. None if there is no checkpoint at all.
    Raises: DlrunError with code DATA if there are some and none is valid.
    """
    candidates = _steps(folder)
    target = _target(folder, first) if first else None
    candidates.sort(key=lambda path: path.name == target, reverse=True)
    warnings = []
    for path in candidates:
        bad = damage(path)
        if bad is None:
            return path, warnings
        warnings.append(f"checkpoint {path.name} is damaged: {path / bad}")
    if candidates:
        raise DlrunError(
            f"{warnings[0]}; no valid checkpoint is left of {len(candidates)}",
            "restore the folder from a copy, or train anew",
            Exit.DATA,
        )
    return None, []


def read_tensors(path: Path, stem: str) -> dict[str, Tensor]:
    """One tensor file of a verified checkpoint."""
    try:
        return load_file(path / f"{stem}.safetensors")
    except (OSError, SafetensorError) as error:
        raise DlrunError(f"{path / stem}.safetensors: cannot be read: {error}", code=Exit.DATA) from error


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a verified checkpoint."""
    return read_json(path / "state.json")


# ---------------------------------------------------------------- tensors of a model and an optimizer


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor that goes by several names is kept once."""
    seen: dict[tuple, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        if identity not in seen:
            seen[identity] = name
            kept[name] = tensor
    return kept


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a model; memory format and ties stay the model's.

    Raises: DlrunError with code DATA naming what is missing, unexpected or of another shape.
    """
    expected = model_tensors(model)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    for what, names in (("misses", missing), ("has an unknown", extra), ("has another shape for", sorted(shapes))):
        if names:
            raise DlrunError(
                f"{where}: {what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
                "the run's model or its component files have changed",
                Exit.DATA,
            )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def optimizer_contents(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer state as flat tensors ("3.exp_avg") and plain values (everything else, and the groups)."""
    stored = optimizer.state_dict()
    tensors, values = {}, {}
    for index, state in stored["state"].items():
        for name, value in state.items():
            (tensors if isinstance(value, Tensor) else values)[f"{index}.{name}"] = value
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in stored["param_groups"]
    ]
    return tensors, {"values": values, "groups": groups}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """The inverse of `optimizer_contents`, for an optimizer built over the same groups."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *plain["values"].items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    current = optimizer.state_dict()["param_groups"]
    groups = [
        {**group, **{key: _like(group.get(key), value) for key, value in saved.items()}}
        for group, saved in zip(current, plain["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():  # back to the parameter's memory format, on which fast paths depend
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _like(current: Any, saved: Any) -> Any:
    return tuple(saved) if isinstance(current, tuple) else saved

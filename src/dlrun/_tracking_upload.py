"""The files of a run for a tracking server that keeps artifacts elsewhere: the small ones and the best weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_BYTES = 64_000_000  # of a file that is not the weights
_PRIVATE = ("tracking.json", "mirror.json")
_RESUMING_ONLY = ("optimizer", "raw")  # files of a checkpoint that no predictor reads


def is_local(artifact_uri: str) -> bool:
    """Whether an artifact URI is a folder of this machine."""
    return urlsplit(artifact_uri).scheme in ("", "file")


def is_folder(artifact_uri: str, folder: Path) -> bool:
    """Whether an artifact URI is this folder."""
    path = unquote(urlsplit(artifact_uri).path) if artifact_uri.startswith("file:") else artifact_uri
    return is_local(artifact_uri) and Path(path).resolve() == folder.resolve()


def upload(client: MlflowClient, run_id: str, run_dir: Path, done: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Send what is new or changed since `done` (name -> digest); yields each file's (name, digest) once it is there."""
    for name, digest in missing(run_dir, done):
        _send(client, run_id, run_dir / name, name)
        yield name, digest


def missing(run_dir: Path, done: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, digest) of the files that are new or changed since `done`."""
    run_dir = run_dir.resolve()
    checkpoint = best_checkpoint(run_dir)
    files = [(path, path.stat()) for path in _small_files(run_dir) + (_weights(checkpoint) if checkpoint else [])]
    found = [(path.relative_to(run_dir).as_posix(), f"{stat.st_size}-{stat.st_mtime_ns}") for path, stat in files]
    return [(name, digest) for name, digest in found if done.get(name) != digest]


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint folder that `best`, else `last`, points to."""
    for name in ("best", "last"):
        target = (run_dir / "checkpoints" / name).resolve()
        if (target / "MANIFEST.json").is_file():
            return run_dir.resolve() / "checkpoints" / target.name
    return None


def _small_files(run_dir: Path) -> list[Path]:
    found = []
    for path in sorted(run_dir.rglob("*")):
        parts = path.relative_to(run_dir).parts
        hidden = any(part.startswith(".") for part in parts) or path.suffix in (".lock", ".tmp")
        if path.is_file() and not hidden and parts[0] != "checkpoints" and parts[0] not in _PRIVATE:
            found.append(path)
    return [path for path in found if path.stat().st_size <= _MAX_BYTES]


def _weights(checkpoint: Path) -> list[Path]:
    """A checkpoint's files that prediction needs, its manifest last, as when it was written."""
    files = [path for path in sorted(checkpoint.iterdir()) if path.stem not in (*_RESUMING_ONLY, "MANIFEST")]
    return [*files, checkpoint / "MANIFEST.json"]


def _send(client: MlflowClient, run_id: str, path: Path, name: str) -> None:
    folder = str(PurePosixPath(name).parent)
    with tempfile.TemporaryDirectory() as scratch:
        if path.name == "MANIFEST.json":
            path = _shortened(path, Path(scratch))
        client.log_artifact(run_id, str(path), None if folder == "." else folder)


def _shortened(manifest: Path, scratch: Path) -> Path:
    """The manifest without the files that stay behind, so that the uploaded checkpoint proves itself too."""
    stored = json.loads(manifest.read_text())
    stored["files"] = {
        name: stated for name, stated in stored["files"].items() if Path(name).stem not in _RESUMING_ONLY
    }
    copy = scratch / manifest.name
    copy.write_text(json.dumps(stored, indent=2) + "\n")
    return copy

"""What MLflow should say of a run and how far it says it: the two files beside metrics.jsonl, and its rows.

tracking.json   what MLflow should say: store, experiment, name, params, tags, status    (written by the run)
metrics.jsonl   one object a line: {"step": 20, "time_ms": 1700000000000, "values": {"train/loss": 0.3}}
mirror.json     how far MLflow says it: {"offset": bytes of metrics.jsonl, "mlflow_run_id": …, …}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dlrun._tracking_upload import is_folder, missing
from dlrun.config.secrets import REDACTED, is_secret_name, redact
from dlrun.runs import write_json

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
_MAX_PARAM, _MAX_TAG, _MAX_KEY = 6000, 8000, 250  # characters (mlflow/utils/validation.py, 3.17)


@dataclass(frozen=True)
class Wanted:
    """The content of tracking.json. uri: as `locate` takes it, without credentials."""

    uri: str
    experiment: str
    run_id: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    parent_id: str | None
    created_ms: int
    status: Status = "RUNNING"
    end_ms: int | None = None


@dataclass(frozen=True)
class Sent:
    """The content of mirror.json.

    facts: what `facts_digest` was when MLflow was told; described: the digest of params and tags alone.
    uploaded: file -> digest.
    """

    offset: int = 0
    mlflow_run_id: str | None = None
    artifact_uri: str | None = None
    facts: str = ""
    described: str = ""
    uploaded: dict[str, str] = field(default_factory=dict)
    refused: str = ""


def read_wanted(run_dir: Path) -> Wanted | None:
    """tracking.json, or None where the folder has none that can be read."""
    return _read(run_dir / "tracking.json", Wanted)


def write_wanted(run_dir: Path, wanted: Wanted) -> None:
    """Raises: DlrunError with code DISK."""
    write_json(run_dir / "tracking.json", asdict(wanted))


def read_sent(run_dir: Path) -> Sent:
    """mirror.json; nothing sent where there is none, or a damaged one (sending again is harmless)."""
    return _read(run_dir / "mirror.json", Sent) or Sent()


def facts_digest(run_dir: Path, wanted: Wanted) -> str:
    """Changes when anything but metrics changes, the parent's MLflow id included."""
    return digest_of(
        wanted.params, wanted.tags, wanted.name, parent_mlflow_id(run_dir, wanted), wanted.status, wanted.end_ms
    )


def digest_of(*facts: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def parent_mlflow_id(run_dir: Path, wanted: Wanted) -> str | None:
    """The MLflow id of the parent run: its own id, unless it was made while the store was away."""
    if wanted.parent_id is None:
        return None
    return read_sent(run_dir.parent.parent / wanted.parent_id / "artifacts").mlflow_run_id or wanted.parent_id


def _read(path: Path, kind: Any) -> Any:
    try:
        stored = json.loads(path.read_text())
        return kind(**{name: value for name, value in stored.items() if name in kind.__dataclass_fields__})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


# ---------------------------------------------------------------- what MLflow takes


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow params: dotted keys, JSON values, secrets redacted, long values cut.

    A value beyond 6,000 characters ends in "…"; config.yaml has all of it.
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            secret = is_secret_name(key) and isinstance(value, str)
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            flat[legal_key(key)] = REDACTED if secret else cut(redact(text), _MAX_PARAM)
    return flat


def tag_values(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them: strings of at most 8,000 characters, secrets redacted."""
    return {
        legal_key(key): REDACTED if is_secret_name(key) else cut(redact(str(value)), _MAX_TAG)
        for key, value in tags.items()
    }


def legal_key(key: str) -> str:
    """A name MLflow accepts: letters, digits, and _ - . / : and spaces; others become _."""
    return re.sub(r"[^\w\-./: ]", "_", key)[:_MAX_KEY]


def cut(text: str, length: int) -> str:
    """The text, or its beginning and "…"."""
    return text if len(text) <= length else text[: length - 1] + "…"


# ---------------------------------------------------------------- the rows of metrics.jsonl


def clip(run_dir: Path, offset: int) -> int:
    """An offset that is the start of a line of metrics.jsonl as it is now (a resume may have cut the file)."""
    try:
        with open(run_dir / "metrics.jsonl", "rb") as file:
            return _line_start(file, min(offset, file.seek(0, os.SEEK_END)))
    except OSError:
        return 0


def _line_start(file: Any, offset: int) -> int:
    """The start of the line that this offset lies in."""
    while offset > 0:
        begin = max(0, offset - 65_536)
        file.seek(begin)
        newline = file.read(offset - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        offset = begin
    return 0


def read_lines(run_dir: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset after the line, row) for each complete line; a damaged line is an empty row."""
    with contextlib.suppress(FileNotFoundError), open(run_dir / "metrics.jsonl", "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, _row(line)


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        return {
            "step": int(row["step"]),
            "time_ms": int(row["time_ms"]),
            "values": {legal_key(key): float(value) for key, value in row["values"].items() if value is not None},
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return {"step": 0, "time_ms": 0, "values": {}}


def is_pending(run_dir: Path) -> bool:
    """Whether MLflow lacks something of this folder that it would take. Reads files only."""
    wanted, sent = read_wanted(run_dir), read_sent(run_dir)
    if wanted is None or sent.refused:
        return False
    if sent.facts != facts_digest(run_dir, wanted):
        return True
    elsewhere = sent.artifact_uri is not None and not is_folder(sent.artifact_uri, run_dir)
    if elsewhere and wanted.status != "RUNNING" and missing(run_dir, sent.uploaded):
        return True
    return next(read_lines(run_dir, clip(run_dir, sent.offset)), None) is not None

"""metrics.jsonl: the truth about a run's metrics, written before anything is sent anywhere.

One JSON object a line: {"step": 20, "time_ms": 1700000000000, "values": {"train/loss": 0.31}}.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from dlrun.errors import DlrunError
from dlrun.runs import disk_error, write_atomically

# Measured anew on every pass, so a repeated step keeps its first reading: the row stays equal, and replay idempotent.
_MEASURED = ("system/", "rate/", "time/")


class MetricsLog:
    """Appends rows; after a resume, a row made again keeps the time of the row it replaces.

    resumed_step: rows beyond it are cut away and remembered.
    """

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        self._lock = threading.Lock()
        self._earlier: dict[tuple[int, str], tuple[int, float]] = {}
        if path.exists():
            self._cut(path, resumed_step)
        try:
            self._file = open(path, "ab")  # noqa: SIM115 - held open for the run
        except OSError as error:
            raise disk_error(path, error) from error
        self._path = path

    def _cut(self, path: Path, step: int) -> None:
        kept = []
        for row in read_rows(path):
            if row["step"] <= step:
                kept.append(json.dumps(row) + "\n")
            else:
                self._earlier |= {(row["step"], key): (row["time_ms"], value) for key, value in row["values"].items()}
        write_atomically(path, "".join(kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one row. Raises: DlrunError with code DISK."""
        now = int(time.time() * 1000)
        times = [self._earlier[step, key][0] for key in values if (step, key) in self._earlier]
        values = {
            key: self._earlier[step, key][1] if key.startswith(_MEASURED) and (step, key) in self._earlier else value
            for key, value in values.items()
        }
        line = json.dumps({"step": step, "time_ms": min(times, default=now), "values": values}) + "\n"
        with self._lock:
            try:
                self._file.write(line.encode())
                self._file.flush()
            except OSError as error:
                raise disk_error(self._path, error) from error

    def sync(self) -> None:
        """fsync, before a checkpoint refers to these rows."""
        with self._lock:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()


def read_rows(path: Path) -> list[dict]:
    """All complete rows; a last line cut by a crash is left out. [] if there is no file."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise DlrunError(f"{path}: a line is damaged: {line[:60]!r}", "see: dlrun doctor") from error
    return rows


def histories(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Metric name -> [(step, value), …] in order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row["values"].items():
            found.setdefault(key, []).append((row["step"], value))
    return found

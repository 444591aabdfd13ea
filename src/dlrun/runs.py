"""What a run is and where it lives: folders, run.json, status, locks, names. Imports no torch and no mlflow.

runs/<run id>/artifacts/        the run folder, which is also MLflow's artifact folder of that run
    run.json  run.lock  config.yaml  config.sha256  spec.json  environment.json  metrics.jsonl  …
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dlrun.errors import DlrunError, Exit, did_you_mean

FORMAT = 1  # of the run folder; a run made by a newer one is refused
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


# ---------------------------------------------------------------- writing


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises: DlrunError with code DISK if the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of indented JSON (NaN and infinities are written as Python writes them)."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The parsed file. Raises: DlrunError with code DATA naming the file if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DlrunError(f"{path}: cannot be read: {error}", code=Exit.DATA) from error


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> DlrunError:
    """The user's view of an OSError while writing."""
    return DlrunError(
        f"{path}: cannot be written: {error.strerror or error}",
        "free some space or choose another folder: --runs DIR",
        Exit.DISK,
    )


# ---------------------------------------------------------------- a run

REMOVED = "removed.json"  # in the folder of a sweep's trial: who took its weights away


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json. Times are seconds since 1970."""

    id: str
    verb: str
    name: str = ""
    parents: tuple[str, ...] = ()
    status: Status = "RUNNING"
    reason: str = ""
    created: float = 0.0
    ended: float | None = None
    tracking_id: str | None = None  # the MLflow run's id where it is not this id
    components: dict[str, str] = field(default_factory=dict)  # "models/mynet.py" -> SHA-256
    command: str = ""
    children: tuple[str, ...] = ()
    format: int = FORMAT


@dataclass(frozen=True)
class Run:
    """A run's folder and what its run.json says (with a dead RUNNING already shown as KILLED)."""

    folder: Path
    record: RunRecord

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def short_id(self) -> str:
        return self.record.id[:8]

    @property
    def status(self) -> Status:
        return self.record.status

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json, or None if the run has none (yet)."""
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else None

    def update(self, **changes: Any) -> Run:
        """Rewrite run.json with these fields changed; returns the run as it is now."""
        record = replace(self.record, **changes)
        _write_record(self.folder, record)
        return Run(self.folder, record)


def new_id() -> str:
    """32 hexadecimal digits, as MLflow makes them."""
    return uuid.uuid4().hex


def create(runs: Path, record: RunRecord) -> Run:
    """Make the folder of a new run. Raises: DlrunError with code DISK if it cannot be written."""
    folder = runs / record.id / "artifacts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder.parent, 0o700)
    except OSError as error:
        raise disk_error(folder, error) from error
    record = replace(record, created=record.created or time.time())
    _write_record(folder, record)
    return Run(folder.resolve(), record)


def _write_record(folder: Path, record: RunRecord) -> None:
    write_json(folder / "run.json", asdict(record))


def load(folder: Path) -> Run:
    """Read a run from its folder.

    Raises: DlrunError if run.json is missing or damaged (code DATA), or made by a newer dlrun (USAGE).
    """
    return _settle(Run(folder.resolve(), _read_record(folder)))


def _read_record(folder: Path) -> RunRecord:
    path = folder / "run.json"
    stored = read_json(path)
    if not isinstance(stored, Mapping) or not isinstance(stored.get("id"), str) or "verb" not in stored:
        raise DlrunError(f"{path}: is not a run's record", code=Exit.DATA)
    newest = stored.get("format", 0)
    if not isinstance(newest, int) or newest > FORMAT:
        raise DlrunError(
            f"{folder}: made by a newer dlrun (run format {newest}; this one reads {FORMAT})",
            "pip install --upgrade dlrun",
        )
    fields = {name: value for name, value in stored.items() if name in RunRecord.__dataclass_fields__}
    for name in ("parents", "children"):
        fields[name] = tuple(fields.get(name) or ())
    return RunRecord(**fields)


def _settle(run: Run) -> Run:
    """A run that says RUNNING while nobody holds its lock was killed: say so, and store it where we may.

    The record is read again under the lock: the run may have ended since it was read.
    """
    if run.status != "RUNNING":
        return run
    with _shared(run.folder) as free:
        if not free:
            return run
        record = _read_record(run.folder)
        if record.status == "RUNNING":
            reason = record.reason or "its process is gone"
            record = replace(record, status="KILLED", reason=reason, ended=time.time())
            with contextlib.suppress(DlrunError):
                _write_record(run.folder, record)
    return Run(run.folder, record)


# ---------------------------------------------------------------- the lock


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold run.lock while a run runs; the kernel lets go of it however the process ends.

    Raises: DlrunError if another process holds it.
    """
    try:
        descriptor = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise disk_error(folder / "run.lock", error) from error
    try:
        if not _locks(descriptor, fcntl.LOCK_EX, patience_seconds=1.0):
            raise DlrunError(
                f"run {folder.parent.name[:8]} is still running in another process",
                "wait for it, or stop that process first",
            )
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to forked children that still live
        os.close(descriptor)


def _locks(descriptor: int, kind: int, patience_seconds: float = 0.0) -> bool:
    """Take a lock, or say that another has it. Patience: a command that looks at the run holds it for a moment."""
    give_up_at = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(0.02)


@contextlib.contextmanager
def _shared(folder: Path) -> Iterator[bool]:
    """Whether nobody runs this run; as long as the context lasts, nobody begins to."""
    try:
        descriptor = os.open(folder / "run.lock", os.O_RDONLY)
    except OSError:  # it was never held
        yield True
        return
    try:
        yield _locks(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a living process holds the run's lock."""
    with _shared(folder) as free:
        return not free


# ---------------------------------------------------------------- finding runs


def runs_folder(given: Path | None = None) -> Path:
    """Where runs live: the --runs option, else DLRUN_RUNS, else ./runs; absolute."""
    chosen = given or Path(os.environ.get("DLRUN_RUNS") or "runs")
    return chosen.expanduser().absolute()


def listing(runs: Path) -> list[Run]:
    """All runs of a folder, newest first. Damaged ones are left out (`dlrun doctor` names them)."""
    found = []
    for folder in _folders(runs):
        with contextlib.suppress(DlrunError):
            found.append(load(folder))
    return sorted(found, key=lambda run: run.record.created, reverse=True)


def _folders(runs: Path) -> list[Path]:
    if not runs.is_dir():
        return []
    return [child / "artifacts" for child in runs.iterdir() if (child / "artifacts" / "run.json").exists()]


def find(runs: Path, reference: str) -> Run:
    """A run by id, unique prefix, name, folder, `latest`, or `mlflow:<id>`.

    Raises: DlrunError naming the nearest run, or the several that fit.
    """
    for folder in (Path(reference), Path(reference) / "artifacts"):
        if (os.sep in reference or reference == ".") and (folder / "run.json").exists():
            return load(folder)
    wanted = reference.removeprefix("run:").removeprefix("mlflow:")
    exact = runs / wanted / "artifacts"
    if wanted not in ("", ".", "..") and os.sep not in wanted and (exact / "run.json").exists():
        return load(exact)
    known = listing(runs)
    if not known:
        raise DlrunError(f"run '{reference}': there are no runs in {runs}", "make one: dlrun train, or say --runs DIR")
    if wanted == "latest":
        return known[0]
    fits = [run for run in known if wanted and (run.id.startswith(wanted) or wanted == run.record.tracking_id)]
    fits = fits or [run for run in known if run.record.name == wanted]
    if not fits:
        names = [run.short_id for run in known] + [run.record.name for run in known if run.record.name] + ["latest"]
        raise DlrunError(f"unknown run '{reference}'", did_you_mean(wanted, names))
    if len(fits) > 1 and fits[0].id != wanted:
        ids = ", ".join(run.short_id for run in fits[:5])
        raise DlrunError(f"run '{reference}' fits {len(fits)} runs: {ids}", "name one of them")
    return fits[0]


def without_weights(run: Run) -> DlrunError:
    """Why a run has no checkpoint, for a command that needs one."""
    removed = run.folder / REMOVED
    if removed.exists():
        said = read_json(removed)
        return DlrunError(
            f"run {run.short_id}: its weights were removed by the sweep {said['by'][:8]} (search.keep={said['keep']})",
            "use one of the sweep's best, or train its config again: dlrun compare SWEEP",
            Exit.DATA,
        )
    hint = resume_command(run) or "make it anew"
    return DlrunError(f"run {run.short_id} has no checkpoint: it never saved one", hint, Exit.DATA)


def resume_command(run: Run) -> str:
    """The command that goes on with a run of this verb; "" where there is none."""
    verb = {"train": "train", "seeds": "train", "sweep": "sweep", "compress": "compress"}.get(run.record.verb)
    return f"dlrun {verb} --resume {run.short_id}" if verb else ""

"""The mirror from run folders to MLflow: the folder is the truth, MLflow its index.

A run is started here, and gets MLflow's id if the store answers within seconds, else an id of its own;
training never calls MLflow. A `Mirror` thread sends what the folder says, `catch_up` sends the rest later.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlrun import _tracking_state as state
from dlrun import _tracking_sync as sync
from dlrun._tracking_mirror import Mirror
from dlrun._tracking_state import Status, Wanted, is_pending
from dlrun._tracking_store import (
    Store,
    Unreachable,
    connect,
    hurried,
    locate,
    prepare_store,
    remember_credentials,
    set_environment,
)
from dlrun._tracking_sync import Missing, Refused, Sender
from dlrun._tracking_system import SystemSampler
from dlrun.config.secrets import redact
from dlrun.errors import DlrunError
from dlrun.runs import disk_error, is_held, load, new_id

__all__ = [
    "Mirror",
    "MlflowRun",
    "Status",
    "SystemSampler",
    "ask_store",
    "catch_up",
    "catch_up_all",
    "finish_run",
    "is_pending",
    "lacks",
    "mlflow_run_id",
    "prepare_store",
    "set_environment",
    "set_running",
    "set_tags",
    "start_run",
]


@dataclass(frozen=True)
class MlflowRun:
    """A run that was started. id: the run folder's, 32 hexadecimal digits.

    tracked: MLflow has it under this id. Otherwise `reason` says in one line why not, and MLflow gets
    it later, under an id of its own and with the tag dlrun.run_id.
    """

    id: str
    artifact_uri: str
    tracked: bool
    reason: str = ""


# ---------------------------------------------------------------- one run's beginning and end


def start_run(
    runs: Path,
    *,
    uri: str | None,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    created_ms: int,
    parent_id: str | None = None,
    mirrored: bool = False,
) -> MlflowRun:
    """Make the folder runs/<id>/artifacts with its tracking.json, and the MLflow run if the store answers.

    uri: None for MLFLOW_TRACKING_URI, else the embedded database.  params: nested settings; flattened, cut at
    6,000 characters, secrets redacted.  created_ms: since 1970.  parent_id: the parent's run id.
    mirrored: a Mirror is started right after, and sends params and tags while the run begins.
    Raises: DlrunError if MLflow knows no such kind of URI, the experiment was deleted in the store (both
    USAGE), or the folder cannot be written (DISK).
    """
    store = locate(runs, uri)
    remember_credentials(store)
    made, reason, own_id = None, "", new_id()
    try:
        with sync.translated():
            made = _create(store, runs, experiment, name, created_ms, own_id)
    except Refused as error:
        raise DlrunError(f"tracking.experiment: {error}", "choose another: tracking.experiment=NAME") from error
    except (Unreachable, Missing) as error:
        reason = str(error)
    run_id, artifact_uri = made or (own_id, "")
    run_dir = _make_folder(runs, run_id)
    wanted = Wanted(
        store.stored_uri,
        experiment,
        run_id,
        redact(name),
        state.flatten(params),
        state.tag_values(tags),
        parent_id,
        created_ms,
    )
    state.write_wanted(run_dir, wanted)
    if made is not None:
        with sync.sending(run_dir):
            Sender(run_dir).adopt(store, run_id, artifact_uri)
        if not mirrored:
            catch_up(run_dir)
    return MlflowRun(run_id, state.read_sent(run_dir).artifact_uri or str(run_dir), made is not None, reason)


def ask_store(runs: Path) -> tuple[Store, str]:
    """The store that runs of this folder use, and in one line why it does not answer ("" if it does).

    A database that is not there yet is left unmade.
    """
    store = locate(runs, None)
    if store.database is not None and not store.database.exists():
        return store, ""
    try:
        with sync.translated(), hurried():
            connect(store, runs).search_experiments(max_results=1)
    except (Missing, Refused, Unreachable) as error:
        return store, str(error)
    return store, ""


def lacks(runs: Path, uri: str | None, run_id: str) -> str:
    """In one line why a store that several machines share does not have this run; "" if it has."""
    store = locate(runs, uri)
    if store.database is not None:
        return f"{store.stored_uri} is a file of one machine"
    try:
        with sync.translated(), hurried():
            connect(store, runs).get_run(run_id)
    except (Missing, Refused, Unreachable) as error:
        return str(error).partition("\n")[0]
    return ""


def _create(store: Store, runs: Path, experiment: str, name: str, created_ms: int, own_id: str) -> tuple[str, str]:
    """The MLflow id and artifact URI of a new run. own_id: by which it is found again if the answer is lost."""
    with hurried():
        client = connect(store, runs)
        experiment_id = sync.ensure_experiment(client, store, experiment, runs)
        info = client.create_run(experiment_id, created_ms, {sync.RUN_TAG: own_id}, redact(name) or None).info
        return info.run_id, str(info.artifact_uri)


def _make_folder(runs: Path, run_id: str) -> Path:
    folder = runs.resolve() / run_id / "artifacts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o700)
    except OSError as error:
        raise disk_error(folder, error) from error
    return folder


def finish_run(run_dir: Path, status: Status, end_ms: int, *, timeout_seconds: float = 30.0) -> bool:
    """Note how a run ended and tell MLflow; True if it has everything. Close the run's Mirror before."""
    _change(run_dir, status=status, end_ms=end_ms)
    return catch_up(run_dir, timeout_seconds=timeout_seconds)


def set_running(run_dir: Path) -> None:
    """Note that a run goes on (a resume); the Mirror, once made, tells MLflow."""
    _change(run_dir, status="RUNNING", end_ms=None)


def set_tags(run_dir: Path, tags: Mapping[str, Any]) -> None:
    """Add or change tags; the Mirror or the next `catch_up` tells MLflow."""
    wanted = state.read_wanted(run_dir)
    if wanted is not None:
        _change(run_dir, tags=wanted.tags | state.tag_values(tags))


def _change(run_dir: Path, **changes: Any) -> None:
    wanted = state.read_wanted(run_dir)
    if wanted is not None:
        state.write_wanted(run_dir, replace(wanted, **changes))


def mlflow_run_id(run_dir: Path) -> str | None:
    """The id under which MLflow has this run, or None while it does not."""
    return state.read_sent(run_dir).mlflow_run_id


# ---------------------------------------------------------------- afterwards


def catch_up(run_dir: Path, *, timeout_seconds: float = 30.0) -> bool:
    """Send what MLflow lacks of a run; True if it then has everything. Does nothing beside a living Mirror."""
    try:
        return _attempt(run_dir, timeout_seconds) == ""
    except Unreachable:
        return False


def _attempt(run_dir: Path, timeout_seconds: float) -> str:
    """The reason why MLflow lacks something of this run, or nothing. Raises: Unreachable."""
    deadline = time.monotonic() + timeout_seconds
    with sync.sending(run_dir, wait_seconds=min(timeout_seconds, 2.0)) as held:
        if not held:
            return "another process is sending it"
        try:
            with hurried(min(timeout_seconds, 15)):
                return "" if Sender(run_dir).send(deadline) else f"not all was sent within {timeout_seconds:g} s"
        except (Refused, DlrunError) as error:
            return str(error).partition("\n")[0]


def catch_up_all(runs: Path, *, timeout_seconds: float = 10.0) -> dict[str, str]:
    """Send what MLflow lacks of the runs that are not running; run id -> reason for those still lacking.

    For the beginning of a command: reads files only where nothing is pending, and asks a store that did
    not answer no second time.
    """
    deadline = time.monotonic() + timeout_seconds
    lacking: dict[str, str] = {}
    away: dict[str, str] = {}  # store -> why
    for wanted, run_dir in _pending(runs):
        left = deadline - time.monotonic()
        reason = away.get(wanted.uri, "" if left > 0 else "there was no time left")
        try:
            reason = reason or _attempt(run_dir, left)
        except Unreachable as error:
            reason = away[wanted.uri] = str(error)
        if reason:
            lacking[wanted.run_id] = reason
    return lacking


def _pending(runs: Path) -> list[tuple[Wanted, Path]]:
    """Runs that are over and not all sent, parents before children."""
    found = []
    for path in runs.glob("*/artifacts/tracking.json"):
        if not is_held(path.parent):
            _note_death(path.parent)
            wanted = state.read_wanted(path.parent)
            if wanted is not None and is_pending(path.parent):
                found.append((wanted, path.parent))
    return sorted(found, key=lambda pair: pair[0].created_ms)


def _note_death(run_dir: Path) -> None:
    """A run that was killed could not say so: take its status from run.json."""
    wanted = state.read_wanted(run_dir)
    if wanted is not None and wanted.status == "RUNNING" and (run_dir / "run.json").exists():
        with contextlib.suppress(DlrunError):
            record = load(run_dir).record
            if record.status != "RUNNING":
                _change(run_dir, status=record.status, end_ms=int((record.ended or time.time()) * 1000))

"""Makes an MLflow run equal to a run folder. Every step may be repeated, so a crash between two loses nothing.

MLflow keeps one row of equal key, value, timestamp and step, and a run that was created in vain is found
again by its tag. MLflow stores NaN as it is; it turns ±inf into ±1.8e308.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun._tracking_database import folder_uri, point_artifacts
from dlrun._tracking_state import (
    Wanted,
    clip,
    cut,
    digest_of,
    facts_digest,
    parent_mlflow_id,
    read_lines,
    read_sent,
    read_wanted,
)
from dlrun._tracking_store import Store, Unreachable, connect, locate, set_environment
from dlrun._tracking_upload import is_folder, is_local, upload
from dlrun.config.secrets import redact
from dlrun.runs import disk_error, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG, PARENT_TAG = "dlrun.run_id", "mlflow.parentRunId"
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # of one call (mlflow/utils/validation.py, 3.17)
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")


class Missing(Exception):
    """The store answered that it does not have this run."""


class Refused(Exception):
    """The store answered, and will never take this (its run was deleted by hand, say)."""


@contextlib.contextmanager
def sending(run_dir: Path, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Hold the folder's mirror.lock; yields False where another keeps it for longer than wait_seconds."""
    try:
        descriptor = os.open(run_dir / "mirror.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise disk_error(run_dir / "mirror.lock", error) from error
    deadline, held = time.monotonic() + wait_seconds, False
    try:
        while not (held := _try_lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield held
    finally:
        if held:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: forked loader workers have it open too
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Sender:
    """Sends one folder's run; keeps the client between calls. Use it while holding `sending`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.resolve()
        self.runs = self.run_dir.parent.parent
        self.sent = read_sent(self.run_dir)
        self._client: MlflowClient | None = None
        self._update(offset=clip(self.run_dir, self.sent.offset))

    def send(self, deadline: float | None = None) -> bool:
        """Send what is there; True when MLflow has it all, False when time.monotonic() passed the deadline.

        Raises: Unreachable if the store cannot be reached; Refused if it will never take the run.
        """
        wanted = read_wanted(self.run_dir)
        if wanted is None:
            return True
        try:
            with translated():
                done = self._send(wanted, deadline)
                self._update(refused="")
                return done
        except Missing as error:
            # The store lost the run: the folder is the truth.
            self._update(mlflow_run_id=None, offset=0, facts="", described="")
            raise Unreachable(str(error)) from error
        except Refused as error:
            self._update(refused=str(error))
            raise

    def _send(self, wanted: Wanted, deadline: float | None) -> bool:
        store = locate(self.runs, wanted.uri)
        self._client = self._client or connect(store, self.runs)
        self._ensure_run(self._client, store, wanted)
        digest = facts_digest(self.run_dir, wanted)
        if self.sent.facts != digest and wanted.status == "RUNNING":
            self._send_facts(self._client, wanted, digest)
        if not self._send_rows(self._client, deadline):
            return False
        if wanted.status != "RUNNING" and not self._send_files(self._client, deadline):
            return False
        if self.sent.facts != digest:  # an end is told after the last row and file
            self._send_facts(self._client, wanted, digest)
        return True

    def _ensure_run(self, client: MlflowClient, store: Store, wanted: Wanted) -> None:
        """Find or create the MLflow run of this folder."""
        if self.sent.mlflow_run_id is not None:
            return
        experiment_id = ensure_experiment(client, store, wanted.experiment, self.runs)
        found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{wanted.run_id}'", max_results=1)
        run = (
            found[0]
            if found
            else client.create_run(experiment_id, wanted.created_ms, {RUN_TAG: wanted.run_id}, wanted.name or None)
        )
        self.adopt(store, run.info.run_id, str(run.info.artifact_uri))

    def adopt(self, store: Store, mlflow_run_id: str, artifact_uri: str) -> None:
        """Note the MLflow run of this folder; an SQLite store is told that the folder is its artifact folder."""
        if store.database is not None and is_local(artifact_uri) and not is_folder(artifact_uri, self.run_dir):
            point_artifacts(store.database, mlflow_run_id, self.run_dir)
            artifact_uri = folder_uri(self.run_dir)
        self._update(mlflow_run_id=mlflow_run_id, artifact_uri=artifact_uri)

    def _send_facts(self, client: MlflowClient, wanted: Wanted, digest: str) -> None:
        self._describe(client, wanted)
        run_id = str(self.sent.mlflow_run_id)
        if wanted.status == "RUNNING":
            client.update_run(run_id, wanted.status, wanted.name or None)
        else:
            client.set_terminated(run_id, wanted.status, wanted.end_ms)
        self._update(facts=digest)

    def _describe(self, client: MlflowClient, wanted: Wanted) -> None:
        """Params and tags, where they are not what was told: at its end a run has only another status."""
        from mlflow.entities import Param, RunTag

        run_id = str(self.sent.mlflow_run_id)
        tags = wanted.tags | {RUN_TAG: wanted.run_id}
        if parent := parent_mlflow_id(self.run_dir, wanted):
            tags[PARENT_TAG] = parent
        if self.sent.described == (described := digest_of(wanted.params, tags)):
            return
        params = [Param(key, value) for key, value in wanted.params.items()]
        for start in range(0, len(params), _MAX_PARAMS):
            client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
        run_tags = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(run_tags), _MAX_PARAMS):
            client.log_batch(run_id, tags=run_tags[start : start + _MAX_PARAMS])
        self._update(described=described)

    def _send_rows(self, client: MlflowClient, deadline: float | None) -> bool:
        from mlflow.entities import Metric

        self._update(offset=clip(self.run_dir, self.sent.offset))
        batch, offset = [], self.sent.offset
        for after, row in read_lines(self.run_dir, offset):
            metrics = [Metric(key, value, row["time_ms"], row["step"]) for key, value in row["values"].items()]
            if batch and len(batch) + len(metrics) > _MAX_METRICS:
                self._send_batch(client, batch, offset)
                batch = []
                if _passed(deadline):
                    return False
            batch, offset = batch + metrics, after
        self._send_batch(client, batch, offset)
        return True

    def _send_batch(self, client: MlflowClient, batch: list[Any], offset: int) -> None:
        for start in range(0, len(batch), _MAX_METRICS):
            client.log_batch(str(self.sent.mlflow_run_id), metrics=batch[start : start + _MAX_METRICS])
        self._update(offset=offset)

    def _send_files(self, client: MlflowClient, deadline: float | None) -> bool:
        """For a run whose artifacts live elsewhere: its small files and best weights."""
        if is_folder(str(self.sent.artifact_uri), self.run_dir):
            return True
        for name, digest in upload(client, str(self.sent.mlflow_run_id), self.run_dir, self.sent.uploaded):
            self._update(uploaded=self.sent.uploaded | {name: digest})
            if _passed(deadline):
                return False
        return True

    def _update(self, **changes: Any) -> None:
        changed = replace(self.sent, **changes)
        if changed != self.sent:
            write_json(self.run_dir / "mirror.json", asdict(changed))
            self.sent = changed


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """MLflow's and its libraries' exceptions as Missing, Refused or Unreachable, in one line without secrets."""
    set_environment()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        reason = cut(redact(str(error.message).partition("\n")[0]), 300)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise Missing(reason) from error
        raise (Refused if error.error_code in _REFUSALS else Unreachable)(reason) from error
    except (OSError, ImportError, sqlite3.Error, SQLAlchemyError) as error:
        raise Unreachable(cut(redact(str(error).partition("\n")[0]), 300)) from error


def ensure_experiment(client: MlflowClient, store: Store, name: str, runs: Path) -> str:
    """The id of an experiment, made if need be, with the runs folder as its artifact root where that is ours."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, None if store.is_server else folder_uri(runs.resolve()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was first
    assert found is not None
    if found.lifecycle_stage != "active":
        raise Refused(f"the experiment '{name}' was deleted in the tracking store")
    return found.experiment_id

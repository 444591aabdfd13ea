"""An SQLite tracking store: made, upgraded and moved under one file lock.

MLflow's own first use is not safe in parallel: two processes on a fresh file break each other, and can
poison it for good. Writing to a file that is ready is safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dlrun.errors import DlrunError, Exit
from dlrun.runs import disk_error, sync_folder


def sqlite_uri(database: Path) -> str:
    """The tracking URI of an SQLite file."""
    path = str(database)
    if "%" in path or "?" in path:
        from sqlalchemy import make_url

        if make_url("sqlite:////%25").database == "/%":  # SQLAlchemy 2.1 unquotes a path, 2.0 does not
            path = path.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def folder_uri(folder: Path) -> str:
    """A folder as MLflow's artifact location: its path, or a file URI where MLflow would unquote the path."""
    return folder.as_uri() if "%" in str(folder) else str(folder)


def prepare_database(database: Path, root: Path | None) -> None:
    """Make, upgrade or relocate an SQLite store. root: the artifacts' folder, if that moves with the file.

    Raises: DlrunError if the folder cannot be written (code DISK), or a newer MLflow wrote the database.
    """
    if _is_current(database) and _is_placed(database, root):
        return
    with _locked(_lock_path(database)):
        if not database.exists() or database.stat().st_size == 0:
            _create(database, root or database.parent)
        elif not _is_current(database):
            _upgrade(database)
        if not _is_placed(database, root):
            _relocate(database, root)
        _write_stamp(database, root)


def _lock_path(database: Path) -> Path:
    return database.with_name(f".{database.stem}.lock")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_current(database: Path) -> bool:
    """Whether this MLflow made or checked the schema as it is now."""
    checked = _read_stamp(database).get("revisions", {}).get(importlib.metadata.version("mlflow"))
    return database.exists() and checked is not None and _revision(database) == checked


def _is_placed(database: Path, root: Path | None) -> bool:
    """Whether the folder of artifacts is where it was."""
    return _read_stamp(database).get("root") == (folder_uri(root) if root else None)


def _read_stamp(database: Path) -> dict[str, Any]:
    try:
        stamp = json.loads(_lock_path(database).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(database: Path, root: Path | None) -> None:
    """Note in the lock file which MLflow found the schema right, and where the folder was."""
    revisions = _read_stamp(database).get("revisions", {}) | {importlib.metadata.version("mlflow"): _revision(database)}
    _lock_path(database).write_text(json.dumps({"revisions": revisions, "root": folder_uri(root) if root else None}))


def _open(database: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(database, timeout=20))


def _revision(database: Path) -> str | None:
    """The schema's revision, or None where the file holds none."""
    uri = f"file:{quote(str(database))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=20)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row else None


def _create(database: Path, root: Path) -> None:
    """Run MLflow's migrations in memory (0.7 s; on a slow disk 6 to 9 s), then put the file in place."""
    import mlflow  # noqa: F401  (configures the loggers that are quietened next)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = database.with_name(f".{database.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    store = SqlAlchemyStore("sqlite:///:memory:", folder_uri(root))
    try:
        with store.engine.connect() as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(temporary),))
    finally:
        store.engine.dispose()  # MLflow keeps engines for ever; without this the next one would find our tables
    with _open(temporary) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    descriptor = os.open(temporary, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    os.replace(temporary, database)
    sync_folder(database.parent)


def _upgrade(database: Path) -> None:
    """Bring an older schema up to this MLflow's, so that a crash leaves the old one or the new.

    The migrations run on a copy, which is then copied back in one transaction.
    """
    copy = database.with_name(f".{database.name}.{os.getpid()}.tmp")
    copy.unlink(missing_ok=True)
    try:
        _copy(database, copy)
        done = subprocess.run(
            [sys.executable, "-m", "mlflow", "db", "upgrade", sqlite_uri(copy)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DlrunError(
                f"{database}: this MLflow cannot use the database: {reason}",
                "it may come from a newer one: pip install --upgrade mlflow",
                Exit.TRACKING,
            )
        if _revision(copy) != _revision(database):
            _copy(copy, database)
    finally:
        for leftover in database.parent.glob(f"{copy.name}*"):
            leftover.unlink()


def _copy(source: Path, target: Path) -> None:
    with _open(source) as reader, _open(target) as writer:
        reader.backup(writer)


def _relocate(database: Path, root: Path | None) -> None:
    """After the runs folder was moved: artifacts are where it is now."""
    old = _read_stamp(database).get("root")
    if not old or root is None:
        return
    with _open(database) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(
                f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1)"
                f" WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                {"old": old, "new": folder_uri(root)},
            )


def point_artifacts(database: Path, mlflow_run_id: str, folder: Path) -> None:
    """Tell an SQLite store that a run's artifacts are its run folder (a run made up for later has another id)."""
    with _open(database) as connection, connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (folder_uri(folder), mlflow_run_id))

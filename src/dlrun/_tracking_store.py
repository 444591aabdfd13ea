"""Where the tracking store is, and how to reach it without waiting long."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from dlrun._tracking_database import prepare_database, sqlite_uri
from dlrun.config.secrets import is_secret_name
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # and the ports they listen on
_SCHEMES = {"", "file", "http", "https", "databricks", "sqlite", *_DATABASES}
_PROBE_SECONDS = 3.0
EMBEDDED = "embedded"  # the URI that means the runs folder's own database, wherever the folder is


class Unreachable(Exception):
    """The store cannot be reached now; the reason in one line, without secrets."""


@dataclass(frozen=True)
class Store:
    """A tracking store. database: its file where it is SQLite. embedded: it is the runs folder's own."""

    uri: str
    database: Path | None = None
    embedded: bool = False

    @property
    def is_server(self) -> bool:
        """Whether the store decides itself where artifacts go."""
        return urlsplit(self.uri).scheme in ("http", "https", "databricks")

    @property
    def stored_uri(self) -> str:
        """What may be written to disk, and be given to `locate` again: no user, no password."""
        return EMBEDDED if self.embedded else without_secrets(self.uri)


def set_environment() -> None:
    """MLflow's switches, for this process and its children: no telemetry, no pickle, no endless retries."""
    os.environ.update(
        MLFLOW_DISABLE_TELEMETRY="true",
        DO_NOT_TRACK="1",
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
    )
    # MLflow's own: 7 retries of up to 120 s, four minutes in one call. The mirror tries again by itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")


@contextlib.contextmanager
def hurried(seconds: float = _PROBE_SECONDS) -> Iterator[None]:
    """While a user waits at the prompt: one try of this long a request (MLflow counts whole seconds)."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, int(seconds)))}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def without_secrets(uri: str) -> str:
    """The URI without user, password and secret-looking query values."""
    parts = urlsplit(uri)
    query = urlencode([pair for pair in parse_qsl(parts.query) if not is_secret_name(pair[0])])
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query)) if parts.netloc else uri


def locate(runs: Path, uri: str | None) -> Store:
    """The store of a URI; of None, MLFLOW_TRACKING_URI, else the database in the runs folder ("embedded").

    Where the URI carries no credentials and MLFLOW_TRACKING_URI is the same URI with them, that is used.
    Raises: DlrunError if MLflow knows no such kind of URI.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or None
    embedded = runs.resolve() / "mlflow.db"
    uri = given if uri is None or (given and without_secrets(given) == uri) else uri
    if uri in (None, EMBEDDED, sqlite_uri(embedded)):
        return Store(sqlite_uri(embedded), embedded, embedded=True)
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in _SCHEMES:
        raise DlrunError(
            f"tracking.uri: '{without_secrets(uri)}' is of no kind that MLflow knows",
            "an address (http://host:5000), a database (sqlite:///file.db), or null for the embedded one",
        )
    if scheme == "sqlite":
        from sqlalchemy import make_url

        database = Path(make_url(uri).database or "mlflow.db").absolute()
        return Store(sqlite_uri(database), database)
    return Store(uri if scheme else str(Path(uri).absolute()))


def remember_credentials(store: Store) -> None:
    """Keep credentials in this process's environment, from where `locate` takes them; they are never stored."""
    if store.database is None and store.stored_uri != store.uri:
        os.environ["MLFLOW_TRACKING_URI"] = store.uri


def connect(store: Store, runs: Path) -> MlflowClient:
    """A client of the store, its database made ready first. Raises: Unreachable."""
    set_environment()
    try:
        if store.database is not None:
            prepare_database(store.database, runs.resolve() if store.embedded else None)
        _probe(store)
        from mlflow import MlflowClient

        # MLflow reports each failure as a traceback; ours is one line.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        return MlflowClient(store.uri)
    except sqlite3.Error as error:
        raise Unreachable(f"{store.database}: {error}") from error
    except (OSError, DlrunError) as error:
        raise Unreachable(str(error).partition("\n")[0]) from error


def _probe(store: Store) -> None:
    """Fail fast where a database server is away (MLflow tries for three minutes) or a file is locked (20 s).

    Raises: OSError or sqlite3.Error.
    """
    if store.database is not None:
        with contextlib.closing(sqlite3.connect(store.database, timeout=_PROBE_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    parts = urlsplit(store.uri)
    port = _DATABASES.get(parts.scheme.partition("+")[0])
    if port is not None and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or port), timeout=_PROBE_SECONDS).close()


def prepare_store(runs: Path) -> Path:
    """Make, upgrade or relocate runs/mlflow.db, once, whoever comes first; returns its path.

    Costs a millisecond where the database is ready. A folder that was moved gets its artifact
    locations corrected.
    Raises: DlrunError if the folder cannot be written (code DISK), or a newer MLflow wrote the database.
    """
    set_environment()
    database = runs.resolve() / "mlflow.db"
    prepare_database(database, runs.resolve())
    return database

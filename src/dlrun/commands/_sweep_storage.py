"""Where a sweep's study is kept: a journal in the sweep's folder, or a database that machines share."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import optuna

from dlrun.errors import DlrunError, Exit


def opened(storage: str | Path) -> optuna.storages.BaseStorage:
    """The storage behind a file or an address. Raises: DlrunError if it cannot be reached."""
    if isinstance(storage, Path):
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        _mend(storage)
        return JournalStorage(JournalFileBackend(str(storage)))
    refuse_password(storage)
    try:
        return optuna.storages.RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise DlrunError(
            f"search.storage: the driver of this database is missing ({error})", 'pip install "dlrun[postgres]"'
        ) from error
    except Exception as error:
        raise DlrunError(
            f"search.storage: cannot be reached: {_sentence(error)}",
            "e.g. search.storage=postgresql+psycopg://USER@HOST/NAME",
            Exit.TRACKING,
        ) from error


def refuse_password(storage: str | None) -> None:
    """Raises: DlrunError for an address with a password: it would stand in the sweep's folder for all to read."""
    parts = urlsplit(storage or "")
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise DlrunError(
            "search.storage: holds a password, which would be kept in the sweep's folder",
            "leave it out of the address: PGPASSWORD=… dlrun sweep …, or a line in ~/.pgpass",
        )


def _mend(journal: Path) -> None:
    """What a kill may leave: Optuna's lock, which it would wait 30 s for, and half a line, which it cannot read.

    The journal is its sweep's own, and whoever opens it holds the sweep's run.lock: nobody else writes it now.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        written = journal.read_bytes()
        if not written.endswith(b"\n"):
            os.truncate(journal, written.rfind(b"\n") + 1)


def names(storage: optuna.storages.BaseStorage, where: str | Path) -> list[str]:
    try:
        return optuna.get_all_study_names(storage)
    except Exception as error:
        raise DlrunError(f"{where}: the study cannot be read: {_sentence(error)}", code=Exit.DATA) from error


def _sentence(error: BaseException) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

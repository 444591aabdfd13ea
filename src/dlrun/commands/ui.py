"""`dlrun ui`: MLflow's own pages over the runs, on this machine only."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from dlrun import tracking
from dlrun.commands._terminal import TerminalReporter
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands.train import Options

HOST = "127.0.0.1"  # never 0.0.0.0: MLflow asks nobody for a password
_START_SECONDS = 120  # a cold disk: MLflow imports half of PyPI
_END_SECONDS = 5


def ui(options: Options, *, port: int = 5000) -> int:
    """Serve until Ctrl-C; where MLFLOW_TRACKING_URI names a server, only say where it is. Returns the exit code."""
    store = tracking.locate(options.runs, None)
    if store.is_server:
        print(f"MLflow is at {store.stored_uri} (MLFLOW_TRACKING_URI)")
        return 0
    if store.embedded:
        if not options.runs.is_dir():
            raise DlrunError(f"there are no runs in {options.runs}", "make one: dlrun train, or say --runs DIR")
        tracking.prepare_store(options.runs)
    elif store.database is not None and not store.database.is_file():
        raise DlrunError(
            f"MLFLOW_TRACKING_URI: there is no database {store.database}", "dlrun train would make it", Exit.TRACKING
        )
    require_free(port)
    note = TerminalReporter().note
    lacking = tracking.catch_up_all(options.runs)
    for run_id, reason in lacking.items():
        note(f"run {run_id[:8]} is not shown as it is: {reason}")
    note("starting the MLflow server …")
    with tempfile.TemporaryFile() as log, _server(store.uri, str(options.runs), port, log) as process:
        try:
            _wait_until_up(process, port, log)
            print(
                f"MLflow UI      http://{HOST}:{port}   (Ctrl-C ends it)\n"
                f"from outside   ssh -L {port}:{HOST}:{port} {_login()}",
                flush=True,
            )
            process.wait()
        except KeyboardInterrupt:
            return 0
        raise _ended(process, log)


def require_free(port: int) -> None:
    """Raises: DlrunError if nothing of ours can listen on the port, with one that is free."""
    error = _refusal(port)
    if error is None:
        return
    free = next((other for other in range(max(port + 1, 1024), 65536) if _refusal(other) is None), 0)
    what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
    raise DlrunError(f"port {port} {what}", f"dlrun ui --port {free}")


def _refusal(port: int) -> OSError | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error
    return None


def _login() -> str:
    with contextlib.suppress(Exception):  # no user database in a container
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return socket.gethostname()


# ---------------------------------------------------------------- the server's process


@contextlib.contextmanager
def _server(uri: str, artifacts: str, port: int, log: IO[bytes]) -> Iterator[subprocess.Popen]:
    """MLflow's server in a process group of its own; nothing of the group is left afterwards."""
    tracking.set_environment()
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: it may hold a password, and arguments are public
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five processes for evaluating language models
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--no-serve-artifacts", "--default-artifact-root", artifacts, "--uvicorn-opts", "--log-level warning"]
    with _ending_on_signals():
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )
        try:
            yield process
        finally:
            _end(process)


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end this process in order, so that the server goes too."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)


def _wait_until_up(process: subprocess.Popen, port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _ended(process, log)
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.1)
    raise DlrunError(f"the MLflow server did not answer within {_START_SECONDS} s", "try again", Exit.TRACKING)


def _ended(process: subprocess.Popen, log: IO[bytes]) -> DlrunError:
    """The server's last words."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return DlrunError(
        f"the MLflow server ended with code {process.returncode}: {lines[-1] if lines else 'it said nothing'}",
        code=Exit.TRACKING,
    )

"""Workers as jobs of a SLURM cluster, submitted by submitit; each calls back over a socket, and is then as a local one.

A job that waits in the queue is a worker that has not said anything yet: its trial waits with it. The socket takes only
those who show the token that lies in the sweep's folder, which nobody else can read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun.errors import DlrunError, did_you_mean

_TOKEN = "token"  # a file's name


class Cluster:
    """Submits workers and waits for their calls.

    options: of submitit's `update_parameters` (slurm_partition, timeout_min, cpus_per_task, gpus_per_node, mem_gb …),
    and `cluster`: "slurm", or "local" for processes of this machine, to try it out.
    Raises: DlrunError if submitit is missing, no SLURM is here, or an option is not known.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise DlrunError("hardware=slurm needs submitit", 'pip install "dlrun[slurm]"') from error
        given = dict(options)
        cluster = given.pop("cluster", "slurm")
        self._folder = folder / "slurm"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            self._executor = submitit.AutoExecutor(folder=self._folder, cluster=cluster)
            self._executor.update_parameters(**({"timeout_min": 24 * 60, "name": "dlrun"} | given))
        except RuntimeError as error:  # no sbatch
            raise DlrunError(f"hardware=slurm: {str(error).splitlines()[0]}", "run it where sbatch is") from error
        except (TypeError, ValueError, NameError) as error:
            wrong = next((name for name in given if name in str(error)), "")
            known = sorted(submitit.AutoExecutor._typed_parameters()) if wrong else []
            raise DlrunError(f"hardware.slurm: {str(error).splitlines()[0]}", did_you_mean(wrong, known)) from error
        local = cluster != "slurm"
        self._host = "127.0.0.1" if local else socket.getfqdn()
        self._server = socket.create_server(("127.0.0.1" if local else "", 0))
        self._token = secrets.token_hex(16)
        path = self._folder / _TOKEN
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(self._token)
        self._expected: dict[str, Job] = {}
        threading.Thread(target=self._answer, daemon=True, name="dlrun-cluster").start()

    def submit(self, command: list[str]) -> Job:
        """A worker that begins when the cluster has room."""
        from submitit.helpers import CommandFunction

        name = secrets.token_hex(4)
        address = f"{self._host}:{self._server.getsockname()[1]}"
        command = [*command, "--call", address, "--token", str(self._folder / _TOKEN), "--as", name]
        job = self._expected[name] = Job()
        job.submitted = self._executor.submit(CommandFunction(command))
        return job

    def close(self) -> None:
        """No more calls."""
        self._server.close()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # closed
            connection.settimeout(10)  # a stranger who says nothing must not keep the others waiting
            with contextlib.suppress(OSError, UnicodeDecodeError):
                lines = connection.makefile("r", encoding="utf-8")
                token, _, name = lines.readline().strip().partition(" ")
                job = self._expected.pop(name, None) if secrets.compare_digest(token, self._token) else None
                if job is not None:
                    connection.settimeout(None)
                    job.connect(connection, lines)
                    continue
            connection.close()


class Job:
    """A worker on some machine of the cluster. What is said before it calls is kept for it."""

    def __init__(self) -> None:
        self.submitted: Any = None
        self._lock, self._called = threading.Lock(), threading.Event()
        self._kept = ""
        self._connection: socket.socket | None = None
        self._lines: Iterator[str] = iter(())

    def connect(self, connection: socket.socket, lines: Iterator[str]) -> None:
        """It has called."""
        with self._lock:
            self._connection, self._lines = connection, lines
            connection.sendall(self._kept.encode())
        self._called.set()

    def say(self, text: str) -> None:
        """Now, or when it calls."""
        with self._lock:
            if self._connection is None:
                self._kept += text
            else:
                self._connection.sendall(text.encode())

    def hear(self) -> Iterator[str]:
        """The lines it says, until it is gone; none of one whose job ended before it called."""
        while not self._called.wait(1.0):
            if self.submitted is not None and self.submitted.done():
                return
        with contextlib.suppress(OSError):
            yield from self._lines

    def hang_up(self) -> None:
        """End the call, or the wait for it."""
        if self._connection is None:
            self.submitted.cancel()
        else:
            self._connection.shutdown(socket.SHUT_WR)

    def terminate(self) -> None:
        """It saves and ends."""
        self.say('{"stop": true}\n')

    def end(self, patience_seconds: float) -> str:
        """Wait; cancel it after a while."""
        until = time.monotonic() + patience_seconds
        while time.monotonic() < until and not self.submitted.done(force_check=True):
            time.sleep(0.2)
        self.submitted.cancel()
        if self._connection is not None:
            self._connection.close()
        return f"the job's state {self.submitted.state}"

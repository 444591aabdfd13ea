"""Starting a run's processes: in this one, under torchrun, or joined to a job that is already there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrun import runs
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry

GRACE_SECONDS = 10  # from a first failure to the end of every process


def execute(run: runs.Run, config: RunConfig, registry: Registry, reporter: Any) -> str:
    """Run to its end; returns how it ended ("complete", "early stop", "SIGINT", "SIGTERM").

    Raises: DlrunError as the failing rank raised it.
    """
    if config.hardware.processes > 1 and "RANK" not in os.environ:
        return _under_torchrun(run, config, registry, reporter)
    from dlrun import worker
    from dlrun.tracking import SystemSampler

    sampler = worker.sampling(SystemSampler) if config.tracking.system_metrics else None
    return worker.train(run.folder, registry, reporter, sampler)


# ---------------------------------------------------------------- torchrun


def _under_torchrun(run: runs.Run, config: RunConfig, registry: Registry, reporter: Any) -> str:
    for stale in [run.folder / "ended.json", run.folder / "progress.jsonl", *(run.folder / "errors").glob("*.json")]:
        stale.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={config.hardware.processes}",
               "--nnodes=1", "--rdzv-backend=static", "--master-addr=127.0.0.1", f"--master-port={_free_port()}",
               "-m", "dlrun.worker", str(run.folder), "--held"]  # fmt: skip
    command += ["--components", str(registry.components)] if registry.components else []
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TORCHELASTIC_ENABLE_FILE_TIMER": "0",
    }
    log = run.folder / "processes.log"
    with open(log, "ab") as output:
        begun = output.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True, env=environment
        )  # the ranks hold the other end of stdin, which tells them when we are gone
    follow = _Follower(run.folder / "progress.jsonl", reporter)
    arrived: list[int] = []
    assert process.stdin is not None
    with contextlib.closing(process.stdin), _forwarded_signals(process, arrived):
        code = _wait(process, run.folder / "errors", follow)
    follow.catch_up()
    reporter.end()
    if code == 0 and (run.folder / "ended.json").exists():
        return runs.read_json(run.folder / "ended.json")["ended"]
    raise _first_failure(run.folder, log, begun, code)


def _wait(process: subprocess.Popen, errors: Path, follow: _Follower) -> int:
    """Wait for torchrun; from the first failure of a rank on, only for so long."""
    failed_at: float | None = None
    while process.poll() is None:
        follow.catch_up()
        if failed_at is None and any(errors.glob("*.json")):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            break
        time.sleep(0.1)
    _end_group(process)
    return process.wait()


def _end_group(process: subprocess.Popen) -> None:
    """No process of the group outlives its launcher."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()


@contextlib.contextmanager
def _forwarded_signals(process: subprocess.Popen, arrived: list[int]):
    """The ranks get a signal once (and save); the second one ends everything."""

    def forward(number: int, _frame: object) -> None:
        import psutil

        if arrived:
            _end_group(process)
            return
        arrived.append(number)
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children():
                child.send_signal(number)  # the ranks, not torchrun: it would end them before they saved

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(folder: Path, log: Path, begun: int, code: int) -> DlrunError:
    """The earliest rank's own error, not torchrun's wrapper. begun: bytes of the log that earlier sittings wrote."""
    failures = [runs.read_json(path) for path in (folder / "errors").glob("rank-*.json")]
    tail = log.read_bytes()[begun:].decode(errors="replace") if log.exists() else ""
    # A rank ended by a signal leaves no error of its own, and the others' errors are about the connection to it.
    # (SIGTERM is what torchrun sends to the others.)
    for rank, status in re.findall(r"^ +rank +: (\d+) .*\n +exitcode +: (-?\d+)", tail, re.MULTILINE):
        if int(status) < 0 and -int(status) != signal.SIGTERM:
            name = signal.Signals(-int(status)).name
            return DlrunError(
                f"rank {rank} was ended by {name}", f"its output: {log}; {_resume(folder)}", Exit.TRAINING
            )
    if not failures:
        return DlrunError(
            f"the processes ended with code {code} and left no error", f"their output: {log}", Exit.TRAINING
        )
    first = min(failures, key=lambda failure: failure["time"])
    message = f"rank {first['rank']}: {first['message']}"
    if first["traceback"]:
        message = f"{first['traceback'].rstrip()}\n{message}"
    return DlrunError(message, first["hint"] or f"all output: {log}", Exit(first["code"]))


def _resume(folder: Path) -> str:
    return f"continue with: dlrun train --resume {folder.parent.name[:8]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Follower:
    """Replays rank 0's progress file into this process's reporter."""

    def __init__(self, path: Path, reporter: Any) -> None:
        self.path, self.reporter, self._offset = path, reporter, 0

    def catch_up(self) -> None:
        """Everything written since the last call."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            chunk = file.read()
        complete = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            event = json.loads(line)
            kind = event.pop("event")
            {"begin": self.reporter.begin_counts, "step": self.reporter.step, "evaluated": self.reporter.evaluated,
             "note": self.reporter.note, "end": lambda: None}[kind](**event)  # fmt: skip


# ---------------------------------------------------------------- inside somebody else's job


def adopt_job() -> bool:
    """Whether this process is one task of a torchrun, SLURM or MPI job; sets RANK and the like from the job's own.

    A job step of one task is no job to join.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"]) > 1
    for rank, size, local, locals_ in (
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        if int(os.environ.get(size) or 1) > 1 and rank in os.environ:
            os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ[rank], os.environ[size]
            os.environ["LOCAL_RANK"] = os.environ.get(local, "0")
            count = re.match(r"\d+", os.environ.get(locals_, "1"))
            os.environ["LOCAL_WORLD_SIZE"] = count[0] if count else "1"
            os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
            os.environ.setdefault("MASTER_PORT", "29500")
            return True
    return False


_store: Any = None  # of the job; it lives as long as the process, or a slower rank would find it gone


def in_job(config_of_rank_zero: Callable[[], runs.Run]) -> tuple[runs.Run, bool]:
    """Rank 0 makes the run and tells the others its folder. Returns (run, am I rank 0)."""
    global _store
    import torch.distributed as dist

    main, size = os.environ["RANK"] == "0", int(os.environ["WORLD_SIZE"])
    _store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + 1, size, main)
    if main:
        try:
            run = config_of_rank_zero()
        except BaseException:
            _store.set("folder", "")
            _until_read(size - 1)
            raise
        _store.set("folder", str(run.folder))
        return run, True
    folder = _store.get("folder").decode()
    _store.add("read", 1)
    if not folder:
        raise SystemExit(int(Exit.USAGE))  # rank 0 says what was wrong
    return runs.load(Path(folder)), False


def _until_read(readers: int, timeout_seconds: float = 10.0) -> None:
    """Wait until the other ranks have heard, or for so long."""
    deadline = time.monotonic() + timeout_seconds
    while _store.add("read", 0) < readers and time.monotonic() < deadline:
        time.sleep(0.05)

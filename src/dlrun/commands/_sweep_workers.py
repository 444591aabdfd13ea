"""The processes of a sweep: started once, given one run after another, ended with the sweep."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlrun.registry import Registry


@dataclass(eq=False)
class Worker:
    """One process. job: what the sweep keeps of the trial it trains; None: it is free."""

    index: int
    process: subprocess.Popen[str]
    job: Any = None
    latest: dict[str, Any] = field(default_factory=dict)

    def send(self, **order: Any) -> None:
        """Give an order or an answer; a worker that is gone is noticed when its silence is read."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()


class Workers:
    """The workers of one sweep and the one queue of what they say: (worker, event), or (worker, None) at its death."""

    def __init__(self, count: int, registry: Registry, log: Path, gpus: int) -> None:
        self.heard: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
        self._registry, self._log, self._gpus, self._count = registry, log, gpus, count
        self.all = [self._start(index) for index in range(count)]

    def replace(self, dead: Worker) -> Worker:
        """A new process in place of one that died."""
        self.all[dead.index] = self._start(dead.index)
        return self.all[dead.index]

    def close(self, patience_seconds: float = 5.0) -> None:
        """End every worker: those that train save first."""
        for worker in self.all:
            if worker.job is not None:
                worker.process.terminate()
            elif worker.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    worker.process.stdin.close()
        for worker in self.all:
            try:
                worker.process.wait(patience_seconds)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def _start(self, index: int) -> Worker:
        command = [sys.executable, "-m", "dlrun.trials"]
        command += ["--components", str(self._registry.components)] if self._registry.components else []
        if cores := self._cores(index):
            command += ["--cores", ",".join(map(str, cores))]
        environment = dict(os.environ)
        if cores:
            environment["OMP_NUM_THREADS"] = str(len(cores))
        if self._gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
            environment["CUDA_VISIBLE_DEVICES"] = str(index % self._gpus)
        with open(self._log, "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                start_new_session=True,  # Ctrl-C is ours alone; we tell them
            )  # fmt: skip
        worker = Worker(index, process)
        threading.Thread(target=self._listen, args=(worker,), daemon=True, name=f"dlrun-worker-{index}").start()
        return worker

    def _cores(self, index: int) -> list[int]:
        """This worker's share of the cores; several workers share one where there are fewer."""
        if not hasattr(os, "sched_getaffinity") or self._count == 1:
            return []
        cores = sorted(os.sched_getaffinity(0))
        each = len(cores) // self._count
        return cores[index * each : (index + 1) * each] if each else [cores[index % len(cores)]]

    def _listen(self, worker: Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                self.heard.put((worker, json.loads(line)))
        self.heard.put((worker, None))

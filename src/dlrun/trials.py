"""A worker of a sweep: a process that trains one run folder after another, torch and the decoded data kept warm.

Spoken in JSON lines, over pipes or, from a job of a cluster, over a socket. From the sweep: {"look": FOLDER} asks for a
config's goal; {"run": FOLDER} trains a run; {"prune": true|false} answers. To the sweep: {"event": "ready"}; "goal";
"step" and "note" as they come; "evaluated", after which the worker waits for the answer; "ended" with how it ended, or
"failed" with the code and message of the error.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from dlrun import build, launch, runs, worker  # warm before the first trial
from dlrun.config import check
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry
from dlrun.training.distributed import choose_device
from dlrun.training.energy import EnergyMeter

_STEP_SECONDS = 0.5  # between two words on progress


class Line:
    """The line to the sweep: our standard input and output, or a call to another machine.

    Over a call orders are read by a thread, which ends the process where nobody is there any more, and passes
    {"stop": true} on as the signal that a local worker would get.
    """

    def __init__(self, call: str | None = None, token: Path | None = None, name: str = "") -> None:
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._remote = call is not None
        if call is None:
            self._out, self._in = os.fdopen(os.dup(1), "w"), sys.stdin
            os.dup2(2, 1)  # what libraries print goes to the log, never between our words
            return
        host, _, port = call.rpartition(":")
        connection = socket.create_connection((host, int(port)), timeout=60)
        connection.settimeout(None)
        self._in = connection.makefile("r", encoding="utf-8")
        self._out = connection.makefile("w", encoding="utf-8")
        assert token is not None
        self._out.write(f"{token.read_text()} {name}\n")
        self._out.flush()
        threading.Thread(target=self._read, daemon=True, name="dlrun-orders").start()

    def say(self, **event: Any) -> None:
        """Send one event."""
        try:
            self._out.write(json.dumps(event) + "\n")
            self._out.flush()
        except OSError:  # the sweep is gone
            os._exit(int(Exit.TERMINATED))

    def hear(self) -> dict[str, Any]:
        """The next order. Ends the process where nobody is there any more."""
        return self._orders.get() if self._remote else self._next()

    def _next(self) -> dict[str, Any]:
        line = self._in.readline()
        if not line:
            os._exit(int(Exit.TERMINATED))
        return json.loads(line)

    def _read(self) -> None:
        """A job is not the sweep's child: nobody else tells it that the sweep is gone, or wants it to stop."""
        while True:
            order = self._next()
            if order.get("stop"):
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self._orders.put(order)


class TrialReporter:
    """Tells the sweep how a trial goes, and asks it after every evaluation whether to go on."""

    def __init__(self, line: Line, folder: Path) -> None:
        self.line, self.folder, self.prune = line, folder, False
        self._said = 0.0

    def begin(self, plan: Any, step: int) -> None: ...

    def begin_counts(self, total: int | None, seconds: float | None, step: int) -> None: ...

    def step(self, step: int, values: dict[str, float] | None, fraction: float) -> None:
        """Now and then."""
        if time.monotonic() - self._said > _STEP_SECONDS:
            self._said = time.monotonic()
            self.line.say(event="step", step=step, fraction=fraction)

    def evaluated(self, step: int, values: dict[str, float], best: bool) -> None:
        """Wait for the verdict; the ranks of another process read it from a file."""
        self.line.say(event="evaluated", step=step, values=values)
        self.prune = bool(self.line.hear().get("prune"))
        if self.prune:
            runs.write_json(self.folder / "pruned.json", {"step": step})
        else:
            (self.folder / "pruned.json").unlink(missing_ok=True)
        verdicts = self.folder / "verdicts"
        if verdicts.is_dir():
            runs.write_json(verdicts / f"{step}.json", {"prune": self.prune})

    def note(self, text: str) -> None:
        """Pass a sentence on."""
        self.line.say(event="note", text=text)

    def end(self) -> None: ...


def main() -> None:
    """The process a sweep starts."""
    parser = argparse.ArgumentParser(prog="python -m dlrun.trials")
    parser.add_argument("--components", type=Path)
    parser.add_argument("--cores", help="of this worker, e.g. 0,1; all unless set")
    parser.add_argument("--call", metavar="HOST:PORT", help="of the sweep, where it is not our parent process")
    parser.add_argument("--token", type=Path, help="file of what the sweep knows us by")
    parser.add_argument("--as", dest="name", default="", help="who calls")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the sweep's; it tells its workers
    if arguments.call is None:
        with contextlib.suppress(OSError):
            ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG: never outlive the sweep
    if arguments.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    line = Line(arguments.call, arguments.token, arguments.name)
    registry, datasets = Registry(arguments.components), build.Datasets()
    line.say(event="ready")
    while order := line.hear():
        if "look" in order:
            _look(Path(order["look"]), registry, datasets, line)
        else:
            _train(Path(order["run"]), registry, datasets, line)
        gc.collect()
        if "run" in order and not gc.get_freeze_count():
            gc.freeze()  # what the first trial imported stays: looking through it took 0.2 s after every trial
        _free_devices()


def _look(folder: Path, registry: Registry, datasets: build.Datasets, line: Line) -> None:
    """What the config of a sweep's folder chases; its data stays here, for the trials."""
    try:
        config = check.read(folder, registry)
        meter = EnergyMeter(choose_device(config.hardware.device))
        chased = " ".join(runs.read_json(folder / "sweep.json")["search"]["objectives"])
        if "energy_joules:" in chased and meter.reading()["joules"] is None:
            hint = "leave it out, or sweep on a machine with a counter that can be read; see: dlrun doctor"
            raise DlrunError("search.objectives: no trial can report energy_joules: no readable energy counter", hint)
        data = datasets.get(config.data, registry, build.RunTools(config.seed, folder.parents[1], registry))
        goal = build.task(config.task, registry, data.spec).goal
        line.say(event="goal", name=goal.metric, mode=goal.mode)
    except DlrunError as error:
        line.say(event="failed", code=int(error.code), message=error.message, hint=error.hint)


def _train(folder: Path, registry: Registry, datasets: build.Datasets, line: Line) -> None:
    reporter = TrialReporter(line, folder)
    try:
        with runs.hold(folder):
            config = check.read(folder, registry)
            if config.hardware.processes > 1:
                shutil.rmtree(folder / "verdicts", ignore_errors=True)  # what was said before holds no longer
                (folder / "verdicts").mkdir()
                ended = launch.execute(runs.load(folder), config, registry, reporter)
            else:
                ended = worker.train(
                    folder, registry, reporter, config=config, datasets=datasets,
                    stop=lambda _step, _values: reporter.prune,
                )  # fmt: skip
        line.say(event="ended", ended="pruned" if reporter.prune and ended == "early stop" else ended)
    except DlrunError as error:
        line.say(event="failed", code=int(error.code), message=error.message, hint=error.hint)
    except Exception as error:
        traceback.print_exc()
        line.say(event="failed", code=int(Exit.BUG), message=f"{type(error).__name__}: {error}", hint="")


def _free_devices() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

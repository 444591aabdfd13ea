"""The thread that sends a run folder to MLflow while the run runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dlrun._tracking_sync import Sender, sending
from dlrun.errors import DlrunError

_LONGEST_PAUSE_SECONDS = 60.0


class Mirror:
    """A thread that keeps MLflow equal to a run folder while the run runs. Training never calls it.

    Make it after metrics.jsonl was cut by a resume. While the store is away it tries again after 1, 2, 4 …
    60 seconds, and what was not sent stays in the folder.
    report: called from the thread with one line when the store goes away, and when it is back.
    """

    def __init__(
        self, run_dir: Path, *, interval_seconds: float = 5.0, report: Callable[[str], None] | None = None
    ) -> None:
        self._run_dir = run_dir
        self._interval = interval_seconds
        self._report = report or (lambda line: None)
        self._closing = threading.Event()
        self._deadline: float | None = None  # of time.monotonic(), once closing
        self._complete = False
        self._thread = threading.Thread(target=self._run, name="dlrun-mirror", daemon=True)

    def start(self) -> Mirror:
        """Begin sending."""
        with sending(self._run_dir) as held:
            if held:
                Sender(self._run_dir)  # notes where to go on, before training appends to a file that was cut
        self._thread.start()
        return self

    def close(self, timeout_seconds: float = 30.0) -> bool:
        """Send the rest, waiting at most this long; True if MLflow then has every row."""
        self._deadline = time.monotonic() + timeout_seconds
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        return self._complete and not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(DlrunError), sending(self._run_dir, _LONGEST_PAUSE_SECONDS) as held:
            if held:
                self._loop(Sender(self._run_dir))

    def _loop(self, sender: Sender) -> None:
        failures = 0
        while True:
            last_round = self._closing.is_set()
            problem = self._try(sender)
            if problem and failures == 0 and not last_round:
                self._report(f"tracking: {problem}; training goes on, and MLflow gets the metrics later")
            elif failures and not problem:
                self._report("tracking: the store is back")
            failures = failures + 1 if problem else 0
            # A store that was away before the end is asked once more; one that fails now is given the time left.
            if last_round and (self._complete or failures > 1 or time.monotonic() > (self._deadline or 0.0)):
                return
            self._pause(min(2.0 ** (failures - 1), _LONGEST_PAUSE_SECONDS) if failures else self._interval, last_round)

    def _try(self, sender: Sender) -> str:
        """One attempt to send all; the reason why not, or nothing."""
        try:
            self._complete = sender.send(self._deadline)
            return ""
        except Exception as error:  # whatever goes wrong here must not touch the training
            self._complete = False
            return str(error).partition("\n")[0]

    def _pause(self, seconds: float, closing: bool) -> None:
        if closing:
            time.sleep(max(0.0, min(seconds, (self._deadline or 0.0) - time.monotonic())))
        else:
            self._closing.wait(seconds)

"""`dlrun chat`: a conversation with a run in the terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _reading as reading
from dlrun.commands._prompts import losses
from dlrun.commands._terminal import TerminalReporter
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands.train import Options
    from dlrun.contracts import Row
    from dlrun.predictor import TrainedModel

_COMMANDS = ("/reset", "/quit")
_PROMPT = "> "


def chat(
    reference: str,
    options: Options,
    *,
    system: str | None = None,
    device: str | None = None,
    generation: Mapping[str, Any] | None = None,
) -> int:
    """Answer what is typed, or each line of a pipe, until it ends. Returns the exit code.

    generation: how answers are said (see decoding.Generation), None for what the run's task does.
    """
    reporter = TerminalReporter()
    run = runs.find(options.runs, reference)
    predictor = reading.load(run, options, reporter, device)
    conversation = Conversation(predictor, system, reporter)
    predictor.change_generation(**(generation or {}))
    is_typed = sys.stdin.isatty() and sys.stdout.isatty()
    if is_typed:
        reporter.note(f"run {run.short_id}, step {predictor.step}: {', '.join(_COMMANDS)}; Ctrl-C stops an answer")
    for line in _typed(reporter) if is_typed else _piped():
        if line == "/quit":
            break
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/") and " " not in line:
            reporter.note(f"there is no command {line}; there are {', '.join(_COMMANDS)}")
        elif line:
            _say(conversation.answer(line), can_be_stopped=is_typed)
            conversation.tell_losses()
    return int(Exit.OK)


def _say(pieces: Generator[str, None, None], can_be_stopped: bool) -> None:
    """Write the pieces as they come, and end the line."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not can_be_stopped:
            raise
    finally:
        pieces.close()  # what was said until now belongs to the conversation
    sys.stdout.write("\n")
    sys.stdout.flush()


class Conversation:
    """What was said so far, and its next answer. Raises: DlrunError for a run that holds no conversations."""

    def __init__(self, predictor: TrainedModel, system: str | None, reporter: Any) -> None:
        self._predictor, self._reporter, self._was_told, self._told_losses = predictor, reporter, False, False
        self._start: list[Row] = [{"role": "system", "content": system}] if system and system.strip() else []
        self.messages: list[Row] = list(self._start)
        predictor.fitting([{"role": "user", "content": "?"}])  # refuses other runs before anything is typed

    def reset(self) -> None:
        """Forget all but what the system says."""
        self.messages = list(self._start)

    def tell_losses(self) -> None:
        """Say once what of the conversation the model could not read."""
        lines = [] if self._told_losses else losses(self._predictor)
        for line in lines:
            self._reporter.note(f"warning: {line}")
        self._told_losses |= bool(lines)

    def answer(self, question: str) -> Generator[str, None, None]:
        """The answer in pieces; what was said of it when the generator is closed stays in the conversation."""
        self.messages.append({"role": "user", "content": question})
        read = self._predictor.fitting(self.messages)
        if len(read) < len(self.messages) and not self._was_told:
            self._was_told = True
            self._reporter.note("the conversation is longer than what the model reads: its oldest turns are left out")
        said = ""
        try:
            for piece in self._predictor.reply(read):
                said += piece
                yield piece
        finally:
            if said.strip():
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()  # a question that was not answered would stand before the next one


def _typed(reporter: TerminalReporter) -> Iterator[str]:
    """Lines typed at a prompt, until Ctrl-D."""
    with contextlib.suppress(ImportError):  # editing and a history, where the system has them
        import readline  # noqa: F401
    while True:
        try:
            line = input(_PROMPT).strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            reporter.note("Ctrl-D or /quit leaves")
            continue
        yield line


def _piped() -> Iterator[str]:
    """Lines of standard input. Raises: DlrunError naming the one that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode().strip()
        except UnicodeDecodeError as error:
            raise DlrunError(f"standard input, line {number}: is not UTF-8", code=Exit.DATA) from error

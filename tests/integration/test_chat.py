"""Talking with runs: `dlrun chat`, `dlrun predict --prompt`, and what a run on text says of files."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlrun.commands import _making as making
from dlrun.commands import _reading as reading
from dlrun.commands import chat
from dlrun.commands.train import Options, composed
from dlrun.errors import DlrunError
from dlrun.registry import Registry
from dlrun.worker import Silent

# ---------------------------------------------------------------- with an echo for a model


class Echo:
    """A predictor that says every word of the last question in capitals; at "stop" somebody presses Ctrl-C."""

    step, inputs = 7, None

    def __init__(self, most: int = 100) -> None:
        self.most, self.read, self.generation = most, [], {}

    def fitting(self, messages: list[dict]) -> list[dict]:
        return messages[-self.most :]

    def change_generation(self, **given) -> None:
        self.generation = given

    def reply(self, messages: list[dict]) -> Iterator[str]:
        self.read.append(list(messages))
        for word in messages[-1]["content"].split():
            if word == "stop":
                raise KeyboardInterrupt
            yield f"{word.upper()} "


@pytest.fixture
def echo(monkeypatch) -> Echo:
    predictor = Echo()
    monkeypatch.setattr(chat.runs, "find", lambda folder, reference: SimpleNamespace(short_id="1234"))
    monkeypatch.setattr(reading, "load", lambda *_: predictor)
    return predictor


def piped(monkeypatch, capsys, text: bytes, **settings) -> tuple[str, str]:
    """(stdout, stderr) of `dlrun chat` at the end of a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert chat.chat("latest", SimpleNamespace(runs=Path()), **settings) == 0  # type: ignore[arg-type]
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_each_line_of_a_pipe_is_answered_in_a_line_without_control_codes(echo, monkeypatch, capsys):
    out, _ = piped(monkeypatch, capsys, "hello there\n\nwie schön\n".encode())
    assert out == "HELLO THERE \nWIE SCHÖN \n"
    assert "\x1b" not in out


def test_turns_are_kept_until_reset(echo, monkeypatch, capsys):
    piped(monkeypatch, capsys, b"one\ntwo\n/reset\nthree\n/quit\nfour\n", system="be brief")
    start = {"role": "system", "content": "be brief"}
    first, second = [
        [{"role": "user", "content": word}, {"role": "assistant", "content": f"{word.upper()} "}]
        for word in ("one", "two")
    ]
    assert echo.read == [[start, first[0]], [start, *first, second[0]], [start, {"role": "user", "content": "three"}]]


def test_flags_decide_how_answers_are_said(echo, monkeypatch, capsys):
    piped(monkeypatch, capsys, b"", generation={"temperature": 0.0, "seed": 3})
    assert echo.generation == {"temperature": 0.0, "seed": 3}


def test_an_unknown_command_is_no_question(echo, monkeypatch, capsys):
    out, err = piped(monkeypatch, capsys, b"/rest\n/etc is a folder\n")
    assert out == "/ETC IS A FOLDER \n"
    assert "there is no command /rest; there are /reset, /quit" in err


def test_it_is_said_once_that_the_oldest_turns_are_left_out(echo, monkeypatch, capsys):
    echo.most = 3
    _, err = piped(monkeypatch, capsys, b"a\nb\nc\nd\n")
    assert err.count("its oldest turns are left out") == 1
    assert len(echo.read[-1]) == 3


def test_a_stopped_answer_stays_as_far_as_it_was_said():
    conversation = chat.Conversation(Echo(), None, None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        list(conversation.answer("two words stop here"))
    assert conversation.messages[-1] == {"role": "assistant", "content": "TWO WORDS "}
    with pytest.raises(KeyboardInterrupt):
        list(conversation.answer("stop"))
    assert conversation.messages[-1] == {"role": "assistant", "content": "TWO WORDS "}, "it was never answered"
    pieces = conversation.answer("leave me alone")
    next(pieces)
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "LEAVE "}


def test_a_line_that_is_not_utf8_is_named(echo, monkeypatch, capsys):
    with pytest.raises(DlrunError, match="standard input, line 2: is not UTF-8"):
        piped(monkeypatch, capsys, b"good\nb\xe4d\n")


# ---------------------------------------------------------------- with real runs

TINY = ("train.duration=6 steps", "train.evaluate_every=6 steps", "hardware.device=cpu",
        "tracking.system_metrics=false", "data=number_words", "data.size=60", "data.largest=999",
        "data.batch_size=8")  # fmt: skip
GPT = ("model=gpt", "model.depth=1", "model.heads=2", "model.width=16")


@dataclass(frozen=True)
class Made:
    """Ids of runs that were made once."""

    folder: Path
    chat: str
    language: str
    translation: str


@pytest.fixture(scope="module")
def made(tmp_path_factory, store) -> Made:
    folder = tmp_path_factory.mktemp("said") / "runs"
    folder.mkdir()
    for path in store.parent.glob("*mlflow*"):
        shutil.copy(path, folder / path.name)
    options = Options(folder, Registry(None))

    def train(*overrides: str) -> str:
        config = composed([*TINY, *overrides], options)
        run = making.new_run(config, options.registry, folder, verb="train")
        return making.execute(run, config, options.registry, Silent()).run.id

    return Made(
        folder,
        train("task=chat", "data.kind=chat", "data.context=64", *GPT),
        train("task=language_model", "data.kind=language", "data.context=32", *GPT),
        train("task=translation", "task.beams=2", "task.max_tokens=8", "model=seq2seq_gru", "model.width=16",
              "model.hidden=16"),
    )  # fmt: skip


@pytest.fixture
def said(made, monkeypatch, tmp_path, capsys):
    """said("predict", run, …) -> (exit code, stdout, stderr)."""
    from dlrun import cli

    monkeypatch.setenv("DLRUN_RUNS", str(made.folder))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlrun", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.slow
def test_a_run_on_text_counts_tokens_a_second_and_scores_texts_at_its_end(made):
    from dlrun import runs

    language, translation = (runs.find(made.folder, name).result for name in (made.language, made.translation))
    assert language is not None and translation is not None
    assert language["rate"]["tokens_per_second"] > 0 and translation["rate"]["tokens_per_second"] > 0
    assert {"test/loss", "test/perplexity", "test/bits_per_byte"} <= language["metrics"].keys()
    assert {"valid/bleu", "test/bleu", "test/chrf"} <= translation["metrics"].keys()
    assert translation["goal"]["name"] == "loss"
    assert translation["signatures"][0].startswith("bleu: nrefs:1|case:mixed")
    during = runs.find(made.folder, made.translation).metrics_file.read_text()
    assert "valid/loss" in during and "valid/bleu" not in during


@pytest.mark.slow
def test_a_prompt_is_gone_on_with_and_the_same_seed_says_the_same(made, said):
    code, out, err = said("predict", made.language, "--prompt", "twenty", "--max-tokens", "12")
    assert code == 0, err
    assert said("predict", made.language, "--prompt", "twenty", "--max-tokens", "12")[1] == out
    other = said("predict", made.language, "--prompt", "twenty", "--max-tokens", "12", "--seed", "5")[1]
    assert other != out
    code, out, _ = said("predict", made.language, "--prompt", "one", "--prompt", "two", "--json", "--temperature", "0")
    found = json.loads(out)
    assert [row["prompt"] for row in found["predictions"]] == ["one", "two"]
    assert all(set(row) == {"prompt", "text"} for row in found["predictions"])


@pytest.mark.slow
def test_what_is_cut_or_unknown_of_a_prompt_or_a_question_is_said(made, said):
    _, _, err = said("predict", made.language, "--prompt", "forty é", "--prompt", "two " * 20, "--max-tokens", "2")
    assert "warning: 1 of 2 texts have over data.context=32 tokens: the end is read" in err
    assert "warning: 1 of 87 tokens are unknown to the run's vocabulary (char), and say nothing" in err
    assert "warning" not in said("predict", made.language, "--prompt", "two", "--max-tokens", "2")[2]
    command = [sys.executable, "-m", "dlrun", "chat", made.chat, "--max-tokens", "2"]
    done = subprocess.run(command, input="é\n/reset\né\n", capture_output=True, text=True)
    assert done.stderr.count("1 of 1 tokens are unknown to the run's vocabulary (char), and say nothing") == 1


@pytest.mark.slow
def test_several_prompts_stand_over_what_is_said_to_them(made, said):
    _, out, _ = said("predict", made.translation, "--prompt", "one", "--prompt", "two", "--beams", "1")
    lines = out.split("\n")
    assert lines[0] == "> one" and "> two" in lines


@pytest.mark.slow
def test_rows_of_a_file_are_translated_and_evaluated_texts_scored(made, said, tmp_path):
    (tmp_path / "rows.csv").write_text("text\nfive\nsix hundred four\n")
    code, out, err = said("predict", made.translation, "rows.csv", "--format", "csv", "--max-tokens", "3")
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [set(row) for row in rows] == [{"input", "row", "text"}] * 2
    assert all(len(row["text"]) <= 3 for row in rows)
    code, out, err = said("evaluate", made.translation, "--json")
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    from dlrun import runs

    stored = runs.find(made.folder, made.translation).result
    assert stored is not None
    assert metrics == pytest.approx({name: stored["metrics"][name] for name in metrics})
    assert "test/bleu" in metrics
    assert "bleu: nrefs:1" in said("evaluate", made.translation)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("predict", "latest"), "nothing to predict: no file was given"),
        (("predict", "latest", "rows.csv", "--prompt", "x"), "predict takes files or prompts, not both"),
        (("predict", "latest", "--prompt", " "), "--prompt is empty"),
        (("predict", "latest", "--prompt", "x", "--limit", "3"), "--out and --limit go with files"),
        (("predict", "latest", "--prompt", "x", "--beams", "3", "--top-k", "2"), "beam search draws nothing"),
        (("predict", "latest", "--prompt", "x", "--top-p", "1.5"), "top_p: 1.5 is not above 0 and at most 1"),
        (
            ("predict", "latest", "--prompt", "x", "--length-penalty", "11"),
            "length_penalty: 11.0 is not between -10 and",
        ),
        (("predict", "latest", "--prompt", "x", "--beams", "1", "--length-penalty", "1"), "it is of beam search"),
        (("chat", "latest"), "holds no conversations: its task is translation"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(made, said, arguments, says):
    code, _, err = said(*arguments)
    assert code == 2 and err.startswith("error: ") and says in err and err.count("\n") <= 2


@pytest.mark.slow
def test_a_pipe_talks_with_a_run(made, said):
    command = [sys.executable, "-m", "dlrun", "chat", made.chat, "--max-tokens", "5", "--temperature", "0"]
    done = subprocess.run(
        command, input="Write five in digits.\n/reset\nWrite five in digits.\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    first, second = done.stdout.removesuffix("\n").split("\n")
    assert first == second


# ---------------------------------------------------------------- in a terminal

ENDLESS = """
import itertools, signal, time
from pathlib import Path
from types import SimpleNamespace
from dlrun.commands import _reading as reading, chat

signal.signal(signal.SIGINT, signal.default_int_handler)  # a terminal's, also where the tests run in the background

class Endless:
    step, inputs = 7, None
    def fitting(self, messages): return list(messages)
    def change_generation(self, **given): pass
    def reply(self, messages):
        for number in itertools.count():
            time.sleep(0.01)
            yield f"{len(messages)}:{number} "

chat.runs.find = lambda folder, reference: SimpleNamespace(short_id="1234")
reading.load = lambda *_: Endless()
raise SystemExit(chat.chat("latest", SimpleNamespace(runs=Path())))
"""


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ENDLESS]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(theirs)
    try:
        until(ours, "> ")
        os.write(ours, b"hello\n")
        until(ours, "1:5 ")
        process.send_signal(signal.SIGINT)
        until(ours, "> ")
        os.write(ours, b"go on\n")
        until(ours, "3:5 ")  # the question, the stopped answer, and the next question
        process.send_signal(signal.SIGINT)
        until(ours, "> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def until(terminal: int, words: str) -> str:
    """What a terminal shows until these words come."""
    shown = ""
    while words not in shown:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"nothing more after {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")
        assert len(shown) < 100_000, f"never said: {words!r}"
    return shown

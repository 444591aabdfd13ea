"""Run folders: written whole or not at all, found by any of their names, honest about who is alive."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dlrun import runs
from dlrun.errors import DlrunError, Exit
from dlrun.runs import FORMAT, Run, RunRecord


def make(folder: Path, **fields) -> Run:
    return runs.create(folder, RunRecord(**({"id": runs.new_id(), "verb": "train"} | fields)))


def finished(folder: Path, **fields) -> Run:
    return make(folder, status="FINISHED", **fields)


# ---------------------------------------------------------------- writing


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    runs.write_json(path, {"word": "größer", "number": float("nan")})
    runs.write_json(path, [1])
    assert runs.read_json(path) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    runs.write_json(path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DlrunError, match="cannot be written: No space left on device") as caught:
        runs.write_json(path, 2)
    assert caught.value.code == Exit.DISK and "--runs DIR" in caught.value.hint
    assert runs.read_json(path) == 1 and os.listdir(tmp_path) == ["a.json"]


def test_two_threads_may_write_the_same_file(tmp_path):
    path, errors = tmp_path / "a.json", []

    def write(value: int) -> None:
        try:
            for _ in range(50):
                runs.write_json(path, [value] * 100)
        except DlrunError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(set(runs.read_json(path))) == 1


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DlrunError, match="cannot be read") as caught:
        runs.read_json(path)
    assert str(path) in caught.value.message and caught.value.code == Exit.DATA


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DlrunError) as caught:
        make(tmp_path / "file")
    assert caught.value.code == Exit.DISK


# ---------------------------------------------------------------- run.json


def test_a_run_is_read_back_as_it_was_made(tmp_path):
    made = finished(tmp_path, name="first", parents=("a", "b"), children=("c",), components={"models/x.py": "0"})
    assert made.folder == tmp_path / made.id / "artifacts"
    assert runs.load(made.folder) == made
    assert made.record.created == pytest.approx(time.time(), abs=60)
    assert oct((tmp_path / made.id).stat().st_mode)[-3:] == "700"


def test_an_update_changes_the_file_and_keeps_the_rest(tmp_path):
    made = make(tmp_path, name="first")
    changed = made.update(status="FAILED", reason="no luck")
    assert (changed.status, changed.record.name) == ("FAILED", "first")
    assert runs.load(made.folder) == changed


def test_a_run_without_a_result_has_none(tmp_path):
    made = finished(tmp_path)
    assert made.result is None
    runs.write_json(made.folder / "result.json", {"seconds": 1})
    assert made.result == {"seconds": 1}


def test_fields_of_an_older_or_richer_record_do_no_harm(tmp_path):
    made = finished(tmp_path)
    stored = runs.read_json(made.folder / "run.json")
    del stored["children"]
    runs.write_json(made.folder / "run.json", stored | {"unknown": 1, "parents": None})
    assert runs.load(made.folder).record == made.record


def test_a_run_of_a_newer_format_is_refused_with_what_to_do(tmp_path):
    made = finished(tmp_path, format=FORMAT + 1)
    with pytest.raises(DlrunError, match="made by a newer dlrun") as caught:
        runs.load(made.folder)
    assert (caught.value.code, caught.value.hint) == (Exit.USAGE, "pip install --upgrade dlrun")


@pytest.mark.parametrize("text", ["[]", "{}", '{"id": 3, "verb": "train"}', '{"id": "x"}', '"x"'])
def test_a_record_that_is_none_is_refused(text, tmp_path):
    made = finished(tmp_path)
    (made.folder / "run.json").write_text(text)
    with pytest.raises(DlrunError, match=r"run.json: is not a run's record") as caught:
        runs.load(made.folder)
    assert caught.value.code == Exit.DATA


# ---------------------------------------------------------------- alive or dead


HOLD = """
import sys, time
from pathlib import Path
from dlrun import runs
with runs.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen:
    """A process that holds a run's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()


def test_a_run_whose_process_was_killed_is_shown_and_stored_as_killed(tmp_path):
    made = make(tmp_path)
    process = holder(made.folder)
    assert runs.is_held(made.folder) and runs.load(made.folder).status == "RUNNING"
    end(process)
    assert not runs.is_held(made.folder)
    assert runs.load(made.folder).status == "KILLED"
    assert json.loads((made.folder / "run.json").read_text())["reason"] == "its process is gone"


def test_a_run_that_never_began_is_killed_too(tmp_path):
    assert runs.load(make(tmp_path).folder).status == "KILLED"


def test_a_second_holder_is_refused(tmp_path):
    made = make(tmp_path)
    process = holder(made.folder)
    try:
        with (
            pytest.raises(DlrunError, match=f"run {made.short_id} is still running in another process"),
            runs.hold(made.folder),
        ):
            pass
    finally:
        end(process)
    with runs.hold(made.folder):
        assert runs.is_held(made.folder)


def test_a_command_that_looks_does_not_keep_a_run_from_starting(tmp_path):
    made, stop = make(tmp_path), threading.Event()
    (made.folder / "run.lock").touch()

    def look() -> None:
        while not stop.is_set():
            runs.is_held(made.folder)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            with runs.hold(made.folder):
                assert runs.is_held(made.folder)
    finally:
        stop.set()
        thread.join()


def test_a_run_that_ends_while_it_is_looked_at_stays_finished(tmp_path, monkeypatch):
    """The record is read as RUNNING; before the lock is asked for, the run ends. It must not become KILLED."""
    made = make(tmp_path)
    read, calls = runs._read_record, []

    def read_then_end(folder: Path) -> RunRecord:
        record = read(folder)
        if not calls:
            calls.append(folder)
            made.update(status="FINISHED")
        return record

    monkeypatch.setattr(runs, "_read_record", read_then_end)
    assert runs.load(made.folder).status == "FINISHED"
    assert json.loads((made.folder / "run.json").read_text())["status"] == "FINISHED"


# ---------------------------------------------------------------- finding


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, list[Run]]:
    folder = tmp_path / "runs"
    ids = ["aaaa" + "0" * 28, "aabb" + "0" * 28, "cccc" + "0" * 28]
    names = ["first", "second", "second"]
    return folder, [
        finished(folder, id=id, name=name, created=at) for at, (id, name) in enumerate(zip(ids, names, strict=True), 1)
    ]


def test_a_run_is_found_by_id_prefix_name_folder_and_latest(three):
    folder, (first, second, third) = three
    second.update(tracking_id="f" * 32)
    for reference, run in [
        (first.id, first), ("aaaa", first), ("first", first), ("cccc", third), ("latest", third), ("run:aabb", second),
        (str(first.folder), first), (str(first.folder.parent), first), ("mlflow:" + "f" * 32, second),
        ("f" * 32, second),
    ]:  # fmt: skip
        assert runs.find(folder, reference).id == run.id, reference


def test_a_run_is_found_from_inside_its_folder(three, monkeypatch):
    folder, (first, *_) = three
    monkeypatch.chdir(first.folder)
    assert runs.find(folder, ".").id == first.id


@pytest.mark.parametrize(("reference", "fits"), [("aa", "fits 2 runs: aabb0000, aaaa0000"), ("second", "fits 2 runs")])
def test_a_name_that_fits_several_runs_lists_them(three, reference, fits):
    with pytest.raises(DlrunError, match=fits):
        runs.find(three[0], reference)


@pytest.mark.parametrize(("reference", "hint"), [("frist", "did you mean first?"), ("lastest", "did you mean latest?"),
                                                 ("zzzz", "known: "), ("../x", ""), ("", "known: ")])  # fmt: skip
def test_an_unknown_run_gets_the_nearest_name(three, reference, hint):
    with pytest.raises(DlrunError, match="unknown run") as caught:
        runs.find(three[0], reference)
    assert hint in caught.value.hint


def test_an_empty_or_absent_folder_says_how_to_make_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DlrunError, match=f"run 'latest': there are no runs in {folder}") as caught:
            runs.find(folder, "latest")
        assert caught.value.hint.startswith("make one: dlrun train")


def test_the_listing_is_newest_first_and_leaves_damaged_runs_out(three):
    folder, (first, second, third) = three
    (second.folder / "run.json").write_text("{")
    assert [run.id for run in runs.listing(folder)] == [third.id, first.id]
    with pytest.raises(DlrunError, match=r"run.json: cannot be read"):
        runs.find(folder, second.id)


def test_the_runs_folder_is_the_option_then_the_variable_then_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.runs_folder() == tmp_path / "runs"
    monkeypatch.setenv("DLRUN_RUNS", "elsewhere")
    assert runs.runs_folder() == tmp_path / "elsewhere"
    assert runs.runs_folder(Path("given")) == tmp_path / "given"


def _make_many(folder: str) -> None:
    for _ in range(5):
        finished(Path(folder))


def test_many_processes_make_runs_in_a_fresh_folder_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make_many, args=(str(tmp_path / "runs"),)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(runs.listing(tmp_path / "runs")) == 20

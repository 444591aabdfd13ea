"""The mirror to MLflow: what is sent, what is kept back, and that nothing is lost or doubled."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import sys
import threading
import time
import types
from contextlib import closing
from pathlib import Path

import pytest

from dlrun import runs as folders
from dlrun import tracking
from dlrun._tracking_database import sqlite_uri
from dlrun._tracking_state import flatten, legal_key, read_sent, read_wanted, tag_values
from dlrun._tracking_store import hurried, locate, without_secrets
from dlrun._tracking_upload import upload
from dlrun.commands import _making as making
from dlrun.config import convert
from dlrun.config.compose import compose
from dlrun.errors import DlrunError
from dlrun.registry import Registry


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests change the environment as dlrun does; what they change is put back."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")] + ["MLFLOW_TRACKING_URI"]:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def start(runs: Path, **changes) -> tuple[tracking.MlflowRun, Path]:
    given = {"uri": None, "experiment": "dlrun", "name": "a run", "params": {"seed": 1}, "tags": {}, "created_ms": 1000}
    started = tracking.start_run(runs, **given | changes)
    return started, runs / started.id / "artifacts"


def write_rows(run_dir: Path, steps: range, *keys: str) -> None:
    with open(run_dir / "metrics.jsonl", "a") as file:
        for step in steps:
            values = {key: step + index / 10 for index, key in enumerate(keys or ("train/loss",))}
            file.write(json.dumps({"step": step, "time_ms": 10_000 + step, "values": values}) + "\n")


def client(runs: Path):
    from mlflow import MlflowClient

    return MlflowClient(sqlite_uri(runs / "mlflow.db"))


def history(runs: Path, run_id: str, key: str = "train/loss") -> list[tuple[int, float, int]]:
    found = client(runs).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in found)


def expected(steps: range) -> list[tuple[int, float, int]]:
    return [(step, float(step), 10_000 + step) for step in steps]


# ---------------------------------------------------------------- a run from beginning to end


def test_a_run_has_its_folder_as_artifact_folder_and_its_params_and_tags(runs):
    started, run_dir = start(
        runs, params={"model": {"name": "mlp", "sizes": [64, 32]}, "lr": 0.1}, tags={"verb": "train"}
    )
    assert started.tracked and not started.reason and len(started.id) == 32
    assert started.artifact_uri == str(run_dir) and run_dir.is_dir()
    assert os.stat(run_dir.parent).st_mode & 0o777 == 0o700
    run = client(runs).get_run(started.id)
    assert run.data.params == {"model.name": "mlp", "model.sizes": "[64, 32]", "lr": "0.1"}
    assert run.data.tags["verb"] == "train" and run.data.tags["dlrun.run_id"] == started.id
    assert (run.info.run_name, run.info.status, run.info.start_time) == ("a run", "RUNNING", 1000)
    assert tracking.mlflow_run_id(run_dir) == started.id


def test_rows_reach_mlflow_with_their_own_steps_and_times(runs):
    started, run_dir = start(runs)
    mirror = tracking.Mirror(run_dir, interval_seconds=0.01).start()
    write_rows(run_dir, range(30), "train/loss", "train/accuracy")
    assert mirror.close()
    assert tracking.finish_run(run_dir, "FINISHED", 9000)
    assert history(runs, started.id) == expected(range(30))
    assert len(history(runs, started.id, "train/accuracy")) == 30
    info = client(runs).get_run(started.id).info
    assert (info.status, info.end_time) == ("FINISHED", 9000)
    assert not tracking.is_pending(run_dir)


def test_a_thousand_metrics_and_more_go_in_several_calls_and_all_arrive(runs):
    started, run_dir = start(runs)
    write_rows(run_dir, range(25), *(f"m{index}" for index in range(99)))
    assert tracking.catch_up(run_dir)
    assert [len(history(runs, started.id, key)) for key in ("m0", "m98")] == [25, 25]


def test_nan_is_kept_infinity_becomes_the_largest_number_and_odd_names_are_mended(runs):
    started, run_dir = start(runs)
    row = {"step": 1, "time_ms": 5, "values": {"nan": math.nan, "inf": -math.inf, "loss (train)": 2, "none": None}}
    (run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert tracking.catch_up(run_dir)
    metrics = client(runs).get_run(started.id).data.metrics
    assert math.isnan(metrics["nan"]) and metrics["inf"] < -1e308 and metrics["loss _train_"] == 2
    assert "none" not in metrics


def test_a_line_that_is_not_finished_waits_and_a_damaged_one_is_passed_over(runs):
    started, run_dir = start(runs)
    write_rows(run_dir, range(2))
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"broken": \n[1, 2]\n{"step": 2, "time_ms": 10002, "val')
    assert tracking.catch_up(run_dir)
    assert history(runs, started.id) == expected(range(2))
    assert not tracking.is_pending(run_dir)
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('ues": {"train/loss": 2}}\n')
    assert tracking.is_pending(run_dir) and tracking.catch_up(run_dir)
    assert history(runs, started.id) == expected(range(3))


def test_sending_everything_again_doubles_nothing(runs):
    started, run_dir = start(runs)
    write_rows(run_dir, range(20))
    assert tracking.catch_up(run_dir)
    (run_dir / "mirror.json").unlink()
    assert tracking.is_pending(run_dir) and tracking.catch_up(run_dir)
    assert history(runs, started.id) == expected(range(20))
    assert len(client(runs).search_runs(["1"])) == 1


def test_after_a_resume_cut_the_file_the_mirror_goes_on_at_the_cut(runs):
    started, run_dir = start(runs)
    write_rows(run_dir, range(20))
    assert tracking.catch_up(run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:8]))
    tracking.set_running(run_dir)
    mirror = tracking.Mirror(run_dir, interval_seconds=30).start()
    write_rows(run_dir, range(8, 40), "train/loss", "extra")
    assert mirror.close()
    assert history(runs, started.id) == expected(range(40))
    assert len(history(runs, started.id, "extra")) == 32


def test_an_offset_inside_a_line_goes_back_to_its_start(runs):
    started, run_dir = start(runs)
    write_rows(run_dir, range(10))
    sent = json.loads((run_dir / "mirror.json").read_text())
    line = len((run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)[0])
    (run_dir / "mirror.json").write_text(json.dumps(sent | {"offset": 4 * line + 7}))
    assert tracking.catch_up(run_dir)
    assert history(runs, started.id) == expected(range(4, 10))


def test_a_resumed_run_is_running_again_and_ends_again(runs):
    started, run_dir = start(runs)
    assert tracking.finish_run(run_dir, "KILLED", 2000)
    assert client(runs).get_run(started.id).info.status == "KILLED"
    tracking.set_running(run_dir)
    tracking.set_tags(run_dir, {"resumed": 1})
    assert tracking.catch_up(run_dir)
    run = client(runs).get_run(started.id)
    assert run.info.status == "RUNNING" and run.data.tags["resumed"] == "1"
    assert tracking.finish_run(run_dir, "FAILED", 3000)
    assert client(runs).get_run(started.id).info.end_time == 3000


def test_a_child_points_to_its_parent(runs):
    parent, _ = start(runs)
    child, _ = start(runs, parent_id=parent.id)
    assert client(runs).get_run(child.id).data.tags["mlflow.parentRunId"] == parent.id


def test_params_and_tags_are_told_once_and_again_where_they_change(runs, monkeypatch):
    from mlflow import MlflowClient

    started, run_dir = start(runs, tags={"verb": "train"})
    told: list[str] = []
    log_batch = MlflowClient.log_batch

    def noted(self, run_id, **given):
        told.extend(given)
        log_batch(self, run_id, **given)

    monkeypatch.setattr(MlflowClient, "log_batch", noted)
    assert tracking.finish_run(run_dir, "FINISHED", 9000) and told == []
    assert client(runs).get_run(started.id).info.status == "FINISHED"
    tracking.set_tags(run_dir, {"verb": "another"})
    assert tracking.catch_up(run_dir) and told == ["params", "tags"]
    assert client(runs).get_run(started.id).data.tags["verb"] == "another"


def test_a_run_with_a_mirror_leaves_its_params_to_it(runs):
    started, run_dir = start(runs, mirrored=True)
    assert client(runs).get_run(started.id).data.params == {} and tracking.is_pending(run_dir)
    assert tracking.Mirror(run_dir).start().close()
    assert client(runs).get_run(started.id).data.params == {"seed": "1"} and not tracking.is_pending(run_dir)


def test_the_children_of_a_run_share_its_environment_and_a_run_of_its_own_is_asked_anew(runs, monkeypatch):
    commits = iter("abcdef")
    monkeypatch.setattr(making, "git_commit", lambda: {"commit": next(commits), "dirty": False})
    config = convert.to_config(compose([]).values, Registry())

    def commit(verb: str, parent: str | None) -> str:
        run = making.new_run(config, Registry(), runs, verb=verb, nested_under=parent)
        tags = json.loads((run.folder / "tracking.json").read_text())["tags"]
        found = json.loads((run.folder / "environment.json").read_text())["git"]["commit"]
        assert tags["mlflow.source.git.commit"] == found
        return found

    parents = ["0" * 32, "0" * 32, "1" * 32]
    assert [commit("train", None), commit("evaluate", None)] == ["a", "b"]
    assert [commit("train", parent) for parent in parents] == ["c", "c", "d"]


def test_closing_a_mirror_of_an_idle_run_is_quick_and_complete(runs):
    _, run_dir = start(runs)
    mirror = tracking.Mirror(run_dir).start()
    assert mirror.close(10) and mirror.close(10)


# ---------------------------------------------------------------- while the store is away


@pytest.fixture
def away(tmp_path: Path, store: Path):
    """(URI of a store that cannot be opened, function that brings it back)."""
    folder = tmp_path / "server"
    folder.write_text("not a folder")

    def back() -> Path:
        folder.unlink()
        folder.mkdir()
        for path in store.parent.glob("*mlflow*"):
            if path.is_file():
                shutil.copy(path, folder / path.name)
        return folder

    return sqlite_uri(folder / "mlflow.db"), back


def test_a_run_of_an_unreachable_store_gets_an_own_id_and_reaches_mlflow_later(runs, away):
    uri, back = away
    started, run_dir = start(runs, uri=uri, params={"lr": 0.1})
    assert not started.tracked and "server" in started.reason and len(started.id) == 32
    assert tracking.mlflow_run_id(run_dir) is None
    mirror = tracking.Mirror(run_dir, interval_seconds=0.01).start()
    write_rows(run_dir, range(12))
    assert not mirror.close(5)
    assert not tracking.finish_run(run_dir, "FINISHED", 2000)
    assert list(tracking.catch_up_all(runs)) == [started.id]
    folder = back()
    assert tracking.catch_up_all(runs) == {}
    run_id = tracking.mlflow_run_id(run_dir)
    assert run_id is not None and run_id != started.id
    run = client(folder).get_run(run_id)
    assert run.data.tags["dlrun.run_id"] == started.id and run.data.params == {"lr": "0.1"}
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 1000, 2000)
    assert run.info.artifact_uri == str(run_dir)
    assert history(folder, run_id) == expected(range(12))


def test_a_mirror_tells_once_that_the_store_is_away_and_once_that_it_is_back(runs, away):
    uri, back = away
    _, run_dir = start(runs, uri=uri)
    lines: list[str] = []
    heard = threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        heard.set()

    write_rows(run_dir, range(3))
    mirror = tracking.Mirror(run_dir, interval_seconds=0.01, report=report).start()
    assert heard.wait(30)
    folder = back()
    heard.clear()
    assert heard.wait(30) and mirror.close()
    assert len(lines) == 2 and "training goes on" in lines[0] and "back" in lines[1]
    assert history(folder, str(tracking.mlflow_run_id(run_dir))) == expected(range(3))


def test_a_run_created_in_vain_is_found_again_and_not_made_twice(runs, away):
    uri, back = away
    _, run_dir = start(runs, uri=uri)
    folder = back()
    assert tracking.catch_up(run_dir)
    (run_dir / "mirror.json").unlink()  # as if killed between MLflow's answer and our note of it
    assert tracking.catch_up(run_dir)
    experiment = client(folder).get_experiment_by_name("dlrun")
    assert len(client(folder).search_runs([experiment.experiment_id])) == 1


def test_a_child_made_while_the_store_was_away_finds_its_parent_later(runs, away):
    uri, back = away
    parent, parent_dir = start(runs, uri=uri)
    _, child_dir = start(runs, uri=uri, parent_id=parent.id, created_ms=2000)
    folder = back()
    assert tracking.catch_up_all(runs) == {}
    tags = client(folder).get_run(str(tracking.mlflow_run_id(child_dir))).data.tags
    assert tags["mlflow.parentRunId"] == tracking.mlflow_run_id(parent_dir) != parent.id


def test_a_store_that_lost_a_run_gets_it_again_whole(runs):
    started, run_dir = start(runs)
    write_rows(run_dir, range(5))
    assert tracking.catch_up(run_dir)
    with closing(sqlite3.connect(runs / "mlflow.db")) as connection, connection:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (started.id,))
    write_rows(run_dir, range(5, 8))
    assert not tracking.catch_up(run_dir)  # this one finds out
    assert tracking.catch_up(run_dir)
    run_id = str(tracking.mlflow_run_id(run_dir))
    assert run_id != started.id and history(runs, run_id) == expected(range(8))
    found = client(runs).get_run(run_id)
    assert found.info.artifact_uri == str(run_dir) and found.data.params == {"seed": "1"}


def test_a_run_deleted_by_hand_is_not_sent_at_every_command(runs):
    started, run_dir = start(runs)
    client(runs).delete_run(started.id)
    tracking.finish_run(run_dir, "FINISHED", 2000)
    assert "must be in the 'active' state" in read_sent(run_dir).refused
    assert tracking.catch_up_all(runs) == {}
    client(runs).restore_run(started.id)
    assert tracking.catch_up(run_dir) and not read_sent(run_dir).refused


def test_a_killed_run_is_shown_as_killed_by_the_next_command(runs):
    started, run_dir = start(runs)
    folders.create(runs, folders.RunRecord(id=started.id, verb="train"))
    write_rows(run_dir, range(3))
    assert tracking.catch_up_all(runs) == {}
    assert client(runs).get_run(started.id).info.status == "KILLED"
    assert history(runs, started.id) == expected(range(3))


def test_a_living_run_is_left_to_its_own_mirror(runs):
    started, run_dir = start(runs)
    run = folders.create(runs, folders.RunRecord(id=started.id, verb="train"))
    with folders.hold(run.folder):
        write_rows(run_dir, range(3))
        assert tracking.catch_up_all(runs) == {} and tracking.is_pending(run_dir)
    assert read_wanted(run_dir).status == "RUNNING"


def test_a_locked_database_does_not_hold_a_run_up(runs, monkeypatch):
    monkeypatch.setattr("dlrun._tracking_store._PROBE_SECONDS", 0.1)
    start(runs)
    with closing(sqlite3.connect(runs / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started, run_dir = start(runs)
        assert not started.tracked and "locked" in started.reason
    assert tracking.catch_up(run_dir)


def test_a_server_that_refuses_connections_is_noticed_at_once(runs):
    started, _ = start(runs, uri="http://127.0.0.1:9")
    assert not started.tracked and "127.0.0.1" in started.reason and "\n" not in started.reason


def test_patience_with_a_server_is_short_only_while_somebody_waits(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with hurried(7.5):
        assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("7", "0")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77" and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_an_unknown_kind_of_store_is_the_users_to_mend(runs):
    with pytest.raises(DlrunError, match=r"tracking\.uri: 'foo://host/x' is of no kind that MLflow knows"):
        start(runs, uri="foo://user:secret@host/x")


def test_a_deleted_experiment_is_the_users_to_mend(runs):
    start(runs, experiment="old")
    client(runs).delete_experiment(client(runs).get_experiment_by_name("old").experiment_id)
    with pytest.raises(DlrunError, match=r"tracking\.experiment: the experiment 'old' was deleted") as caught:
        start(runs, experiment="old")
    assert "tracking.experiment=NAME" in caught.value.hint


# ---------------------------------------------------------------- secrets and limits


def test_params_are_flat_json_without_secrets_and_cut_at_mlflows_limit():
    flat = flatten(
        {
            "a": {"b": [1, {"c": None}], "empty": {}},
            "text": "word",
            "on": True,
            "api_key": "abcd",
            "hub": {"token": "hf_" + "x" * 30},
            "note": "see hf_" + "y" * 30,
            "store": "postgresql://me:pw@host/db",
            "max_tokens": 512,
            "long": "z" * 7000,
            "odd(name)": 1,
        }
    )
    assert flat["a.b"] == '[1, {"c": null}]' and flat["a.empty"] == "{}"
    assert flat["text"] == "word" and flat["on"] == "true" and flat["max_tokens"] == "512"
    assert flat["api_key"] == flat["hub.token"] == "[redacted]"
    assert flat["note"] == "see [redacted]" and flat["store"] == "postgresql://host/db"
    assert len(flat["long"]) == 6000 and flat["long"].endswith("…")
    assert flat["odd_name_"] == "1"


def test_tags_are_cut_and_redacted():
    tags = tag_values({"remote": "https://me:pw@host/x.git", "password": 1, "long": "z" * 9000})
    assert tags["remote"] == "https://host/x.git" and tags["password"] == "[redacted]" and len(tags["long"]) == 8000


@pytest.mark.parametrize("name", ["train/loss", "a.b-c_d: e", "ü"])
def test_names_that_mlflow_takes_stay_as_they_are(name):
    assert legal_key(name) == name


def test_credentials_are_never_written_and_come_back_from_the_environment(runs, monkeypatch):
    uri = "http://me:hunter2@127.0.0.1:9/base"
    _, run_dir = start(runs, uri=uri)
    assert read_wanted(run_dir).uri == "http://127.0.0.1:9/base"
    for path in run_dir.iterdir():
        assert b"hunter2" not in path.read_bytes()
    assert locate(runs, read_wanted(run_dir).uri).uri == uri
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert locate(runs, read_wanted(run_dir).uri).uri == "http://127.0.0.1:9/base"


def test_secret_values_of_a_uris_query_go_too():
    assert without_secrets("postgresql://u:p@h/d?sslmode=require&password=x") == "postgresql://h/d?sslmode=require"


def test_the_store_is_the_option_else_the_environment_else_the_runs_folder(runs, tmp_path, monkeypatch):
    assert locate(runs, None).embedded and locate(runs, None).database == runs / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert locate(runs, None).uri == "http://server:5000"
    assert locate(runs, "sqlite:///x/y.db").database == tmp_path / "x" / "y.db"
    assert locate(runs, "embedded").embedded  # what tracking.json says of a run of the runs folder's own store


def test_telemetry_and_pickle_are_off(runs):
    start(runs)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


# ---------------------------------------------------------------- the embedded database


def test_a_ready_database_is_left_alone(runs):
    tracking.prepare_store(runs)
    before = (runs / "mlflow.db").stat().st_mtime_ns
    assert tracking.prepare_store(runs) == runs / "mlflow.db"
    assert (runs / "mlflow.db").stat().st_mtime_ns == before
    with closing(sqlite3.connect(runs / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_new_database_is_made_whole_even_in_a_folder_of_an_odd_name(tmp_path):
    runs = tmp_path / "my runs, 50% #1"
    started, run_dir = start(runs)
    assert started.tracked and not list(runs.glob("*.tmp"))
    from mlflow.artifacts import download_artifacts

    (run_dir / "note.txt").write_text("here")
    found = download_artifacts(run_id=started.id, artifact_path="note.txt", tracking_uri=sqlite_uri(runs / "mlflow.db"))
    assert Path(found).read_text() == "here"


def test_a_moved_folder_keeps_its_runs_and_their_artifacts(runs):
    started, _ = start(runs)
    moved = runs.with_name("elsewhere")
    for extra in ("-wal", "-shm"):  # as a process that ended leaves it: all is in the one file
        assert not (runs / f"mlflow.db{extra}").exists() or client(runs) is not None
    with closing(sqlite3.connect(runs / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(runs, moved)
    tracking.prepare_store(moved)
    run_dir = moved / started.id / "artifacts"
    assert client(moved).get_run(started.id).info.artifact_uri == str(run_dir)
    write_rows(run_dir, range(4))
    assert tracking.catch_up(run_dir)
    assert history(moved, started.id) == expected(range(4)) and history(runs, started.id) == []
    assert start(moved)[0].artifact_uri.startswith(str(moved))


def test_a_file_that_is_no_database_is_named_and_the_run_goes_on(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "mlflow.db").write_bytes(b"this is not a database, whatever its name says. " * 100)
    started, _ = start(runs)
    assert not started.tracked and "mlflow.db" in started.reason
    assert (runs / "mlflow.db").read_bytes().startswith(b"this is not")


# ---------------------------------------------------------------- artifacts elsewhere


class Uploads:
    """Stands for a server's artifact store: keeps the names and contents it was given."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self.files[f"{folder}/{Path(path).name}" if folder else Path(path).name] = Path(path).read_bytes()


def test_a_remote_store_gets_small_files_and_the_best_weights_that_prove_themselves(tmp_path):
    import torch

    from dlrun.training import checkpoint

    for step in (1, 2):
        tensors = {name: {"a": torch.full((3,), float(step))} for name in ("weights", "optimizer")}
        checkpoint.save(tmp_path / "checkpoints", step, checkpoint.Contents(tensors, {"step": step}))
    checkpoint.point(tmp_path / "checkpoints", "best", 1)
    for name in ("config.yaml", "tracking.json", "mirror.json", "run.lock", ".hidden", "figures/loss.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    server = Uploads()
    done = dict(upload(server, "id", tmp_path, {}))  # type: ignore[arg-type]
    best = "checkpoints/00000001"
    files = {f"{best}/weights.safetensors", f"{best}/state.json", f"{best}/MANIFEST.json"}
    assert set(server.files) == {"config.yaml", "figures/loss.png"} | files == set(done)
    copy = tmp_path / "copy" / "00000001"
    copy.mkdir(parents=True)
    for name in files:
        (copy / Path(name).name).write_bytes(server.files[name])
    assert checkpoint.newest_valid(copy.parent)[0] == copy
    shutil.rmtree(copy.parent)
    (tmp_path / "config.yaml").write_text("changed")
    assert [name for name, _ in upload(server, "id", tmp_path, done)] == ["config.yaml"]  # type: ignore[arg-type]


# ---------------------------------------------------------------- the machine


def test_the_sampler_tells_of_the_machine_and_stops():
    rows: list[dict[str, float]] = []
    twice = threading.Event()

    def write(values: dict[str, float]) -> None:
        rows.append(values)
        if len(rows) == 2:
            twice.set()

    sampler = tracking.SystemSampler(write, interval_seconds=0.01).start()
    assert twice.wait(30)
    sampler.close()
    count = len(rows)
    time.sleep(0.05)
    assert len(rows) == count
    for row in rows:
        assert set(row) == {"system/cpu_percent", "system/memory_bytes", "system/process_memory_bytes"}
        assert 0 <= row["system/cpu_percent"] <= 100 and row["system/process_memory_bytes"] > 1e6


def test_the_sampler_reads_the_gpus_that_this_process_sees(monkeypatch):
    class NVMLError(Exception):
        pass

    def no_power(handle):
        raise NVMLError

    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda number: f"device {number}",
        nvmlDeviceGetHandleByUUID=lambda name: f"device {name}",
        nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=40 if handle == "device 3" else 50),
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=7),
        nvmlDeviceGetPowerUsage=no_power,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    from dlrun._tracking_system import _handles, sample

    handles = _handles(range(2))
    assert handles == {0: "device 3", 1: "device GPU-abc"}
    row = sample(handles)
    assert row["system/gpu_0_percent"] == 40 and row["system/gpu_1_percent"] == 50
    assert row["system/gpu_0_memory_bytes"] == 7 and "system/gpu_0_watts" not in row


def test_an_error_of_the_writer_ends_the_sampling_and_nothing_else():
    called = threading.Event()

    def write(values: dict[str, float]) -> None:
        called.set()
        raise OSError("disk full")

    sampler = tracking.SystemSampler(write, interval_seconds=0.01).start()
    assert called.wait(30)
    sampler.close()

"""Tracking through outages and crowds: real servers, real processes, SIGKILL."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlrun import tracking
from dlrun._tracking_database import _revision, prepare_database, sqlite_uri

pytestmark = pytest.mark.slow

TRAINER = """
import json, sys, time
from pathlib import Path
from dlrun import tracking

runs, uri, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
started = tracking.start_run(runs, uri=uri, experiment="outage", name="", params={"lr": 1}, tags={}, created_ms=1)
run_dir = runs / started.id / "artifacts"
mirror = tracking.Mirror(run_dir, interval_seconds=0.1).start()
longest = 0.0
with open(run_dir / "metrics.jsonl", "a") as log:
    for step in range(steps):
        begun = time.perf_counter()
        row = {"step": step, "time_ms": 1000 + step, "values": {"loss": step / 7, "rate": -step}}
        log.write(json.dumps(row) + "\\n")
        log.flush()
        longest = max(longest, time.perf_counter() - begun)
        print(step, flush=True)
        time.sleep(0.01)
mirror.close(float(sys.argv[4]))
tracking.finish_run(run_dir, "FINISHED", 2, timeout_seconds=float(sys.argv[4]))
print("longest", longest, flush=True)
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and MLflow's switches are put back after each test."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.setenv(name, os.environ[name])
    tracking.set_environment()


class Server:
    """An MLflow server on a port of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, _free_port(), None
        folder.mkdir()
        tracking.prepare_store(folder)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Server:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", sqlite_uri(self.folder / "mlflow.db")]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder)
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b"200" in connection.recv(64)
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "server")
    yield made
    made.kill()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def trainer(runs: Path, uri: str, steps: int, patience: float = 20) -> subprocess.Popen:
    command = [sys.executable, "-c", TRAINER, str(runs), uri, str(steps), str(patience)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(step):
            return
    pytest.fail(f"the trainer ended before step {step}")


def only_run(runs: Path) -> Path:
    (found,) = runs.glob("*/artifacts/tracking.json")
    return found.parent


def assert_exactly_mirrored(uri: str, run_dir: Path) -> None:
    """MLflow holds each row of metrics.jsonl once, and no other, in one run."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("outage")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for key in ("loss", "rate"):
        history = client.get_metric_history(str(tracking.mlflow_run_id(run_dir)), key)
        found = sorted((metric.step, metric.timestamp, metric.value) for metric in history)
        assert found == [(row["step"], row["time_ms"], row["values"][key]) for row in rows]


# ---------------------------------------------------------------- servers that die


def test_metrics_survive_a_server_that_dies_and_comes_back(tmp_path, server):
    server.start()
    process = trainer(tmp_path / "runs", server.uri, 600)
    wait_for(process, 100)
    server.kill()
    wait_for(process, 300)
    server.start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert float(output.split()[-1]) < 1  # a row is written in microseconds, server or not
    run_dir = only_run(tmp_path / "runs")
    assert tracking.catch_up_all(tmp_path / "runs", timeout_seconds=60) == {}
    assert_exactly_mirrored(server.uri, run_dir)
    assert run_dir.parent.name == tracking.mlflow_run_id(run_dir)


def test_metrics_survive_a_server_that_was_never_up_and_a_training_killed_meanwhile(tmp_path, server):
    process = trainer(tmp_path / "runs", server.uri, 100_000)
    wait_for(process, 150)
    process.kill()
    process.communicate()
    run_dir = only_run(tmp_path / "runs")
    assert run_dir.parent.name in tracking.catch_up_all(tmp_path / "runs")
    server.start()
    assert tracking.catch_up_all(tmp_path / "runs", timeout_seconds=60) == {}
    assert_exactly_mirrored(server.uri, run_dir)


def test_metrics_survive_a_training_killed_while_the_server_is_down(tmp_path, server):
    server.start()
    process = trainer(tmp_path / "runs", server.uri, 100_000)
    wait_for(process, 100)
    server.kill()
    wait_for(process, 200)
    process.kill()
    process.communicate()
    server.start()
    assert tracking.catch_up_all(tmp_path / "runs", timeout_seconds=60) == {}
    assert_exactly_mirrored(server.uri, only_run(tmp_path / "runs"))


def test_a_training_killed_while_it_sends_loses_and_doubles_nothing(tmp_path, server):
    server.start()
    for kill_at in (30, 90):
        runs = tmp_path / f"runs{kill_at}"
        process = trainer(runs, server.uri, 100_000)
        wait_for(process, kill_at)
        process.kill()
        process.communicate()
        assert tracking.catch_up_all(runs, timeout_seconds=60) == {}
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    for runs in tmp_path.glob("runs*"):
        run_dir = only_run(runs)
        count = len((run_dir / "metrics.jsonl").read_text().splitlines())
        assert len(client.get_metric_history(str(tracking.mlflow_run_id(run_dir)), "loss")) == count


def test_a_server_gets_the_files_of_a_finished_run(tmp_path, server):
    server.start()
    runs = tmp_path / "runs"
    started = tracking.start_run(runs, uri=server.uri, experiment="files", name="", params={}, tags={}, created_ms=1)
    run_dir = runs / started.id / "artifacts"
    assert started.tracked and started.artifact_uri.startswith("mlflow-artifacts:")
    (run_dir / "figures").mkdir()
    (run_dir / "figures" / "a.txt").write_text("figure")
    (run_dir / "result.json").write_text("{}")
    assert tracking.finish_run(run_dir, "FINISHED", 2)
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    assert {item.path for item in client.list_artifacts(started.id)} == {"figures", "result.json"}
    assert Path(client.download_artifacts(started.id, "figures/a.txt", str(tmp_path))).read_text() == "figure"
    (run_dir / "MLmodel").write_text("late")
    assert tracking.is_pending(run_dir) and tracking.catch_up_all(runs) == {}
    assert "MLmodel" in {item.path for item in client.list_artifacts(started.id)}


# ---------------------------------------------------------------- servers that misbehave


class Broken(http.server.BaseHTTPRequestHandler):
    """Answers everything with the status that the server was made with."""

    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_a_server_that_only_fails_does_not_stop_a_run(tmp_path, status):
    with http.server.HTTPServer(("127.0.0.1", 0), Broken) as broken:
        broken.status = status  # type: ignore[attr-defined]
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{broken.server_port}"
        started = tracking.start_run(tmp_path, uri=uri, experiment="x", name="", params={}, tags={}, created_ms=1)
        assert not started.tracked and str(status) in started.reason
        run_dir = tmp_path / started.id / "artifacts"
        (run_dir / "metrics.jsonl").write_text('{"step": 1, "time_ms": 1, "values": {"a": 1}}\n')
        mirror = tracking.Mirror(run_dir, interval_seconds=0.1).start()
        assert not mirror.close(10)
        assert tracking.is_pending(run_dir)
        broken.shutdown()


def test_a_server_that_never_answers_holds_a_start_up_for_seconds_only(tmp_path):
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        uri = f"http://127.0.0.1:{hole.getsockname()[1]}"
        done = threading.Event()
        found: list[tracking.MlflowRun] = []

        def start() -> None:
            given = {"experiment": "x", "name": "", "params": {}, "tags": {}, "created_ms": 1}
            found.append(tracking.start_run(tmp_path, uri=uri, **given))
            done.set()

        threading.Thread(target=start, daemon=True).start()
        assert done.wait(30) and not found[0].tracked


# ---------------------------------------------------------------- the embedded store


STARTER = """
import sys, time
from pathlib import Path
from dlrun import tracking

while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
runs = Path(sys.argv[1])
started = tracking.start_run(runs, uri=None, experiment="crowd", name="", params={"a": 1}, tags={}, created_ms=1)
run_dir = runs / started.id / "artifacts"
row = '{"step": %d, "time_ms": %d, "values": {"loss": %d}}'
with open(run_dir / "metrics.jsonl", "a") as log:
    mirror = tracking.Mirror(run_dir, interval_seconds=0.02).start()
    for step in range(200):
        log.write(row % (step, step, step) + chr(10))
        log.flush()
        time.sleep(0.002)
    sent = mirror.close(60)
assert started.tracked, started.reason
assert sent and tracking.finish_run(run_dir, "FINISHED", 2)
"""


def test_sixteen_processes_at_once_on_a_fresh_folder_all_work(tmp_path):
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    command = [sys.executable, "-c", STARTER, str(runs), str(gate)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(16)]
    time.sleep(2)
    gate.touch()
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM metrics").fetchone() == (16 * 200,)
        finished = "SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'"
        assert connection.execute(finished).fetchone() == (16,)
        assert connection.execute("SELECT COUNT(*) FROM experiments WHERE name = 'crowd'").fetchone() == (1,)


def schema(database: Path) -> dict[str, list]:
    """Columns, foreign keys and indexes of every table; the order in which indexes were made means nothing."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {}
        for table in tables:
            for pragma, first in (("table_info", 0), ("foreign_key_list", 2), ("index_list", 1)):
                rows = connection.execute(f"PRAGMA {pragma}('{table}')").fetchall()
                found[f"{table} {pragma}"] = sorted(map(str, (row[first:] for row in rows)))
        return found


def test_our_database_has_the_schema_that_mlflow_makes(tmp_path):
    ours = tracking.prepare_store(tmp_path / "ours")
    theirs = tmp_path / "theirs.db"
    subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", sqlite_uri(theirs)], check=True, capture_output=True
    )
    assert schema(ours) == schema(theirs) and _revision(ours) == _revision(theirs)


def older_database(path: Path) -> str:
    """A database as an older MLflow left it, with one run; returns its revision."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = utils.create_sqlalchemy_engine(sqlite_uri(path))
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(sqlite_uri(path))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    revision = scripts[3].revision
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'kept', 'active')"
        )
    return revision


def test_an_older_database_is_upgraded_in_place_and_keeps_what_it_holds(tmp_path):
    database = tmp_path / "mlflow.db"
    older = older_database(database)
    inode = database.stat().st_ino
    assert _revision(database) == older
    tracking.prepare_store(tmp_path)
    fresh = tracking.prepare_store(tmp_path / "fresh")
    assert _revision(database) == _revision(fresh) != older and schema(database) == schema(fresh)
    assert database.stat().st_ino == inode  # a process that has the file open goes on with it
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT name FROM experiments WHERE experiment_id = 7").fetchone() == ("kept",)
    assert not list(tmp_path.glob(".*.tmp*"))


def test_a_database_of_a_newer_mlflow_is_refused_and_left_alone(tmp_path):
    from dlrun.errors import DlrunError

    database = tracking.prepare_store(tmp_path)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(DlrunError, match="this MLflow cannot use the database") as caught:
        prepare_database(database, tmp_path)
    assert "pip install --upgrade mlflow" in caught.value.hint and _revision(database) == "ffffffffffff"

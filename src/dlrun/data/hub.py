"""A data set of the Hugging Face hub, by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import Settings, assemble, spec_of
from dlrun.data._bad import BadRows
from dlrun.data._inputs import make_inputs
from dlrun.data._splits import HoldOut
from dlrun.errors import DlrunError, Exit, did_you_mean

if TYPE_CHECKING:
    import datasets


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    target: str | None = None,
    image: str | None = None,
    columns: list | None = None,
    splits: dict | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    valid_size: int | None = None,
    test_size: int | None = None,
    train_size: int | None = None,
    split_seed: int | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
    memory: Literal["auto", "always", "never"] = "auto",
    mean: list | None = None,
    std: list | None = None,
) -> Dataset:
    """Rows of a hub data set; code that comes with a data set is never run.

    Settings:
        path: ORG/NAME on the hub.
        config: which of the data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the data set; its newest unless set.
        target: the label's column; guessed from a declared class label or a name such as label, target, class.
        image: the picture's column; guessed.
        columns: the columns of numbers to learn from, where there is no picture; all but the label unless set.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split on the hub; guessed.
        image_size: height and width in pixels that every picture is scaled to; needed if they differ in size.
        channels: 1 grey, 3 colour; guessed from a sample of the pictures.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain, stratified by label.
        split_seed: chooses the rows held out; the run's seed unless set.
        on_bad: raise at a row that cannot be read, or skip it.
        max_bad: rows that may be skipped before it is an error; a stream counts in each worker process.
        memory: auto holds decoded rows in memory if they take at most a quarter of what is free, else streams them.
        mean: of each channel (pixels as 0..1) or feature, for normalising; measured over the training rows.
        std: as mean.
    """
    from dlrun.data._source import from_dataset

    known = spec_of(tools)
    found, remarks = _load(path, config, revision)
    chosen, notes = _choose(found, splits, needs_train=known is None)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(seed, valid_fraction, test_fraction, valid_size, test_size, train_size)
    settings = Settings(
        hold_out, BadRows(on_bad, max_bad), target, image, columns, image_size, channels, memory, mean, std
    )
    sources = {split: from_dataset(found[name], f"{path} {name}") for split, name in chosen.items()}
    return assemble(sources, settings, known, remarks + notes)


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return make_inputs(spec)


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

"""Recordings with a class or a transcript: folders by class, zip files, tables of paths or bytes, or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._sound import library
from dlrun.data._sound_data import BySplit, Columns, Settings, assemble, join_of, rows_of
from dlrun.data._sound_inputs import SoundInputs
from dlrun.data._sound_sources import sound_column, sound_sources
from dlrun.data._source import Source
from dlrun.data._spectrogram import Spectrogram
from dlrun.data._splits import HoldOut
from dlrun.data._text_labels import class_column
from dlrun.data._whisper_frames import Frames, WhisperFrames, frames_from
from dlrun.errors import DlrunError

_TRANSCRIPTS = ("transcription", "transcript", "text", "sentence", "normalized_text")


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    audio: str | None = None,
    target: str | None = None,
    transcript: str | None = None,
    lower: bool = False,
    splits: dict | None = None,
    split_column: str | None = None,
    valid_values: list | None = None,
    test_values: list | None = None,
    file_pattern: str | None = None,
    join: list | None = None,
    join_by: str = "speaker",
    join_rounds: int = 1,
    sample_rate: int = 16000,
    max_seconds: float = 30.0,
    features: Literal["log_mel", "mfcc", "whisper", "samples"] = "log_mel",
    window_ms: float = 25.0,
    hop_ms: float = 10.0,
    bands: int = 40,
    coefficients: int = 20,
    normalise: Literal["training", "recording"] = "training",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    valid_size: int | None = None,
    test_size: int | None = None,
    train_size: int | None = None,
    split_seed: int | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
) -> Dataset:
    """Recordings (wav, flac, ogg, mp3), resampled, mixed to one channel and held in memory; frames are made in batches.

    Settings:
        path: a folder or zip file of recordings, a file or folder of tables, or ORG/NAME on the hub.
        config: which of the hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the hub data set; its newest unless set.
        audio: the column of recordings, bytes or paths; guessed.
        target: the column of classes; guessed, and of bare recordings the folder they lie in.
        transcript: the column of what is said, to be spelled by task=speech_recognition; guessed where nothing else is.
        lower: capitals of transcripts become small letters.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file or a folder.
        split_column: a column that says which rows are valid and test; the rest are train.
        valid_values: what it says of rows of valid.
        test_values: what it says of rows of test.
        file_pattern: a regular expression for the paths of bare recordings; its named groups become columns.
        join: [FEWEST, MOST] recordings of one speaker become one utterance, their transcripts with blanks between.
        join_by: the column that says who speaks.
        join_rounds: utterances that each training recording is in.
        sample_rate: Hz that all recordings are resampled to.
        max_seconds: a longer recording is a bad row.
        features: log_mel, the logarithm of the power in each mel band, mfcc, the cepstrum of that, whisper, the frames
            that published Whisper weights know, or samples, the recording itself, for a model that makes its own.
        window_ms: length of a frame's window.
        hop_ms: from the beginning of a frame to that of the next.
        bands: mel bands.
        coefficients: of the cepstrum.
        normalise: by mean and deviation of each number over the training rows, or over each recording; frames of
            whisper are left as they are.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain, stratified by class.
        split_seed: chooses the rows held out; the run's seed unless set.
        on_bad: raise at a row that cannot be read or spelled, or skip it.
        max_bad: rows that may be skipped before it is an error.
    """
    library()
    known = spec_of(tools)
    if features == "whisper" and normalise == "recording":
        raise DlrunError("data.normalise: frames of data.features=whisper have a scale of their own", "leave it out")
    spectrogram: Frames
    if known is not None:
        spectrogram = frames_from(known.assets["spectrogram"])
    elif features == "whisper":
        spectrogram = WhisperFrames.of_settings(sample_rate, window_ms, hop_ms, bands)
    else:
        kind = "log_mel" if features == "samples" else features
        spectrogram = Spectrogram.of_settings(kind, sample_rate, window_ms, hop_ms, bands, coefficients)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(seed, valid_fraction, test_fraction, valid_size, test_size, train_size)
    if not max_seconds > 0:
        raise DlrunError(f"data.max_seconds: {max_seconds} is not above 0")
    joins = None if join is None else join_of(join, "join", join_by, join_rounds)
    by_split = _by_split(split_column, valid_values, test_values)
    settings = Settings(
        spectrogram, hold_out, BadRows(on_bad, max_bad), normalise, max_seconds, joins, by_split, features == "samples"
    )
    sources, notes = sound_sources(path, config, revision, splits, file_pattern)
    if known is None and "train" not in sources:
        raise DlrunError(f"data.path={path}: there are no training rows", "say which they are: data.splits.train=NAME")
    if by_split is not None and len(sources) > 1:
        raise DlrunError("data.split_column: the data is split already", f"leave it out, or give one of {[*sources]}")
    columns, guesses = _columns(sources, audio, target, transcript, known)
    if joins and columns.transcript is None:
        raise DlrunError("data.join: joins recordings with a transcript", "data.transcript=COLUMN")
    given, classes, characters = rows_of(sources, columns, settings, tools, lower)
    return assemble(given, classes, characters, columns, settings, tools, [*notes, *guesses])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return SoundInputs(spec)


def _columns(
    sources: Mapping[str, Source], audio: str | None, target: str | None, transcript: str | None, known: DataSpec | None
) -> tuple[Columns, list[str]]:
    """Which columns are what, and a sentence for each that was guessed."""
    if target and transcript:
        raise DlrunError("data.target and data.transcript are both set", "a class: target; what is said: transcript")
    first = sources.get("train") or next(iter(sources.values()))
    column, notes = sound_column(first, audio)
    is_spelled = transcript is not None or (known is not None and known.target == "targets")
    if not is_spelled and target is None and known is None:
        is_spelled = not _has_class(first) and any(name.lower() in _TRANSCRIPTS for name in first.columns)
    if not is_spelled:
        found, guesses = class_column(first, target)
        return Columns(column, found, None), [*notes, *guesses]
    if transcript is None:
        usual = [name for word in _TRANSCRIPTS for name in first.columns if name.lower() == word]
        if not usual:
            raise DlrunError(f"{first.name}: which column is the transcript?", "name it: data.transcript=COLUMN")
        transcript = usual[0]
        notes = [*notes, f"transcript column: {transcript} (guessed)"]
    return Columns(column, None, transcript), notes


def _has_class(source: Source) -> bool:
    try:
        class_column(source, None)
    except DlrunError:
        return False
    return True


def _by_split(column: str | None, valid: list | None, test: list | None) -> BySplit | None:
    values = {"valid": valid, "test": test}
    given = {split: [str(value) for value in chosen] for split, chosen in values.items() if chosen}
    if (column is None) != (not given):
        raise DlrunError("data.split_column goes with data.valid_values or data.test_values", "'data.test_values=[…]'")
    return None if column is None else BySplit(column, given)

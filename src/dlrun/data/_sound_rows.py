"""Rows of sound in memory: what each holds, what is said in it, and several joined to one utterance."""

# N rows

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dlrun.contracts import NO_TARGET
from dlrun.data._bad import BadRows
from dlrun.data._cells import Cells
from dlrun.data._images import BadPicture
from dlrun.data._ragged import Ragged, RaggedSplit
from dlrun.data._sound import BadSound, read
from dlrun.data._source import Source
from dlrun.data._texts import read_texts
from dlrun.errors import DlrunError, Exit
from dlrun.randomness import key, permutation
from dlrun.tokens import Characters, to_bytes


@dataclass(frozen=True)
class SoundRows:
    """The good rows of one given split.

    name: what errors call their source.   rows_N: int64, their numbers there.   sounds: int16 samples of each.
    texts: what is said.   labels_N: int64 classes.   speakers: whoever speaks, where rows are to be joined.
    Of texts and labels_N one is there.
    """

    name: str
    rows_N: np.ndarray
    sounds: list[np.ndarray]
    texts: list[str] | None = None
    labels_N: np.ndarray | None = None
    speakers: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows_N)

    def take(self, places_N: np.ndarray) -> SoundRows:
        """Some of the rows, by their places among these."""
        places = places_N.tolist()
        return SoundRows(
            self.name,
            self.rows_N[places_N],
            [self.sounds[place] for place in places],
            None if self.texts is None else [self.texts[place] for place in places],
            None if self.labels_N is None else self.labels_N[places_N],
            None if self.speakers is None else [self.speakers[place] for place in places],
        )

    def digest(self) -> bytes:
        """A hash of all that is held."""
        total = hashlib.blake2b(self.rows_N.tobytes(), digest_size=16)
        for sound in self.sounds:
            total.update(hashlib.blake2b(sound.tobytes(), digest_size=16).digest())
        total.update("\x1f".join(self.texts or ()).encode() + "\x1f".join(self.speakers or ()).encode())
        total.update(b"" if self.labels_N is None else self.labels_N.tobytes())
        return total.digest()


def read_sounds(
    source: Source, column: str, rate: int, longest_seconds: float, bad: BadRows
) -> list[np.ndarray | None]:
    """int16 samples of every row; None for a bad one."""
    cells, found = Cells(source, column), []
    for row in range(len(source)):
        try:
            found.append(read(cells.given(row), rate, source.folder, longest_seconds))
        except (BadSound, BadPicture) as error:
            bad.report(cells.place(row), str(error))
            found.append(None)
    return found


def read_words(source: Source, setting: str, column: str, bad: BadRows) -> list[str | None]:
    """What each row says in a column of text, numbers or declared classes (by their names); None makes a bad row."""
    if column in source.class_names:
        names = source.class_names[column]
        codes = source.table.column(column).to_pylist()
        said = [None if code is None or code < 0 else names[code] for code in codes]
        for row in (row for row, name in enumerate(said) if name is None):
            bad.report(source.place(row), f"there is no class in column '{column}'")
        return said
    return read_texts(source, setting, column, bad)


def without_unknown(name: str, texts: Sequence[str | None], characters: Characters, bad: BadRows) -> list[str | None]:
    """Texts that can be spelled, as they are spelled; one with an unknown character is a bad row."""
    found: list[str | None] = []
    for row, text in enumerate(texts):
        unknown = characters.unknown(text) if text is not None else None
        if unknown is not None:
            bad.report(f"{name}, row {row}", f"no character of the training transcripts is {unknown!r}")
        found.append(None if text is None or unknown is not None else characters.plain(text))
    return found


def joined_rows(rows: SoundRows, fewest: int, most: int, rounds: int, word: str) -> tuple[SoundRows, int]:
    """Utterances of fewest to most recordings of one speaker, their texts with blanks between; and how many
    recordings are left over, of speakers with too few.

    rounds: how often each recording is used, in another order and company.   word: the split, which keys the draws.
    """
    assert rows.texts is not None and rows.speakers is not None
    groups: list[list[int]] = []
    left = 0
    for speaker in sorted(set(rows.speakers)):
        own = torch.tensor([place for place, name in enumerate(rows.speakers) if name == speaker])
        left += len(own) if len(own) < fewest else 0
        for turn in range(rounds if len(own) >= fewest else 0):
            order = own[permutation(len(own), "join", word, speaker, turn)].tolist()
            groups += _cut(order, fewest, most, key("join", word, speaker, turn))
    if not groups:
        raise DlrunError(f"{rows.name}: no speaker of {word} has {fewest} recordings to join", code=Exit.DATA)
    return SoundRows(
        rows.name,
        np.arange(len(groups)),
        [np.concatenate([rows.sounds[place] for place in group]) for group in groups],
        [" ".join(rows.texts[place] for place in group) for group in groups],
        speakers=[rows.speakers[group[0]] for group in groups],
    ), left


def _cut(order: list[int], fewest: int, most: int, seed: int) -> list[list[int]]:
    """The places in groups of such sizes; the sizes are drawn, but so that none is left over where that can be."""
    rng = np.random.default_rng(seed & ((1 << 63) - 1))
    groups = []
    while len(order) >= fewest:
        fits = [size for size in range(fewest, most + 1) if len(order) - size >= fewest or len(order) == size]
        size = int(rng.choice(fits)) if fits else min(most, len(order))
        groups.append(order[:size])
        order = order[size:]
    return groups


def split_of(rows: SoundRows, characters: Characters | None) -> RaggedSplit:
    """The rows as batches have them: audio int16 [B, S], audio_lengths, and label or targets and reference."""
    audio = Ragged.of(rows.sounds, dtype=torch.int16)
    fields: dict[str, Ragged | torch.Tensor] = {
        "id": torch.from_numpy(np.ascontiguousarray(rows.rows_N, dtype=np.int64)),
        "audio": audio,
        "audio_lengths": audio.lengths_N,
    }
    if characters is None:
        assert rows.labels_N is not None
        fields["label"] = torch.from_numpy(rows.labels_N)
    else:
        assert rows.texts is not None
        spelled = [np.array(characters.encode(text), dtype=np.int32) for text in rows.texts]
        fields["targets"] = targets = Ragged.of(spelled, NO_TARGET)
        fields |= {"num_targets": targets.lengths_N, "reference": to_bytes(rows.texts)}
    return RaggedSplit(fields, audio.lengths_N)

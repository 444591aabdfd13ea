"""Which vocabulary a data set has: that of the run it stands on, a pretrained one, or one trained from its texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dlrun.contracts import Tools
from dlrun.data._assemble import spec_of
from dlrun.data._text_rows import TextRows
from dlrun.errors import DlrunError, Exit
from dlrun.tokens import FILE, Coverage, Tokenizer

_WORTH_SAYING, _TOO_MUCH = 0.01, 0.9  # shares of tokens that are unknown


@dataclass(frozen=True)
class Vocabulary:
    """What a user may set of a vocabulary; see `text.build`. framed: texts have a beginning and an end token."""

    tokenizer: Literal["word", "char", "bpe", "pretrained"]
    size: int
    min_count: int
    lower: bool
    pretrained: str | None
    framed: bool = False

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise DlrunError(f"data.min_count: {self.min_count} is not at least 1")
        if self.tokenizer == "pretrained" and not self.pretrained:
            raise DlrunError("data.tokenizer=pretrained needs to know which", "data.pretrained=FOLDER or ORG/NAME")
        if self.tokenizer != "pretrained" and self.pretrained:
            raise DlrunError(
                f"data.pretrained is set, and data.tokenizer={self.tokenizer} trains a vocabulary of its own",
                "data.tokenizer=pretrained",
            )

    def find(self, texts: Callable[[], Iterable[str]], tools: Tools, file: str = FILE) -> Found:
        """The tokenizer, and a sentence about it. texts: those of the training rows; asked for only if needed.

        The one of the run this one stands on is always used, never made anew.
        """
        known = spec_of(tools)
        if known is not None and file in known.files:
            return Found(Tokenizer.from_json(known.files[file], file), [], _OF_RUN)
        if tools.assets is not None and (tools.assets / file).is_file():
            kept = Tokenizer.from_json((tools.assets / file).read_bytes(), str(tools.assets / file))
            differs = "" if kept.kind == self.tokenizer else f"; data.tokenizer={self.tokenizer} is not used"
            return Found(kept, [f"vocabulary: {_described(kept)}, {_OF_RUN}{differs}"], _OF_RUN)
        if self.pretrained:
            found = Tokenizer.pretrained(self.pretrained)
            origin = f"from {self.pretrained}"
            return Found(found, [f"vocabulary: {_described(found)}, {origin}"], origin)
        made = Tokenizer.train(
            self.tokenizer,  # type: ignore[arg-type]
            texts(),
            size=self.size,
            min_count=self.min_count,
            lower=self.lower,
            framed=self.framed,
        )
        return Found(made, [f"vocabulary: {_described(made)}, trained on the texts of train"])


_OF_RUN = "that of the run this one stands on"


class Found(NamedTuple):
    """A vocabulary, a sentence about it, and where it is from, if it was not made from the texts at hand."""

    tokenizer: Tokenizer
    notes: list[str]
    origin: str = ""

    def unknown(self, ids: Mapping[str, Iterable[np.ndarray]], what: str = "tokens") -> list[str]:
        """A sentence where it does not know some of the texts; of a vocabulary made from them that was the user's wish.

        ids: tokens [T] of each text of each given split.   what: what an error calls them.
        Raises: DlrunError with code DATA for a split that is nearly all unknown.
        """
        if not self.origin:
            return []
        shares = {name: Coverage.of(self.tokenizer, rows).share_unknown for name, rows in ids.items()}
        whose = f"are unknown to this vocabulary ({self.tokenizer.kind}, {self.origin})"
        for name, share in shares.items():
            if share > _TOO_MUCH:
                raise DlrunError(
                    f"{name}: {100 * share:.0f} % of the {what} {whose}",
                    "use texts like those it was made from, or train a run that makes a vocabulary of these",
                    Exit.DATA,
                )
        said = [f"{100 * share:.0f} % of {name}" for name, share in shares.items() if share >= _WORTH_SAYING]
        return [f"{what}: {', '.join(said)} {whose}"] if said else []


def _described(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.size:,} tokens ({tokenizer.kind})"


@dataclass(frozen=True)
class Limit:
    """How many tokens a text may have, and what becomes of a longer one. setting: what the user calls the limit."""

    most: int
    on_long: Literal["cut", "raise"]
    setting: str

    def check(self, given: Mapping[str, TextRows], lengths: Mapping[str, np.ndarray], what: str) -> list[str]:
        """A sentence if texts are too long. Raises DlrunError naming the first where they are refused.

        lengths: tokens of each row of each given split.   what: what the texts are called.
        """
        if self.most < 1:
            raise DlrunError(f"data.{self.setting}: {self.most} is not at least 1")
        longest = max(int(lengths_N.max(initial=0)) for lengths_N in lengths.values())
        if longest <= self.most:
            return []
        if self.on_long == "raise":
            name, index = next(
                (name, int(np.argmax(lengths_N > self.most)))
                for name, lengths_N in lengths.items()
                if (lengths_N > self.most).any()
            )
            raise DlrunError(
                f"{given[name].place(index)}: {what} of {int(lengths[name][index]):,} tokens is longer than "
                f"data.{self.setting}={self.most}",
                f"cut such: data.on_long=cut, or allow for the longest: data.{self.setting}={longest}",
                Exit.DATA,
            )
        long = sum(int((lengths_N > self.most).sum()) for lengths_N in lengths.values())
        share = f"{long:,} of {sum(len(lengths_N) for lengths_N in lengths.values()):,}"
        return [f"{what}: {share} have over data.{self.setting}={self.most} tokens (up to {longest:,}) and are cut"]

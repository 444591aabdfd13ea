"""How vocabularies are trained from texts, by the tokenizers library; all begin with the same special tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dlrun.errors import DlrunError

# Every vocabulary has them all, so that a language model can go on to chat, and an encoder to classify.
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<sep>", "<mask>", "<|system|>", "<|user|>", "<|assistant|>")
_BEGINNING, _END, _SEPARATOR = 2, 3, 4
_NUM_BYTES = 256
# Words with what is joined to them by an apostrophe, English clitics as corpora cut them off, and single signs.
_WORD = r"\w+(?:['’]\w+)*|['’](?:s|re|ve|ll|d|m|t)\b|[^\w\s]"
_CHARACTER = r"[\s\S]"


def train(
    kind: Literal["char", "word", "bpe"], texts: Iterable[str], size: int, min_count: int, lower: bool, framed: bool
) -> tokenizers.Tokenizer:
    """See `tokens.Tokenizer.train`."""
    least = len(SPECIAL) + (_NUM_BYTES if kind == "bpe" else 1)
    if size < least:
        what = f"{_NUM_BYTES} bytes" if kind == "bpe" else "one"
        raise DlrunError(
            f"data.vocabulary_size: {size} is too small for {what} beside {len(SPECIAL)} special tokens",
            f"use data.vocabulary_size={max(1000, least)}",
        )
    made = {"char": _characters, "word": _words, "bpe": _byte_pairs}[kind](texts, size, min_count, lower)
    beginning, end = (f"{SPECIAL[_BEGINNING]} ", f" {SPECIAL[_END]}") if framed else ("", "")
    made.post_processor = processors.TemplateProcessing(
        single=f"{beginning}$A{end}",
        pair=f"{beginning}$A {SPECIAL[_SEPARATOR]} $B{end}",
        special_tokens=[(SPECIAL[index], index) for index in (_BEGINNING, _END, _SEPARATOR)],
    )
    return made


def kind_of(backend: tokenizers.Tokenizer) -> Literal["char", "word", "bpe", "pretrained"]:
    """Which of ours a vocabulary is, else pretrained."""
    if tuple(backend.id_to_token(index) for index in range(len(SPECIAL))) != SPECIAL:
        return "pretrained"
    if isinstance(backend.model, models.BPE):
        return "bpe" if isinstance(backend.decoder, decoders.ByteLevel) else "pretrained"
    if not isinstance(backend.model, models.WordLevel):
        return "pretrained"
    return "char" if isinstance(backend.decoder, decoders.Fuse) else "word"


def _characters(texts: Iterable[str], size: int, min_count: int, lower: bool) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.lower() if lower else text)
    kept = sorted((character for character in counts if counts[character] >= min_count), key=lambda c: (-counts[c], c))
    vocabulary = [*SPECIAL, *sorted(kept[: size - len(SPECIAL)])]
    made = tokenizers.Tokenizer(_word_level(vocabulary))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(_CHARACTER), "isolated")
    made.decoder = decoders.Fuse()
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.add_special_tokens(list(SPECIAL))
    return made


def _words(texts: Iterable[str], size: int, min_count: int, lower: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(_word_level(SPECIAL))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lower else [])])
    made.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    made.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # blanks between, but none before a full stop
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=min_count, special_tokens=list(SPECIAL), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


def _byte_pairs(texts: Iterable[str], size: int, min_count: int, lower: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def _word_level(vocabulary: Iterable[str]) -> models.WordLevel:
    return models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=SPECIAL[1])

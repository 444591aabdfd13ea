"""What is said in a recording, one character after another by a decoder that has read it (Whisper's way)."""

# B batch, S characters of a transcript and what ends it, V characters and what begins and ends a transcript

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from dlrun import decoding
from dlrun.contracts import NO_TARGET, Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.decoding import Decoder, Generation, ModelDecoder
from dlrun.errors import DlrunError
from dlrun.metrics.speech import ErrorRates, require_jiwer
from dlrun.metrics.text import Perplexity
from dlrun.tasks import _texts, _token_losses
from dlrun.tokens import CHARACTERS_FILE, Characters, to_bytes, to_texts

_BOUNDARY = 0  # before the first character and after the last; no character has this number


def build(
    spec: DataSpec,
    *,
    label_smoothing: float = 0.0,
    beams: int = 4,
    length_penalty: float = 0.6,
    max_tokens: int | None = None,
    goal: Literal["wer", "loss"] = "wer",
) -> SpeechSequenceTask:
    """Cross-entropy of each next character of the transcript; word and character error rates of what is found.

    During training transcripts are said greedily; the last evaluation, `evaluate` and `predict` search.

    Settings:
        label_smoothing: share of the target spread over the vocabulary while training, 0 to below 1
        beams: hypotheses kept while a transcript is searched; 1 takes the likeliest character each time
        length_penalty: alpha of beam search, from 0 (short ones win) to about 1 (longer is no worse)
        max_tokens: characters of a transcript; those of the longest training transcript unless set
        goal: wer, for which transcripts are said at each evaluation, or loss, where they are said once at the end
    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", section 2.2.
    """
    _token_losses.check_smoothing(label_smoothing)
    size, longest = spec.size("characters"), spec.size("target_length")
    require_jiwer("task=speech_seq2seq")
    most = longest if max_tokens is None else max_tokens
    generation = _texts.generation_of(max_tokens=most, beams=beams, length_penalty=length_penalty)
    return SpeechSequenceTask(spec, size, label_smoothing, generation, Goal(goal, "min"), goal == "wer")


@dataclass(eq=False)
class SpeechSequenceTask:
    """See `build`. Models map spectrogram, frames and tokens to logits [B, S, V], and say with `start` and `step`.

    says: whether outputs hold transcripts.   searches: whether beam search finds them.
    """

    spec: DataSpec
    size: int
    label_smoothing: float
    generation: Generation
    goal: Goal
    says: bool
    searches: bool = False

    additive = True
    unit = "tokens"
    hub_kind = "automatic-speech-recognition"

    @cached_property
    def characters(self) -> Characters:
        """What the run's transcripts are spelled with."""
        return Characters.from_json(self.spec.files[CHARACTERS_FILE])

    def thorough(self) -> SpeechSequenceTask:
        """The same task, which says transcripts, and searches them."""
        return replace(self, says=True, searches=True)

    def count(self, batch: Batch) -> int:
        """Characters of the transcripts in this batch, and an end for each."""
        return int(batch["num_targets"].sum()) + len(batch["id"])

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over characters and ends, in nats."""
        taught = _taught(batch)
        return _token_losses.loss(self._logits(model, taught), taught, self.label_smoothing)

    def _logits(self, model: nn.Module, taught: Batch) -> Tensor:
        """[B, S, V]. Raises: DlrunError for a model that does not say one character after another."""
        if not callable(getattr(_plain(model), "start", None)):
            raise DlrunError(
                f"task: {type(_plain(model)).__name__} labels recordings or frames; speech_seq2seq needs a model that "
                "says one character after another",
                "model=whisper, or task=speech_recognition",
            )
        logits_BSV = model(*[taught[name] for name in self.spec.inputs], taught["tokens"])
        expected = (*taught["targets"].shape, self.size)
        if logits_BSV.shape != expected:
            raise DlrunError(f"task: the model gives {list(logits_BSV.shape)}; speech_seq2seq needs {list(expected)}")
        return logits_BSV

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Sums by example where the transcript is known (without label smoothing, see metrics.text.Perplexity), and
        text and reference, uint8 [B, L] (see tokens.to_bytes), where transcripts are said."""
        fields: dict[str, Tensor] = {}
        if "targets" in batch:
            taught = _taught(batch)
            fields |= _token_losses.sums(self._logits(model, taught), taught)
        if self.says:
            fields["text"] = to_bytes(self.transcripts(ModelDecoder(model), batch))
            fields |= {name: batch[name].cpu() for name in ("reference",) if name in batch}
        return Outputs(batch["id"], fields)

    def transcripts(self, decoder: Decoder, batch: Batch) -> list[str]:
        """What is said in each recording."""
        generation = self.generation if self.searches else replace(self.generation, beams=1)
        first_B = torch.full_like(batch["id"], _BOUNDARY)
        inputs = [*[batch[name] for name in self.spec.inputs], first_B]
        said = decoding.generate(decoder, inputs, generation, _BOUNDARY, batch["id"])
        return [self.characters.plain(self.characters.decode(numbers)) for numbers in said.sequences()]

    def metrics(self) -> list[Metric]:
        """loss, perplexity and accuracy of the characters, and where transcripts are said wer and cer."""
        return [Perplexity(), *([ErrorRates()] if self.says else [])]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "text" where it was said, "truth" where it is known} and the loss."""
        found = _token_losses.rows(outputs)
        for name, shown in (("reference", "truth"), ("text", "text")):
            if name in outputs.fields:
                texts = to_texts(outputs.fields[name])
                found = [{"id": row.pop("id"), shown: text} | row for row, text in zip(found, texts, strict=True)]
        return found


def _taught(batch: Batch) -> Batch:
    """The batch as the decoder is taught with it: tokens begin with the boundary, targets end with it."""
    targets_BS, lengths_B = batch["targets"], (batch["targets"] != NO_TARGET).sum(1)
    closed_BS = nn.functional.pad(targets_BS, (0, 1), value=NO_TARGET).scatter(1, lengths_B[:, None], _BOUNDARY)
    tokens_BS = nn.functional.pad(targets_BS.masked_fill(targets_BS == NO_TARGET, _BOUNDARY), (1, 0), value=_BOUNDARY)
    taught = batch | {"targets": closed_BS, "tokens": tokens_BS}
    return taught | ({"num_targets": batch["num_targets"] + 1} if "num_targets" in batch else {})


def _plain(model: nn.Module) -> nn.Module:
    """The model inside those that share gradients between processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model

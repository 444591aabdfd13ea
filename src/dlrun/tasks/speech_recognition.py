"""What is said in a recording, spelled character by character (CTC)."""

# B batch, T frames of the model's outputs, K characters and the blank, S characters of a transcript

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from dlrun.contracts import NO_TARGET, Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.speech import ErrorRates, require_jiwer
from dlrun.tasks import _ctc
from dlrun.tokens import CHARACTERS_FILE, Characters, to_bytes, to_texts


def build(spec: DataSpec, *, beams: int = 8) -> SpeechRecognitionTask:
    """The probability of a transcript over all ways to lay it along the frames, blanks between.

    During training transcripts are found greedily; the last evaluation, `evaluate` and `predict` search.

    Settings:
        beams: prefixes kept while a transcript is searched; 1 takes the likeliest label of each frame
    Source: Graves et al. 2006, "Connectionist Temporal Classification", section 4.
    """
    if beams < 1:
        raise DlrunError(f"task.beams: {beams} is not at least 1", "try task.beams=8")
    size = spec.size("characters")
    require_jiwer("task=speech_recognition")
    return SpeechRecognitionTask(spec, size, beams)


@dataclass(eq=False)
class SpeechRecognitionTask:
    """See `build`. Models map spectrogram and frames to logits [B, T, K], label 0 the blank, and how many of the T
    count, int64 [B]. searches: whether beam search finds the transcripts."""

    spec: DataSpec
    size: int
    beams: int
    searches: bool = False

    goal = Goal("wer", "min")
    additive = True
    unit = "tokens"
    hub_kind = "automatic-speech-recognition"

    @cached_property
    def characters(self) -> Characters:
        """What the run's transcripts are spelled with."""
        return Characters.from_json(self.spec.files[CHARACTERS_FILE])

    def thorough(self) -> SpeechRecognitionTask:
        """The same task, which searches."""
        return replace(self, searches=True)

    def count(self, batch: Batch) -> int:
        """Characters of the transcripts in this batch."""
        return int(batch["num_targets"].sum())

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Negative log-probability of the transcripts, summed over examples.

        One that is too long for its frames has none, and counts as 0.
        """
        return Loss(self._losses(*self._log_probs(model, batch), batch).sum(), self.count(batch))

    def _losses(self, log_probs_BTK: Tensor, lengths_B: Tensor, batch: Batch) -> Tensor:
        targets_BS = batch["targets"]
        is_target_BS = targets_BS != NO_TARGET
        return ctc_loss(
            log_probs_BTK.transpose(0, 1), targets_BS.masked_fill(~is_target_BS, 1), lengths_B, is_target_BS.sum(1),
            reduction="none", zero_infinity=True,
        )  # fmt: skip

    def _log_probs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, T, K] and [B]. Raises: DlrunError for a model that gives something else."""
        said = model(*[batch[name] for name in self.spec.inputs])
        is_pair = isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], Tensor)
        if not is_pair or said[0].dim() != 3 or said[0].shape[::2] != (len(batch["id"]), self.size):
            shape = list(said.shape) if isinstance(said, Tensor) else "something else"
            raise DlrunError(
                f"task: the model gives {shape}; speech_recognition needs labels by frame and how many frames count",
                "model=conv_gru_ctc or model=conformer",
            )
        logits_BTK = said[0].to(torch.promote_types(said[0].dtype, torch.float32))
        return logits_BTK.log_softmax(2), said[1]

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Fields text, uint8 [B, L] (see tokens.to_bytes), and where they are known reference, loss [B] and
        num_targets [B]."""
        log_probs_BTK, lengths_B = self._log_probs(model, batch)
        if self.searches and self.beams > 1:
            found = _ctc.beam_search(log_probs_BTK, lengths_B, self.beams)
        else:
            found = _ctc.greedy(log_probs_BTK, lengths_B)
        fields = {"text": to_bytes([self.characters.plain(self.characters.decode(labels)) for labels in found])}
        if "targets" in batch:
            fields["loss"] = self._losses(log_probs_BTK, lengths_B, batch).double()
            fields["num_targets"] = (batch["targets"] != NO_TARGET).sum(1)
            fields["reference"] = batch["reference"].cpu()
        return Outputs(batch["id"], fields)

    def metrics(self) -> list[Metric]:
        """loss, wer, cer."""
        return [ErrorRates()]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "text", "truth" where it is known}."""
        rows: list[Row] = [
            {"id": example, "text": text}
            for example, text in zip(outputs.ids.tolist(), to_texts(outputs.fields["text"]), strict=True)
        ]
        if "reference" in outputs.fields:
            for row, truth in zip(rows, to_texts(outputs.fields["reference"]), strict=True):
                row["truth"] = truth
        return rows

"""One text from another: what translation and summarization share."""

# B batch, T places of the target, V its vocabulary

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from dlrun import decoding
from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.decoding import Decoder, Generation, ModelDecoder
from dlrun.metrics.text import Perplexity
from dlrun.tasks import _texts, _token_losses
from dlrun.tokens import Tokenizer, references, to_bytes, to_texts

_SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


@dataclass(eq=False)
class SequenceTask:
    """Models map source, source_lengths and tokens to logits [B, T, V]; the loss is a mean over targets.

    scores: fresh metrics of the texts said.    generates: whether outputs hold texts; that takes a while, so a run is
    judged by its loss until its end, unless its goal is a score of texts.    with_lead: outputs hold the first
    sentence of the source too.
    """

    spec: DataSpec
    vocabulary: int
    label_smoothing: float
    generation: Generation
    goal: Goal
    scores: Callable[[], list[Metric]]
    generates: bool
    with_lead: bool = False

    additive = True
    unit = "tokens"

    @property
    def hub_kind(self) -> str:
        """See contracts.hub_kind."""
        return "summarization" if self.with_lead else "translation"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the texts said."""
        return _texts.target_tokenizer(self.spec)

    def thorough(self) -> SequenceTask:
        """The same task, whose outputs hold texts."""
        return self if self.generates else replace(self, generates=True)

    def count(self, batch: Batch) -> int:
        """Targets in this batch."""
        return _token_losses.num_targets(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over targets, in nats."""
        logits_BTV = _token_losses.logits_of(model, self.spec, batch, self.vocabulary)
        return _token_losses.loss(logits_BTV, batch, self.label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Sums by example where the target is known (without label smoothing, see metrics.text.Perplexity), and of a
        thorough task text, reference where it is known and perhaps lead: uint8 [B, L], see tokens.to_bytes."""
        fields: dict[str, Tensor] = {}
        if "targets" in batch:
            fields |= _token_losses.sums(_token_losses.logits_of(model, self.spec, batch, self.vocabulary), batch)
        if self.generates:
            fields["text"] = to_bytes(self.generate(ModelDecoder(model), batch, self.generation))
            fields |= {name: batch[name].cpu() for name in ("reference",) if name in batch}
            if self.with_lead:
                fields["lead"] = to_bytes(self._leads(batch))
        return Outputs(batch["id"], fields)

    def _leads(self, batch: Batch) -> list[str]:
        lengths = batch["source_lengths"].tolist()
        tokens = [row[:length] for row, length in zip(batch["source"].tolist(), lengths, strict=True)]
        prefix = self.spec.assets.get("prefix", "").strip()
        texts = _texts.source_tokenizer(self.spec).decode_batch(tokens)
        return [lead(text.strip().removeprefix(prefix)) for text in texts]

    def metrics(self) -> list[Metric]:
        """loss, perplexity and accuracy of the targets, and of a thorough task the scores of its texts."""
        return [Perplexity(), *(self.scores() if self.generates else [])]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "text" where it was said, "truth" where it is known (a list, if there are several)} and the loss."""
        found = _token_losses.rows(outputs)
        texts = {name: to_texts(outputs.fields[name]) for name in ("text", "reference") if name in outputs.fields}
        for index, row in enumerate(found):
            said: Row = {"id": row.pop("id")}
            if "text" in texts:
                said["text"] = texts["text"][index]
            if "reference" in texts:
                several = references(texts["reference"][index])
                said["truth"] = several if len(several) > 1 else several[0]
            found[index] = said | row
        return found

    # ---------------------------------------------------------------- saying

    def prompts(self, texts: Sequence[str], encode: Callable[[Sequence[Row]], Batch]) -> Batch:
        """Source and source_lengths, as the run's input pipeline makes them."""
        return encode([{self.spec.assets["columns"][0]: text} for text in texts])

    def generate(self, decoder: Decoder, batch: Batch, generation: Generation) -> list[str]:
        """What the source of each example becomes."""
        inputs = [batch["source"], batch["source_lengths"], batch["tokens"][:, 0]]
        end = _texts.end_of(self.tokenizer)
        said = decoding.generate(decoder, inputs, generation, end, batch["id"])
        return self.tokenizer.decode_batch(said.sequences())


def lead(text: str) -> str:
    """The first sentence: up to a full stop, question or exclamation mark before a blank; else all of the text."""
    found = _SENTENCE.match(text.strip())
    return found[0] if found else text.strip()

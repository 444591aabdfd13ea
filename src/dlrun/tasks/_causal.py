"""Predicting each next token, and saying what follows a text: language modelling, and chat on top of it."""

# B batch, T places, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from dlrun import decoding
from dlrun.contracts import Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.decoding import Decoder, Generation, ModelDecoder
from dlrun.metrics.text import Perplexity
from dlrun.tasks import _texts, _token_losses
from dlrun.tokens import Tokenizer, to_bytes, to_texts


@dataclass(eq=False)
class CausalTask:
    """Models map tokens to logits [B, T, V]; the loss is a mean over targets."""

    spec: DataSpec
    vocabulary: int
    label_smoothing: float
    generation: Generation

    goal = Goal("loss", "min")
    additive = True
    unit = "tokens"
    hub_kind = "text-generation"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary of the run."""
        return _texts.source_tokenizer(self.spec)

    @property
    def end(self) -> int | None:
        """The token that ends what is said; None for a vocabulary without one."""
        return _texts.end_of(self.tokenizer)

    def count(self, batch: Batch) -> int:
        """Targets in this batch."""
        return _token_losses.num_targets(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over targets, in nats."""
        logits_BTV = _token_losses.logits_of(model, self.spec, batch, self.vocabulary)
        return _token_losses.loss(logits_BTV, batch, self.label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Sums by example, see metrics.text.Perplexity, without label smoothing; where there are no targets, text
        uint8 [B, L]: what the model goes on with (see tokens.to_bytes)."""
        if "targets" not in batch:
            said = self.generate(ModelDecoder(model), batch, self.generation)
            return Outputs(batch["id"], {"text": to_bytes(said)})
        logits_BTV = _token_losses.logits_of(model, self.spec, batch, self.vocabulary)
        return Outputs(batch["id"], _token_losses.sums(logits_BTV, batch))

    def metrics(self) -> list[Metric]:
        """loss, perplexity, accuracy, bits_per_byte."""
        return [Perplexity()]

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id"} and "text", or "loss" (a token's, in nats), "perplexity" and "tokens"."""
        found = _token_losses.rows(outputs)
        if "text" in outputs.fields:
            for row, text in zip(found, to_texts(outputs.fields["text"]), strict=True):
                row["text"] = text
        return found

    # ---------------------------------------------------------------- saying

    def prompts(self, texts: Sequence[str], encode: Callable[[Sequence[Row]], Batch]) -> Batch:
        """Tokens [B, T] and lengths [B] of the texts; of a long one its end."""
        return encode([{"prompt": text} for text in texts])

    def generate(self, decoder: Decoder, batch: Batch, generation: Generation) -> list[str]:
        """What follows each prompt."""
        inputs = [batch["tokens"], batch["lengths"]]
        said = decoding.generate(decoder, inputs, generation, self.end, batch["id"]).sequences()
        lengths = batch["lengths"].tolist()
        prompts = [tokens[:length] for tokens, length in zip(batch["tokens"].tolist(), lengths, strict=True)]
        return [_texts.following(self.tokenizer, before, own) for before, own in zip(prompts, said, strict=True)]

"""Answers in a conversation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dlrun import decoding
from dlrun.contracts import Batch, DataSpec, Row
from dlrun.decoding import Decoder, Generation
from dlrun.tasks import _texts, _token_losses
from dlrun.tasks._causal import CausalTask
from dlrun.tokens import ChatTemplate

_ANSWER = Generation(max_tokens=256, temperature=0.7, top_p=0.95)  # unless a person asks for something else


def build(spec: DataSpec, *, label_smoothing: float = 0.0) -> ChatTask:
    """Cross-entropy of each next token of the answers; what the others say is read and not learned.

    Settings:
        label_smoothing: share of the target spread over the vocabulary while training, 0 to below 1
    """
    _token_losses.check_smoothing(label_smoothing)
    vocabulary = spec.size("vocabulary")
    spec.size("context")  # else the texts are no windows of tokens
    return ChatTask(spec, vocabulary, label_smoothing, _ANSWER)


@dataclass(eq=False)
class ChatTask(CausalTask):
    """See `build`. Targets are there for answers only, which is the data's doing."""

    @cached_property
    def template(self) -> ChatTemplate:
        """How the run's conversations are laid out."""
        return ChatTemplate.of(self.spec.files, self.tokenizer)

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.template.end

    def fitting(self, messages: Sequence[Row], generation: Generation) -> list[Row]:
        """The system's message, and of the turns after it the latest: from the first question that leaves room for an
        answer of max_tokens, or of half the context if that is less. The last question is always there."""
        context = self.spec.size("context")
        room = context - min(generation.max_tokens, context // 2)
        system = [message for message in messages[:1] if message["role"] == "system"]
        turns = list(messages[len(system) :])
        questions = [index for index, message in enumerate(turns) if message["role"] == "user"]
        fits = (index for index in questions if self._num_tokens([*system, *turns[index:]]) <= room)
        return [*system, *turns[next(fits, questions[-1]) :]]

    def _num_tokens(self, messages: Sequence[Row]) -> int:
        """Of a conversation up to the answer, as it is laid out."""
        contents = self.tokenizer.encode_batch([str(message["content"]) for message in messages])
        markup = self.template.num_tokens([message["role"] for message in messages], asks=True)
        return markup + sum(map(len, contents))

    def reply(self, decoder: Decoder, batch: Batch, generation: Generation) -> Generator[str, None, None]:
        """An answer in pieces, as they are said; a beam search's in one piece."""
        inputs, end = [batch["tokens"], batch["lengths"]], self.end
        if generation.beams > 1:
            said = decoding.generate(decoder, inputs, generation, end, batch["id"]).sequences()[0]
            yield self.tokenizer.decode(said)
            return
        tokens = (int(said.tokens_R[0]) for said in decoding.stream(decoder, inputs, generation, end, batch["id"]))
        yield from _texts.pieces(self.tokenizer, (token for token in tokens if token != end))

"""Saying sequences: what a model that generates offers, and greedy search, sampling and beam search, written once."""

# B batch, R examples that have not ended, V vocabulary, T tokens said so far

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dlrun.contracts import Batch, Row
from dlrun.errors import DlrunError
from dlrun.randomness import key, uniform

State = (
    Any  # tensors whose first dimension is the batch, in tuples, lists, dicts and dataclasses; other values are facts
)


class Decoder(Protocol):
    """What says one token after another: a model, or several whose log-probabilities are averaged.

    `step` may overwrite the state it is given.
    """

    def start(self, *inputs: Tensor) -> tuple[Tensor, State]:
        """Log-probabilities [B, V] of the first token after the inputs, and the state to go on from."""
        ...

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities [B, V] of the token after these, and the state to go on from."""
        ...


@dataclass(frozen=True)
class Generation:
    """How a sequence is said. Raises: DlrunError naming the number that is out of its range.

    max_tokens: at most so many tokens; the one that ends a sequence is one of them.
    temperature: divides the logits before a draw; 0 takes the likeliest token and draws nothing.
    top_k: a draw is among the so many likeliest tokens; 0 for all.
    top_p: a draw is among the fewest likeliest tokens that together have this probability, in (0, 1].
    beams: hypotheses that are kept; above 1 is beam search, which draws nothing.
    length_penalty: alpha of beam search, from 0 (log-probabilities as they are) to about 1 (longer is no worse).
    no_repeat: no sequence of so many tokens is said twice; 0 for no such limit.
    seed: of the draws.
    """

    max_tokens: int = 200
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 0.6
    no_repeat: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("beams", 1), ("top_k", 0), ("no_repeat", 0)):
            if getattr(self, name) < least:
                raise DlrunError(f"{name}: {getattr(self, name)} is not at least {least}")
        if not 0 <= self.temperature < float("inf"):
            raise DlrunError(f"temperature: {self.temperature} is not a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise DlrunError(f"top_p: {self.top_p} is not above 0 and at most 1")
        if not abs(self.length_penalty) <= 10:
            raise DlrunError(f"length_penalty: {self.length_penalty} is not between -10 and 10")

    def but(self, **given: Any) -> Generation:
        """The same with what is not None. A setting of draws ends a beam search, and the other way round.

        Raises: DlrunError where both are given, or a length penalty without a beam search.
        """
        given = {name: value for name, value in given.items() if value is not None}
        draws = [name for name in ("temperature", "top_k", "top_p") if name in given]
        if draws and given.get("beams", 1) > 1:
            raise DlrunError(f"beams: beam search draws nothing, so it takes no {draws[0]}", "leave one of them out")
        if draws:
            given = {"beams": 1, "temperature": self.temperature or 1.0} | given
        made = replace(self, **given)
        if "length_penalty" in given and made.beams == 1:
            raise DlrunError("length_penalty: it is of beam search, and this keeps one hypothesis", "add --beams 4")
        return made


class Generated(NamedTuple):
    """What was said: tokens [B, T] with zeros after the last, how many [B] (without the end token), and the model's
    log-probability [B] of all of it (the end token too)."""

    tokens_BT: Tensor
    lengths_B: Tensor
    log_probs_B: Tensor

    def sequences(self) -> list[list[int]]:
        """The tokens of each example."""
        lengths = self.lengths_B.tolist()
        return [tokens[:length] for tokens, length in zip(self.tokens_BT.tolist(), lengths, strict=True)]


@runtime_checkable
class Generates(Protocol):
    """A task whose models say sequences, as the verbs need it."""

    generation: Generation  # unless a person asks for something else

    def prompts(self, texts: Sequence[str], encode: Callable[[Sequence[Row]], Batch]) -> Batch:
        """A batch to `generate` from. encode: the run's input pipeline. Raises: DlrunError naming an unfit text."""
        ...

    def generate(self, decoder: Decoder, batch: Batch, generation: Generation) -> list[str]:
        """What follows each example."""
        ...


@runtime_checkable
class Converses(Protocol):
    """A task whose models answer in a conversation."""

    generation: Generation

    def fitting(self, messages: Sequence[Row], generation: Generation) -> list[Row]:
        """Messages ({"role", "content"}) without the oldest turns, as far as these leave no room for an answer."""
        ...

    def reply(self, decoder: Decoder, batch: Batch, generation: Generation) -> Generator[str, None, None]:
        """An answer in pieces, as they are said. batch: one row of "messages", encoded."""
        ...


# ---------------------------------------------------------------- a model as a Decoder


class ModelDecoder:
    """A model's `start` and `step`, which give logits, as a Decoder. Raises: DlrunError for a model without them."""

    def __init__(self, model: nn.Module) -> None:
        if not callable(getattr(model, "start", None)) or not callable(getattr(model, "step", None)):
            raise DlrunError(
                f"model: {type(model).__name__} does not generate: it has no start and step",
                "choose a model that says sequences: dlrun list model",
            )
        self.model: Any = model

    def start(self, *inputs: Tensor) -> tuple[Tensor, State]:
        """See Decoder."""
        logits_BV, state = self.model.start(*inputs)
        return logits_BV.float().log_softmax(1), state

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """See Decoder."""
        logits_BV, state = self.model.step(tokens_B, state)
        return logits_BV.float().log_softmax(1), state


def select(state: State, rows_R: Tensor) -> State:
    """The state of these rows of the batch, in this order; a row may come several times. Copies."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows_R)
    if isinstance(state, dict):
        return {name: select(part, rows_R) for name, part in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [select(part, rows_R) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{item.name: select(getattr(state, item.name), rows_R) for item in fields(state)})
    return state


# ---------------------------------------------------------------- searches


@torch.no_grad()
def generate(
    decoder: Decoder, inputs: Sequence[Tensor], generation: Generation, end: int | None, ids_B: Tensor
) -> Generated:
    """Sequences that follow the inputs, until the end token or max_tokens.

    ids_B: int64, what draws are keyed by beside the seed: an example's draws do not depend on its batch.
    """
    if generation.beams > 1:
        from dlrun._decoding_beam import beam_search

        return beam_search(decoder, inputs, generation, end)
    size, device = len(ids_B), ids_B.device
    tokens_BT = torch.zeros(size, generation.max_tokens, dtype=torch.int64, device=device)
    lengths_B = torch.zeros(size, dtype=torch.int64, device=device)
    log_probs_B = torch.zeros(size, device=device)
    for place, said in enumerate(stream(decoder, inputs, generation, end, ids_B)):
        goes_on_R = said.tokens_R != end if end is not None else torch.ones_like(said.tokens_R, dtype=torch.bool)
        tokens_BT[said.rows_R, place] = said.tokens_R * goes_on_R
        lengths_B[said.rows_R] += goes_on_R
        log_probs_B[said.rows_R] += said.log_probs_R
    return Generated(tokens_BT[:, : max(1, int(lengths_B.max()))], lengths_B, log_probs_B)


class Said(NamedTuple):
    """One token of every example that had not ended: which examples, their tokens and log-probabilities, all [R]."""

    rows_R: Tensor
    tokens_R: Tensor
    log_probs_R: Tensor


@torch.no_grad()
def stream(
    decoder: Decoder, inputs: Sequence[Tensor], generation: Generation, end: int | None, ids_B: Tensor
) -> Iterator[Said]:
    """Token by token, the end token included; greedy, or drawn. Examples that have ended leave the batch."""
    log_probs_RV, state = decoder.start(*inputs)
    rows_R, ids_R = torch.arange(len(ids_B), device=ids_B.device), ids_B
    before_RT = torch.zeros(len(ids_B), 0, dtype=torch.int64, device=ids_B.device)
    for place in range(generation.max_tokens):
        if place:
            log_probs_RV, state = decoder.step(before_RT[:, -1], state)
        allowed_RV = without_repeats(log_probs_RV, before_RT, generation.no_repeat)
        if generation.temperature:
            tokens_R = draw(allowed_RV, uniform(ids_R, key(generation.seed, "token", place)), generation)
        else:
            tokens_R = allowed_RV.argmax(1)
        yield Said(rows_R, tokens_R, log_probs_RV.gather(1, tokens_R[:, None])[:, 0])
        before_RT = torch.cat([before_RT, tokens_R[:, None]], 1)
        if end is not None and bool((has_ended_R := tokens_R == end).any()):
            left_R = (~has_ended_R).nonzero()[:, 0]
            if not len(left_R):
                return
            rows_R, ids_R, before_RT, state = select((rows_R, ids_R, before_RT, state), left_R)


def draw(log_probs_BV: Tensor, uniform_B: Tensor, generation: Generation) -> Tensor:
    """int64 [B]: a token each, by inverting the distribution function at a number in [0, 1).

    Temperature first, then top-k, then top-p of what is left (Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration", section 3.1).
    """
    scaled_BV, order_BV = log_probs_BV.double() / generation.temperature, None
    if generation.top_k or generation.top_p < 1:
        size = scaled_BV.shape[1]
        scaled_BV, order_BV = scaled_BV.topk(min(generation.top_k or size, size))
    probs_BV = scaled_BV.softmax(1)
    if generation.top_p < 1:
        likelier_BV = probs_BV.cumsum(1) - probs_BV
        probs_BV = probs_BV.masked_fill(likelier_BV >= generation.top_p, 0.0)
    sums_BV = probs_BV.cumsum(1)
    place_B1 = torch.searchsorted(sums_BV, uniform_B.double()[:, None] * sums_BV[:, -1:], right=True)
    return (place_B1 if order_BV is None else order_BV.gather(1, place_B1))[:, 0]


def without_repeats(log_probs_BV: Tensor, before_BT: Tensor, length: int) -> Tensor:
    """-inf for every token that would end a sequence of `length` tokens said before; nothing where that were all."""
    if not length or before_BT.shape[1] < length:
        return log_probs_BV
    windows_BWL = before_BT.unfold(1, length, 1)
    latest_B1L = before_BT[:, None, before_BT.shape[1] - length + 1 :]
    is_same_BW = (windows_BWL[..., :-1] == latest_B1L).all(2)
    counts_BV = torch.zeros_like(log_probs_BV).scatter_add_(1, windows_BWL[..., -1], is_same_BW.to(log_probs_BV))
    is_barred_BV = (counts_BV > 0) & ~(counts_BV > 0).all(1, keepdim=True)
    return log_probs_BV.masked_fill(is_barred_BV, float("-inf"))

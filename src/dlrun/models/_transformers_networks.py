"""Networks of the transformers library as dlrun calls them: tensors in, logits out, and a cache made of tensors."""

# B batch, T tokens, S tokens of the source, D width, V vocabulary, C classes, P places of a cache

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.errors import DlrunError
from dlrun.models import _text, _transformers_names

Layers = tuple[tuple[Tensor, Tensor], ...]  # keys and values [B, heads, P, D / heads] of each layer


def is_real(tokens_BT: Tensor, lengths_B: Tensor | None) -> Tensor:
    """bool [B, T]: which tokens are no padding, by the lengths where they are given, else by the zeros at the end."""
    return _text.is_token(tokens_BT, _text.lengths_of(tokens_BT) if lengths_B is None else lengths_B)


class Classifier(nn.Module):
    """A body, its states pooled to one vector an example, and a linear head.

    pooling: "mean" over real tokens, the "last" of them, or "cls": the first, through the body's own pooling layer
    where it has one (BERT: a linear layer and tanh).
    """

    def __init__(self, body: nn.Module, config: Any, pooling: str, dropout: float, num_outputs: int) -> None:
        super().__init__()
        self.architecture: str = config.model_type
        self.pooling, self.padding = pooling, config.pad_token_id or 0
        self.body: Any = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.hidden_size, num_outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits [B, C]; what stands after an example's last token has no part in them."""
        is_real_BT = is_real(tokens_BT, lengths_B)
        # RoBERTa counts its positions by what is no padding, and calls padding by its own number.
        tokens_BT = tokens_BT.masked_fill(~is_real_BT, self.padding)
        said = self.body(input_ids=tokens_BT, attention_mask=is_real_BT.long())
        return self.head(self.dropout(self._pooled(said, is_real_BT)))

    def _pooled(self, said: Any, is_real_BT: Tensor) -> Tensor:
        states_BTD = said.last_hidden_state
        if self.pooling == "cls":
            pooled_BD = getattr(said, "pooler_output", None)
            return states_BTD[:, 0] if pooled_BD is None else pooled_BD
        if self.pooling == "last":
            last_B11 = (is_real_BT.sum(1) - 1)[:, None, None]
            return states_BTD.gather(1, last_B11.expand(-1, 1, states_BTD.shape[2]))[:, 0]
        return _text.pooled(states_BTD, is_real_BT, "mean")

    def own_names(self, names: Sequence[str]) -> dict[str, str]:
        """See contracts.FromLibrary."""
        return _transformers_names.own_names(self, self.body.base_model_prefix, names)

    def exportable(self) -> nn.Module:
        """Itself: it takes and gives tensors."""
        return self

    def published(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """See contracts.Publishable: the body, and the head, which reads what `pooling` makes of its states."""
        return self.body, {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}


class LanguageModel(nn.Module):
    """A logit for every token of the vocabulary at every place: of the next token, or (`is_causal` false) of the one
    that was masked there."""

    is_causal = False

    def __init__(self, network: nn.Module, config: Any, vocabulary: int) -> None:
        super().__init__()
        self.architecture: str = config.model_type
        self.vocabulary, self.padding = vocabulary, config.pad_token_id or 0
        self.network: Any = network

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]."""
        is_real_BT = is_real(tokens_BT, lengths_B)
        tokens_BT = tokens_BT.masked_fill(~is_real_BT, self.padding)
        said = self.network(input_ids=tokens_BT, attention_mask=is_real_BT.long())
        return said.logits[..., : self.vocabulary]

    def own_names(self, names: Sequence[str]) -> dict[str, str]:
        """See contracts.FromLibrary."""
        return _transformers_names.own_names(self, self.network.base_model_prefix, names)

    def exportable(self) -> nn.Module:
        """Itself: it takes and gives tensors."""
        return self

    def published(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """See contracts.Publishable."""
        return self.network, {}


@dataclass(frozen=True)
class Told:
    """What a left-to-right model has read. Prompts of unequal length leave holes, which is_real_BP knows."""

    layers: Layers
    tokens_BP: Tensor
    is_real_BP: Tensor


class CausalModel(LanguageModel):
    """Each token from those before it, and generation with a cache.

    Padding on the right needs no mask: no real token sees it.
    """

    is_causal = True

    def __init__(self, network: nn.Module, config: Any, vocabulary: int, context: int | None) -> None:
        super().__init__(network, config, vocabulary)
        self.context = context

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the token after each. Raises: DlrunError beyond the context."""
        length = tokens_BT.shape[1]
        if self.context is not None and length > self.context:
            raise DlrunError(f"model: {length} tokens are more than the context of {self.context}", "cut the text")
        return self.network(input_ids=tokens_BT, use_cache=False).logits[..., : self.vocabulary]

    @torch.no_grad()
    def start(self, tokens_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Told]:
        """Logits [B, V] after each prompt, and what was read. Of more than the context only its last part is read."""
        tokens_BT, is_real_BT = _latest(tokens_BT, is_real(tokens_BT, lengths_B), self.context)
        last_B = is_real_BT.sum(1) - 1
        wanted_W, which_B = last_B.unique(return_inverse=True)  # logits are made at these places alone
        said = self.network(
            input_ids=tokens_BT, attention_mask=is_real_BT.long(), past_key_values=cache_of(()), use_cache=True,
            logits_to_keep=wanted_W,
        )  # fmt: skip
        logits_BV = said.logits[torch.arange(len(which_B), device=which_B.device), which_B, : self.vocabulary]
        return logits_BV, Told(layers_of(said.past_key_values), tokens_BT, is_real_BT)

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: Told) -> tuple[Tensor, Told]:
        """Logits [B, V] after one more token each. Where that is one too many for the context, the window moves:
        what is left of it is read anew, for every token in it now has another place."""
        places_B1 = state.is_real_BP.sum(1, keepdim=True)
        tokens_BP = torch.cat([state.tokens_BP, tokens_B[:, None]], 1)
        is_real_BP = torch.cat([state.is_real_BP, torch.ones_like(places_B1, dtype=torch.bool)], 1)
        if self.context is not None and tokens_BP.shape[1] > self.context:
            tokens_BT, is_real_BT = _latest(tokens_BP, is_real_BP, self.context)
            return self.start(tokens_BT, is_real_BT.sum(1))
        said = self.network(
            input_ids=tokens_B[:, None], attention_mask=is_real_BP.long(), position_ids=places_B1,
            past_key_values=cache_of(state.layers), use_cache=True,
        )  # fmt: skip
        return said.logits[:, -1, : self.vocabulary], Told(layers_of(said.past_key_values), tokens_BP, is_real_BP)


def _latest(tokens_BP: Tensor, is_real_BP: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """The last real tokens of each row, at most so many, without holes, and which of them are real."""
    lengths_B = is_real_BP.sum(1)
    order_BP = (~is_real_BP).long().argsort(dim=1, stable=True)
    width = int(lengths_B.max()) if most is None else min(int(lengths_B.max()), most)
    places_BT = (lengths_B[:, None] - width).clamp(min=0) + torch.arange(width, device=tokens_BP.device)
    order_BT = order_BP.gather(1, places_BT)
    return tokens_BP.gather(1, order_BT), is_real_BP.gather(1, order_BT)


@dataclass(frozen=True)
class Read:
    """A source that was read, and what was said of it so far."""

    encoded_BSD: Tensor
    is_real_BS: Tensor
    said: Layers
    seen: Layers  # keys and values of the source


class Translator(nn.Module):
    """A sequence from another: an encoder reads the source, a decoder says the target."""

    is_causal = True

    def __init__(self, network: nn.Module, config: Any, vocabulary: int, most: int | None) -> None:
        super().__init__()
        self.architecture: str = config.model_type
        self.vocabulary, self.most = vocabulary, most
        self.network: Any = network

    def forward(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the token after each of the target's."""
        said = self.network(
            input_ids=source_BS, attention_mask=is_real(source_BS, source_lengths_B).long(),
            decoder_input_ids=tokens_BT, use_cache=False,
        )  # fmt: skip
        return said.logits[..., : self.vocabulary]

    @torch.no_grad()
    def start(self, source_BS: Tensor, source_lengths_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Read]:
        """Logits [B, V] after the first token, and the source as it was read."""
        is_real_BS = is_real(source_BS, source_lengths_B)
        encoder = self.network.get_encoder()
        encoded_BSD = encoder(input_ids=source_BS, attention_mask=is_real_BS.long()).last_hidden_state
        return self.step(tokens_B, Read(encoded_BSD, is_real_BS, (), ()))

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: Read) -> tuple[Tensor, Read]:
        """Logits [B, V] after one more token each. Raises: DlrunError past the decoder's last position."""
        from transformers.cache_utils import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        said_so_far = state.said[0][0].shape[2] if state.said else 0
        if self.most is not None and said_so_far >= self.most:
            raise DlrunError(
                f"model: {self.architecture} says at most {self.most} tokens here", "generate fewer: max_tokens"
            )
        said = self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=state.encoded_BSD),
            attention_mask=state.is_real_BS.long(), decoder_input_ids=tokens_B[:, None],
            past_key_values=EncoderDecoderCache(cache_of(state.said), cache_of(state.seen)), use_cache=True,
        )  # fmt: skip
        caches = said.past_key_values
        state = replace(
            state, said=layers_of(caches.self_attention_cache), seen=layers_of(caches.cross_attention_cache)
        )
        return said.logits[:, -1, : self.vocabulary], state

    def own_names(self, names: Sequence[str]) -> dict[str, str]:
        """See contracts.FromLibrary."""
        return _transformers_names.own_names(self, self.network.base_model_prefix, names)

    def exportable(self) -> nn.Module:
        """Itself: it takes and gives tensors."""
        return self

    def published(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """See contracts.Publishable."""
        return self.network, {}


# ---------------------------------------------------------------- the library's cache, and plain tensors


def cache_of(layers: Layers) -> Any:
    """The library's cache that holds these keys and values. Nothing is copied."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        cache.layers.append(layer)
    return cache


def layers_of(cache: Any) -> Layers:
    """The inverse of `cache_of`."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)

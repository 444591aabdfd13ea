"""Whisper of the transformers library: a recording's frames are read, and what was said is said token by token."""

# B batch, T frames, F bands, L frames that the encoder takes, S tokens, V vocabulary, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers, _text, _transformers_config, _transformers_names
from dlrun.models._transformers_networks import Layers, cache_of, layers_of

_BOUNDARY = 0  # begins and ends a transcript: no character has this number
_FRAMES_A_PLACE = 2  # the second convolution halves them
_LEAST = -1.5  # of the published weights' frames: those of no sound at all
_SAID = 448  # places of the published decoders
# Skipped layers and masks of the library are drawn from generators of their own: a run would not be the same again.
_STILL = {"apply_spec_augment": False, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
_FACTS = {
    "pad_token_id": None,  # else the library keeps the boundary's embedding at zero
    "bos_token_id": _BOUNDARY, "eos_token_id": _BOUNDARY, "decoder_start_token_id": _BOUNDARY,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """A recording that was read, and what was said of it so far."""

    encoded_BLD: Tensor
    said: Layers
    seen: Layers  # keys and values of the recording


class Whisper(nn.Module):
    """The library's network. Its encoder always takes as many frames; what is missing is silence, 0, and no mask says
    so: an example is read alike in every batch. Of a longer recording the beginning is heard.

    has_own_frames: they are those of the published weights, whose silence is 2 below an example's largest number."""

    architecture = "whisper"
    is_causal = True

    def __init__(self, network: Any, *, has_own_frames: bool = False) -> None:
        super().__init__()
        self.network, self.has_own_frames = network, has_own_frames

    def forward(self, spectrogram_BTF: Tensor, frames_B: Tensor, tokens_BS: Tensor | None = None) -> Tensor:
        """Logits [B, S, V] of the token after each; of the first one [B, 1, V] where no tokens are given.

        Raises: DlrunError for more tokens than the decoder has places.
        """
        if tokens_BS is None:
            tokens_BS = torch.full_like(frames_B[:, None], _BOUNDARY)
        self._require(tokens_BS.shape[1])
        return self.network(self._heard(spectrogram_BTF, frames_B), decoder_input_ids=tokens_BS, use_cache=False).logits

    def _heard(self, spectrogram_BTF: Tensor, frames_B: Tensor) -> Tensor:
        """[B, F, L]: cut, or filled up with silence."""
        frames = _FRAMES_A_PLACE * self.network.config.max_source_positions
        x_BTF = nn.functional.pad(spectrogram_BTF, (0, 0, 0, max(0, frames - spectrogram_BTF.shape[1])))
        if self.has_own_frames:
            is_silence_BT1 = ~_text.is_token(x_BTF, frames_B)[..., None]
            silence_B11 = x_BTF.masked_fill(is_silence_BT1, float("-inf")).amax((1, 2), keepdim=True) - 2
            x_BTF = torch.where(is_silence_BT1, silence_B11.clamp(min=_LEAST), x_BTF)
        return x_BTF[:, :frames].transpose(1, 2)

    def _require(self, count: int) -> None:
        most = self.network.config.max_target_positions
        if count > most:
            raise DlrunError(
                f"model: whisper says at most {most} tokens here, a transcript has {count}",
                f"model.options={{max_target_positions: {2 * count}}}",
            )

    @torch.no_grad()
    def start(self, spectrogram_BTF: Tensor, frames_B: Tensor, tokens_B: Tensor) -> tuple[Tensor, Heard]:
        """Logits [B, V] after the first token, and the recording as it was read."""
        encoded_BLD = self.network.get_encoder()(self._heard(spectrogram_BTF, frames_B)).last_hidden_state
        return self.step(tokens_B, Heard(encoded_BLD, (), ()))

    @torch.no_grad()
    def step(self, tokens_B: Tensor, state: Heard) -> tuple[Tensor, Heard]:
        """Logits [B, V] after one more token each. Raises: DlrunError past the decoder's last place."""
        from transformers.cache_utils import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        self._require(1 + (state.said[0][0].shape[2] if state.said else 0))
        said = self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=state.encoded_BLD), decoder_input_ids=tokens_B[:, None],
            past_key_values=EncoderDecoderCache(cache_of(state.said), cache_of(state.seen)), use_cache=True,
        )  # fmt: skip
        caches = said.past_key_values
        state = replace(
            state, said=layers_of(caches.self_attention_cache), seen=layers_of(caches.cross_attention_cache)
        )
        return said.logits[:, -1], state

    def own_names(self, names: Sequence[str]) -> dict[str, str]:
        """What this model calls tensors of published weights, where it has them."""
        return _transformers_names.own_names(self, "model", names)

    def exportable(self) -> nn.Module:
        """None. Raises: DlrunError: a transcript is said in as many calls as it has characters."""
        raise DlrunError(
            "export: whisper says a transcript character by character, which is no single graph",
            "--format transformers or --format safetensors",
        )

    def published(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """See contracts.Publishable."""
        return self.network, {}


def build(
    spec: DataSpec, *, path: str | None = None, max_frames: int | None = None, options: dict[str, Any] | None = None
) -> nn.Module:
    """Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", of the tiny size, or that of a
    folder, unless the options say otherwise. It spells with the data's characters: their embeddings start anew.

    Settings:
    path: a folder with config.json and model.safetensors, or hub:ORG/NAME[@REVISION]: the sizes are its, and a transfer
      (transfer=finetune) starts from its weights unless transfer.from says otherwise; null: the tiny size, from scratch
    max_frames: that the encoder takes of a recording; the folder's, else a quarter more than the longest training
      recording has
    options: settings of the library's config, e.g. {d_model: 64, encoder_layers: 2, decoder_layers: 2}
    """
    size = spec.size("characters")
    if spec.inputs != ("spectrogram", "frames"):
        raise DlrunError(
            f"model: whisper needs frames of sound; this data has {', '.join(spec.inputs)}", "data=speech, data=tones"
        )
    _layers.require(max_frames is None or max_frames >= 2, "max_frames", max_frames, "at least 2")
    given = {**(options or {})}
    facts = {**_FACTS, **_STILL, "vocab_size": size}
    if path is None:
        facts |= {"num_mel_bins": spec.size("features"), "max_source_positions": _places(spec, max_frames)}
        facts |= {} if "max_target_positions" in given else {"max_target_positions": _tokens(spec)}
        config, description = _transformers_config.of_facts("whisper", given, facts), None
    else:
        facts |= {} if max_frames is None else {"max_source_positions": -(-max_frames // _FRAMES_A_PLACE)}
        config, description = _transformers_config.of_described(spec, path, "whisper", given, facts)
        if config.num_mel_bins != spec.size("features"):
            raise DlrunError(
                f"model: {path} hears {config.num_mel_bins} bands; this data has {spec.size('features')}",
                f"data.features=whisper data.bands={config.num_mel_bins}",
            )
    has_own_frames = spec.assets.get("spectrogram", {}).get("scale") == "whisper"
    model: Any = Whisper(_network(config, given), has_own_frames=has_own_frames)
    if description is not None:
        model.source, model.files = path, {_transformers_config.KEPT_AS: description}
    return model


def _places(spec: DataSpec, max_frames: int | None) -> int:
    return -(-(max_frames or spec.size("length") * 5 // 4) // _FRAMES_A_PLACE)


def _tokens(spec: DataSpec) -> int:
    return max(_SAID, 2 * spec.sizes.get("target_length", 0))


def _network(config: Any, options: dict[str, Any]) -> Any:
    from transformers import WhisperForConditionalGeneration

    try:
        return WhisperForConditionalGeneration(config).train()
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:
        raise _transformers_config.unfit("whisper", options, error) from error

"""wav2vec 2.0 of the transformers library: a label for each frame of a recording as it is, or a class for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _text, _transformers_config, _transformers_names

# B batch, S samples, T frames, C channels, D width, K labels: characters and the blank, or classes

# Masks and skipped layers of the library are drawn from generators of their own: a run would not be the same again.
_STILL = {"apply_spec_augment": False, "layerdrop": 0.0}
_FACTS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
# What older versions called the two parts of a normalised convolution.
_OLD_ENDINGS = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}


class OwnFramesNorm(nn.GroupNorm):
    """Each channel by its mean and deviation over an example's own frames, where the library's counts padding, too."""

    frames_B: Tensor | None = None  # how many frames are the example's own; set before each call

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, T], in float32 at least."""
        assert self.frames_B is not None
        x_BCT = input.to(torch.promote_types(input.dtype, torch.float32))
        is_own_B1T = (torch.arange(x_BCT.shape[2], device=x_BCT.device) < self.frames_B[:, None])[:, None]
        count_B11 = self.frames_B[:, None, None]
        mean_BC1 = x_BCT.where(is_own_B1T, 0.0).sum(2, keepdim=True) / count_B11
        changes_BCT = (x_BCT - mean_BC1).where(is_own_B1T, 0.0)
        variance_BC1 = changes_BCT.square().sum(2, keepdim=True) / count_B11
        normal_BCT = changes_BCT * (variance_BC1 + self.eps).rsqrt()
        return normal_BCT * self.weight[:, None] + self.bias[:, None]


class _Around(nn.Module):
    """What both have in common: the library's network, called with what is an example's own."""

    architecture = "wav2vec2"

    def _read(self, network: Any, samples_BS: Tensor, lengths_B: Tensor) -> tuple[Any, Tensor]:
        """What the network says, and how many of its frames are the example's own."""
        first = network.base_model.feature_extractor.conv_layers[0]
        if isinstance(norm := getattr(first, "layer_norm", None), OwnFramesNorm):
            (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
            norm.frames_B = ((lengths_B - kernel) // stride + 1).clamp(min=1)
        said = network(samples_BS, attention_mask=_text.is_token(samples_BS, lengths_B).long())
        return said, network._get_feat_extract_output_lengths(lengths_B).clamp(min=1)

    def own_names(self, names: Sequence[str]) -> dict[str, str]:
        """What this model calls tensors of published weights, where it has them."""
        new = {name: _renamed(name) for name in names}
        own = _transformers_names.own_names(self, "wav2vec2", list(new.values()))
        return {name: own[now] for name, now in new.items() if now in own}


class Wav2Vec2(_Around):
    """The library's network; a frame of it is 20 ms at 16 kHz unless its convolutions are others."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        _count_own_frames(network)

    def forward(self, samples_BS: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, K], label 0 the blank, and how many of the T are the example's own."""
        said, frames_B = self._read(self.network, samples_BS, lengths_B)
        return said.logits, frames_B


class Wav2Vec2Classifier(_Around):
    """The library's body, the mean of its frames, and a linear head."""

    def __init__(self, body: Any, num_outputs: int) -> None:
        super().__init__()
        self.body, config = body, body.config
        _count_own_frames(body)
        self.dropout = nn.Dropout(config.final_dropout)
        self.head = nn.Linear(config.output_hidden_size if config.add_adapter else config.hidden_size, num_outputs)
        nn.init.normal_(self.head.weight, std=config.initializer_range)
        nn.init.zeros_(self.head.bias)

    def forward(self, samples_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits [B, K]; what stands after a recording has no part in them."""
        said, frames_B = self._read(self.body, samples_BS, lengths_B)
        states_BTD = said.last_hidden_state
        pooled_BD = _text.pooled(states_BTD, _text.is_token(states_BTD, frames_B), "mean")
        return self.head(self.dropout(pooled_BD))


def build(spec: DataSpec, *, path: str | None = None, options: dict[str, Any] | None = None) -> nn.Module:
    """Baevski et al. 2020, "wav2vec 2.0", of the base size, or that of a folder, unless the options say otherwise.
    Of data with classes it says the class of a recording, of data with transcripts a character a frame.

    Settings:
    path: a folder with config.json and model.safetensors, or hub:ORG/NAME[@REVISION]: the sizes are its, and a transfer
      (transfer=finetune) starts from its weights unless transfer.from says otherwise; null: the base size, from scratch
    options: settings of the library's config, e.g. {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
    """
    is_spelled = "characters" in spec.sizes
    size = spec.size("characters" if is_spelled else "classes")
    if spec.inputs != ("samples", "lengths"):
        raise DlrunError(
            f"model: wav2vec2 needs samples; this data has {', '.join(spec.inputs)}",
            "data=speech data.features=samples data.sample_rate=16000",
        )
    given = {**(options or {})}
    given.pop("num_feat_extract_layers", None)  # as many as conv_dim has; the library counts them itself
    facts = {**_FACTS, **_STILL} | ({"vocab_size": size} if is_spelled else {})
    if path is None:
        config, description = _transformers_config.of_facts("wav2vec2", given, facts), None
    else:
        config, description = _transformers_config.of_described(spec, path, "wav2vec2", given, facts)
    model: Any = _made(config, size, is_spelled, given)
    if description is not None:
        model.source, model.files = path, {_transformers_config.KEPT_AS: description}
    return model


def _made(config: Any, size: int, is_spelled: bool, options: dict[str, Any]) -> nn.Module:
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Model

    try:
        if is_spelled:
            return Wav2Vec2(Wav2Vec2ForCTC(config).train())
        return Wav2Vec2Classifier(Wav2Vec2Model(config).train(), size)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, ArithmeticError) as error:
        raise _transformers_config.unfit("wav2vec2", options, error) from error


def _count_own_frames(network: Any) -> None:
    """Put OwnFramesNorm in the place of the library's norm over frames, where there is one; the weights keep names."""
    first = network.base_model.feature_extractor.conv_layers[0]
    if isinstance(norm := getattr(first, "layer_norm", None), nn.GroupNorm):
        own = OwnFramesNorm(norm.num_groups, norm.num_channels, norm.eps)
        own.load_state_dict(norm.state_dict())
        first.layer_norm = own


def _renamed(name: str) -> str:
    for old, new in _OLD_ENDINGS.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name

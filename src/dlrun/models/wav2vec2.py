"""wav2vec 2.0 of the transformers library, with a label for each frame: for recordings as they are, not as frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, did_you_mean
from dlrun.models import _text, _transformers_config, _transformers_names

# B batch, S samples, T frames, K characters and the blank

# Masks and skipped layers of the library are drawn from generators of their own: a run would not be the same again.
_STILL = {"apply_spec_augment": False, "layerdrop": 0.0}


class Wav2Vec2(nn.Module):
    """The library's network; a frame of it is 20 ms at 16 kHz unless its convolutions are others."""

    architecture = "wav2vec2"

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, samples_BS: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, K], label 0 the blank, and how many of the T are the example's own."""
        is_there_BS = _text.is_token(samples_BS, lengths_B).long()
        logits_BTK = self.network(samples_BS, attention_mask=is_there_BS).logits
        return logits_BTK, self.network._get_feat_extract_output_lengths(lengths_B).clamp(min=1)

    def own_names(self, names: Sequence[str]) -> dict[str, str]:
        """What this model calls tensors of published weights, where it has them."""
        return _transformers_names.own_names(self, "wav2vec2", names)


def build(spec: DataSpec, *, options: dict[str, Any] | None = None) -> nn.Module:
    """Baevski et al. 2020, "wav2vec 2.0", of the base size unless the options say otherwise.

    Weights are not loaded here: transfer=finetune transfer.from=FOLDER does that.

    Settings:
    options: settings of the library's config, e.g. {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
    """
    size = spec.size("characters")
    if spec.inputs != ("samples", "lengths"):
        raise DlrunError(
            f"model: wav2vec2 needs samples; this data has {', '.join(spec.inputs)}",
            "data=speech data.features=samples data.sample_rate=16000",
        )
    _transformers_config.quieten()
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    given = options or {}
    known = Wav2Vec2Config().to_dict().keys() - {"vocab_size", *_STILL}
    if unknown := [name for name in given if name not in known]:
        raise DlrunError(f"model.options: wav2vec2 has no setting '{unknown[0]}'", did_you_mean(unknown[0], known))
    facts = {"vocab_size": size, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    try:
        network = Wav2Vec2ForCTC(Wav2Vec2Config(**{**facts, **given, **_STILL}))
    except Exception as error:  # whatever the library says of values that do not go together
        line = str(error).strip().splitlines()[0]
        raise DlrunError(f"model.options: {line}") from error
    return Wav2Vec2(network)

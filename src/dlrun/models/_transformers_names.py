"""What published weights call the tensors of a model of the transformers library, in this model's own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

_WRAPPERS = ("body.", "network.")  # what models/transformers.py puts around the library's
_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}  # layer norms of weights that were converted from TensorFlow


def own_names(model: nn.Module, prefix: str, names: Sequence[str]) -> dict[str, str]:
    """The model's names of tensors that weights of the same architecture call `names`, where it has such tensors.

    prefix: what the library's models with heads put before the names of their body, e.g. "bert".
    """
    known = model.state_dict(keep_vars=True).keys()
    found = {name: next((own for own in _candidates(prefix, name) if own in known), None) for name in names}
    return {name: own for name, own in found.items() if own is not None}


def _candidates(prefix: str, name: str) -> Iterator[str]:
    bare = _without(name, *_WRAPPERS)
    bare = _without(bare, f"{prefix}.") if prefix else bare
    for old, new in _OLD_ENDINGS.items():
        bare = bare.removesuffix(old) + new if bare.endswith(old) else bare
    bodies = [bare, f"{prefix}.{bare}"]
    if bare.startswith("encoder."):  # the encoder of an encoder-decoder alone
        bodies.append(bare.removeprefix("encoder."))
    if bare == "shared.weight":
        bodies += ["embed_tokens.weight", "encoder.embed_tokens.weight"]
    for wrapper in _WRAPPERS:
        yield from (wrapper + body for body in bodies)


def _without(name: str, *prefixes: str) -> str:
    found = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return name.removeprefix(found)

"""The next token of a text, from those before it."""

from __future__ import annotations

from dlrun.contracts import DataSpec
from dlrun.decoding import Generation
from dlrun.tasks import _token_losses
from dlrun.tasks._causal import CausalTask

_TEMPERATURE = 0.8  # of what is said unless asked for another one; nanoGPT's sample.py has the same


def build(spec: DataSpec, *, label_smoothing: float = 0.0) -> CausalTask:
    """Cross-entropy of each next token, in nats; perplexity, and bits per byte of the text.

    Settings:
        label_smoothing: share of the target spread over the vocabulary while training, 0 to below 1
    """
    _token_losses.check_smoothing(label_smoothing)
    vocabulary = spec.size("vocabulary")
    spec.size("context")  # else the texts are no windows of tokens
    return CausalTask(spec, vocabulary, label_smoothing, Generation(temperature=_TEMPERATURE))

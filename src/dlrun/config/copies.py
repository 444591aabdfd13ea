"""Which settings would tie the copies of a model to each other, so that `model.copies` refuses them."""

from __future__ import annotations

from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError

_BY_MATRIX = ("Adafactor", "Muon")  # optimizers whose step of an entry depends on the whole tensor


def require_independent(config: RunConfig) -> None:
    """Raises: DlrunError for a setting under which copies would not be trained as each alone."""
    if config.model.copies == 1:
        return
    train, hardware, algorithm = config.train, config.hardware, config.optimizer.options.get("algorithm")
    tied = [
        ("train.clip_norm", train.clip_norm is not None, "one norm is taken of all copies; use train.clip_value"),
        ("train.diagnose", train.diagnose, "layers are looked at one network at a time"),
        ("transfer", config.transfer.name != "none", "copies that begin at the same weights stay alike"),
        (f"optimizer.algorithm={algorithm}", algorithm in _BY_MATRIX, "it takes all copies of a weight for one matrix"),
        ("hardware.channels_last", hardware.channels_last, "weights of several networks have no such layout"),
    ]
    for setting, is_set, why in tied:
        if is_set:
            raise DlrunError(f"model.copies={config.model.copies} does not go with {setting}: {why}", "model.copies=1")

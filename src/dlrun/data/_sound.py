"""Sound to samples: wav, flac, ogg and mp3 decoded by soundfile, mixed to one channel, at one rate."""

# S samples

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrun.data._resample import check_rates, resampled
from dlrun.errors import DlrunError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3")
_FULL = 32768  # of int16: samples of -1 to below 1 become -32768..32767


class BadSound(ValueError):
    """A recording that cannot be read, and why."""


def read(given: Any, rate: int, folder: Path | None = None, longest_seconds: float | None = None) -> np.ndarray:
    """int16 [S] at this rate, of a path, the bytes of a file, {"bytes", "path"}, or an array of samples.

    folder: where relative paths start.   longest_seconds: of a recording, as it was found.

    An array has the rate already: int16, or floats of -1..1; [S], or [S, channels].
    Raises: BadSound for what cannot be decoded, holds nothing, is too long, or has samples that are no numbers.
    """
    samples, own_rate = _decoded(given, rate, folder)
    if longest_seconds is not None and len(samples) > longest_seconds * max(own_rate, 1):
        raise BadSound(f"{len(samples) / max(own_rate, 1):.1f} s are longer than data.max_seconds={longest_seconds:g}")
    if not np.isfinite(samples).all():
        raise BadSound(f"sample {int(np.argmin(np.isfinite(samples)))} is not a finite number")
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if not samples.size:
        raise BadSound("the recording has no samples")
    try:
        check_rates(own_rate, rate)
    except DlrunError as error:
        raise BadSound(error.message) from error
    sound = resampled(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)), own_rate, rate)
    return (sound * _FULL).round().clamp(-_FULL, _FULL - 1).to(torch.int16).numpy()


def _decoded(given: Any, rate: int, folder: Path | None) -> tuple[np.ndarray, int]:
    """float32 samples [S] or [S, channels] of -1..1, and their rate."""
    if isinstance(given, dict):
        given = given.get("bytes") if given.get("bytes") is not None else given.get("path")
    if given is None:
        raise BadSound("there is no recording")
    if isinstance(given, str | Path):
        return _of_file(os.path.join(folder or "", os.path.expanduser(given)))
    if isinstance(given, bytes | bytearray | memoryview):
        if not len(given):
            raise BadSound("the file is empty (0 bytes)")
        return _of_file(io.BytesIO(given))
    samples = np.asarray(given)
    if samples.dtype.kind not in "if" or samples.ndim not in (1, 2):
        raise BadSound(f"an array of samples is needed, not {samples.ndim} dimensions of {samples.dtype}")
    return samples.astype(np.float32) / (_FULL if samples.dtype == np.int16 else 1.0), rate


def _of_file(file: str | io.BytesIO) -> tuple[np.ndarray, int]:
    soundfile = library()
    try:
        samples, own_rate = soundfile.read(file, dtype="float32", always_2d=False)
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:
        if isinstance(file, str) and not os.path.exists(file):
            raise BadSound("no such file") from error
        if isinstance(file, str) and os.path.isfile(file) and not os.path.getsize(file):
            raise BadSound("the file is empty (0 bytes)") from error
        reason = getattr(error, "error_string", None) or str(error)
        raise BadSound(f"cannot be decoded: {reason.strip().rstrip('.')}") from error
    return samples, int(own_rate)


def library() -> Any:
    """The module soundfile. Raises: DlrunError with the line that installs it."""
    try:
        import soundfile
    except ImportError as error:
        raise DlrunError("data=speech needs soundfile", 'pip install "dlrun[audio]"') from error
    return soundfile

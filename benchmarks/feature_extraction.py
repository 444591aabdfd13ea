"""Speed of log-mel spectra and cepstra on one core, as a multiple of real time; and of resampling.

python benchmarks/feature_extraction.py [--rounds 5] [--rate 16000] [--batch 32] [--seconds 5]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from _measure import in_turn, median

from dlrun.data._resample import resampled
from dlrun.data._spectrogram import Spectrogram


def times_real_time(work: Callable[[], object], seconds: float) -> float:
    """Seconds of sound that a second of work gets through."""
    start = time.perf_counter()
    work()
    return seconds / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=16000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sound = 0.1 * torch.randn(options.batch, int(options.rate * options.seconds))
    one = 0.1 * torch.randn(int(44100 * options.seconds))
    log_mel = Spectrogram.of_settings("log_mel", options.rate, 25, 10, 40, 0)
    cepstrum = Spectrogram.of_settings("mfcc", options.rate, 25, 10, 40, 20)
    contenders = {
        "log-mel, 40 bands": lambda: times_real_time(lambda: log_mel(sound), options.batch * options.seconds),
        "mfcc, 20 coefficients": lambda: times_real_time(lambda: cepstrum(sound), options.batch * options.seconds),
        "44.1 kHz resampled": lambda: times_real_time(lambda: resampled(one, 44100, options.rate), options.seconds),
    }
    for measure in contenders.values():
        measure()
    found = in_turn(contenders, options.rounds)
    for name, rates in found.items():
        print(f"{name:<24} {median(rates):8.0f} times real time on one core")


if __name__ == "__main__":
    main()

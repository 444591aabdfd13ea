"""Speed of generation with a KV-cache against a whole pass over the text for each token, as a ratio in one run.

python benchmarks/generation_speed.py [--rounds 1] [--depth 6] [--width 384] [--context 512] [--first 256]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from _measure import in_turn, median, ratio
from torch import Tensor

from dlrun.contracts import DataSpec
from dlrun.models import gpt

VOCABULARY = 65


def with_cache(model: gpt.Gpt, prompt_1T: Tensor, total: int) -> Tensor:
    """The likeliest tokens until there are so many, [1, total]."""
    logits_1V, state = model.start(prompt_1T, torch.tensor([prompt_1T.shape[1]]))
    said = [prompt_1T, logits_1V.argmax(1, keepdim=True)]
    for _ in range(total - prompt_1T.shape[1] - 1):
        logits_1V, state = model.step(said[-1][:, 0], state)
        said.append(logits_1V.argmax(1, keepdim=True))
    return torch.cat(said, dim=1)


@torch.no_grad()
def without_cache(model: gpt.Gpt, prompt_1T: Tensor, total: int) -> Tensor:
    """The same from a whole pass for each token; the head is paid for at the last place alone, as in nanoGPT."""
    tokens_1T = prompt_1T
    while tokens_1T.shape[1] < total:
        x_1TD = model.embed(tokens_1T)
        for block in model.blocks:
            x_1TD = block(x_1TD)
        logits_1V = model.head(model.norm(x_1TD[:, -1]))
        tokens_1T = torch.cat([tokens_1T, logits_1V.argmax(1, keepdim=True)], dim=1)
    return tokens_1T


def rate(generate, model: gpt.Gpt, prompt_1T: Tensor, total: int) -> float:
    """Tokens a second."""
    start = time.perf_counter()
    generate(model, prompt_1T, total)
    return (total - prompt_1T.shape[1]) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--first", type=int, default=256)
    options = parser.parse_args()
    torch.manual_seed(0)
    spec = DataSpec(("tokens",), "targets", {"vocabulary": VOCABULARY, "context": options.context}, {})
    model = gpt.build(spec, depth=options.depth, heads=6, width=options.width)
    assert isinstance(model, gpt.Gpt)
    model.eval()
    prompt = torch.randint(VOCABULARY, (1, options.first))
    with_cache(model, prompt, options.first + 4)
    without_cache(model, prompt, options.first + 4)
    found = in_turn({
        "with cache": lambda: rate(with_cache, model, prompt, options.context),
        "without": lambda: rate(without_cache, model, prompt, options.context),
    }, options.rounds)  # fmt: skip
    print(
        f"tokens {options.first} to {options.context}, {options.depth} layers of width {options.width}: "
        f"{median(found['with cache']):.0f} tokens/s with a cache, {median(found['without']):.0f} without, "
        f"{ratio(found['with cache'], found['without']):.1f} x"
    )


if __name__ == "__main__":
    main()

"""Training speed of dlrun's GPT in a plain loop against a GPT written by hand, as ratios in one run.

python benchmarks/gpt_speed.py [--rounds 5] [--steps 100]

Both have nanoGPT's sizes for a CPU: 4 layers, 4 heads, width 128, context 64, batch 12, no biases, tied embeddings.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.nn.functional as F
from _measure import in_turn, median, ratio
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import gpt

VOCABULARY, DEPTH, HEADS, WIDTH, CONTEXT, BATCH = 65, 4, 4, 128, 64, 12


class HandBlock(nn.Module):
    """One block with everything written out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(WIDTH, dim=2)
        q, k, v = (part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class HandGpt(nn.Module):
    """The smallest GPT one would write."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[HandBlock() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def own_gpt() -> nn.Module:
    spec = DataSpec(("tokens",), "targets", {"vocabulary": VOCABULARY, "context": CONTEXT}, {})
    return gpt.build(spec, depth=DEPTH, heads=HEADS, width=WIDTH, bias=False)


def rate(model: nn.Module, steps: int, skip: int = 5) -> float:
    """Tokens a second of plain fp32 training with AdamW, after a few steps of warm-up."""
    text = torch.randint(VOCABULARY, (100_000,), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()
    start = 0.0
    for step in range(steps + skip):
        if step == skip:
            start = time.perf_counter()
        first = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1))
        windows = text[first + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    return steps * BATCH * CONTEXT / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.manual_seed(0)
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in models().items()}
    assert len(set(count.values())) == 1, count
    found = in_turn(
        {name: lambda name=name: rate(models()[name], options.steps) for name in count}, options.rounds
    )  # fmt: skip
    for name, rates in found.items():
        print(f"GPT, {name:<16} {median(rates):8.0f} tokens/s   {ratio(rates, found['written by hand']):.3f} x")


def models() -> dict[str, nn.Module]:
    """Fresh ones."""
    return {"written by hand": HandGpt(), "dlrun's": own_gpt()}


if __name__ == "__main__":
    main()

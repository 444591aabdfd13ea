"""Training speed of the experiment shakespeare_gpt against a loop with a GPT written by hand, as a ratio in one run.

DLRUN_TEST_DATA=FOLDER python benchmarks/gpt_speed.py [--rounds 6] [--steps 400]

dlrun's side is a whole run: its own data, engine, log and tracking. The loop's model has the same parts and sizes
(nanoGPT's for a CPU: 4 layers, 4 heads, width 128, context 64, batch 12; RoPE, RMSNorm, SwiGLU, tied embeddings), its
batches are random windows of the same text, its optimizer, clipping and learning rates the experiment's.

Both train at once, each in a process and on a core of its own, which they swap every round; what counts are the steps
that each made while both were training. A machine whose speed drifts by half within a minute, as rented ones do, is
then fair to both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.nn.functional as F
from _measure import data_folder, dlrun_rate, median
from torch import Tensor, nn

from dlrun.contracts import DataSpec
from dlrun.models import gpt
from dlrun.training import loop

DEPTH, HEADS, WIDTH, HIDDEN, CONTEXT, BATCH = 4, 4, 128, 344, 64, 12
SPECIAL = 9  # tokens that every vocabulary of dlrun has beside its characters
SKIP = 60  # first steps, beside which MLflow is still being loaded, do not count
RATE, BETAS, DECAY, WARM_UP, CLIP, LOG_EVERY = 0.004, (0.9, 0.99), 0.1, 0.05, 1.0, 50


class HandBlock(nn.Module):
    """One block with everything written out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(WIDTH, dim=2)
        q, k, v = (part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(batch, length, WIDTH))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, as Llama's code has them."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class HandGpt(nn.Module):
    """The smallest GPT with these parts that one would write."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.blocks = nn.ModuleList(HandBlock() for _ in range(DEPTH))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.apply(lambda part: nn.init.normal_(part.weight, std=0.02) if isinstance(part, nn.Linear) else None)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)
        size = WIDTH // HEADS
        rates = 10_000.0 ** (-torch.arange(0, size, 2) / size)
        angles = (torch.arange(CONTEXT)[:, None] * rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def train_by_hand(text: Tensor, vocabulary: int, steps: int, moments: IO[str]) -> None:
    """Plain fp32 training; the moment of each step's end goes to a file."""
    model = HandGpt(vocabulary).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / (WARM_UP * steps), (steps - step) / steps)
        first = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1))
        windows = text[first + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad(set_to_none=True)
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if step % LOG_EVERY == 0:
            loss.item()
        print(time.monotonic(), file=moments, flush=True)


def train_with_dlrun(steps: int, moments: IO[str]) -> None:
    """A run that is tracked and mirrored; the moment of each step's end goes to a file."""

    class Noted(loop.RateMeter):
        def step(self, count: float) -> None:
            print(time.monotonic(), file=moments, flush=True)
            super().step(count)

    loop.RateMeter = Noted
    settings = (f"train.duration={steps} steps", "schedule.warmup=5 %", "hardware.threads=1")
    dlrun_rate("experiment=shakespeare_gpt", *settings)


def side_by_side(steps: int, cores: tuple[int, int], folder: Path) -> float:
    """Steps of dlrun over steps by hand, while both were training. cores: of dlrun, and of the loop."""
    files = [folder / "dlrun", folder / "hand"]
    # The loop is given more steps than it can make, and is ended with dlrun.
    counts = (steps, 100 * steps)
    words = [[sys.executable, __file__, "--contender", str(file), "--steps", str(count), "--core", str(core)]
             for file, count, core in zip(files, counts, cores, strict=True)]  # fmt: skip
    own, other = (subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in words)
    try:
        if own.wait():
            sys.exit("dlrun's side failed")
    finally:
        other.kill()
        other.wait()
    ends, by_hand = ([float(line) for line in file.read_text().split()] for file in files)
    start, end = max(ends[SKIP], by_hand[SKIP]), min(ends[-1], by_hand[-1])
    mine, theirs = (sum(start < moment <= end for moment in moments) for moments in (ends, by_hand))
    rates = [count * BATCH * CONTEXT / (end - start) for count in (mine, theirs)]
    print(
        f"  dlrun on core {cores[0]}: {rates[0]:.0f} tokens/s, by hand {rates[1]:.0f}: {mine / theirs:.3f}", flush=True
    )
    return mine / theirs


def check_sizes(vocabulary: int) -> None:
    """Both models have the same number of parameters."""
    spec = DataSpec(("tokens",), "targets", {"vocabulary": vocabulary, "context": CONTEXT}, {})
    own = gpt.build(spec, positions="rope", norm="rms", activation="swiglu", bias=False)
    counts = [sum(p.numel() for p in model.parameters()) for model in (own, HandGpt(vocabulary))]
    assert counts[0] == counts[1], counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--contender", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    said = (data_folder() / "tiny_shakespeare" / "input.txt").read_text()
    numbers = {character: SPECIAL + index for index, character in enumerate(sorted(set(said)))}
    text, vocabulary = torch.tensor([numbers[character] for character in said]), SPECIAL + len(numbers)
    if options.contender is not None:
        os.sched_setaffinity(0, [options.core])
        torch.set_num_threads(1)
        with options.contender.open("w") as moments:
            if options.contender.name == "dlrun":
                train_with_dlrun(options.steps, moments)
            else:
                train_by_hand(text, vocabulary, options.steps, moments)
        return
    check_sizes(vocabulary)
    first, second = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        turns = [(first, second), (second, first)] * ((options.rounds + 1) // 2)
        ratios = [side_by_side(options.steps, cores, Path(folder)) for cores in turns[: options.rounds]]
    print(f"shakespeare_gpt, dlrun against the loop by hand: {median(ratios):.3f} (bound 0.97)")


if __name__ == "__main__":
    main()

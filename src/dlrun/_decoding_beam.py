"""Beam search over a batch of examples, each with hypotheses of its own."""

# B examples that are not done, K beams, N = B K hypotheses, V vocabulary, C = 2 K candidates, T tokens said so far

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrun.decoding import Decoder, Generated, Generation, select, without_repeats


def beam_search(decoder: Decoder, inputs: Sequence[Tensor], generation: Generation, end: int | None) -> Generated:
    """The best hypothesis of each example: log-probability / ((5 + tokens) / 6)^alpha, the end token counted.

    An example is done when as many hypotheses have ended as there are beams, or when no other can become better.
    Source: Wu et al. 2016, "Google's Neural Machine Translation System", section 7, equation 14, without coverage.
    """
    log_probs_BV, state = decoder.start(*inputs)
    (num_examples, _), num_beams, device = log_probs_BV.shape, generation.beams, log_probs_BV.device
    result = _Best(num_examples, generation.max_tokens, device)
    rows_B = torch.arange(num_examples, device=device)
    log_probs_NV, state = select((log_probs_BV, state), rows_B.repeat_interleave(num_beams))
    live_BK = torch.full((num_examples, num_beams), float("-inf"), device=device)
    live_BK[:, 0] = 0  # the beams begin alike: one of them counts
    before_BKT = torch.zeros(num_examples, num_beams, 0, dtype=torch.int64, device=device)
    ended_B = torch.zeros_like(rows_B)
    longest = _penalty(generation.max_tokens if generation.length_penalty > 0 else 1, generation.length_penalty)
    for length in range(1, generation.max_tokens + 1):
        allowed_NV = without_repeats(log_probs_NV, before_BKT.flatten(0, 1), generation.no_repeat)
        size = allowed_NV.shape[1]
        sums_BN = (live_BK[..., None] + allowed_NV.reshape(len(rows_B), num_beams, size)).flatten(1)
        sums_BC, flat_BC = sums_BN.topk(2 * num_beams)
        parents_BC, tokens_BC = flat_BC // size, flat_BC % size
        is_end_BC = tokens_BC == (-1 if end is None else end)
        is_over_BC = torch.ones_like(is_end_BC) if length == generation.max_tokens else is_end_BC
        # An end that is not among the best K would never be reached by greedy search, of which K = 1 is the case.
        is_over_BC = is_over_BC & (torch.arange(sums_BC.shape[1], device=device) < num_beams) & sums_BC.isfinite()
        said_BCT = torch.cat([_of(before_BKT, parents_BC), tokens_BC[..., None]], 2)
        scores_BC = (sums_BC / _penalty(length, generation.length_penalty)).masked_fill(~is_over_BC, float("-inf"))
        result.offer(rows_B, scores_BC, sums_BC, said_BCT, is_end_BC)
        ended_B = ended_B + is_over_BC.sum(1)
        live_BK, chosen_BK = sums_BC.masked_fill(is_end_BC, float("-inf")).topk(num_beams)
        is_done_B = (ended_B >= num_beams) | (result.scores_B[rows_B] >= live_BK[:, 0] / longest)
        left_B = (~is_done_B).nonzero()[:, 0]
        if length == generation.max_tokens or not len(left_B):
            break
        first_N = (left_B[:, None] * num_beams + parents_BC.gather(1, chosen_BK)[left_B]).flatten()
        before_BKT = _of(said_BCT, chosen_BK)[left_B]
        rows_B, ended_B, live_BK = rows_B[left_B], ended_B[left_B], live_BK[left_B]
        log_probs_NV, state = decoder.step(before_BKT[..., -1].flatten(), select(state, first_N))
    return result.generated()


def _penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def _of(said_BKT: Tensor, chosen_BC: Tensor) -> Tensor:
    """The chosen hypotheses of each example, [B, C, T]."""
    return said_BKT.gather(1, chosen_BC[..., None].expand(-1, -1, said_BKT.shape[2]))


class _Best:
    """The best hypothesis of each example so far."""

    def __init__(self, size: int, max_tokens: int, device: torch.device) -> None:
        self.scores_B = torch.full((size,), float("-inf"), device=device)
        self.log_probs_B = torch.full((size,), float("-inf"), device=device)
        self.lengths_B = torch.zeros(size, dtype=torch.int64, device=device)
        self.tokens_BT = torch.zeros(size, max_tokens, dtype=torch.int64, device=device)

    def offer(self, rows_R: Tensor, scores_RC: Tensor, sums_RC: Tensor, said_RCT: Tensor, is_end_RC: Tensor) -> None:
        """Take the best candidate of each row where it is better than what is there."""
        scores_R, best_R = scores_RC.max(1)
        better_R = (scores_R > self.scores_B[rows_R]).nonzero()[:, 0]
        if not len(better_R):
            return
        rows, best = rows_R[better_R], best_R[better_R]
        is_end_R, said_RT = is_end_RC[better_R, best], said_RCT[better_R, best]
        length = said_RT.shape[1]
        self.scores_B[rows], self.log_probs_B[rows] = scores_R[better_R], sums_RC[better_R, best]
        self.lengths_B[rows] = length - is_end_R.long()
        said_RT[:, -1] *= ~is_end_R
        self.tokens_BT[rows, :length] = said_RT

    def generated(self) -> Generated:
        """All of them, cut to the longest."""
        return Generated(self.tokens_BT[:, : max(1, int(self.lengths_B.max()))], self.lengths_B, self.log_probs_B)

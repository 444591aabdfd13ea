"""The item that a user takes next, ranked before others."""

# B batch, T places of a history, n negatives a place, C candidates, I items, S items seen, K items recommended

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlrun.contracts import NO_TARGET, Batch, DataSpec, Goal, Loss, Metric, Outputs, Row
from dlrun.errors import DlrunError
from dlrun.metrics.ranking import Ranking
from dlrun.tasks import _ranking_losses as losses

_IDS = "ids.json"  # of the data's files: names of items, in the order of their ids from 1


def build(
    spec: DataSpec,
    *,
    loss: Literal["bpr", "bce", "cross_entropy", "sampled_softmax"] = "bpr",
    negatives: int = 1,
    k: list | None = None,
    catalogue: Literal["never", "end", "always"] = "end",
    top_k: int = 10,
) -> RankingTask:
    """Items are scored against others drawn anew at every step.

    Settings:
        loss: bpr (pairs), bce (each by itself), cross_entropy (one among uniform negatives) or sampled_softmax (one
            among negatives drawn by frequency, corrected for that)
        negatives: items drawn for each that was right, at least 1
        k: of hr_k and ndcg_k; the first is the goal's; 10 and 5 unless set
        catalogue: when the item is ranked among all the user has not seen, too, as metrics ending in _all
        top_k: items recommended to a user, at least 1
    """
    spec.size("candidates")
    ks = tuple(k if k is not None else (10, 5))
    if not ks or any(type(value) is not int or value < 1 for value in ks):
        raise DlrunError(f"task.k: {k} is not a list of whole numbers of at least 1", "task.k=[10,5]")
    for name, value in (("negatives", negatives), ("top_k", top_k)):
        if value < 1:
            raise DlrunError(f"task.{name}: {value} is not at least 1", f"task.{name}=10")
    return RankingTask(spec, loss, negatives, ks, catalogue, min(top_k, spec.size("items")), catalogue == "always")


@dataclass(eq=False)
class RankingTask:
    """See `build`. Models are called with a user [B], a history [B, T] and items, and give each a score:

    items [B, C] of each row, [B, T, C] at each place of its history, or [I], the same of all rows (then [B, I]).
    """

    spec: DataSpec
    kind: Literal["bpr", "bce", "cross_entropy", "sampled_softmax"]
    num_negatives: int
    ks: tuple[int, ...]
    catalogue: Literal["never", "end", "always"]
    top_k: int
    ranks_all: bool

    additive = True

    @property
    def goal(self) -> Goal:
        """The first k's gain among the sampled candidates."""
        return Goal(f"ndcg_{self.ks[0]}", "max")

    def thorough(self) -> RankingTask:
        """Ranks among the whole catalogue, too, unless it is never to be."""
        return replace(self, ranks_all=self.catalogue != "never")

    def recommending(self, top_k: int) -> RankingTask:
        """Says so many items to a user, or all there are. Raises: DlrunError below 1."""
        if top_k < 1:
            raise DlrunError(f"--top-k: {top_k} is not at least 1")
        return replace(self, top_k=min(top_k, self.spec.size("items")))

    def count(self, batch: Batch) -> int:
        """Items that were right in this batch."""
        if "targets" not in batch:
            return len(batch["id"])
        counted = batch["num_targets"] if "num_targets" in batch else batch["targets"] != NO_TARGET
        return int(counted.sum())

    # ---------------------------------------------------------------- training

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss summed over the places that have a target, in float32 (float64 for a float64 model)."""
        targets_BT = batch["targets"]
        is_there_BT = targets_BT != NO_TARGET
        right_BT = targets_BT.masked_fill(~is_there_BT, 0)
        drawn_BTn = self._negatives(batch, right_BT)
        items_BTC = torch.cat([right_BT[..., None], drawn_BTn], -1)
        is_single = batch["history"].shape[1] == 0  # no places: an interaction a row
        scores_BTC = self._scored(model, batch, items_BTC[:, 0] if is_single else items_BTC)
        scores_BTC = scores_BTC[:, None] if is_single else scores_BTC
        if self.kind == "sampled_softmax":
            scores_BTC = scores_BTC - losses.log_uniform_chance(items_BTC, self.spec.size("items"))
        scores_MC = scores_BTC[is_there_BT]
        chosen: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "bpr": losses.bpr, "bce": losses.bce, "cross_entropy": losses.softmax, "sampled_softmax": losses.softmax,
        }  # fmt: skip
        return Loss(chosen[self.kind](scores_MC[:, 0], scores_MC[:, 1:]).sum(), self.count(batch))

    def _negatives(self, batch: Batch, right_BT: Tensor) -> Tensor:
        """int64 [B, T, n]: items drawn by torch's generator, whose state is part of a checkpoint; what the user had in
        the row is drawn anew, a few times."""
        shape, num_items = (*right_BT.shape, self.num_negatives), self.spec.size("items")
        draw = losses.log_uniform_items if self.kind == "sampled_softmax" else losses.uniform_items
        drawn_BTn = draw(shape, num_items, right_BT.device)
        had_BS = batch["seen"] if "seen" in batch else torch.cat([batch["history"], right_BT], 1)
        for _ in range(losses.DRAWS):
            is_had = (drawn_BTn.flatten(1)[:, :, None] == had_BS[:, None]).any(-1).view(shape)
            drawn_BTn = torch.where(is_had, draw(shape, num_items, right_BT.device), drawn_BTn)
        return drawn_BTn

    def _scored(self, model: nn.Module, batch: Batch, items: Tensor) -> Tensor:
        scores = model(batch["user"], batch["history"], items)
        expected = (len(batch["id"]), len(items)) if items.dim() == 1 else tuple(items.shape)
        if tuple(scores.shape) != expected:
            raise DlrunError(
                f"task: the model gives {list(scores.shape)}; ranking needs {list(expected)}",
                "choose a model that recommends: matrix_factorization, neumf, two_tower, sasrec, lightgcn",
            )
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    # ---------------------------------------------------------------- scoring

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Where the right item is known, scores [B, C] of the candidates, its own first, and rank [B] among all items
        not seen where that is asked for; else top [B, K] int64 and top_scores [B, K] of the items not seen, and
        all_scores [B, 1 + I] by id, what was seen at minus infinity."""
        if "item" not in batch:
            scores_BI = self._of_all(model, batch)
            found = scores_BI.topk(self.top_k, 1)
            best = {"top": found.indices, "top_scores": found.values.float()}
            return Outputs(batch["id"], best | {"all_scores": scores_BI})
        fields = {"scores": self._scored(model, batch, batch["candidates"]).float()}
        if self.ranks_all:
            scores_BI = self._of_all(model, batch)
            own_B1 = fields["scores"][:, :1]
            is_own = torch.arange(scores_BI.shape[1], device=own_B1.device) == batch["item"][:, None]
            fields["rank"] = 1 + ((scores_BI >= own_B1) & ~is_own).sum(1)
        return Outputs(batch["id"], fields)

    def _of_all(self, model: nn.Module, batch: Batch) -> Tensor:
        """[B, 1 + I] by id, what was seen and the item 0 at minus infinity."""
        items_I = torch.arange(self.spec.size("items") + 1, device=batch["user"].device)
        scores_BI = self._scored(model, batch, items_I).float()
        hidden_BS = torch.cat([batch["seen"], batch["seen"].new_zeros(len(batch["id"]), 1)], 1)
        return scores_BI.scatter(1, hidden_BS, float("-inf"))

    def metrics(self) -> list[Metric]:
        """hr_k, ndcg_k and mrr among the sampled candidates, and, ending in _all, among all items not seen."""
        sampled: list[Metric] = [Ranking(self.ks)]
        return [*sampled, Ranking(self.ks, "rank", "_all")] if self.ranks_all else sampled

    def rows(self, outputs: Outputs) -> list[Row]:
        """{"id", "items": {name: score} of the best}, or of a known item {"id", "rank" among the candidates}."""
        ids = outputs.ids.tolist()
        if "top" in outputs.fields:
            best = zip(ids, outputs.fields["top"].tolist(), outputs.fields["top_scores"].tolist(), strict=True)
            return [{"id": example, "items": self._named(items, scores)} for example, items, scores in best]
        rank_N = 1 + (outputs.fields["scores"][:, 1:] >= outputs.fields["scores"][:, :1]).sum(1)
        rows: list[Row] = [{"id": example, "rank": rank} for example, rank in zip(ids, rank_N.tolist(), strict=True)]
        if "rank" in outputs.fields:
            for row, rank in zip(rows, outputs.fields["rank"].tolist(), strict=True):
                row["rank_all"] = rank
        return rows

    def _named(self, items: Sequence[int], scores: Sequence[float]) -> dict[str, float]:
        """Names and scores; an item that was seen stands last, at minus infinity, and is left out."""
        return {
            self._names[item - 1]: score for item, score in zip(items, scores, strict=True) if score > float("-inf")
        }

    @cached_property
    def _names(self) -> list[Any]:
        return json.loads(self.spec.files[_IDS])["items"]

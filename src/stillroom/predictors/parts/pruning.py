"""Choosing training samples: scores of how hard each is, orders of all samples, and the first of an order.

A rule ends in an order, all ids [N] from the first to keep to the last. What is kept at a fraction is a head of it, so
the choices of one order are nested. Equal scores stand in an order drawn from a seed, never in that of the data, which
are often sorted by class.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import UserError

# -- scores: the larger, the harder -------------------------------------------------------------------------------


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """||softmax(z) - onehot(y)||_2 [n], in [0, sqrt 2] (Paul et al., NeurIPS 2021, arXiv:2107.07075, definition 3).

    Logits [n, C], labels [n].
    """
    return (logits.softmax(-1) - F.one_hot(labels, logits.shape[-1])).norm(dim=-1)


def grand_last_layer(logits: Tensor, features: Tensor, labels: Tensor, bias: bool = True) -> Tensor:
    """The norm [n] of the cross-entropy's gradient in the last layer, z = W h + b (Paul et al., definition 2).

    It is ||softmax(z) - onehot(y)|| sqrt(||h||^2 + 1), without the 1 where the layer has no bias. Logits [n, C],
    features h [n, d], labels [n].
    """
    return el2n(logits, labels) * (features.square().sum(-1) + float(bias)).sqrt()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} p_k - p_y [n], in [-1, 1]: above 0 where the answer is wrong. Logits [n, C], labels [n]."""
    shares, at = logits.softmax(-1), labels.unsqueeze(-1)
    return shares.scatter(-1, at, -torch.inf).amax(-1) - shares.gather(-1, at).squeeze(-1)


def prototype_distance(features: Tensor, clusters: int, seed: int) -> Tensor:
    """The Euclidean distance [n] to the nearest of `clusters` centroids of k-means, float64; features [n, d].

    The larger, the less typical (Sorscher et al., NeurIPS 2022, arXiv:2206.14486).
    """
    from sklearn.cluster import KMeans

    if clusters > len(features):
        raise UserError(
            f"{len(features)} samples make no {clusters} clusters: pass more samples or another --method.rule"
        )
    points = features.double().numpy()
    found = KMeans(clusters, n_init=4, random_state=seed & 0xFFFFFFFF).fit(points)
    return torch.from_numpy(found.transform(points).min(1))


class Forgetting:
    """How often each of N samples was forgotten: answered right the last time it was seen, and wrong now.

    Toneva et al., ICLR 2019, arXiv:1812.05159, algorithm 1. `update` takes what the network says of samples as they
    come by in training, before it learns from them.
    """

    def __init__(self, samples: int) -> None:
        self.memory = {
            "forgotten": torch.zeros(samples),
            "right before": torch.zeros(samples, dtype=torch.bool),
            "ever right": torch.zeros(samples, dtype=torch.bool),
        }

    def update(self, ids: Tensor, right: Tensor) -> None:
        """Samples `ids` [n], none twice, are seen, and answered `right` [n] or not."""
        right = right.bool()
        memory = self.memory = {name: value.to(ids.device) for name, value in self.memory.items()}
        memory["forgotten"][ids] += (memory["right before"][ids] & ~right).float()
        memory["right before"][ids] = right
        memory["ever right"][ids] |= right

    def scores(self) -> Tensor:
        """Numbers of transitions from right to wrong [N]; infinite for a sample that was never right."""
        never = ~self.memory["ever right"]
        return self.memory["forgotten"].masked_fill(never, torch.inf).cpu()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back a `memory`."""
        self.memory = {name: state[name] for name in self.memory}


# -- orders: ids, the first to keep first -------------------------------------------------------------------------


def random_order(samples: int, seed: int) -> Tensor:
    """A permutation [N] drawn from `seed`."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))


def ranked(scores: Tensor, seed: int) -> Tensor:
    """Ids [N] by descending score; those with equal scores in an order drawn from `seed`."""
    order = random_order(len(scores), seed)
    return order[scores[order].argsort(descending=True, stable=True)]


def herding(features: Tensor, labels: Tensor) -> Tensor:
    """Ids [N]: in each class, next the sample that brings the mean of those taken nearest to the class's mean.

    By the recursion of Welling (ICML 2009), w <- w + mean - x, on features [N, d] of unit length; classes take turns
    in proportion to their sizes. Labels [N].
    """
    unit = F.normalize(features.double(), dim=-1)
    groups = []
    for label in labels.unique():
        ids = (labels == label).nonzero().squeeze(1)
        x, left = unit[ids], torch.ones(len(ids), dtype=torch.bool)
        mean = x.mean(0)
        pull = mean.clone()
        taken = []
        for _ in range(len(ids)):
            best = int((x @ pull).masked_fill(~left, -torch.inf).argmax())
            left[best] = False
            taken.append(best)
            pull += mean - x[best]
        groups.append(ids[taken])
    return in_turn(torch.cat(groups), labels, equal=False)


def in_turn(order: Tensor, labels: Tensor, equal: bool = True) -> Tensor:
    """`order` [N] with the classes taking turns, each in its own order: `equal` numbers, or in their proportions.

    With equal numbers every head of it has as many of each class, up to one, until a class is used up. Labels [N].
    """
    place = torch.empty(len(order), dtype=torch.float64)
    for label in labels.unique():
        there = (labels[order] == label).nonzero().squeeze(1)
        rank = torch.arange(len(there), dtype=torch.float64)
        place[there] = rank if equal else (rank + 0.5) / len(there)
    return order[place.argsort(stable=True)]


# -- what is kept -------------------------------------------------------------------------------------------------


def kept_count(samples: int, fraction: float) -> int:
    """How many of `samples` a fraction in (0, 1] keeps: the nearest whole number. UserError where that is none."""
    count = int(fraction * samples + 0.5)
    if count < 1:
        raise UserError(
            f"--method.fraction is {fraction:g} of {samples} samples, which keeps none: pass {1 / samples:.2g} or more"
        )
    return count


def kept(order: Tensor, fraction: float) -> Tensor:
    """The ids that are kept, ascending: the first `kept_count` of the order [N]."""
    return order[: kept_count(len(order), fraction)].sort().values

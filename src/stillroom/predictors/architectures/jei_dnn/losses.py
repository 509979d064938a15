"""What exits and gates learn from, and the rule by which a sample leaves: tensors in, tensors out.

Exits are numbered from 0 in tensors: 0 .. L - 2 have a head and a gate, L - 1 is the backbone's own output. `...`
stands for leading axes, such as samples and cost weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_RATIO, LEAST_COUNT, GUARD = 5.0, 0.1, 1e-8
"""Cap of rho, floor of the count below it, guard of a division (authors' code)."""


def uncertainty(logits: Tensor) -> Tensor:
    """The four numbers that a gate sees, [..., 4], of logits [..., C], C >= 2, without gradient (section 4.1).

    Largest probability; entropy in nats; largest minus second largest; entropy of p^2 / sum p^2.
    """
    logits = _full(logits.detach())
    p = logits.softmax(-1)
    first, second = p.topk(2, -1).values.unbind(-1)
    return torch.stack([first, _entropy(logits), first - second, _entropy(2 * logits)], -1)


def _full(x: Tensor) -> Tensor:
    """At least in single precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def exit_probabilities(gates: Tensor) -> Tensor:
    """P [..., L] of gates g [..., L - 1] in [0, 1]: P_l = max(0, min(g_l, 1 - sum_{j<l} g_j)), the last the rest."""
    before = gates.cumsum(-1) - gates
    early = torch.minimum(gates, 1 - before).clamp_min(0)
    rest = (1 - early.sum(-1, keepdim=True)).clamp_min(0)
    return torch.cat([early, rest], -1)


def conditional(probability: Tensor, stayed: Tensor) -> Tensor:
    """h_l = clip(P_l / prod_{j<l} (1 - h_j), 0, 1): the chance to leave at l of what is still there."""
    return (probability / stayed.clamp_min(GUARD)).clamp(0, 1)


def leaving(probabilities: Tensor) -> Tensor:
    """The exit [...] at which a sample of P [..., L] leaves: the first with h_l >= 1/2, else the last."""
    last = probabilities.shape[-1] - 1
    stayed = torch.ones_like(probabilities[..., 0])
    found = torch.full_like(stayed, last, dtype=torch.int64)
    for exit_ in range(last):
        h = conditional(probabilities[..., exit_], stayed)
        found = torch.where((found == last) & (h >= 0.5), exit_, found)
        stayed = stayed * (1 - h)
    return found


def first_true(leave: Tensor) -> Tensor:
    """The first exit [...] at which `leave` [..., L - 1] is true, else L - 1."""
    always = torch.cat([leave, torch.ones_like(leave[..., :1])], -1)
    return always.to(torch.int8).argmax(-1)


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """-log p(y) in nats, [n, ...], of logits [n, ..., C] and labels int64 [n] or soft [n, C]."""
    log_p = _full(logits).log_softmax(-1)
    middle = (1,) * (logits.ndim - 2)
    if y.is_floating_point():
        return -(log_p * y.view(len(y), *middle, -1)).sum(-1)
    at = y.view(len(y), *middle, 1).expand(*logits.shape[:-1], 1)
    return -log_p.gather(-1, at).squeeze(-1)


def best_exit(losses: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """l* [n, K] = argmin_l CE_l + lambda IC_l, without gradient; of equal ones the first.

    losses [n, K, L]; IC `shares` [L] of the full cost; `weights` lambda [K] >= 0.
    """
    return (losses.detach() + weights[:, None] * shares).argmin(-1)


def gate_targets(best: Tensor, exits: int) -> Tensor:
    """t_l = 1 for l >= l*, else 0: float [..., L - 1] of l* [...]; all 0 where l* is the last of L `exits`."""
    return (torch.arange(exits - 1, device=best.device) >= best.unsqueeze(-1)).float()


def positive_ratios(best: Tensor, exits: int) -> Tensor:
    """rho_l [K, L - 1] = min(5, #(l* != l) / max(#(l* = l), 0.1)) over samples, of l* [n, K]."""
    here = F.one_hot(best, exits)[..., :-1].sum(0).float()
    return ((len(best) - here) / here.clamp_min(LEAST_COUNT)).clamp_max(LARGEST_RATIO)


def gate_loss(logits: Tensor, targets: Tensor, ratios: Tensor) -> Tensor:
    """mean_{n, l} m BCE(gate logit, t) with m = rho_l where t = 1, else 1; [K] of [n, K, L - 1] and rho [K, L - 1]."""
    each = F.binary_cross_entropy_with_logits(_full(logits), targets.to(ratios.dtype), reduction="none")
    return (each * torch.where(targets > 0, ratios, 1.0)).mean((0, 2))


def exit_weights(
    losses: Tensor, probabilities: Tensor, normalise: bool = True, stop_gradient: bool = True
) -> Tensor:
    """omega [..., L - 1] of the losses of the heads and P [..., L - 1] of the same exits.

    omega_l = P_l, or with `normalise` P_l sum_j CE_j / sum_j P_j CE_j, which keeps a sample's total loss. The ratio
    has no gradient, unless `stop_gradient` is False as in the released code: sum_l omega_l CE_l is then sum_l CE_l
    identically, and the weights are without effect on the gradient.
    """
    p = probabilities.detach()
    if not normalise:
        return p
    basis = losses.detach() if stop_gradient else losses
    return p * basis.sum(-1, keepdim=True) / (p * basis).sum(-1, keepdim=True).clamp_min(GUARD)


def head_loss(losses: Tensor, weights: Tensor) -> Tensor:
    """mean_n sum_l omega_nl CE_nl, [K] of two [n, K, L - 1]."""
    return (weights * losses).sum(-1).mean(0)


def warm_up_weights(exits: int) -> Tensor:
    """L, L - 1, ..., 2 for the L - 1 heads: the earliest learns fastest; the frozen last exit would have 1."""
    return torch.arange(exits, 1, -1, dtype=torch.float32)


def confidence_thresholds(confidence: Tensor, shares: Tensor, targets: Sequence[float]) -> Tensor:
    """Thresholds [M] on the largest probability [n, L - 1] whose mean cost is the nearest to each of M targets.

    The mean cost rises with the threshold; a bisection finds where it meets the target.
    """
    found = []
    for target in targets:
        low, high = 0.0, 1.0 + 1e-6
        for _ in range(30):
            middle = (low + high) / 2
            cost = shares[first_true(confidence >= middle)].mean().item()
            low, high = (middle, high) if cost < target else (low, middle)
        found.append(high)
    return torch.tensor(found, dtype=torch.float32, device=confidence.device)


def evenly(low: float, count: int) -> list[float]:
    """`count` costs between `low` and 1, falling, the ends left out."""
    return [1 - (1 - low) * (index + 1) / (count + 1) for index in range(count)]


# -- conformal sets -----------------------------------------------------------------------------------------------


def conformal_threshold(scores: Tensor, miscoverage: float) -> float:
    """The ceil((n + 1)(1 - a)) / n empirical quantile of scores 1 - p(y) [n]: the smallest that so many do not exceed.

    1 where ceil((n + 1)(1 - a)) > n: too few scores to exclude any class.
    """
    rank = math.ceil(round((len(scores) + 1) * (1 - miscoverage), 9))
    return 1.0 if rank > len(scores) else float(scores.sort().values[rank - 1])


def conformal_thresholds(
    probabilities: Tensor, y: Tensor, exits: Tensor, miscoverage: float, enough: int = 20
) -> Tensor:
    """q [L] of p [n, L, C], labels [n] and the exits taken [n].

    Of the samples that leave at l where there are more than `enough`, else of all samples' scores at l.
    """
    scores = 1 - probabilities.gather(-1, y.view(-1, 1, 1).expand(-1, probabilities.shape[1], 1)).squeeze(-1)
    found = []
    for exit_ in range(probabilities.shape[1]):
        own = exits == exit_
        chosen = scores[own, exit_] if int(own.sum()) > enough else scores[:, exit_]
        found.append(conformal_threshold(chosen, miscoverage))
    return torch.tensor(found, device=probabilities.device)


def conformal_sets(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """Classes with 1 - p <= q: bool [n, C] of p [n, C] and q [n]."""
    return 1 - probabilities <= thresholds.unsqueeze(-1)

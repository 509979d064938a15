"""MDCS: logit adjustment, the diversity loss and the consistency loss (Zhao et al., ICCV 2023, arXiv:2308.09922)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def adjustment(counts: Tensor, exponents: Sequence[float]) -> Tensor:
    """log(n_c^lambda_k + 1e-9), what is added to the logits of expert k in training, float32 [K, C].

    `counts` n [C] are the classes' training samples, > 0; counts or shares differ by a constant, of which a softmax
    sees nothing. The 1e-9 is the published code's.
    """
    powers = counts.double().log() * torch.tensor(exponents, dtype=torch.float64).unsqueeze(-1)
    return torch.logaddexp(powers, torch.full_like(powers, math.log(1e-9))).float()


def diversity_loss(adjusted: Tensor, labels: Tensor) -> Tensor:
    """L_DL = sum_k CE(softmax(z^k + lambda_k log n), y), each a mean over the rows.

    `adjusted` logits [m, K, C], the rows of all views; labels [m].
    """
    experts = adjusted.shape[1]
    losses = F.cross_entropy(adjusted.flatten(0, 1), labels.repeat_interleave(experts), reduction="none")
    return losses.view(-1, experts).mean(0).sum()


def confident(weak: Tensor, labels: Tensor) -> Tensor:
    """Whether an expert is right about the weak view, by its adjusted logits: the sets I_k, bool [n, K].

    `weak` [n, K, C], labels [n].
    """
    return weak.argmax(-1) == labels.unsqueeze(-1)


def divergences(weak: Tensor, strong: Tensor, temperature: float = 1.0) -> Tensor:
    """tau^2 KL(softmax(weak / tau) || softmax(strong / tau)) of each row and expert [n, K]; `weak` has no gradient.

    Adjusted logits [n, K, C] of both views.
    """
    teacher = (weak.detach() / temperature).log_softmax(-1)
    student = (strong / temperature).log_softmax(-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def consistency_loss(
    weak: Tensor, strong: Tensor, chosen: Tensor, shares: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """L_CS = sum_k 1 / |I_k| sum_{b in I_k} tau^2 KL(sg softmax(z^k_w / tau) || softmax(z^k_s / tau)).

    Adjusted logits [n, K, C] of both views; `chosen` bool [n, K] says who is in I_k. `shares` [K] is the mean of
    `chosen` over the whole step where these rows are only a part of it: then the mean over the parts, by their rows,
    is the loss of the step. An empty I_k adds nothing.
    """
    if shares is None:
        shares = chosen.to(weak.dtype).mean(0)
    sums = torch.where(chosen, divergences(weak, strong, temperature), 0.0).mean(0)
    return torch.where(shares > 0, sums / shares.clamp_min(1e-12), 0.0).sum()


# -- what the paper measures -------------------------------------------------------------------------------------


def expert_divergence(logits: Tensor) -> float:
    """The experts' diversity: mean of KL(p_i || p_j), nats, over samples and ordered pairs of experts.

    Logits [n, K, C] that are not adjusted; 0 for one expert.
    """
    experts = logits.shape[1]
    if experts == 1:
        return 0.0
    log_p = logits.double().log_softmax(-1)
    own = (log_p.exp() * log_p).sum(-1)
    crossed = torch.einsum("nic,njc->nij", log_p.exp(), log_p)
    return ((own.unsqueeze(-1) - crossed).sum((1, 2)) / (experts * (experts - 1))).mean().item()


def prediction_variance(logits: Tensor) -> float:
    """E_{x, c} Var_r p_r(c | x) over R >= 2 models that were trained apart: logits [n, R, C] (variance over R - 1)."""
    return logits.double().softmax(-1).var(1).mean().item()

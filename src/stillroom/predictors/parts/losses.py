"""Losses on logits that several systems share. Each sums over classes and averages over items."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def hard_labels(y: Tensor) -> Tensor:
    """Class indices [n] from labels: themselves, or the largest entry of soft labels [n, C]."""
    return y.argmax(-1) if y.is_floating_point() else y


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_i target_i log softmax(logits)_i, mean over the batch. Both [n, C]; `target` need not sum to 1."""
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al., 2015, section 2).

    `student`, `teacher`: logits [n, C]; `temperature` > 0. The factor T^2 keeps the gradient's size.
    """
    log_student = (student / temperature).log_softmax(-1)
    log_teacher = (teacher / temperature).log_softmax(-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def symmetric_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """1/2 sum_i (p_i - q_i) (log p_i - log q_i), p the teacher's softmax and q the student's, mean over the batch.

    Half of KL(p || q) + KL(q || p), in nats, >= 0; no bound above, unlike the Jensen-Shannon divergence, by whose name
    it goes in arXiv:2103.05959. Finite logits [n, C]. Probabilities are not clamped: their logarithms are never large
    where they are multiplied by nothing.
    """
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def mixture_js(student: Tensor, teacher: Tensor) -> Tensor:
    """1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2: the Jensen-Shannon divergence, mean over the batch.

    In nats, in [0, log 2]. p and q are the softmaxes of teacher and student; finite logits [n, C].
    """
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1).mean()


def drop_target(logits: Tensor, labels: Tensor) -> Tensor:
    """The C - 1 logits other than the label's, in their order. logits [n, C], labels [n] -> [n, C - 1].

    The logit is removed, not pushed to minus infinity: that would overflow in half precision.
    """
    others = torch.arange(logits.shape[-1] - 1, device=logits.device)
    return logits.gather(-1, others + (others >= labels.unsqueeze(-1)))


def non_target_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """-T^2 sum_{i != t} N(teacher)_i log N(student)_i, mean over the batch.

    N is the softmax at `temperature` > 0 over the classes other than the label t, so both sides sum to 1
    (Yang et al., ICCV 2023, the second term of NKD). Logits [n, C], labels [n]. No gradient for the teacher.
    """
    target = (drop_target(teacher.detach(), labels) / temperature).softmax(-1)
    return soft_cross_entropy(drop_target(student, labels) / temperature, target) * temperature**2

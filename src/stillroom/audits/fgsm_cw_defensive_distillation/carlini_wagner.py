"""The attacks of Carlini and Wagner (IEEE S&P 2017, arXiv:1608.04644): L2, and beside it L-infinity and L0.

They search the nearest image of another class by an optimiser on the logit margin. On logits and not on
probabilities: a network whose softmax is saturated, as defensive distillation makes it, hides nothing from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stillroom.audits.fgsm_cw_defensive_distillation.attacks import attacked, input_gradient, lead

UPPER, FOUND_UPPER = (
    1e10,
    1e9,
)  # Of the constant c: where the search starts, and below which a success set it.
INSIDE = 1 - 1e-6  # Keeps atanh finite at pixels of 0 and 1.

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From images, originals and each image's own bound tau [n] to what is minimised, [n]."""


@dataclass(frozen=True)
class Search:
    """How hard the search tries."""

    kappa: float = 0.0
    """Margin in logits by which the other class must lead, >= 0."""
    lr: float = 1e-2
    """Adam's learning rate on w."""
    steps: int = 300
    """Steps of Adam for each constant c."""
    searches: int = 6
    """Constants c that are tried."""
    start: float = 1e-2
    """The first of them."""
    abort: bool = True
    """Give up on an image whose loss fell by less than 0.01 % in a tenth of the steps."""


@dataclass
class Found:
    """The nearest images of another class, in the order of the originals."""

    images: Tensor
    """[n, C, H, W] in [0, 1]; the original where none was found."""
    distance: Tensor
    """[n]: L2 in pixel units (the attack's own distance for L-infinity and L0); infinite where none was found."""

    @property
    def success(self) -> Tensor:
        """[n] bool."""
        return self.distance.isfinite()


def from_tanh(w: Tensor) -> Tensor:
    """(tanh(w) + 1) / 2, in [0, 1]."""
    return (w.tanh() + 1) / 2


def to_tanh(x: Tensor) -> Tensor:
    """The w with from_tanh(w) = x to 5e-7, finite at 0 and 1."""
    return ((2 * x - 1) * INSIDE).atanh()


def shortfall(logits: Tensor, y: Tensor, kappa: float, targeted: bool) -> Tensor:
    """max(-margin won, -kappa), [n] (the paper's f_6): what is left to be overcome; -kappa where the attack has won.

    Untargeted max(Z_y - max_{i != y} Z_i, -kappa), targeted max(max_{i != t} Z_i - Z_t, -kappa).
    """
    ahead = lead(logits, y)
    return (ahead if targeted else -ahead).clamp_min(-kappa)


def won(logits: Tensor, y: Tensor, kappa: float, targeted: bool) -> Tensor:
    """[n] bool: the class has changed (the target is reached), with the margin kappa."""
    changed = (logits.argmax(-1) == y) == targeted
    return changed & (shortfall(logits, y, kappa, targeted) <= -kappa)


def squared_l2(x: Tensor, original: Tensor, tau: Tensor) -> Tensor:
    """||x - original||_2^2, [n]."""
    return (x - original).square().flatten(1).sum(1)


def over_bound(x: Tensor, original: Tensor, tau: Tensor) -> Tensor:
    """sum_i max(|x_i - original_i| - tau, 0), [n] (the paper's section VI-C)."""
    return ((x - original).abs().flatten(1) - tau.unsqueeze(1)).clamp_min(0).sum(1)


class _Adam:
    """Adam with its usual constants, an image a row, so that images can leave."""

    def __init__(self, w: Tensor, lr: float) -> None:
        self.lr, self.count = lr, 0
        self.first, self.second = torch.zeros_like(w), torch.zeros_like(w)

    def step(self, w: Tensor, gradient: Tensor) -> Tensor:
        """w after one step."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient.square()
        first = self.first / (1 - 0.9**self.count)
        second = self.second / (1 - 0.999**self.count)
        return w - self.lr * first / (second.sqrt() + 1e-8)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.first, self.second = self.first[rows], self.second[rows]


@dataclass
class _Problem:
    """One optimisation: minimise distance + c shortfall over w, from the originals or from `at`."""

    model: nn.Module
    x: Tensor
    y: Tensor
    search: Search
    targeted: bool
    distance: Distance
    free: Tensor | None = None
    """[n, C, H, W] of 0 and 1: which pixels may move; None: all."""

    def made(self, w: Tensor, rows: Tensor) -> Tensor:
        """The images that w stands for."""
        x = from_tanh(w)
        return x if self.free is None else torch.where(self.free[rows] > 0, x, self.x[rows])

    def run(self, c: Tensor, tau: Tensor, best: Found, at: Tensor | None = None) -> Tensor:
        """One inner run with constants c [n]; puts what is nearer into `best`; returns [n] bool, a success was seen."""
        rows = torch.arange(len(self.x), device=self.x.device)
        seen = torch.zeros_like(rows, dtype=torch.bool)
        w = to_tanh(self.x if at is None else at)
        adam, before = _Adam(w, self.search.lr), torch.full_like(c, torch.inf)
        tenth = max(1, self.search.steps // 10)
        for step in range(self.search.steps + 1):
            w = w.detach().requires_grad_()
            image = self.made(w, rows)
            logits = self.model(image)
            near = self.distance(image, self.x[rows], tau[rows])
            loss = near + c[rows] * shortfall(logits, self.y[rows], self.search.kappa, self.targeted)
            success = won(logits, self.y[rows], self.search.kappa, self.targeted)
            seen[rows[success]] = True
            self._note(best, rows[success], image.detach()[success], tau)
            if step == self.search.steps:
                break
            gradient = torch.autograd.grad(loss.sum(), w)[0]
            w = adam.step(w.detach(), gradient)
            if self.search.abort and step % tenth == 0:
                going = loss.detach() <= 0.9999 * before
                rows, w, before = rows[going], w[going], loss.detach()[going]
                adam.keep(going)
                if not len(rows):
                    break
        return seen

    def _note(self, best: Found, rows: Tensor, images: Tensor, tau: Tensor) -> None:
        """Keep those of `images` that are nearer than what was found before."""
        if not len(rows):
            return
        away = (images - self.x[rows]).flatten(1)
        size = away.norm(dim=1) if self.distance is squared_l2 else away.abs().amax(1)
        nearer = size < best.distance[rows]
        best.images[rows[nearer]] = images[nearer]
        best.distance[rows[nearer]] = size[nearer]


def _nothing(x: Tensor) -> Found:
    return Found(x.detach().clone(), torch.full_like(x.flatten(1)[:, 0], torch.inf))


def carlini_wagner_l2(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    search: Search = Search(),
    targeted: bool = False,
    free: Tensor | None = None,
) -> Found:
    """The nearest image in L2 of another class (or of class y with `targeted`) (arXiv:1608.04644, section VI-A).

    x [n, C, H, W] in [0, 1], y [n]; `free` [n, C, H, W] of 0 and 1 holds pixels where they are. Each image has its
    own constant c, searched by bisection; Adam and w start afresh for each c; the best of all iterates counts.
    """
    problem = _Problem(model, x.detach(), y, search, targeted, squared_l2, free)
    best = _nothing(x)
    tau = torch.zeros_like(best.distance)
    low, high = torch.zeros_like(tau), torch.full_like(tau, UPPER)
    c = torch.full_like(tau, search.start)
    with attacked(model):
        for _ in range(search.searches):
            seen = problem.run(c, tau, best)
            low, high = torch.where(seen, low, low.maximum(c)), torch.where(seen, high.minimum(c), high)
            c = torch.where(seen | (high < FOUND_UPPER), (low + high) / 2, 10 * c)
    return best


def carlini_wagner_linf(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    search: Search = Search(),
    targeted: bool = False,
    rounds: int = 20,
    smallest: float = 1 / 256,
) -> Found:
    """The nearest in the largest pixel change (arXiv:1608.04644, section VI-C).

    Minimises over_bound(x', x, tau) + c shortfall from where the round before ended; tau falls to 0.9 of itself (or
    of the change found, where that is smaller) while it succeeds, and the image is done where no c up to 20 does or
    tau is below `smallest`. c starts at `search.start` and is doubled.
    """
    problem = _Problem(model, x.detach(), y, search, targeted, over_bound)
    best = _nothing(x)
    tau, going = torch.ones_like(best.distance), torch.ones_like(y, dtype=torch.bool)
    with attacked(model):
        for _ in range(rounds):
            going &= _within(problem, best, tau, going)
            tau = torch.where(going, 0.9 * tau.minimum(best.distance), tau)
            going &= tau >= smallest
            if not going.any():
                break
    return best


def _within(problem: _Problem, best: Found, tau: Tensor, going: Tensor) -> Tensor:
    """[n] bool: for some c the image changes class with no pixel changed by more than tau (by a rounding more)."""
    done = torch.zeros_like(going)
    c = torch.full_like(tau, problem.search.start)
    while bool((going & ~done & (c <= 20)).any()):
        rows = (going & ~done).nonzero().squeeze(1)
        part = replace(problem, x=problem.x[rows], y=problem.y[rows])
        found = Found(best.images[rows], best.distance[rows])
        part.run(c[rows], tau[rows], found, at=best.images[rows])
        best.images[rows], best.distance[rows] = found.images, found.distance
        done[rows] = found.distance <= tau[rows] + 1e-6
        c = 2 * c
    return done


def carlini_wagner_l0(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    search: Search = Search(),
    targeted: bool = False,
    share: float = 0.3,
) -> Found:
    """The fewest numbers of the image changed (arXiv:1608.04644, section VI-B).

    Runs the L2 attack on the pixels that are free, then holds those that did least, by |gradient x change|: of those
    that moved, the share `share` (at least one), in (0, 1); until the L2 attack fails. `distance` counts what moved.
    """
    best, free = _nothing(x), torch.ones_like(x)
    going = torch.ones_like(y, dtype=torch.bool)
    while bool(going.any()):
        rows = going.nonzero().squeeze(1)
        found = carlini_wagner_l2(model, x[rows], y[rows], search, targeted, free[rows])
        change = (found.images - x[rows]).flatten(1)
        moved = change.abs() > 1e-4
        count = moved.sum(1).to(best.distance)
        better = found.success & (count < best.distance[rows])
        best.images[rows[better]], best.distance[rows[better]] = found.images[better], count[better]
        with attacked(model):
            gradient = input_gradient(model, found.images, y[rows], lead).flatten(1)
        use = (gradient * change).abs().masked_fill(~moved, torch.inf)
        held = (share * count).ceil().clamp_min(1)
        rank = use.argsort(1).argsort(1)
        stay = moved & (rank >= held.unsqueeze(1))
        free[rows] = stay.view_as(x[rows]).to(free)
        going[rows] = found.success & stay.any(1)
    return best

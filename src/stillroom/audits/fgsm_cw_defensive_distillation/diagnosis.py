"""Is a network robust, or does it only hide its gradient? All attacks on the same images, and the verdict in words.

With logits T times larger the softmax is saturated and d CE / dZ_i = softmax(Z)_i - 1[i = y] underflows in float32:
one step along its sign then does nothing. Whoever looks at FGSM alone takes that for robustness.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.audits.fgsm_cw_defensive_distillation.attacks import (
    at_temperature,
    attacked,
    fgsm,
    input_gradient,
    lead,
    pgd,
    predict,
)
from stillroom.audits.fgsm_cw_defensive_distillation.carlini_wagner import (
    Found,
    Search,
    carlini_wagner_l0,
    carlini_wagner_l2,
    carlini_wagner_linf,
)

FGSM, DOUBLE, ADAPTIVE, MARGIN, PGD, TRANSFER, CARLINI = (
    "FGSM",
    "FGSM in float64",
    "FGSM on logits / T",
    "FGSM on the margin",
    "PGD on the margin",
    "FGSM transferred",
    "C&W",
)
SIGNS = (DOUBLE, ADAPTIVE, MARGIN, PGD, TRANSFER, CARLINI)
"""The attacks that masking does not stop."""

CHUNK = 128
TWICE, FEW, SURE, HALF = 2.0, 0.05, 0.95, 0.5


@dataclass(frozen=True)
class Plan:
    """What is tried, and how hard."""

    epsilons: tuple[float, ...]
    epsilon: float
    pgd_steps: int = 40
    temperature: float | None = None
    """T of the adaptive FGSM; None: of each image the gap of its two largest logits, at least 1."""
    search: Search = field(default_factory=Search)
    also: tuple[str, ...] = ()
    """'linf' and 'l0': the other attacks of Carlini and Wagner."""


Rows = dict[str, Tensor]
"""Outcomes, a row an image; so that parts of the images can be done apart and put together again."""


def bounded(
    model: nn.Module, x: Tensor, y: Tensor, plan: Plan, start: Tensor, source: nn.Module | None = None
) -> Rows:
    """All attacks of a bounded step on x [n, C, H, W] with labels y [n]: bool [n] under the attack's name, still right.

    'right' is before any attack, 'FGSM at E' for each epsilon; 'gradient' is the float32 norm of the input gradient of
    CE [n], 0 exactly where all of it is zero. `start` [n, C, H, W] in [-1, 1] is PGD's; `source` the network from
    which FGSM is transferred.
    """
    logits = predict(model, x)
    right = logits.argmax(-1) == y
    objective = at_temperature(own_gap(logits) if plan.temperature is None else plan.temperature)
    made = {
        ADAPTIVE: fgsm(model, x, y, plan.epsilon, objective),
        MARGIN: fgsm(model, x, y, plan.epsilon, lead),
        PGD: pgd(model, x, y, plan.epsilon, plan.pgd_steps, start=start),
        **_in_double(model, x, y, plan.epsilon),
    }
    if source is not None:
        made[TRANSFER] = fgsm(source, x, y, plan.epsilon)
    for epsilon in sorted({*plan.epsilons, plan.epsilon}):
        made[at(epsilon)] = fgsm(model, x, y, epsilon)
    rows = {name: right & (predict(model, image).argmax(-1) == y) for name, image in made.items()}
    return {"right": right, "gradient": gradient_norm(model, x, y), FGSM: rows[at(plan.epsilon)], **rows}


def at(epsilon: float) -> str:
    """The name of FGSM's outcome at one budget."""
    return f"FGSM at {epsilon:g}"


def own_gap(logits: Tensor) -> Tensor:
    """[n, 1]: of logits [n, C] the distance of the two largest, at least 1."""
    two = logits.topk(2, dim=-1).values
    return (two[:, :1] - two[:, 1:]).clamp_min(1)


def gradient_norm(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """L2 norm [n], float64, of the gradient of CE as it is computed; 0 only where all of it is zero."""
    with attacked(model):
        return input_gradient(model, x, y).flatten(1).double().norm(dim=1)


def _in_double(model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> dict[str, Tensor]:
    """FGSM with network and image in float64; nothing where device or network have no such numbers."""
    try:
        return {DOUBLE: fgsm(copy.deepcopy(model).double(), x.double(), y, epsilon).to(x.dtype)}
    except (TypeError, RuntimeError):
        return {}


def minimal(model: nn.Module, x: Tensor, y: Tensor, plan: Plan) -> Rows:
    """C&W on x [n, C, H, W]: 'l2' [n] the distance found, 'largest' [n] its largest change of a pixel.

    Infinite where no image of another class was found; 0 where the class is wrong before. 'image' and 'FGSM image' at
    epsilon are what was made, 'class', 'class after C&W' and 'class after FGSM' [n] what the network reads. `plan.also`
    adds 'linf' and 'l0'.
    """
    right = predict(model, x).argmax(-1) == y
    wrong = Found(x, torch.zeros_like(x.flatten(1)[:, 0]))
    found = _on(right, wrong, carlini_wagner_l2(model, x[right], y[right], plan.search))
    largest = (found.images - x).abs().flatten(1).amax(1)
    rows = {"right": right, "l2": found.distance, "largest": torch.where(found.success, largest, torch.inf)}
    rows |= {"image": found.images, "FGSM image": fgsm(model, x, y, plan.epsilon)}
    for name, image in (
        ("class", x),
        ("class after C&W", rows["image"]),
        ("class after FGSM", rows["FGSM image"]),
    ):
        rows[name] = predict(model, image).argmax(-1)
    attacks = {"linf": carlini_wagner_linf, "l0": carlini_wagner_l0}
    for name in plan.also:
        rows[name] = _on(right, wrong, attacks[name](model, x[right], y[right], plan.search)).distance
    return rows


def _on(rows: Tensor, whole: Found, part: Found) -> Found:
    images, distance = whole.images.clone(), whole.distance.clone()
    images[rows], distance[rows] = part.images, part.distance.to(distance)
    return Found(images, distance)


# -- what the rows say ------------------------------------------------------------------------------------------


def share(values: Tensor) -> float:
    """Mean of bool [n]; 0 of none."""
    return values.double().mean().item() if len(values) else 0.0


@dataclass(frozen=True)
class Verdict:
    """What the attacks say together."""

    kind: str
    """'masked, not robust', 'not robust', 'mostly robust to these attacks'."""
    words: str


@dataclass(frozen=True, eq=False)
class Audit:
    """All outcomes of one network."""

    plan: Plan
    x: Tensor
    """The images that were attacked, pixels in [0, 1]."""
    rows: Rows
    """What `bounded` found on them."""
    chosen: Tensor
    """Ids of those that C&W attacked."""
    near: Rows
    """What `minimal` found on them."""

    @property
    def still(self) -> dict[str, Tensor]:
        """bool [n] for each attack within epsilon: still right. C&W counts as lost where its image lies within."""
        held = self.rows["right"].clone()
        held[self.chosen] &= self.near["largest"] > self.plan.epsilon
        names = (FGSM, *SIGNS[:-1])
        return {name: self.rows[name] for name in names if name in self.rows} | {CARLINI: held}

    @property
    def success(self) -> dict[str, float]:
        """Of the images right before, the share that each attack turned within epsilon."""
        found = {}
        for name, held in self.still.items():
            ids = self.chosen if name == CARLINI else torch.arange(len(held))
            found[name] = share(~held[ids][self.rows["right"][ids]])
        return found

    @property
    def robust(self) -> Tensor:
        """bool [n]: right before and under every attack that was tried within epsilon."""
        return torch.stack(list(self.still.values())).all(0)

    @property
    def distances(self) -> Tensor:
        """C&W's L2 for the images right before; infinite where it failed."""
        return self.near["l2"][self.near["right"]]

    @property
    def zero(self) -> float:
        """Share of all images whose float32 input gradient is all zero."""
        return share(self.rows["gradient"] == 0)

    @property
    def verdict(self) -> Verdict:
        """See `judge`."""
        return judge(self.success, self.zero, share(self.distances.isfinite()), self.plan.epsilon)

    def numbers(self) -> dict[str, Any]:
        """What a run keeps: accuracies over all images, successes over those right before, distances of successes."""
        found: dict[str, Any] = accuracies(self.rows) | {"robust_accuracy": share(self.robust)}
        for epsilon in self.plan.epsilons:
            found[f"fgsm_at_{epsilon:g}_accuracy"] = share(self.rows[at(epsilon)])
        found |= {f"success of {name}": value for name, value in self.success.items() if name != CARLINI}
        found["success of C&W within epsilon"] = self.success[CARLINI]
        success = share(self.distances.isfinite())
        found["carlini_wagner_success"] = success
        found["carlini_wagner_gain"] = success - self.success[FGSM]
        for name, key in (("l2", "L2"), ("linf", "L-infinity"), ("l0", "L0")):
            away = self.near[name][self.near["right"]] if name in self.near else torch.ones(0)
            if len(away := away[away.isfinite()]):
                found[f"mean {key} of C&W"] = away.double().mean().item()
                found[f"median {key} of C&W"] = away.double().median().item()
        return found | {"zero_gradients": self.zero, "robustness": ": ".join(astuple(self.verdict))}


def accuracies(rows: Rows) -> dict[str, float]:
    """Shares of all images that are right before and after: all of these attacks, FGSM, PGD."""
    names = [name for name in (FGSM, *SIGNS) if name in rows]
    worst = torch.stack([rows[name] for name in names]).all(0)
    return {
        "robust_accuracy": share(worst),
        "fgsm_accuracy": share(rows[FGSM]),
        "pgd_accuracy": share(rows[PGD]),
    }


def judge(success: Mapping[str, float], zero: float, minimal_success: float, epsilon: float) -> Verdict:
    """The verdict from each attack's success at epsilon, the share of zero gradients, and C&W's success at any L2.

    Masked where an attack that masking does not stop turns at least twice as many images as FGSM at the same epsilon
    (and 5 % of the images more, so that one against none is no sign; C&W counts there with the images that it turned
    within epsilon), or where C&W turns 95 % while more than half of the gradients are zero.
    """
    plain = success[FGSM]
    signs = {n: success[n] for n in SIGNS if n in success}
    caught = {n: s for n, s in signs.items() if s >= TWICE * plain and s - plain >= FEW}
    told = f"at epsilon {epsilon:g} FGSM turns {plain:.0%} of the images that were right"
    free = f"C&W turns {minimal_success:.0%} without a bound"
    gradient = f"{zero:.0%} of the input gradients are zero"
    if caught:
        name = max(caught, key=lambda key: caught[key])
        words = f"{told}, {name} {caught[name]:.0%}; {gradient}; {free}"
        return Verdict("masked, not robust", words)
    if minimal_success >= SURE and zero > HALF:
        return Verdict("masked, not robust", f"{told}, but {gradient}, and {free}")
    name = max(success, key=lambda key: success[key])
    words = (
        f"{told}, the strongest attack ({name}) {success[name]:.0%}; {gradient}, no sign of masking; {free}"
    )
    return Verdict("not robust" if success[name] >= HALF else "mostly robust to these attacks", words)

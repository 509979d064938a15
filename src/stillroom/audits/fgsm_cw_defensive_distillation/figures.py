"""The pictures of an audit, an arm a line or a row of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stillroom.audits.fgsm_cw_defensive_distillation.diagnosis import (
    ADAPTIVE,
    CARLINI,
    DOUBLE,
    FGSM,
    MARGIN,
    PGD,
    TRANSFER,
    Audit,
    at,
    share,
)
from stillroom.reports.generation_figures import histogram_bars, lines, sample_grid

SHORT = {
    FGSM: "FGSM",
    DOUBLE: "float64",
    ADAPTIVE: "logits / T",
    MARGIN: "margin",
    PGD: "PGD",
    TRANSFER: "transfer",
    CARLINI: "C&W",
}
DECADES = (-30, -20, -10, -5, -3, -2, -1, 0)
SHOWN, POINTS = 10, 41


def pictures(audits: Mapping[str, Audit], classes: Sequence[str]) -> list[dict[str, str]]:
    """Title, caption and SVG of each figure; `audits` by arm, at least one."""
    epsilon = next(iter(audits.values())).plan.epsilon
    said = " ".join(f"{arm}: {one.verdict.kind} ({one.verdict.words})." for arm, one in audits.items())
    found = [
        _figure("What each attack turns", said, _attacks(audits, epsilon)),
        _figure("Accuracy under FGSM", f"Of all images attacked. {said}", _over_epsilon(audits)),
        _figure(
            "Broken within a distance",
            "Share of the images right before that C&W turns within this L2 distance; what it does not turn counts as "
            "infinitely far.",
            _over_distance(audits),
        ),
        _figure(
            "Input gradients",
            "Norms of the gradient of the cross-entropy with respect to the pixels, in float32. Where it is 0 FGSM "
            "does nothing, which is no robustness.",
            _gradients(audits),
        ),
    ]
    if next(iter(audits.values())).x.shape[1] in (1, 3):
        names = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:SHOWN]) if str(i) != name)
        caption = f"The same images for each arm, at epsilon {epsilon:g}, and the classes that are read"
        found.append(
            _figure("Before and after", f"{caption}: {names}." if names else f"{caption}.", _images(audits))
        )
    return found


def _figure(title: str, caption: str, svg: str) -> dict[str, str]:
    return {"title": title, "caption": caption, "svg": svg}


def _attacks(audits: Mapping[str, Audit], epsilon: float) -> str:
    names = [name for name in SHORT if any(name in one.success for one in audits.values())]
    bars = [(arm, [100 * one.success.get(name, 0.0) for name in names]) for arm, one in audits.items()]
    labels = [SHORT[name] for name in names]
    return histogram_bars(labels, bars, "turned, %", f"share turned within epsilon {epsilon:g}")


def _over_epsilon(audits: Mapping[str, Audit]) -> str:
    curves = []
    for arm, one in audits.items():
        budgets = sorted({*one.plan.epsilons, one.plan.epsilon})
        accuracy = [share(one.rows["right"]), *(share(one.rows[at(budget)]) for budget in budgets)]
        curves.append((arm, [0.0, *budgets], [100 * value for value in accuracy]))
    return lines(curves, "epsilon", "accuracy, %", "accuracy under FGSM")


def _over_distance(audits: Mapping[str, Audit]) -> str:
    finite = [d for one in audits.values() for d in one.distances.tolist() if d < float("inf")]
    radii = torch.linspace(0, max(finite, default=1.0), POINTS)
    curves = [
        (arm, radii.tolist(), [100 * share(one.distances <= r) for r in radii]) for arm, one in audits.items()
    ]
    return lines(curves, "L2 distance", "broken, %", "share broken by C&W")


def _gradients(audits: Mapping[str, Audit]) -> str:
    labels = ["0", f"< 1e{DECADES[0]}", *(f"1e{power}" for power in DECADES)]
    bars = []
    for arm, one in audits.items():
        norms = one.rows["gradient"]
        edges = torch.tensor([10.0**power for power in DECADES], dtype=torch.float64)
        bins = torch.where(norms == 0, 0, 1 + torch.bucketize(norms, edges, right=True))
        bars.append((arm, [100 * share(bins == index) for index in range(len(labels))]))
    return histogram_bars(labels, bars, "images, %", "norms of the input gradients")


def _images(audits: Mapping[str, Audit]) -> str:
    rows: list[tuple[str, Tensor]] = []
    for arm, one in audits.items():
        ids = torch.arange(min(SHOWN, len(one.chosen)))
        clean, near = one.x[one.chosen][ids], {name: values[ids] for name, values in one.near.items()}
        rows += [
            (f"{arm}, before: {_read(near['class'])}", 2 * clean - 1),
            (f"{arm}, what FGSM adds", (near["FGSM image"] - clean) / one.plan.epsilon),
            (f"{arm}, after FGSM: {_read(near['class after FGSM'])}", 2 * near["FGSM image"] - 1),
            (f"{arm}, after C&W: {_read(near['class after C&W'])}", 2 * near["image"] - 1),
        ]
    return sample_grid(rows, "images before and after the attacks")


def _read(classes: Tensor) -> str:
    return " ".join(str(int(one)) for one in classes)

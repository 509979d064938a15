"""The task of methods that distil guidance: samples at several guidance scales, held against the teacher's own.

A student of guidance is right where it makes of the same noise what the guided teacher makes of it in many steps,
at every scale and not at one. A student that does not listen to the scale gives a flat line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stillroom import metrics
from stillroom.errors import UserError, require
from stillroom.generators.generation import Generation
from stillroom.generators.parts import scoring
from stillroom.generators.parts.building import check_guided, sampler_digest
from stillroom.generators.parts.judge import Judge
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.parts.solvers import Solver
from stillroom.reports import generation_figures as figures
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of

SWEEP = 22
"""Keeps the noise of the sweep apart from all other seeds."""

Row = dict[str, Any]
"""One scale's numbers; `parts` holds the deciding one in each of ten parts of the samples."""


@dataclass(eq=False)
class GuidanceSweep(Generation):
    """Generation at several guidance scales, scored against the teacher's own samples from the same noise."""

    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    """Guidance scales w at which samplers are asked, rising, >= 1; 1 is no guidance."""
    judged_from: float = 2.0
    """Scales from here on count in the score."""
    against: Literal["distance", "mse"] = "distance"
    """What decides: distance of the samples' law to the reference's, or mean squared error to its samples."""
    reference_solver: Solver = "ddim"
    """Solver of the reference, the guided teacher."""
    reference_steps: int = 256
    """Steps of the reference, >= 1."""
    sweep_samples: int = 1000
    """Samples a scale, >= 50."""

    @property
    def metric(self) -> str:  # type: ignore[override]
        """Mean over the scales that count."""
        return f"reference_{self.against}"

    def check(self, seed: int, teacher: bool) -> None:
        """See the base; scales rise from 1 or more, and some count."""
        require("--task.reference-steps", self.reference_steps, 1)
        require("--task.sweep-samples", self.sweep_samples, 50)
        told = " ".join(f"{w:g}" for w in self.scales)
        if not self.scales or min(self.scales) < 1 or sorted(set(self.scales)) != list(self.scales):
            raise UserError(f"--task.scales is {told or 'empty'}: pass rising scales of 1 or more, as 1 2 4")
        if max(self.scales) < self.judged_from:
            raise UserError(
                f"--task.judged-from is {self.judged_from:g} and the scales are {told}: pass less, or a larger scale"
            )
        super().check(seed, teacher)
        if teacher:
            check_guided(self._teacher().denoiser)

    # -- the sweep ------------------------------------------------------------------------------------------------

    def noise(self, split: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Unit noise [n, ...] and the split's conditions in turn, the same for every arm."""
        count = self.sweep_samples if split == "test" else min(200, self.sweep_samples)
        _, _, condition = self.draw(count, split, device)
        generator = torch.Generator().manual_seed(seed_of(SWEEP, 0 if split == "test" else 1))
        noise = torch.randn(count, *self.space.shape, generator=generator)
        if condition is not None:
            condition = condition.repeat(-(-count // len(condition)), *[1] * (condition.ndim - 1))[:count]
        return noise.to(device), condition

    def reference(self, scale: float, split: str, runtime: Runtime) -> Tensor:
        """What the guided teacher makes of `noise` in many steps, decoded [n, ...]; kept in this process."""
        plan = {"solver": self.reference_solver, "steps": self.reference_steps, "guidance": scale}
        sampler = self._teacher().but(**plan)
        key = (sampler_digest(sampler), self.fingerprint(), self.autoencoder, split, self.sweep_samples)
        if key not in _REFERENCES:
            if len(_REFERENCES) > 64:
                _REFERENCES.clear()
            sampler.denoiser.to(runtime.device)
            _REFERENCES[key] = self.generate(sampler, *self.noise(split, runtime.device), runtime)
        return _REFERENCES[key]

    def sweep(self, product: Sampler, split: str, runtime: Runtime) -> list[Row]:
        """A row for each scale: distance and paired error to the reference, and both class agreements."""
        rows = []
        noise, condition = self.noise(split, runtime.device)
        judge = self.judge if self.samples.images else None
        labels = None if condition is None or condition.ndim > 1 else condition.cpu()
        for scale in self.scales:
            wanted = self.reference(scale, split, runtime)
            made = self.generate(product.at(scale), noise, condition, runtime)
            if not bool(torch.isfinite(made).all()):
                raise UserError(
                    f"samples at guidance {scale:g} are not finite: lower --engine.lr or the guidance's range"
                )
            row: Row = {"scale": scale, "mse": _squared(wanted, made)}
            row["distance"] = scoring.distance(judge, made, wanted)
            row["parts"] = self._parts(judge, made, wanted)
            if judge is not None and judge.head is not None and labels is not None:
                row["agreement"] = _agreement(judge, made, labels)
                row["reference agreement"] = _agreement(judge, wanted, labels)
            rows.append(row)
        return rows

    def score(self, product: Any, split: str, runtime: Runtime) -> dict[str, Any]:
        """On 'test' the distances to data at the plan's own scale as well, and every scale's numbers."""
        if not isinstance(product, Sampler):
            raise UserError(
                f"a {type(product).__name__} cannot be asked at several guidance scales: make a Sampler"
            )
        rows = self.sweep(product, split, runtime)
        found = {self.metric: self._mean(rows, self.against)}
        if split != "test":
            return found
        self.remember(product, rows=rows)
        other = "mse" if self.against == "distance" else "distance"
        found[f"reference_{other}"] = self._mean(rows, other)
        for row in rows:
            numbers = {name: value for name, value in row.items() if name not in ("scale", "parts")}
            found |= {f"{name} at {row['scale']:g}": value for name, value in numbers.items()}
        return found | super().score(product, split, runtime) | {"per_sample": self._mean_parts(rows)}

    def _parts(self, judge: Judge | None, made: Tensor, wanted: Tensor) -> list[float]:
        if self.against == "mse":
            return scoring.folds(_squared, made, wanted)
        if judge is None:
            return scoring.folds(metrics.sliced_wasserstein, made, wanted)
        return scoring.folds(metrics.frechet, judge.features(made), judge.features(wanted))

    def _mean_parts(self, rows: list[Row]) -> list[float]:
        counted = [row["parts"] for row in rows if row["scale"] >= self.judged_from]
        return [sum(part) / len(counted) for part in zip(*counted, strict=True)]

    def _mean(self, rows: list[Row], name: str) -> float:
        counted = [row[name] for row in rows if row["scale"] >= self.judged_from]
        return sum(counted) / len(counted)

    # -- pictures -------------------------------------------------------------------------------------------------

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """See the base; and every arm's numbers against the guidance scale."""
        found = super().figures(products, runtime)
        swept = self.recalled(products, "rows")
        kinds = {
            "mse": ("paired error", "Mean squared error to what the guided teacher makes of the same noise."),
            "agreement": ("class agreement", "Share of samples in which a classifier sees the wanted class."),
        }
        for key, (label, caption) in kinds.items():
            curves = [
                (name, [row["scale"] for row in rows], [row[key] for row in rows])
                for name, rows in swept.items()
                if all(key in row for row in rows)
            ]
            if curves and len(self.scales) > 1:
                svg = figures.lines(curves, "guidance scale w", label, f"{label} against guidance")
                note = " A flat line does not listen to the scale." if key == "agreement" else ""
                found.append({"title": f"Guidance: {label}", "caption": caption + note, "svg": svg})
        return found

    def quick(self) -> GuidanceSweep:
        """See the base; few steps and samples of the reference."""
        made = super().quick()
        assert isinstance(made, GuidanceSweep)
        return made.but(reference_steps=4, sweep_samples=60, scales=self.scales[-2:], guidance=1.0)


def _squared(wanted: Tensor, made: Tensor) -> float:
    return (made - wanted).square().mean().item()


def _agreement(judge: Judge, made: Tensor, labels: Tensor) -> float:
    return (judge.classes(judge.features(made)) == labels).double().mean().item()


_REFERENCES: dict[tuple[Any, ...], Tensor] = {}
"""The references of this process: a claim's arms share them."""

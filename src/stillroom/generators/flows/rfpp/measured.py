"""What is measured of the teacher's flow and of the student's: loss by time, straightness, error of inversion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.generators.flows.rfpp.flow import loss_by_time, round_trip, start_of, straightness
from stillroom.generators.flows.rfpp.pairs import HELD_OUT, row_noise
from stillroom.generators.generation import Generation
from stillroom.generators.parts import scoring
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.parts.store import StoreSource
from stillroom.models.probing import quietly
from stillroom.reports import generation_figures as pictures
from stillroom.runtime import Runtime

BINS, EULER_STEPS, SAMPLES = 20, 32, 256
"""Parts of [0, 1] in which a loss is measured; steps of simulated paths; samples that are simulated."""
STEPS = (1, 2, 4, 8, 16)
"""Steps each way of a round trip."""


@dataclass(frozen=True)
class Flow:
    """One flow's numbers."""

    loss: Tensor
    """Mean squared error of the velocity on held-out pairs, [20] by time."""
    straightness: float
    """S(u), per dimension."""
    inversion: Tensor
    """Root mean squared error of real samples after a round trip, for each of `STEPS`."""


@dataclass(frozen=True)
class Measured:
    """Before and after."""

    times: Tensor
    """Middles of the parts of [0, 1]."""
    before: Flow
    after: Flow


def measured(task: Generation, before: Sampler, after: Sampler, held: StoreSource) -> Measured:
    """Numbers of both flows on the pairs `held` and on the validation split."""
    device = Runtime().device
    x, condition = held.fetch(torch.arange(len(held)), view=None)
    real, labels = scoring.real(task.space.validation, min(SAMPLES, len(held)))
    found = []
    for sampler in (before, after):
        sampler.to(device)
        asked = condition if sampler.denoiser.conditional else None
        own = labels if sampler.denoiser.conditional else None
        times, flow = _one(sampler, *_on(device, x, asked), *_on(device, real, own))  # type: ignore[arg-type]
        found.append(flow)
    return Measured(times, *found)


def _on(device: torch.device, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


def _one(
    sampler: Sampler, pairs: Tensor, condition: Tensor | None, real: Tensor, labels: Tensor | None
) -> tuple[Tensor, Flow]:
    eps, x0 = pairs.unbind(1)
    times, loss = loss_by_time(sampler.denoiser, eps, x0, condition, BINS)
    some = None if condition is None else condition[:SAMPLES]
    straight = mean_straightness(sampler, eps[:SAMPLES], some)
    noise = row_noise(range(len(real)), tuple(real.shape[1:]), 1, HELD_OUT).to(real)
    errors = [round_trip(sampler, real, labels, noise, steps).mean() for steps in STEPS]
    return times, Flow(loss, straight, torch.stack(errors).cpu())


def mean_straightness(sampler: Sampler, eps: Tensor, condition: Tensor | None) -> float:
    """S(u) on paths that a flow's sampler simulates from unit noise [n, ...], a mean over samples and dimensions."""
    sampler = sampler.but(
        solver="euler", steps=EULER_STEPS, spacing="uniform", start=start_of(sampler.denoiser)
    )
    with quietly(sampler):
        states = sampler.trajectory(eps, condition)
    return float(straightness(states, sampler.times()).mean()) / eps[0].numel()


def numbers(found: Measured) -> dict[str, float]:
    """What a run's result keeps."""
    kept: dict[str, float] = {}
    for name, flow in (("of the teacher's flow", found.before), ("of the student", found.after)):
        kept[f"straightness {name}"] = flow.straightness
        kept |= {
            f"round trip {name}, {s} steps": float(e) for s, e in zip(STEPS, flow.inversion, strict=True)
        }
        parts = zip(found.times.tolist(), flow.loss.tolist(), strict=True)
        kept |= {f"loss {name} at t = {t:.3f}": value for t, value in parts}
    return kept


def drawn(found: Measured) -> list[dict[str, str]]:
    """The curves, with straightness in the caption."""
    flows = (("teacher's flow", found.before), ("student", found.after))
    losses = [(name, found.times.numpy(), flow.loss.numpy()) for name, flow in flows]
    errors = [(name, list(STEPS), flow.inversion.numpy()) for name, flow in flows]
    return [
        {
            "title": "Loss by time",
            "caption": "Mean squared error of the velocity on pairs that were not trained on, by time (0 data, 1 "
            "noise). A reflow is hard near both ends. Straightness, 0 for straight paths: "
            f"{found.before.straightness:.3g} of the teacher's flow, {found.after.straightness:.3g} of the student.",
            "svg": pictures.lines(losses, "time t", "squared error", "loss by time", log_y=True),
        },
        {
            "title": "Inversion",
            "caption": "Real samples run back to noise and sampled again, Euler's rule both ways: what is left.",
            "svg": pictures.lines(
                errors, "steps each way", "root mean squared error", "inversion", log_x=True
            ),
        },
    ]

"""The pictures of a generator's page: samples of every arm from the same noise, and the way of a few of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillroom.generators.parts.sampler import Sampler
from stillroom.models.probing import quietly
from stillroom.reports import generation_figures as figures
from stillroom.runtime import Runtime

if TYPE_CHECKING:
    from stillroom.generators.generation import Generation

SHOWN, PATHS = 10, 40
"""Images a row; points whose way is drawn."""


def pictures(task: Generation, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
    """Samples and trajectories of the products that are samplers, real data first."""
    samplers = {name: one for name, one in products.items() if isinstance(one, Sampler)}
    return [_samples(task, samplers, runtime), *_ways(task, samplers, runtime)]


def _samples(task: Generation, samplers: Mapping[str, Sampler], runtime: Runtime) -> dict[str, str]:
    images = task.samples.images
    count = SHOWN if images else 1500
    noise, truth, condition = task.draw(task.score_samples, "test", runtime.device)
    chosen = _one_a_class(condition, min(count, len(noise)))
    noise, truth = noise[chosen], truth[chosen]
    condition = None if condition is None else condition[chosen]
    panels = [("real", truth.numpy())]
    for name, sampler in samplers.items():
        made = task.generate(sampler, noise, condition, runtime)
        panels.append((f"{name}, {_cost(sampler)}", made.numpy()))
    draw = figures.sample_grid if images else figures.point_clouds
    same = "the same noise" + (" and classes" if condition is not None else "")
    return {
        "title": "Samples",
        "caption": f"Real data, and what each arm makes of {same}.",
        "svg": draw(panels, "samples of each arm"),
    }


def _one_a_class(condition: Tensor | None, count: int) -> Tensor:
    """The first `count` rows, by class in turn where there are classes."""
    if condition is None or count > 100:
        return torch.arange(count)
    labels = condition.cpu()
    groups = [(labels == c).nonzero().flatten() for c in labels.unique()]
    rank = torch.cat([torch.arange(len(g)) for g in groups])
    ids = torch.cat(groups)
    first = rank.argsort(stable=True)[:count]
    return ids[first][labels[ids[first]].argsort(stable=True)]


def _cost(sampler: Sampler) -> str:
    count = sampler.evaluations
    return "adaptive" if not count else f"{count} evaluation{'s' if count > 1 else ''}"


def _ways(task: Generation, samplers: Mapping[str, Sampler], runtime: Runtime) -> list[dict[str, str]]:
    """The states on the way from noise, of points for every arm that takes steps, of images for the longest."""
    noise, _, condition = task.draw(PATHS, "validation", runtime.device)
    paths = {}
    for name, sampler in samplers.items():
        with quietly(sampler):
            paths[name] = sampler.trajectory(noise, condition).float().cpu()
    caption = "From noise to data: the states that the solver goes through."
    if not task.samples.images:
        panels = [(f"{name}, {_cost(samplers[name])}", path.numpy()) for name, path in paths.items()]
        return [{"title": "Ways", "caption": caption, "svg": figures.trajectories(panels, "ways from noise")}]
    found = []
    for name in list(samplers)[-1:] if task.latents is None else []:
        path, times = paths[name], samplers[name].times()
        if len(path) > 2:
            frames = path[:, :3]
            scale = frames.flatten(1).abs().amax(1).clamp_min(1)
            frames = frames / scale.view(-1, 1, 1, 1, 1)
            svg = figures.trajectory_strip(frames.numpy(), times.tolist(), f"ways of {name} from noise")
            note = f" {name}; each state scaled to fit."
            found.append({"title": "Ways", "caption": caption + note, "svg": svg})
    return found

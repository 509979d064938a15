"""What classifiers of images and texts, networks with exits and samplers can become."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.data import Source
from stillroom.exporting.card import Card
from stillroom.exporting.forms import Graph, Portable
from stillroom.exporting.libraries import library_of
from stillroom.models import read_config
from stillroom.predictors.parts.card import card as classifier_card
from stillroom.seeds import seed_of

if TYPE_CHECKING:
    from stillroom.generators.generation import Generation
    from stillroom.generators.parts.sampler import Sampler
    from stillroom.predictors.classification import Classification
    from stillroom.predictors.labelled import LabelledTask
    from stillroom.predictors.language_modelling import LanguageModelling

DRAW = 31
"""Keeps the seeds of what is drawn here apart from all others."""
NOT_THERE = "random numbers: the run's data are not at hand"


def classifier(
    task: Classification,
    product: nn.Module,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    absent: Collection[str],
) -> Portable:
    """A classifier of images, with the `config` of its student folder."""
    test = None if "data" in absent else task.images.test
    graph = Graph(
        network=product,
        draw=partial(_images, test, tuple(config["shape"])),
        source=NOT_THERE if test is None else f"test samples of data '{config['made_by']['data']}'",
        output="logits",
        about={
            "classes": config["labels"],
            "normalisation": config["normalisation"],
            "input": "images in [0, 1], then (x - mean) / std, a channel",
        },
    )

    held = library_of(product)
    return Portable(
        graph,
        None if held is None else held.library,
        beside=partial(_beside, task, product, absent),
        card=classifier_card(config, about),
        labels=config["labels"],
    )


def texts(
    task: LabelledTask | LanguageModelling,
    test: Source | None,
    product: nn.Module,
    config: Mapping[str, Any],
    card: Card,
    absent: Collection[str],
) -> Portable:
    """A network on token ids [n, L], padded with -1 on the right, with what its student folder says of it.

    `test` are the run's test samples, where they are at hand.
    """
    last = 1 if test is None else test.fetch(torch.tensor([0]), None)[0].ndim - 1  # packed rows are [n, 2, L]
    graph = Graph(
        network=product,
        draw=partial(_tokens, test, int(config["length"])),
        source=NOT_THERE if test is None else f"test samples of data '{config['made_by']['data']}'",
        output="logits",
        axes={"x": {last: "length"}},
        about={
            "classes": config["classes"],
            "input": f"at most {config['length']} token ids a text, int64, padded with -1 on the right",
        },
    )
    held = library_of(product)
    return Portable(
        graph,
        None if held is None else held.library,
        beside=partial(_beside, task, product, absent),
        card=card,
        labels=config["classes"],
    )


def _tokens(test: Source | None, length: int, count: int) -> dict[str, Tensor]:
    if test is not None:
        return {"x": test.fetch(torch.arange(min(count, len(test))), None)[0]}
    return {"x": torch.randint(10, (count, length), generator=_generator(4))}  # in every vocabulary


def _beside(
    task: LabelledTask | LanguageModelling, product: nn.Module, absent: Collection[str]
) -> dict[str, nn.Module]:
    """The plain student, whose architecture is the student's, and the teacher where it is at hand."""
    found = {"baseline": copy.deepcopy(product)}
    if not {"data", "teacher"} & set(absent) and (task.teacher != "none" or "teacher" in task.given):
        found["teacher"] = task.make_teacher().module
    return found


def early_exits(base: Portable, backbone: nn.Module, config: Mapping[str, Any], card: Card) -> Portable:
    """The full pass of a network with exits: its graph has no branches, so leaving early is left to the reader."""
    assert base.graph is not None
    keys = ("exits", "rule", "settings", "setting_sets", "multiply_adds")
    note = (
        "A graph has no branches: this is the full pass, which gives the logits of all exits, "
        "[n, sets, exits, classes], and costs what the whole network costs. To stop early, load the network in "
        "Stillroom."
    )
    about = {**base.graph.about, **{key: config[key] for key in keys}}
    graph = replace(base.graph, output="exit_logits", about=about, note=note)
    return replace(base, graph=graph, library=None, beside=lambda: {"teacher": backbone}, card=card)


def _images(test: Source | None, shape: tuple[int, ...], count: int) -> dict[str, Tensor]:
    if test is not None:
        return {"x": test.fetch(torch.arange(min(count, len(test))), None)[0].float()}
    return {"x": torch.randn(count, *shape, generator=_generator(0))}


def _generator(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(DRAW, number))


# -- generators ---------------------------------------------------------------------------------------------------


class Evaluation(nn.Module):
    """One evaluation of a denoiser, of what it takes: x, t, condition, guidance scale."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """D(x_t, t, c, w) [n, ...]: the estimate of the clean sample."""
        return self.denoiser(x, t, condition, guidance)


class Unconditional(Evaluation):
    """The same where there is no condition."""

    def forward(  # pyrefly: ignore[bad-override]
        self, x: Tensor, t: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """See the base."""
        return self.denoiser(x, t, None, guidance)


def evaluation(denoiser: Any) -> nn.Module:
    """One evaluation as a module, whose inputs are those that the denoiser takes."""
    return (Evaluation if denoiser.conditional else Unconditional)(denoiser).eval()


def sampler(
    task: Generation, product: Sampler, folder: Path, about: Mapping[str, Any], absent: Collection[str]
) -> Portable:
    """A sampler: its graph is one evaluation of the denoiser, and the times to ask it at are in the metadata."""
    from stillroom.generators.parts.card import card

    config, denoiser, times = read_config(folder), product.denoiser, product.times()
    plan = {
        "solver": product.plan.solver,
        "guidance": product.plan.guidance,
        "times": times.tolist(),
        "alpha": [float(denoiser.process.alpha(t)) for t in times],
        "sigma": [float(denoiser.process.sigma(t)) for t in times],
    }
    clean = None if "data" in absent else partial(_clean, task.samples.test, folder)
    graph = Graph(
        network=evaluation(denoiser),
        draw=partial(_noisy, product, clean, tuple(config["shape"])),
        source=NOT_THERE if clean is None else f"noisy test samples of data '{config['made_by']['data']}'",
        output="x0",
        about={**denoiser.config(), "plan": plan, "labels": config["labels"]},
        note="The graph is one evaluation, D(x_t, t, c): the estimate of the clean sample. `plan` in its metadata has "
        "the times to ask it at, with alpha and sigma of each.",
    )

    def beside() -> dict[str, nn.Module]:
        if {"data", "teacher"} & set(absent) or task.teacher in ("none", "exact"):
            return {}
        teacher: Any = task.make_teacher().module
        return {"teacher": evaluation(teacher.denoiser)}

    return Portable(
        graph,
        "diffusers" if (folder / "pipeline").is_dir() else None,
        beside=beside,
        card=card(product, config["shape"], about),
        labels=[task.prompt.format(label) for label in config["labels"]],
    )


def _clean(test: Source, folder: Path, count: int) -> tuple[Tensor, Tensor | None]:
    """Test samples as denoisers see them, with labels; latents are made by the autoencoder that was exported."""
    from stillroom.generators.parts.latent import read_latent_space

    x, y = test.fetch(torch.arange(min(count, len(test))), None)
    if (folder / "autoencoder").is_dir():
        x = read_latent_space(folder / "autoencoder").encode(x)
    return x, y


def _noisy(
    product: Sampler,
    clean: Callable[[int], tuple[Tensor, Tensor | None]] | None,
    shape: tuple[int, ...],
    count: int,
) -> dict[str, Tensor]:
    denoiser, labels = product.denoiser, None
    if clean is not None:
        x, labels = clean(count)
    else:
        x = torch.randn(count, *shape, generator=_generator(1))
    # not up to both ends, where a process may have no signal or no noise
    t = product.start * (0.05 + 0.9 * torch.rand(len(x), generator=_generator(2)))
    inputs = {"x": denoiser.process.add_noise(x, t, torch.randn(x.shape, generator=_generator(3))), "t": t}
    if denoiser.conditional:
        inputs["condition"] = denoiser.no_condition(len(x), x.device) if labels is None else labels
    if denoiser.takes_guidance:
        inputs["guidance"] = torch.full((len(x),), float(product.plan.guidance))
    return inputs

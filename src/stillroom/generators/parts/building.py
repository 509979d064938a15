"""From names, folders and objects in hand to denoisers that fit the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stillroom.config import digest
from stillroom.data.points import SPREAD
from stillroom.errors import UserError, reason
from stillroom.generators.parts.data import Samples
from stillroom.generators.parts.denoiser import Clock, Denoiser, denoiser_from
from stillroom.generators.parts.sampler import Sampler
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.library import Wrapped
from stillroom.models.denoisers.mixture import MixtureNetwork
from stillroom.models.denoisers.names import network_config, network_from_config
from stillroom.models.denoisers.shrinking import shrunken_network
from stillroom.models.files import CONFIG, weights_digest
from stillroom.models.local import recognise, student_folder
from stillroom.models.names import folder_in
from stillroom.models.shrinking import parse_shrink
from stillroom.seeds import seeded


def build_denoiser(
    name: str, process: str, prediction: str, samples: Samples, classes: int, seed: int
) -> Denoiser:
    """An untrained denoiser of the architecture `name` for these samples.

    Prediction 'auto' is EDM's preconditioning on edm, the velocity on flow, and v on variance preserving processes.
    'exact' is the denoiser of the law itself, where it is known. Raises UserError where it is not.
    """
    if name == "exact":
        return _exact(process, samples, classes)
    folder = folder_in(name)
    if folder is not None:
        return _fresh_from(folder, process, prediction, samples, seed)
    network = build_denoiser_network(name, shape=samples.shape, classes=classes, seed=seed)
    return _around(network, process, prediction, samples, classes)


def _around(network: nn.Module, process: str, prediction: str, samples: Samples, classes: int) -> Denoiser:
    if prediction == "auto":
        prediction = {"edm": "edm", "flow": "velocity"}.get(process, "v")
    # diffusers' embeddings of time are made for numbers up to 1000
    clock: Clock | None = None
    if isinstance(network, Wrapped) and prediction != "edm":
        clock = "thousand" if process == "flow" else "index"
    return Denoiser(
        network, process, prediction, classes=classes, clock=clock, sigma_data=samples.deviation()
    )


def _fresh_from(folder: Path, process: str, prediction: str, samples: Samples, seed: int) -> Denoiser:
    """The architecture in a folder with fresh weights; conventions are the folder's, or else those that are given."""
    from stillroom.generators.parts.pipelines import conditions, untrained_model

    if not _is_model(folder):
        return fresh_copy(read_denoiser(folder), seed)
    with seeded(seed):
        network = untrained_model(folder)
    return _around(network, process, prediction, samples, conditions(network.model))


def shrunken(denoiser: Denoiser, name: str, seed: int) -> Denoiser:
    """A trainable, smaller denoiser, `name` being shrink:depth=D,width=W, with its weights where they fit.

    Process, prediction and conditions stay. Raises UserError where its network cannot be made smaller.
    """
    wanted = parse_shrink(name)
    network = shrunken_network(denoiser.network, wanted.depth, wanted.width, seed)
    return denoiser_from(network, denoiser.config(), denoiser.null, denoiser.table)


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a network of diffusers alone."""
    return recognise(student_folder(folder)) == "diffusers"


def _exact(process: str, samples: Samples, classes: int) -> Denoiser:
    if samples.modes is None:
        raise UserError(
            f"the exact denoiser of data '{samples.name}' is not known: pass --task.data eight-gaussians, or an "
            "architecture"
        )
    network = MixtureNetwork(samples.modes[0], SPREAD, samples.modes[1])
    return Denoiser(network, "edm", "x0", classes=classes, clock="unit").on(process)


def fresh_copy(denoiser: Denoiser, seed: int) -> Denoiser:
    """A trainable denoiser of the same architecture and conventions with weights drawn from `seed`.

    Raises UserError for a network of the user's own, whose making is not known.
    """
    config = network_config(denoiser.network)
    if config is None:
        raise UserError(
            f"{type(denoiser.network).__name__} cannot be made anew with random weights: pass --task.student with an "
            "architecture"
        )
    with seeded(seed):
        network = network_from_config(config)
        if denoiser.takes_guidance:
            network.add_guidance()  # type: ignore[operator]
    return denoiser_from(network, denoiser.config(), denoiser.null, denoiser.table)


def smallest(name: str) -> str:
    """The smallest architecture of the kind of `name`, for trials; other names stay what they are."""
    small = {"mlp": "mlp:16x1", "unet": "unet:8-16", "dit": "dit:16x1@2"}
    return small.get(name.partition(":")[0], name)


def read_denoiser(
    folder: Path,
    prompts: Sequence[str] = (),
    process: str = "",
    prediction: str = "auto",
    samples: Samples | None = None,
) -> Denoiser:
    """The denoiser in the folder of a run, of a run's student, of a diffusers pipeline or of a network of diffusers.

    `prompts` say the classes in words, for a pipeline that is conditioned on text. A network alone says neither
    process nor prediction: those given are taken, and `samples` for their deviation. UserError without a prediction.
    """
    from stillroom.generators.parts.pipelines import conditions, read_model, read_pipeline
    from stillroom.generators.parts.saving import load_sampler

    folder = student_folder(folder)
    if (folder / CONFIG).is_file() and _is_model(folder):
        if prediction == "auto" or not process or samples is None:
            raise UserError(
                f"'{folder}' holds a network that does not say what it predicts: pass --task.process and "
                "--task.prediction, or the folder of its pipeline"
            )
        network = read_model(folder)
        return _around(network, process, prediction, samples, conditions(network.model))
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return load_sampler(folder).denoiser
    return read_pipeline(folder, prompts).denoiser


def not_a_denoiser(role: str, given: object) -> UserError:
    """What to say of a network that came without process and prediction."""
    return UserError(
        f"{role} {type(given).__name__} says neither process nor prediction: wrap it, Denoiser(network, process=..., "
        "prediction=...)"
    )


def check_denoiser(role: str, denoiser: Denoiser, samples: Samples, classes: int) -> None:
    """Raise UserError unless the denoiser takes these samples, and conditions of as many classes."""
    if denoiser.null is None and denoiser.classes != classes:
        way = "--task.no-conditional" if classes else "labelled data"
        raise UserError(
            f"{role} has {denoiser.classes} classes, data '{samples.name}' {classes}: pass a {role} with {classes}, or "
            f"{way}"
        )
    x, t = torch.zeros(2, *samples.shape), torch.tensor(denoiser.start / 2)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            said: Tensor = denoiser(x, t)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"{role} does not take samples of shape {samples.shape} ({reason(error)}): pass --task.image-size, "
            "--task.autoencoder, or another architecture"
        ) from None
    if said.shape != x.shape:
        raise UserError(
            f"{role} turns samples of shape {samples.shape} into {tuple(said.shape[1:])}: pass a network that keeps "
            "their shape"
        )


def check_guided(teacher: Denoiser) -> None:
    """Raise UserError for a teacher that has no condition to guide by."""
    if not teacher.conditional:
        raise UserError(
            "guidance is distilled and the teacher is unconditional: pass data with labels and --task.conditional, or "
            "a teacher that was trained with conditions"
        )


def endless(denoiser: Denoiser) -> bool:
    """Whether the noise level at the start is infinite, so that only a grid uniform in t can begin there."""
    return bool(denoiser.process.ratio(torch.tensor(denoiser.start, dtype=torch.float64)).isinf())


def sampler_digest(sampler: Sampler) -> str:
    """A short name for a sampler's weights and conventions, by which what it sampled is kept."""
    about = [str(network_config(sampler.denoiser.network)), str(sampler.config())]
    return digest([weights_digest(sampler), *about])

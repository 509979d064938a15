"""The task of this family: a law of data, a diffusion or flow model of it, and a student that samples faster."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom import metrics
from stillroom.data import Source
from stillroom.data.points import POINTS
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.generators.parts import scoring
from stillroom.generators.parts.building import (
    build_denoiser,
    check_denoiser,
    endless,
    not_a_denoiser,
    read_denoiser,
    shrunken,
    smallest,
)
from stillroom.generators.parts.data import Samples, load_samples
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.judge import Features, Judge, classifier, make_judge
from stillroom.generators.parts.latent import LatentSpace, make_latent_space
from stillroom.generators.parts.pictures import pictures
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.solvers import Solver, Spacing
from stillroom.models.names import weighty
from stillroom.models.probing import quietly
from stillroom.models.shrinking import is_shrink
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import Task, TeacherJob
from stillroom.teacher import Teacher

SAMPLE = 21
"""Keeps the seeds of scoring apart from all others."""


@dataclass(eq=False)
class Generation(Task):
    """Generate samples like the data: 8x8 digits by class unless told otherwise."""

    per_sample_words = "parts of the test samples"

    data: str = "digits"
    """digits, eight-gaussians (or uneven-), checkerboard, two-moons, swiss-roll, a folder of images, or a hub name."""
    conditional: bool = True
    """Condition on the data's labels, where they have any."""
    teacher: str = "mlp:192x4"
    """mlp:WIDTHxDEPTH, unet:CHANNELS-CHANNELS, dit:WIDTHxDEPTH@PATCH, exact (of Gaussians), a folder ./DIR, or none."""
    student: str = ""
    """An architecture or config:./DIR, ./DIR with its weights, shrink:depth=0.5,width=0.5, or empty: the teacher."""
    teacher_weights: str = ""
    """Folder of an earlier run, or of a pipeline or model of diffusers; empty: train the teacher here."""
    prompt: str = "{}"
    """How a class is said to a teacher that is conditioned on text; {} is the class's name."""
    process: Literal["cosine", "linear", "scaled-linear", "edm", "flow"] = "edm"
    """Forward process that the teacher is trained on."""
    prediction: Literal["auto", "x0", "eps", "v", "score", "velocity", "edm"] = "auto"
    """What the teacher's network puts out; auto: edm for edm, velocity for flow, v for the others."""
    solver: Solver = "heun"
    """Solver that the teacher samples with."""
    steps: int = 18
    """Steps that the teacher samples with, >= 1."""
    spacing: Spacing = "karras"
    """How the steps' times are spread."""
    guidance: float = 1.0
    """Guidance scale w of the teacher; 1 is none."""
    teacher_steps: int = 3000
    """Training steps of the teacher, >= 1."""
    teacher_batch_size: int = 128
    """Batch size of the teacher's training, >= 1."""
    teacher_lr: float = 1e-3
    """Learning rate of the teacher's training (Adam), > 0."""
    drop_condition: float = 0.1
    """Share of training samples whose condition the teacher does not see, in [0, 1)."""
    points: int = 20_000
    """Training points, where the data are points."""
    train_samples: int | None = None
    """Training images to use; None for all."""
    image_column: str | None = None
    """Column of the images; None finds it."""
    label_column: str | None = None
    """Column of the labels; None finds it."""
    image_size: int | None = None
    """Scale all images to this height and width, pixels; None takes them as they are."""
    autoencoder: str = ""
    """Work on latents: kl:CHANNELS@FACTOR trains an autoencoder, a folder holds one of diffusers; empty: on pixels."""
    features: Features = "classifier"
    """What images are compared in: a classifier of the same data, Inception v3 if its weights are here, or pixels."""
    score_samples: int = 2000
    """Samples that a score is made of, at most the test split's, >= 50."""
    split_seed: int = 0
    """Seed of the splits that the data do not come with, and of points."""
    teacher_seed: int = 0
    """Seed of the teacher's training."""
    vary_teacher: bool = True
    """In comparisons over seeds, train a teacher for each seed; False keeps the one of `teacher_seed`."""

    @property
    def metric(self) -> str:  # type: ignore[override]
        """Frechet distance for images, sliced Wasserstein distance for points."""
        return "frechet" if self.samples.images else "sliced_wasserstein"

    higher_is_better = False

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def _options(self) -> dict[str, Any]:
        names = ("image_column", "label_column", "image_size", "train_samples")
        return {name: getattr(self, name) for name in names}

    @property
    def samples(self) -> Samples:
        """The data with their splits, loaded once."""
        sizes = {"points": self.points, "split_seed": self.split_seed}
        return self.loaded(load_samples, self.data, **sizes, **self._options)

    @property
    def classes(self) -> int:
        """Number of classes that samples are conditioned on; 0 without."""
        return len(self.samples.classes) if self.conditional else 0

    @property
    def latents(self) -> LatentSpace | None:
        """The autoencoder that models live behind, made once; None for pixels and points."""
        if not self.autoencoder:
            return None
        if not self.samples.images:
            raise UserError(
                f"--task.autoencoder is for images, data '{self.samples.name}' are points: drop it"
            )
        key = (self.autoencoder, self.samples.fingerprint)
        if key not in _LATENTS:
            _LATENTS[key] = make_latent_space(self.autoencoder, self.samples)
        return _LATENTS[key]

    @property
    def space(self) -> Samples:
        """What denoisers see: the samples, or their latents."""
        latents = self.latents
        if latents is None:
            return self.samples
        if "_space" not in self.__dict__:
            self._space = latents.samples(self.samples)
        return self._space

    def generate(
        self, product: nn.Module, noise: Tensor, condition: Tensor | None, runtime: Runtime
    ) -> Tensor:
        """Samples [n, ...] that a product makes of noise and conditions, decoded, off the device."""
        made = runtime.apply(product, noise, condition)
        return made if self.latents is None else self.latents.decode(made)

    def train(self) -> Source:
        """The training samples, as denoisers see them."""
        return self.space.train

    @property
    def judge(self) -> Judge:
        """What images are compared in, made once for the data and not for a seed."""
        key = (self.features, self.samples.fingerprint)
        if key not in _JUDGES:
            data = self.given.get("data", self.data)
            options = {**self._options, "split_seed": self.split_seed}
            _JUDGES[key] = make_judge(self.features, self.samples, data, options)
        return _JUDGES[key]

    def classifier(self, seed: int) -> nn.Module:
        """A classifier of these images, frozen, that shares nothing with the judge; UserError without labels.

        For methods that need a feature metric of their own: what scores them must not be what trains them.
        """
        if not self.samples.images or not self.samples.classes:
            raise UserError(
                f"data '{self.samples.name}' have no labelled images to train a feature network on: pass some, or "
                "a metric that needs none"
            )
        options = {**self._options, "split_seed": self.split_seed}
        return classifier(self.samples, self.given.get("data", self.data), options, 1 + seed)

    # -- networks -----------------------------------------------------------------------------------------------

    def make_student(self, seed: int) -> Denoiser:
        """A fresh denoiser of the student's architecture, or a trainable copy of the teacher's."""
        given = self.given.get("student")
        if isinstance(given, Denoiser):
            return given.copy()
        if given is not None:
            raise not_a_denoiser("student", given)
        if weighty(self.student):
            return self._read(self.student).copy()
        if self.student and not is_shrink(self.student):
            return self._build(self.student, seed)
        teacher = self._teacher().denoiser
        if not teacher.learnt:
            raise UserError(
                "the teacher has no weights to start a student from: pass --task.student mlp:64x2"
            )
        return shrunken(teacher, self.student, seed) if self.student else teacher.copy()

    @property
    def derived(self) -> bool:
        """See the base."""
        return "student" not in self.given and is_shrink(self.student)

    @property
    def weights(self) -> str:
        """The folder of the teacher's weights; empty where it is trained here."""
        return self.teacher_weights or (self.teacher if weighty(self.teacher) else "")

    def _read(self, name: str) -> Denoiser:
        prompts = [self.prompt.format(label) for label in self.samples.classes[: self.classes]]
        folder = weighty(name) or Path(name)
        return read_denoiser(folder, prompts, self.process, self.prediction, self.space)

    def _build(self, name: str, seed: int) -> Denoiser:
        return build_denoiser(name, self.process, self.prediction, self.space, self.classes, seed)

    @property
    def plan(self) -> Plan:
        """How the teacher samples."""
        return Plan(self.solver, self.steps, self.spacing, self.guidance)

    def sampler(self, denoiser: Denoiser) -> Sampler:
        """`denoiser`, sampled as the teacher is."""
        return Sampler(denoiser, replace(self.plan, spacing="uniform") if endless(denoiser) else self.plan)

    def _teacher(self) -> Sampler:
        given = self.given.get("teacher")
        if isinstance(given, Sampler):
            return given
        if isinstance(given, Denoiser):
            return self.sampler(given)
        if given is not None:
            raise not_a_denoiser("teacher", given)
        taught: Sampler | None = self.__dict__.get("_taught")
        return taught if taught is not None else self._outside()

    def _outside(self) -> Sampler:
        """The teacher from a folder, or untrained where it is to be trained here."""
        if not self.weights:
            return self.sampler(self._build(self.teacher, self.teacher_seed))
        return self.sampler(self._read(self.weights))

    def make_teacher(self) -> Teacher:
        """The frozen teacher, a Sampler; it must have been taught, unless its weights come from outside."""
        return Teacher(self._teacher())

    def teach(self, network: nn.Module) -> None:
        """Take the denoiser of a trained sampler as the teacher; it is sampled as this task says."""
        assert isinstance(network, Sampler)
        self._taught = self.sampler(network.denoiser)

    def teacher_job(self, engine: Any) -> TeacherJob | None:
        """Training the teacher on all training samples."""
        from stillroom.generators.undistilled import training_of_teacher

        if "teacher" in self.given or self.weights or self.teacher in ("none", "exact"):
            return None
        return training_of_teacher(self)

    # -- checks and scores --------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """Load the data, and run both networks on two blank samples."""
        least = {"steps": 1, "teacher_steps": 1, "teacher_batch_size": 1, "score_samples": 50, "points": 100}
        for name, low in least.items():
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), low)
        require("--task.teacher-lr", self.teacher_lr, 0, ends="(]")
        require("--task.drop-condition", self.drop_condition, 0, 1, ends="[)")
        self.plan.check()
        if teacher and self.teacher == "none" and "teacher" not in self.given and not self.weights:
            raise UserError("this method needs a teacher and --task.teacher is 'none': pass an architecture")
        found = self._teacher() if teacher else None
        if found is not None:
            check_denoiser("teacher", found.denoiser, self.space, self.classes)
        if teacher or self.student:
            check_denoiser("student", self.make_student(seed), self.space, self.classes)
        if self.guidance != 1 and found is not None and not found.denoiser.conditional:
            raise UserError(
                f"--task.guidance is {self.guidance:g} and the teacher is unconditional: pass --task.guidance 1, "
                "or data with labels and --task.conditional"
            )

    def draw(self, count: int, split: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Unit noise, the real samples that go with it and their conditions, the same for every arm."""
        source = self.samples.validation if split == "validation" else self.samples.test
        truth, labels = scoring.real(source, count)
        generator = torch.Generator().manual_seed(seed_of(SAMPLE, 0 if split == "test" else 1))
        noise = torch.randn(len(truth), *self.space.shape, generator=generator)
        condition = labels if self.classes else None
        return noise.to(device), truth, None if condition is None else condition.to(device)

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """Distances to the split's samples, from the same noise for every arm; on 'test' all of them."""
        most = self.score_samples if split == "test" else min(500, self.score_samples)
        noise, truth, condition = self.draw(most, split, runtime.device)
        fake = self.generate(product, noise, condition, runtime)
        if not bool(torch.isfinite(fake).all()):
            raise UserError(
                f"samples of {type(product).__name__} are not finite: lower --engine.lr, or pass another solver"
            )
        judge = self.judge if self.samples.images else None
        if split != "test":
            return {self.metric: scoring.distance(judge, fake, truth)}
        labels = condition.cpu() if condition is not None else None
        other, _ = scoring.real(self.samples.train, len(truth))
        return scoring.report(self.samples, judge, fake, truth, other, labels)

    def cost(self, product: Any) -> dict[str, float]:
        """Parameters, network evaluations and seconds a sample (in a batch of 64), bytes on disk."""
        noise, _, condition = self.draw(64, "test", Runtime().device)
        with quietly(product):  # not by the runtime: each process takes as many samples as its time allows
            seconds = metrics.seconds_of(lambda: product(noise, condition).cpu())
        return {
            "parameters": metrics.parameters(product),
            "evaluations": getattr(product, "evaluations", 0),
            "seconds_per_sample": seconds / len(noise),
            "file_bytes": metrics.file_size(product),
        }

    def summary(self) -> dict[str, Any]:
        """Name, shape, classes, splits, and what images are compared in."""
        samples = self.samples
        return {
            "name": samples.name,
            "shape": list(samples.shape),
            "classes": samples.classes if self.classes else [],
            "splits": samples.splits,
            "compared in": self.judge.name if samples.images else "the plane",
            "fingerprint": samples.fingerprint,
            "teacher": self.weights or self.teacher,
        }

    def fingerprint(self) -> str:
        """The digest of the samples."""
        return self.samples.fingerprint

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Samples of every arm from the same noise, and the way of a few of them."""
        return pictures(self, products, runtime)

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the sampler, a diffusers pipeline of it where one can be, and a model card to `folder`."""
        from stillroom.generators.parts.publishing import publish

        assert isinstance(product, Sampler)
        origin = (weighty(self.weights) or Path(self.weights)) if self.weights else None
        publish(folder, product, about, self.samples, self.latents, origin)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> Sampler:
        """The sampler in `folder`."""
        from stillroom.generators.parts.saving import load_sampler

        return load_sampler(folder, module)

    def portable(
        self, product: Any, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """One evaluation as a graph, and diffusers' pipeline where there is one."""
        from stillroom.exporting.networks import sampler

        return sampler(self, product, folder, about, absent)

    # -- copies -------------------------------------------------------------------------------------------------

    def baseline(self) -> Any:
        """The teacher in as few evaluations; methods that need another number say so themselves."""
        from stillroom.generators.undistilled import FewSteps

        return FewSteps()

    def paired(self, seed: int) -> Generation:
        """The same problem with, if asked, another teacher."""
        return self.but(teacher_seed=seed if self.vary_teacher else self.teacher_seed)

    def quick(self) -> Generation:
        """Small networks, a moment of teaching, few samples."""
        small = {"teacher_steps": 30, "teacher_batch_size": 32, "points": 600, "score_samples": 60}
        plain = {"features": "pixels", "image_size": None, "autoencoder": "", "steps": min(self.steps, 3)}
        data = self.data if self.data in POINTS else "digits"
        networks = {"teacher": smallest(self.teacher), "student": smallest(self.student)}
        return self.but(data=data, **networks, **small, **plain)


_LATENTS: dict[tuple[str, str], LatentSpace] = {}
_JUDGES: dict[tuple[str, str], Judge] = {}
"""Judges made in this process: loading one and loading the data again are the dear parts of a score."""

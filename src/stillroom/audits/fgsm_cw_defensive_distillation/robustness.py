"""The task: classify images, and be judged by what attacks leave right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom.audits.fgsm_cw_defensive_distillation import diagnosis as seen
from stillroom.audits.fgsm_cw_defensive_distillation import figures
from stillroom.audits.fgsm_cw_defensive_distillation.attacks import Pixels
from stillroom.audits.fgsm_cw_defensive_distillation.carlini_wagner import Search
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.models import build, check, load_student
from stillroom.models.files import read_config
from stillroom.optim import Recipe
from stillroom.predictors.classification import Classification, stratified
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import TeacherJob
from stillroom.teaching import train_once

ATTACKED, START, SURROGATE = 31, 32, 33
"""Keep the choice of the images, PGD's starts and the undistilled network apart from all other seeds."""

WATCHED = 200
"""Images of the validation split that are attacked on the way."""


@dataclass(eq=False)
class Robustness(Classification):
    """Classify images under attack: 8x8 digits unless told otherwise. All budgets are of pixels in [0, 1]."""

    teacher: str = "none"
    """Architecture of the defence's teacher; none: the student's. FGSM is transferred from a teacher with weights."""
    student: str = "cnn:16-32-64"
    """Architecture of the student, as mlp:WIDTHS, cnn:WIDTHS, resnet:WIDTHS, timm:NAME or torchvision:NAME."""
    audited: str = ""
    """For robustness-audit: folder of a run or of its student, or `pretrained` for the library's weights."""
    teacher_epochs: int = 60
    """Epochs of the undistilled network that FGSM is transferred from, >= 1."""
    epsilons: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    """Budgets of FGSM for the curve, each in (0, 1]; photographs: 2, 4 and 8 / 255."""
    epsilon: float = 0.2
    """The budget at which all attacks are compared, in (0, 1]."""
    decides: Literal["robust_accuracy", "fgsm_accuracy", "pgd_accuracy", "carlini_wagner_gain"] = (
        "robust_accuracy"
    )
    """What decides, at epsilon: accuracy under all attacks at once, FGSM or PGD, or C&W's success less FGSM's."""
    attack_samples: int = 2000
    """Test images that are attacked with FGSM and PGD, >= 1; all where there are fewer."""
    pgd_steps: int = 40
    """Steps of PGD, >= 1."""
    adaptive_temperature: float | None = None
    """T of the FGSM on logits / T, > 0; None: each image's own gap of its two largest logits."""
    transfer: bool = True
    """Try FGSM made on an undistilled network too: the teacher's, where it has weights, or one trained for it."""
    carlini_samples: int = 128
    """Of them, those attacked with C&W, >= 1."""
    carlini_steps: int = 300
    """Steps of C&W for each constant c, >= 1."""
    carlini_searches: int = 6
    """Constants c that C&W tries for each image, >= 1."""
    carlini_constant: float = 0.01
    """The first of them, > 0."""
    carlini_lr: float = 0.01
    """Learning rate of C&W, > 0."""
    kappa: float = 0.0
    """Logit margin by which C&W must win, >= 0."""
    carlini_also: tuple[Literal["linf", "l0"], ...] = ()
    """The other attacks of Carlini and Wagner to try: linf, l0; slow."""

    @property
    def metric(self) -> str:  # type: ignore[override]
        """What decides."""
        return self.decides

    @property
    def plan(self) -> seen.Plan:
        """The attacks."""
        search = Search(
            self.kappa, self.carlini_lr, self.carlini_steps, self.carlini_searches, self.carlini_constant
        )
        also = tuple(self.carlini_also)
        return seen.Plan(
            tuple(self.epsilons), self.epsilon, self.pgd_steps, self.adaptive_temperature, search, also
        )

    @property
    def _wanted(self) -> int | None:
        return self.student_samples

    # -- images and networks ----------------------------------------------------------------------------------------

    def pixels(self, split: str, wanted: int) -> tuple[Tensor, Tensor]:
        """A fixed choice of `wanted` images of 'validation' or 'test', with each class's share: pixels and labels.

        Raises UserError where the pixels do not lie in [0, 1].
        """
        images = self.images
        source = images.validation if split == "validation" else images.test
        if source.labels is None:
            raise UserError(f"the {split} split of data '{images.name}' has no labels: pass labelled data")
        ids = stratified(source.labels, min(wanted, len(source)), seed_of(ATTACKED))
        x, y = source.fetch(ids, None)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (images.mean, images.std))
        x = x * std + mean
        low, high = x.min().item(), x.max().item()
        if low < -1e-3 or high > 1 + 1e-3:
            raise UserError(
                f"pixels of data '{images.name}' go from {low:.3g} to {high:.3g}, attacks need [0, 1]: pass the data "
                "without their normalisation, and that with --task.normalise"
            )
        assert y is not None
        return x.clamp(0, 1), y

    def in_pixels(self, network: nn.Module) -> Pixels:
        """The network behind the data's normalisation; a copy, so that its own stays as it is."""
        return Pixels(copy.deepcopy(network), self.images.mean, self.images.std)

    def trained(self) -> nn.Module | None:
        """The classifier that was brought: from Python, from a folder, or with its library's weights; None for none."""
        given = self.given.get("student")
        if given is not None:
            return self.make_student(0)
        if self.audited == "pretrained":
            shape = self.images.shape
            return build(self.student, shape=shape, classes=self.classes, seed=0, pretrained=True)
        return load_student(self._folder()) if self.audited else None

    def _folder(self) -> Path:
        folder = Path(self.audited)
        return folder / "student" if (folder / "student").is_dir() else folder

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher with weights."""
        return "teacher" in self.given or bool(self.weights)

    def undistilled(self) -> nn.Module | None:
        """The network that FGSM is transferred from; None where there is none and no architecture to train."""
        if self.has_teacher:
            return self.make_teacher().module
        job = self.undistilled_job()
        return None if job is None else train_once(job)[0]

    def undistilled_job(self) -> TeacherJob | None:
        """Plain training of the student's architecture with other initial weights; its teacher's for a module."""
        name = self.teacher if "student" in self.given else self.student
        if name == "none":
            return None
        options = {f.name: getattr(self, f.name) for f in fields(Classification)}
        task = Classification(**options | {"student": name, "teacher": "none", "mixup": 0.0, "cutmix": 0.0})
        task = task.but(student_samples=len(self.train()))
        task.given = {key: value for key, value in self.given.items() if key == "data"}
        engine = Engine(
            self.teacher_epochs, batch_size=self.teacher_batch_size, recipe=adam(), evaluate_every=0
        )
        seed = seed_of(self.teacher_seed, SURROGATE)
        return TeacherJob(self.baseline(), task, engine, seed, {"data": self.images.fingerprint})

    # -- checks and scores --------------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """See the base; and the ranges of all budgets, the network to be audited, and that pixels lie in [0, 1]."""
        for name, values in (("epsilons", self.epsilons), ("epsilon", [self.epsilon])):
            for value in values:
                require(f"--task.{name}", value, 0, 1, ends="(]")
        for name in ("attack_samples", "pgd_steps", "carlini_samples", "carlini_steps", "carlini_searches"):
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), 1)
        for name in ("carlini_constant", "carlini_lr", "adaptive_temperature"):
            if getattr(self, name) is not None:
                require(f"--task.{name.replace('_', '-')}", getattr(self, name), 0, ends="(]")
        require("--task.kappa", self.kappa, 0)
        super().check(seed, teacher)
        about: Any = {"shape": self.images.shape, "classes": self.classes, "data": self.images.name}
        network = self.trained() if self.audited else None
        if network is not None:
            check(network, role="student", name=self.audited, **about)
        if self.has_teacher and not teacher:
            check(self.make_teacher().module, role="teacher", name=self.teacher_name, **about)
        self.pixels("test", self.attack_samples)
        self.pixels("validation", WATCHED)

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """See the base; on 'test' the whole audit, on 'validation' what FGSM and PGD leave right of 200 images."""
        product.to(runtime.device)
        scores = super().score(product, split, runtime)
        if split != "test":
            x, y = self.pixels(split, min(WATCHED, self.attack_samples))
            found = seen.accuracies(
                self._bounded(product, x, y, runtime, seen.Plan((), self.epsilon, self.pgd_steps))
            )
            first = {key: found[key] for key in (self.decides,) if key in found}
            return first | found | scores
        audit = self.audit(product, runtime)
        self.remember(product, audit=audit)
        rights = {
            "robust_accuracy": audit.robust,
            "fgsm_accuracy": audit.rows[seen.FGSM],
            "pgd_accuracy": audit.rows[seen.PGD],
        }
        scores.pop("per_sample")
        if self.decides in rights:
            scores["per_sample"] = rights[self.decides].double().tolist()
        return scores | audit.numbers()

    def audit(self, product: nn.Module, runtime: Runtime) -> seen.Audit:
        """All attacks on the test images; the images are the same for every network."""
        x, y = self.pixels("test", self.attack_samples)
        source = self.undistilled() if self.transfer else None
        rows = self._bounded(product, x, y, runtime, self.plan, source)
        chosen = stratified(y, min(self.carlini_samples, len(x)), seed_of(ATTACKED, 1))
        model = self.in_pixels(product).to(runtime.device)

        def one(ids: Tensor) -> seen.Rows:
            return seen.minimal(
                model, x[chosen[ids]].to(runtime.device), y[chosen[ids]].to(runtime.device), self.plan
            )

        return seen.Audit(self.plan, x, rows, chosen, _shared(len(chosen), one, runtime))

    def _bounded(
        self,
        product: nn.Module,
        x: Tensor,
        y: Tensor,
        runtime: Runtime,
        plan: seen.Plan,
        source: nn.Module | None = None,
    ) -> seen.Rows:
        start = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed_of(START))) - 1
        model = self.in_pixels(product).to(runtime.device)
        origin = None if source is None else self.in_pixels(source).to(runtime.device)

        def one(ids: Tensor) -> seen.Rows:
            placed = [part[ids].to(runtime.device) for part in (x, y, start)]
            return seen.bounded(model, placed[0], placed[1], plan, placed[2], origin)

        return _shared(len(x), one, runtime)

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Curves over both budgets, what each attack turns, the gradients, and images before and after."""
        audits = self.recalled(products, "audit")
        return figures.pictures(audits, self.images.classes) if audits else []

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """See the base; a network from a folder keeps its own architecture's name."""
        task = self
        if self.audited not in ("", "pretrained") and "student" not in self.given:
            task = self.but(student=read_config(self._folder()).get("architecture") or self.student)
        super(Robustness, task).export(product, folder, about)

    def quick(self) -> Robustness:
        """See the base; few images, few steps of every attack."""
        made = super().quick()
        assert isinstance(made, Robustness)
        return made.but(
            student="cnn:4-8",
            attack_samples=40,
            carlini_samples=10,
            carlini_steps=10,
            carlini_searches=2,
            pgd_steps=3,
        )


def adam() -> Recipe:
    """How networks are trained here: Adam at 1e-3, no weight decay."""
    return Recipe("adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def _shared(count: int, one: Callable[[Tensor], seen.Rows], runtime: Runtime) -> seen.Rows:
    """`one` over ids 0 .. count - 1, each process a share, in pieces; the rows of all on every process."""
    mine = torch.arange(count).tensor_split(runtime.size)[runtime.rank]
    parts = [one(ids) for ids in mine.split(seen.CHUNK)]
    return {name: runtime.gather_rows(torch.cat([part[name] for part in parts])) for name in parts[0]}

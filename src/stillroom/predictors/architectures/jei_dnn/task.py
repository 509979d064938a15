"""The task of early exits: a trained classifier to be left early, and its settings held against each other.

Networks with exits have no one accuracy: each setting has an accuracy and a mean cost. All are scored at the same
costs, `budgets`, by running two neighbouring settings in such shares that the mean cost is the budget. That is a policy
that a user can run, so what is compared at a budget is what is had for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillroom import metrics
from stillroom.data import ImageData, Source
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.models import check as check_network
from stillroom.models import read_config
from stillroom.models.wrapping import describe
from stillroom.optim import Recipe
from stillroom.predictors.architectures.jei_dnn import saving
from stillroom.predictors.architectures.jei_dnn.losses import conformal_sets
from stillroom.predictors.architectures.jei_dnn.network import EarlyExit
from stillroom.predictors.architectures.jei_dnn.noisy import NoisySource
from stillroom.predictors.architectures.jei_dnn.pictures import Row, setting_figures
from stillroom.predictors.classification import Classification, stratified
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import TeacherJob
from stillroom.teacher import Teacher

HELD_OUT, NOISE = 23, 24
"""Keep the choice of validation images, and the noise on images, apart from all other seeds."""

DIGITS_NOISE, DIGITS_HELD_OUT = 0.7, 300


def blend(costs: Tensor, budget: float) -> Tensor:
    """Shares [M] of M settings, two neighbours in cost, whose mean cost is `budget`.

    Below the cheapest and above the dearest setting all of that one. costs [M].
    """
    order = costs.argsort(stable=True)
    ranked = costs[order]
    above = int((ranked < budget).sum())
    shares = torch.zeros_like(costs)
    if above in (0, len(costs)):
        shares[order[min(above, len(costs) - 1)]] = 1.0
        return shares
    low, high = ranked[above - 1], ranked[above]
    part = (budget - low) / (high - low)
    shares[order[above - 1]], shares[order[above]] = 1 - part, part
    return shares


@dataclass(eq=False)
class EarlyExiting(Classification):
    """Leave a trained classifier early: noisy 8x8 digits unless told otherwise."""

    teacher: str = "resnet:12@6"
    """Architecture of the backbone (mlp:WIDTHS, cnn:WIDTHS, resnet:WIDTHS@BLOCKS, timm:NAME, torchvision:NAME)."""
    student: str = ""
    """Has to be empty: the student is the teacher with exits."""
    teacher_epochs: int = 40
    """Epochs of the backbone's training, >= 1."""
    noise: float | None = None
    """Deviation of Gaussian noise on all images, in units of the scaled pixels; None: 0, on the built-in digits 0.7."""
    fresh_noise: bool = False
    """Draw the noise of training images anew in every epoch, not once; the backbone is always trained so."""
    validation_samples: int | None = None
    """Training images that make the validation split; None: the data's own split, of the built-in digits 300."""
    budgets: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Shares of the full cost, each in (0, 1], at which networks are compared."""
    judged_by: Literal["accuracy", "calibration"] = "accuracy"
    """What decides, both as means over the budgets: accuracy, or the expected calibration error."""

    @property
    def metric(self) -> str:  # type: ignore[override]
        """Mean over the budgets."""
        return "accuracy" if self.judged_by == "accuracy" else "expected_calibration_error"

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override,no-redef]
        """Errors are better small."""
        return self.judged_by == "accuracy"

    # -- data -------------------------------------------------------------------------------------------------------

    @property
    def images(self) -> ImageData:
        """The data, with the validation split and the noise that were asked for."""
        base = super().images
        if not self.deviation and self.held_out is None:
            return base
        key = (base.fingerprint, self.deviation, self.fresh_noise, self.held_out)
        held = self.__dict__.setdefault("_noisy", {})
        if key not in held:
            held[key] = self._changed(base)
        return held[key]

    @property
    def _built_in(self) -> bool:
        return self.data == "digits" and "data" not in self.given

    @property
    def deviation(self) -> float:
        """Of the noise: digits without any are too easy to keep a network long."""
        return (DIGITS_NOISE if self._built_in else 0.0) if self.noise is None else self.noise

    @property
    def held_out(self) -> int | None:
        """Training images that are the validation split; of digits the data's own 97 would decide too much."""
        return (
            DIGITS_HELD_OUT if self.validation_samples is None and self._built_in else self.validation_samples
        )

    def _changed(self, base: ImageData) -> ImageData:
        train: Source = base.train
        validation, test, splits = base.validation, base.test, dict(base.splits)
        if self.held_out is not None:
            ids = self._validation_ids(train, self.held_out, len(base.classes))
            rest = torch.ones(len(train), dtype=torch.bool)
            rest[ids] = False
            validation, train = train.subset(ids), train.subset(rest.nonzero().squeeze(1))
            splits["validation of training images"] = len(ids)
        if self.deviation:
            train, validation, test = (
                NoisySource(one, self.deviation, seed_of(NOISE, which), self.fresh_noise and which == 0)
                for which, one in enumerate((train, validation, test))
            )
            splits["noise"] = self.deviation
        return replace(base, train=train, validation=validation, test=test, splits=splits)

    def _validation_ids(self, train: Source, wanted: int, classes: int) -> Tensor:
        there = len(train)
        if train.labels is None or not classes <= wanted <= there - classes:
            raise UserError(
                f"--task.validation-samples is {wanted}: pass {classes} to {there - classes}, one of each class or "
                "more on both sides"
            )
        return stratified(train.labels, wanted, seed_of(HELD_OUT, self.split_seed))

    @property
    def _wanted(self) -> int | None:
        return self.student_samples

    # -- networks ---------------------------------------------------------------------------------------------------

    def teacher_job(self, engine: Any) -> TeacherJob | None:
        """Training the backbone on all training images, by the family's own recipe whatever that of the exits."""
        job = super().teacher_job(replace(engine, recipe=Recipe(), steps=0))
        if job is None:
            return None
        assert isinstance(job.task, EarlyExiting)
        usual = {"budgets": EarlyExiting.budgets, "judged_by": "accuracy", "fresh_noise": self.deviation > 0}
        return replace(job, task=job.task.but(**usual))

    def check(self, seed: int, teacher: bool) -> None:
        """Load the data and run the backbone on two blank images."""
        if self.student or "student" in self.given:
            raise UserError(
                f"--task.student is '{self.student_name}', but the student is the teacher: leave it out"
            )
        require("--task.noise", self.deviation, 0)
        for budget in self.budgets or (0.0,):
            require("--task.budgets", budget, 0, 1, ends="(]")
        images = self.images
        if images.train.labels is None or images.validation.labels is None:
            raise UserError(
                f"data '{images.name}' has no labels: pass --task.label-column with the column of them"
            )
        require("--task.teacher-epochs", self.teacher_epochs, 1)
        require("--task.teacher-batch-size", self.teacher_batch_size, 1)
        self.train()
        if teacher and not isinstance(self.given.get("teacher"), Teacher):
            if self.teacher == "none" and "teacher" not in self.given:
                raise UserError("exits need a backbone and --task.teacher is 'none': pass an architecture")
            about = {"shape": images.shape, "classes": self.classes, "data": images.name}
            check_network(self._outside_teacher(), role="teacher", name=self.teacher_name, **about)

    # -- scores -----------------------------------------------------------------------------------------------------

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """Means over the budgets on 'validation' or 'test', and on 'test' each setting's numbers.

        A network without exits has one setting, at the full cost.
        """
        source = self.images.validation if split == "validation" else self.images.test
        logits, y = runtime.predict(product, source)
        if y is None:
            raise UserError(
                f"the {split} split of data '{self.images.name}' has no labels: pass labelled data"
            )
        rows, right = self.rows(product, logits, y)
        costs = torch.tensor([row["cost"] for row in rows], dtype=torch.float64)
        shares = torch.stack([blend(costs, budget) for budget in self.budgets])
        names = ("accuracy", "expected_calibration_error", "negative_log_likelihood", "brier", "cost")
        if isinstance(product, EarlyExit):
            names = (*names, "coverage", "set_size")
        values = {
            name: shares @ torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names
        }
        found: dict[str, Any] = {"samples": len(y)} | {
            name: value.mean().item() for name, value in values.items()
        }
        if split == "validation":
            return found
        for index, budget in enumerate(self.budgets):
            at = f"at {budget:.0%} of the cost"
            found[f"accuracy {at}"] = values["accuracy"][index].item()
            found[f"calibration error {at}"] = values["expected_calibration_error"][index].item()
        if isinstance(product, EarlyExit):
            own = [row["cost"] for row in rows if row["chosen"]]
            found["settings out of order"] = sum(a < b for a, b in pairwise(own))
            self.remember(product, rows=rows)
            found["settings"] = [{k: v for k, v in row.items() if k != "reliability"} for row in rows]
        if self.judged_by == "accuracy":
            found["per_sample"] = (shares.mean(0) @ right).tolist()
        return found

    def rows(self, product: nn.Module, logits: Tensor, y: Tensor) -> tuple[list[Row], Tensor]:
        """A row for each setting and for always leaving at the first exit and at the last; correctness [M, n]."""
        if not isinstance(product, EarlyExit):
            return [{"name": "full", "cost": 1.0, "chosen": False} | _quality(logits, y)], _right(logits, y)[
                None
            ]
        network = product
        taken, count, sets = (
            network.leave(logits.to(network.costs.device)).cpu(),
            len(network.exits),
            network.settings.sets,
        )
        shares = network.shares.cpu()
        options = [(name, taken[:, m], sets[m], m) for m, name in enumerate(network.settings.names)]
        for name, exit_ in (("first exit", 0), ("last exit", count)):
            options.append((name, torch.full_like(y, exit_), sets[-1], -1))
        rows, right = [], []
        for name, exits, which, m in options:
            answer = logits[torch.arange(len(y)), which, exits]
            row: Row = {"name": name, "cost": shares[exits].mean().item(), "chosen": m >= 0}
            row |= _quality(answer, y)
            row["histogram"] = (exits.bincount(minlength=count + 1) / len(y)).tolist()
            inside = conformal_sets(answer.softmax(-1), network.conformal.cpu()[m][exits])
            row["coverage"] = inside[torch.arange(len(y)), y].float().mean().item()
            row["set_size"] = inside.sum(-1).float().mean().item()
            rows.append(row)
            right.append(_right(answer, y))
        return rows, torch.stack(right)

    def cost(self, product: nn.Module) -> dict[str, float]:
        """See the base; multiply-adds are those of a sample that never leaves, and of one that leaves at once."""
        if not isinstance(product, EarlyExit):
            return super().cost(product)
        costs = {"parameters": metrics.parameters(product), "multiply_adds": product.costs[-1].item()}
        costs |= {
            "multiply_adds_first_exit": product.costs[0].item(),
            "file_bytes": metrics.file_size(product),
        }
        x = self.images.test.fetch(torch.arange(1), view=None)[0].to(product.costs.device)
        return costs | {"latency_1": metrics.seconds_of(lambda: product.predict(x))}

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """Accuracy against cost, where samples leave, reliability and the sizes of conformal sets."""
        rows = self.recalled(products, "rows")
        return setting_figures(rows, self.budgets) if rows else []

    def export(self, product: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
        """Write weights (backbone included), config and card to `folder`."""
        assert isinstance(product, EarlyExit)
        saving.save(product, folder, about, self.images, describe(product.backbone), self.teacher_name)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> EarlyExit:
        """The network in `folder`; `module` is the backbone where it was the user's own."""
        return saving.load(folder, module)

    def portable(
        self, product: nn.Module, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """The full pass, which says the logits of all exits."""
        from stillroom.exporting.networks import early_exits

        assert isinstance(product, EarlyExit)
        config = read_config(folder)
        base = super().portable(product, folder, about, absent)
        return early_exits(base, product.backbone, config, saving.card(config, about))

    # -- copies -----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """See the base; there is no other student than the teacher."""
        return super().summary() | {"student": f"{self.teacher_name} with exits"}

    def quick(self) -> EarlyExiting:
        """A hundred digits and two epochs for a backbone of three blocks."""
        made = self.but(
            data="digits", train_samples=120, student_samples=80, teacher_epochs=2, image_size=None
        )
        return made.but(
            validation_samples=30, teacher="resnet:4@3", teacher_weights="", teacher_augment="none"
        )


def _right(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(-1) == y).double()


def _quality(logits: Tensor, y: Tensor) -> Row:
    names = ("accuracy", "expected_calibration_error", "negative_log_likelihood", "brier")
    return {name: getattr(metrics, name)(logits, y) for name in names} | {
        "reliability": metrics.reliability(logits, y)
    }

"""PS-KD: the method (Kim et al., ICCV 2021, arXiv:2006.12000)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.claim import Claim
from stillroom.data.texts import IGNORED
from stillroom.errors import UserError, require
from stillroom.method import Batch, Clock, Gather, Method, Update, Updates
from stillroom.models.probing import quietly
from stillroom.predictors.classification import Classification
from stillroom.predictors.language_modelling import LanguageModelling
from stillroom.predictors.parts.losses import soft_cross_entropy
from stillroom.predictors.parts.memory import Distributions
from stillroom.predictors.parts.snapshot import Snapshot
from stillroom.task import Task

GIB = 2**30
CHUNK = 256
"""Texts whose labels are read at a time."""


def as_distributions(y: Tensor, classes: int) -> Tensor:
    """Labels as float32 [n, classes]: one-hot for class numbers [n]; mixed labels [n, classes] as they are."""
    return y if y.is_floating_point() else F.one_hot(y, classes).float()


def weight_of_past(alpha: float, clock: Clock) -> float:
    """alpha_e = alpha_E e / E for the epochs e = 1 .. E: it rises once an epoch, to `alpha` in the last."""
    return alpha * (clock.epoch + 1) / clock.epochs


def refined_targets(labels: Tensor, past: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) y + alpha P. Distributions [n, C], alpha in [0, 1]; no gradient for the past."""
    return (1 - alpha) * labels + alpha * past.detach()


@dataclass(eq=False)
class PSKD(Method):
    """Progressive self-knowledge distillation (Kim et al., ICCV 2021, arXiv:2006.12000, section 3).

    L_e = -sum_i [(1 - alpha_e) y_i + alpha_e P_i] log p_i with alpha_e = alpha e / E, where P is what the network in
    training said of the sample in epoch e - 1, and P = y in the first.
    """

    name: ClassVar[str] = "ps-kd"
    uses_teacher: ClassVar[bool] = False
    per_token: ClassVar[bool] = True

    alpha: float = 0.8
    """Weight alpha_E of the past prediction in the last epoch, in [0, 1] (0.8 on CIFAR-100, 0.3 on ImageNet)."""
    schedule: Literal["linear", "constant"] = "linear"
    """How the weight comes to alpha: by equal steps an epoch; constant, from the first epoch on, is an ablation."""
    past: Literal["stored", "snapshot", "current"] = "stored"
    """The prediction: stored in training; recomputed by a copy of last epoch's network; or of this step (ablation)."""
    memory: Literal["float32", "float16"] = "float32"
    """Precision of the stored predictions."""
    top_k: int = 0
    """Classes that are stored of each prediction, the likeliest, with the mass of the rest; 0 stores all."""
    limit: float = 8.0
    """GiB that the stored predictions may take, > 0; more are refused before training."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.alpha", self.alpha, 0, 1)
        require("--method.top-k", self.top_k, 0)
        require("--method.limit", self.limit, 0, ends="(]")

    def bind(self, task: Task, seed: int) -> None:
        """Make an empty memory, or a copy of the student; UserError for data without labels or too many of them."""
        super().bind(task, seed)
        self.seen = source = task.train()
        self.width = task.length if isinstance(task, LanguageModelling) else 0
        if source.labels is None and not self.width:
            raise UserError("method 'ps-kd' refines labels and the data have none: pass labelled data")
        self.before = Snapshot(self.student) if self.past == "snapshot" else None
        self.stored = None
        if self.past == "stored":
            with quietly(self.student):
                classes = self.student(task.example()).shape[-1]
            count = len(source) * max(1, self.width)
            self._see_room(count, classes)
            self.stored = Distributions(count, classes, self.memory, self.top_k)
            if getattr(task, "mixup", 0) or getattr(task, "cutmix", 0):
                warnings.warn(
                    "stored predictions are of the mixture of the epoch before, with another partner: pass "
                    "--method.past snapshot for predictions of the mixture at hand",
                    stacklevel=2,
                )

    def _see_room(self, samples: int, classes: int) -> None:
        if self.top_k >= classes:
            raise UserError(
                f"--method.top-k is {self.top_k} of {classes} classes: pass at most {classes - 1}, or 0 for all"
            )
        size = Distributions.size(samples, classes, self.memory, self.top_k) / GIB
        if size > self.limit:
            raise UserError(
                f"the predictions of {samples:,} {'tokens' if self.width else 'samples'} and {classes:,} classes take "
                f"{size:.3g} GiB, above --method.limit {self.limit:g}: raise it, or pass --method.memory float16, "
                "--method.top-k or --method.past snapshot"
            )

    def updates(self, batch: Batch) -> Updates:
        """One step on refined labels; what the network says of the batch is remembered for the next epoch."""
        if self.before is not None:
            self.before.keep_up(self.student, batch.clock.epoch)
        ids, y, counted = self._labelled(batch)
        logits = self.student(batch.x)[counted]
        own = logits.detach().float().softmax(-1)
        labels = as_distributions(y, logits.shape[-1])
        alpha = weight_of_past(self.alpha, batch.clock) if self.schedule == "linear" else self.alpha
        target = refined_targets(labels, self._past(batch, ids, own, labels, counted), alpha)
        loss = soft_cross_entropy(logits, target) if len(ids) else 0 * logits.sum()
        on_label = (target * labels).sum() / max(1, len(ids))
        logs = {"alpha": loss.new_tensor(alpha), "target on the label": on_label}
        if self.stored is not None:
            rows = yield Gather(ids)
            self.stored.write(rows, (yield Gather(own)))
        yield Update("student", loss, items=len(ids), logs=logs)

    def _labelled(self, batch: Batch) -> tuple[Tensor, Tensor, Any]:
        """Of all that has a label in the batch its row in the memory, the label, and where its logits are."""
        if not self.width:
            return batch.index, batch.y, ...
        counted = batch.y != IGNORED
        places = torch.arange(batch.y.shape[-1], device=batch.y.device)
        return (batch.index.unsqueeze(1) * self.width + places)[counted], batch.y[counted], counted

    def _past(self, batch: Batch, ids: Tensor, own: Tensor, labels: Tensor, counted: Any) -> Tensor:
        """P [m, C] for all that has a label in the batch: the labels themselves where there is no past."""
        if self.stored is not None:
            known = self.stored.known(ids).unsqueeze(-1)
            return torch.where(known, self.stored.read(ids), labels)
        if self.before is not None:
            return self.before.logits(batch.x)[counted].float().softmax(-1) if self.before.epoch else labels
        return own

    def state(self) -> dict[str, Tensor]:
        """The memory: without it a resumed run would have hard labels for an epoch."""
        remembered = self.stored or self.before
        return remembered.state() if remembered else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        remembered = self.stored or self.before
        if remembered:
            remembered.load_state(state)

    def figures(self) -> list[dict[str, str]]:
        """What the network said of the labels of its training samples when it saw them last."""
        from stillroom.reports.generation_figures import histogram_bars

        if self.stored is None:
            return []
        said = self.stored.at(self._all_labels())
        counts = said[~said.isnan()].histc(10, 0, 1)
        bins = [f"{low}-{low + 10} %" for low in range(0, 100, 10)]
        what = "training tokens" if self.width else "training samples"
        shares = [(what, (100 * counts / counts.sum()).tolist())]
        return [
            {
                "title": "What became of the labels",
                "caption": f"{what.capitalize()} by the probability of their label in the memory, as the network "
                "said it when it last trained on them. Far to the left are hard ones and wrong labels.",
                "svg": histogram_bars(
                    bins, shares, f"{what.split()[1]}, %", f"{what} by remembered probability"
                ),
            }
        ]

    def _all_labels(self) -> Tensor:
        """The label of each row of the memory; some class where there is none to be learnt."""
        if not self.width:
            assert self.seen.labels is not None
            return self.seen.labels
        rows = [self.seen.fetch(ids, None)[1] for ids in torch.arange(len(self.seen)).split(CHUNK)]
        same = [F.pad(y, (0, self.width - y.shape[-1]), value=0) for y in rows if y is not None]
        return torch.cat(same).flatten().clamp_min(0)

    @classmethod
    def default_task(cls) -> Classification:
        """Digits without a teacher."""
        return Classification(teacher="none", student="mlp:64")

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Better calibrated than plain training: on photographs, with and without augmentation, and on wrong labels."""
        from stillroom.predictors.labels.ps_kd.claims import all_claims

        return all_claims()

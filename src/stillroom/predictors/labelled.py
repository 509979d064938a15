"""What tasks of labelled data share, images or texts: the student's samples, the teacher's training, the scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from stillroom import metrics
from stillroom.data import Source
from stillroom.errors import UserError
from stillroom.predictors.taught import TaughtTask
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import TeacherJob


class LabelledData(Protocol):
    """Labelled samples in three splits: images or texts."""

    train: Source
    validation: Source
    test: Source
    classes: list[str]
    name: str
    splits: dict[str, object]
    fingerprint: str


class LabelledTask(TaughtTask):
    """Classify. A subclass is a dataclass that has the options below among its own, and says how to load and build."""

    metric: ClassVar[str] = "accuracy"
    teacher_ignores: ClassVar[dict[str, Any]]
    """Options that say nothing of how a teacher is trained, at values where they do not make another teacher of it."""

    student_samples: int | None
    teacher_epochs: int
    teacher_batch_size: int

    @property
    def labelled(self) -> LabelledData:
        """The data with their splits, loaded once."""
        raise NotImplementedError

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labelled.classes)

    @property
    def wanted(self) -> int | None:
        """How many of the training samples the student sees; None for all."""
        return self.student_samples

    def seen(self) -> Source:
        """The training samples that the student sees."""
        ids = self.seen_ids()
        return self.labelled.train if ids is None else self.labelled.train.subset(ids)

    def seen_ids(self) -> Tensor | None:
        """Ids of the training samples that the student sees; None where it sees all."""
        source, wanted = self.labelled.train, self.wanted
        if wanted is None:
            return None
        there, labels = len(source), source.labels
        if labels is None or not self.classes <= wanted <= there:
            raise UserError(
                f"--task.student-samples is {wanted}: pass {self.classes} (one a class) to {there} (all)"
            )
        return stratified(labels, wanted, seed_of(self.subset_seed, 7))

    def fingerprint(self) -> str:
        """The digest of samples and labels."""
        return self.labelled.fingerprint

    # -- the teacher --------------------------------------------------------------------------------------------

    def teacher_job(self, engine: Any) -> TeacherJob | None:
        """Training the teacher on all training samples, with the student's engine but for epochs and batch size."""
        if "teacher" in self.given or self.weights or self.teacher == "none":
            return None
        data = self.labelled
        task = self.but(
            student=self.teacher,
            teacher="none",
            student_samples=len(data.train),
            **self.teacher_ignores,
            **self.teacher_options(),
        )
        task.given = {key: value for key, value in self.given.items() if key in ("data", "tokenizer")}
        engine = replace(engine, epochs=self.teacher_epochs, batch_size=self.teacher_batch_size)
        return TeacherJob(self.baseline(), task, engine, self.teacher_seed, {"data": data.fingerprint})

    def teacher_options(self) -> dict[str, Any]:
        """Options of the task on which the teacher is trained that are not the student's."""
        return {}

    # -- scores and copies --------------------------------------------------------------------------------------

    def score(self, product: nn.Module, split: str, runtime: Runtime) -> dict[str, Any]:
        """Accuracy, calibration and the rest on 'validation' (the scalars) or 'test' (all of it)."""
        data = self.labelled
        source = data.validation if split == "validation" else data.test
        logits, y = runtime.predict(product, source)
        if y is None:
            raise UserError(f"the {split} split of data '{data.name}' has no labels: pass labelled data")
        if split == "validation":
            loss = metrics.negative_log_likelihood(logits, y)
            return {"accuracy": metrics.accuracy(logits, y), "negative_log_likelihood": loss}
        right = (logits.argmax(-1) == y).tolist()
        return metrics.classification_report(logits, y) | {"per_sample": [float(r) for r in right]}

    def baseline(self) -> Any:
        """Training without a teacher."""
        from stillroom.predictors.baselines import Plain

        return Plain()


def stratified(labels: Tensor, wanted: int, seed: int) -> Tensor:
    """Ids [wanted], ascending, of a random subset with each class's share kept, at least one of each class."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    groups = [order[labels[order] == c] for c in labels.unique()]
    # Rank samples by how far into their class they stand; the first of every class come first.
    place = torch.cat([torch.arange(len(g)) / len(g) for g in groups])
    ids = torch.cat(groups)
    return ids[place.argsort(stable=True)[:wanted]].sort().values

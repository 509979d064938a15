"""Mirage as a method, what it is held against, and its claims."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from stillroom.claim import Claim, Rule
from stillroom.condensation.mirage.distilling import all_graphs, distil_graphs, random_graphs
from stillroom.condensation.mirage.graphs import GraphSet
from stillroom.condensation.mirage.task import GraphCondensation
from stillroom.errors import UserError, require
from stillroom.method import Fit, Method, Result
from stillroom.task import Task

SAYS = (
    "Networks of three kinds that learn from one set of frequent computation trees, {} of the bytes, classify better "
    "than those that learn from random graphs of the same bytes."
)


@dataclass(eq=False)
class Condensation(Method):
    """What condensing methods share: the built-in molecules."""

    uses_teacher: ClassVar[bool] = False
    uses_engine: ClassVar[bool] = False

    def condense(self, task: GraphCondensation, seed: int) -> GraphSet:
        """The set that is left of the task's training graphs."""
        raise NotImplementedError

    def run(self, task: Task, fit: Fit) -> Result:
        """Condense; there is nothing to train."""
        assert isinstance(task, GraphCondensation)
        made = self.condense(task, fit.seed)
        return Result(made, made.about["seconds"])

    @classmethod
    def default_task(cls) -> GraphCondensation:
        """Four thousand molecules made of fragments, a hundredth of their bytes to be left."""
        return GraphCondensation()


@dataclass(eq=False)
class RandomGraphs(Condensation):
    """Random original graphs, class by class, of the same bytes (a baseline of Gupta et al., 2024, section 4)."""

    name: ClassVar[str] = "random-graphs"
    listed: ClassVar[bool] = False
    role: ClassVar[str] = "random graphs of the same bytes"

    def condense(self, task: GraphCondensation, seed: int) -> GraphSet:
        """As many as fit."""
        return random_graphs(task.graphs.train, task.budget, seed)


@dataclass(eq=False)
class AllGraphs(Condensation):
    """All training graphs: the ceiling (Gupta et al., 2024, section 4)."""

    name: ClassVar[str] = "all-graphs"
    listed: ClassVar[bool] = False
    role: ClassVar[str] = "all training graphs"

    def condense(self, task: GraphCondensation, seed: int) -> GraphSet:
        """Everything."""
        return all_graphs(task.graphs.train)


@dataclass(eq=False)
class Mirage(Condensation):
    """Frequent sets of computation trees (Gupta et al., ICLR 2024, arXiv:2310.09486, section 3, algorithm 1).

    Per class: the set of computation trees of each graph, in canonical form, is a transaction; FP-growth finds the
    sets of trees that at least theta of the class's graphs hold together; each is one example, a forest whose roots
    are pooled, drawn as often as it was found.
    """

    name: ClassVar[str] = "mirage"

    sampling: Literal["frequency", "uniform"] = "frequency"
    """Draw examples of a class in proportion to their frequency, or (as the published code does) all alike."""
    prune: bool = False
    """Leave out sets that are frequent in more than one class (published: for NCI1)."""
    largest: int = 0
    """Most trees of a set; 0 for no limit, 1 takes the most frequent single trees."""
    threshold: float = 0.0
    """Share of a class's graphs that must hold a set; 0 tunes the thresholds to the budget."""
    most_children: int = 0
    """Children of a tree node that are kept, evenly spread in canonical order, for graphs with hubs; 0 keeps all."""
    exact_degrees: bool = False
    """Tell trees apart by the degrees of their leaves too, so that all are exact for a GCN; else the commonest."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.largest", self.largest, 0)
        require("--method.most-children", self.most_children, 0)
        require("--method.threshold", self.threshold, 0, 1)

    def condense(self, task: GraphCondensation, seed: int) -> GraphSet:
        """Grow, mine, and make forests; nothing is random."""
        train, thresholds = task.graphs.train, None
        if self.threshold:
            counts = torch.bincount(torch.cat([graph.y for graph in train]))
            thresholds = [max(1, int(-(-self.threshold * int(count) // 1))) for count in counts]
        made = distil_graphs(
            train,
            depth=task.depth,
            budget=task.budget,
            prune=self.prune,
            largest=self.largest,
            most_children=self.most_children,
            exact_degrees=self.exact_degrees,
            thresholds=thresholds,
        )
        if len({int(graph.y) for graph in made}) < len(task.graphs.classes):
            raise UserError(
                f"--method.threshold {self.threshold:g} leaves a class without examples: lower it"
            )
        if self.sampling == "uniform":
            for graph in made:
                graph.weight = torch.ones(1)
        return made

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Forests train networks better than random graphs of the same bytes: on molecules, MUTAG and NCI1."""
        arms = {
            "random": RandomGraphs(),
            "single-trees": cls(largest=1),
            "uniform": cls(sampling="uniform"),
            "mirage": cls(),
            "all": AllGraphs(),
        }
        rules = (
            Rule("mirage", "random"),
            Rule("mirage", "single-trees", headline=False),
            Rule("mirage", "uniform", headline=False),
            Rule("all", "mirage", headline=False),
        )
        molecules = Claim(
            name="mirage-molecules",
            says=SAYS.format("a hundredth"),
            task=cls.default_task(),
            engine=cls.default_engine(),
            arms=arms,
            rules=rules,
            seeds=5,
            notes="Molecules made of fragments in place of the paper's sets; mean area under the ROC curve of GCN, "
            "GAT and GIN.",
        )
        mutag = replace(
            molecules,
            name="mirage-mutag",
            says=SAYS.format("a tenth"),
            task=cls.default_task().but(budget=0.1),
            data="graphs/MUTAG",
            notes="MUTAG, not among the paper's sets: 150 graphs to train on, 38 to test on; no kinds of bonds.",
        )
        nci1 = replace(
            molecules,
            name="mirage-nci1",
            arms={arm: replace(m, prune=True) if isinstance(m, cls) else m for arm, m in arms.items()},
            data="graphs/NCI1",
            notes="NCI1, without kinds of bonds and pruned, as published; a tenth of 3,288 training graphs validate.",
        )
        return molecules, mutag, nci1

"""The task: labelled graphs are to become a small set that trains graph networks of several kinds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stillroom.condensation.mirage.distilling import budget_bytes, bytes_of
from stillroom.condensation.mirage.drawings import pictures
from stillroom.condensation.mirage.forming import Features
from stillroom.condensation.mirage.graphs import Columns, GraphSet, Packs
from stillroom.condensation.mirage.networks import Kind, Pool
from stillroom.condensation.mirage.reading import GraphData, Reading, load_graphs
from stillroom.condensation.mirage.saving import card, load_graphs_from, save_graphs, write_card
from stillroom.condensation.mirage.training import Lesson, Recipes, logits_of, placements, trained
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.task import Task

if TYPE_CHECKING:
    from stillroom.method import Method

NETWORK = 42
"""Keeps the seeds of fresh networks apart from all others."""


@dataclass(eq=False)
class GraphCondensation(Task):
    """Distil graphs to a budget of bytes; judged by fresh networks of each kind that learn from what is left.

    A network is trained by the Engine for `steps` steps on examples drawn in proportion to their weights, and keeps
    the weights that did best on the original validation graphs, the same for every arm; it is then asked about the
    original test graphs.
    """

    metric: ClassVar[str] = "auc"
    per_sample_words: ClassVar[str] = "test graphs"

    data: str = "molecules"
    """molecules (made here, 3/4 to train on), or a folder or file of parquet or csv with graphs or SMILES."""
    smiles_column: str | None = None
    """Column of the SMILES; None finds it."""
    label_column: str | None = None
    """Column of the labels; None finds it."""
    features: Features = "given"
    """Node features as given, or the degree in their place (for graphs that have none)."""
    molecules: int = 4000
    """Molecules to make, where they are made, >= 100."""
    budget: float = 0.01
    """Size of what is left: below 1 a share of the training graphs' bytes, else bytes."""
    depth: int = 2
    """Layers of the networks to come, and so the depth of computation trees, >= 1."""
    networks: tuple[Kind, ...] = ("gcn", "gat", "gin")
    """Kinds of networks that learn from what is left."""
    repeats: int = 1
    """Fresh networks of each kind, >= 1."""
    hidden: int = 64
    """Width of their layers, a multiple of 4."""
    pool: Pool = "mean"
    """How the roots' embeddings become one for the graph."""
    steps: int = 500
    """Training steps of each network, >= 1."""
    batch_size: int = 64
    """Examples a step, >= 1."""
    lr: float = 1e-3
    """Learning rate of their training (Adam), > 0."""
    evaluate_every: int = 25
    """Steps between looks at the validation graphs, >= 1."""
    split_seed: int = 0
    """Seed of made molecules, and of the splits that data do not come with."""
    network_seed: int = 0
    """Seed of the fresh networks."""

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def graphs(self) -> GraphData:
        """The graphs with their splits, loaded once."""
        how = Reading(self.features, self.smiles_column, self.label_column, self.molecules, self.split_seed)
        return self.loaded(load_graphs, self.data, how=how)

    @property
    def prior(self) -> Tensor:
        """Share of each class among the training graphs, [C]."""
        counts = torch.bincount(
            torch.cat([g.y for g in self.graphs.train]), minlength=len(self.graphs.classes)
        )
        return counts / counts.sum()

    @property
    def _tools(self) -> tuple[Columns, Columns, dict[str, Packs]]:
        """How features are put in, and the original graphs packed, made once for the data."""
        held = self.__dict__.setdefault("_packed", {})
        graphs = self.graphs
        if graphs.fingerprint not in held:
            columns = Columns(graphs.train, "x"), Columns(graphs.train, "edge_attr")
            packs = {s: Packs(getattr(graphs, s), *columns) for s in ("validation", "test")}
            held[graphs.fingerprint] = (*columns, packs)
        return held[graphs.fingerprint]

    # -- scores -----------------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """See the ranges of the fields, load the graphs, and see that the budget is less than all of them."""
        least = {"depth": 1, "repeats": 1, "hidden": 4, "steps": 1, "batch_size": 1, "evaluate_every": 1}
        for name, low in {**least, "molecules": 100}.items():
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), low)
        require("--task.lr", self.lr, 0, ends="(]")
        if self.hidden % 4:
            raise UserError(f"--task.hidden is {self.hidden}: pass a multiple of 4")
        if not self.networks or len(set(self.networks)) < len(self.networks):
            raise UserError(f"--task.networks is {' '.join(self.networks) or 'empty'}: pass each kind once")
        graphs = self.graphs
        all_of_them, budget = bytes_of(graphs.train), budget_bytes(graphs.train, self.budget)
        if budget > all_of_them:
            raise UserError(
                f"--task.budget is {budget:.0f} bytes and the training graphs have {all_of_them}: pass less"
            )
        self._tools  # noqa: B018  (packs the graphs, so that odd ones are met now)

    def learned(self, product: GraphSet) -> dict[str, list[nn.Module]]:
        """Fresh networks of each kind that have learned from `product`, trained once for it."""
        key = (self.networks, self.repeats, self.network_seed, self._how, self.graphs.fingerprint)
        held = _LEARNED.setdefault(product, {})
        if key not in held:
            nodes, edges, packs = self._tools
            given = Packs(product.graphs, nodes, edges)
            held[key] = {
                kind: [
                    trained(
                        Lesson(
                            kind,
                            given,
                            packs["validation"],
                            self.prior,
                            (nodes.width, edges.width),
                            self._how,
                        ),
                        seed_of(NETWORK, self.network_seed, number, repeat),
                    )
                    for repeat in range(self.repeats)
                ]
                for number, kind in enumerate(self.networks)
            }
        return held[key]

    @property
    def _how(self) -> Recipes:
        return Recipes(
            self.depth, self.hidden, self.pool, self.steps, self.batch_size, self.lr, self.evaluate_every
        )

    def score(self, product: GraphSet, split: str, runtime: Runtime) -> dict[str, Any]:
        """Area under the ROC curve on original graphs, mean over networks and of each kind; and what is kept."""
        packs = self._tools[2][split]
        by_kind = {
            kind: torch.stack([placements(logits_of(net, packs, runtime), packs.y) for net in networks]).mean(
                0
            )
            for kind, networks in self.learned(product).items()
        }
        every = torch.stack(list(by_kind.values())).mean(0)
        areas = {f"auc_{kind}": float(parts.mean()) for kind, parts in by_kind.items()}
        numbers = {"auc": float(every.mean()), **areas}
        if split == "validation":
            return numbers
        about = product.about
        return {
            **numbers,
            "bytes_kept": about["bytes"],
            "share_of_bytes": about["bytes"] / about["bytes_of_all"],
            "examples": len(product),
            "distilling_seconds": about["seconds"],
            "samples": len(packs),
            "per_sample": every.tolist(),
        }

    def cost(self, product: GraphSet) -> dict[str, float]:
        """Bytes of the set."""
        return {"file_bytes": product.bytes}

    def summary(self) -> dict[str, Any]:
        """Name, sizes, classes and splits of the graphs."""
        graphs = self.graphs
        return {
            "name": graphs.name,
            "graphs": {s: len(getattr(graphs, s)) for s in ("train", "validation", "test")},
            "classes": graphs.classes,
            "splits": graphs.splits,
            "bytes of the training graphs": bytes_of(graphs.train),
            "fingerprint": graphs.fingerprint,
        }

    def fingerprint(self) -> str:
        """The digest of the graphs."""
        return self.graphs.fingerprint

    def figures(self, products: Mapping[str, GraphSet], runtime: Runtime) -> list[dict[str, str]]:
        """The most frequent trees by class, how few trees are how many nodes, and the score by kind of network."""
        scores = {arm: self.score(product, "test", runtime) for arm, product in products.items()}
        names = "elements" if self.graphs.name == "molecules" or self.smiles_column else "kinds"
        return pictures(products, scores, self.networks, self.graphs.classes, names)

    def export(self, product: GraphSet, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the set as parquet, with about.json and a card."""
        named = GraphSet(product.graphs, product.about | {"classes": self.graphs.classes})
        save_graphs(folder, named)
        write_card(folder, named, about)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> GraphSet:
        """The set in `folder`."""
        return load_graphs_from(folder)

    def portable(
        self, product: GraphSet, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """A data set of graphs."""
        return Portable(kind="dataset", card=card(product, about))

    # -- copies -------------------------------------------------------------------------------------------------

    def baseline(self) -> Method:
        """Random graphs of the same bytes."""
        from stillroom.condensation.mirage.methods import RandomGraphs

        return RandomGraphs()

    def paired(self, seed: int) -> GraphCondensation:
        """The same problem with other molecules or another validation split, and other fresh networks."""
        return self.but(split_seed=seed, network_seed=seed)

    def quick(self) -> GraphCondensation:
        """Few molecules, one network, few steps."""
        return self.but(
            data="molecules",
            molecules=240,
            budget=0.1,
            networks=("gin",),
            repeats=1,
            hidden=16,
            steps=20,
            evaluate_every=10,
        )


_LEARNED: WeakKeyDictionary[GraphSet, dict[Any, dict[str, list[nn.Module]]]] = WeakKeyDictionary()
"""Networks by the set that they learned from: a run asks for its score on two splits and for figures."""

"""Mirage: a few frequent computation trees in place of thousands of labelled graphs.

What for: a set of labelled graphs so small that graph networks learn from it on a weak device, made once for all of
them: of the networks to come nothing is needed but their depth, and neither a network nor a gradient is used.

The idea: an L-layer message-passing network sees of a node its computation tree of depth L and nothing else, so a
graph is to it a set of trees. Few of the distinct trees make up most of all nodes. The sets of trees that many
graphs of a class hold together (FP-growth on their canonical labels) become forests with edges from child to parent;
networks learn from them by pooling the roots alone, and are then used on original graphs.

Source: Gupta, Manchanda, Kodamana and Ranu, "Mirage: Model-Agnostic Graph Distillation for Graph Classification",
ICLR 2024, arXiv:2310.09486. Section 3 (trees, canonical labels, mining, training), and the authors' published code.

Deviations. From the published code: examples are drawn in proportion to their frequency, as the paper says, where
the code draws all alike (`sampling="uniform"`); FP-growth is exact, where the library that the code calls loses up
to a fifth of the sets; numbers in labels are parted, where one of the code's two forms runs their digits together;
the degrees of the original graph are kept with each tree node, so that a GCN's root is exact too; thresholds are
tuned to a budget of bytes, where the code has numbers by hand. From the paper's count of bytes, to Mirage's
disadvantage: degrees, roots, labels and weights count, and an undirected edge of an original graph counts once. The
networks are GCN, GAT and GIN without normalisation over the batch, and take their best weights by original
validation graphs, as in the code.
"""

from __future__ import annotations

from stillroom.condensation.mirage.distilling import distil_graphs
from stillroom.condensation.mirage.graphs import GraphSet
from stillroom.condensation.mirage.methods import AllGraphs, Mirage, RandomGraphs
from stillroom.condensation.mirage.mining import fp_growth
from stillroom.condensation.mirage.networks import GraphNetwork
from stillroom.condensation.mirage.reading import load_graphs
from stillroom.condensation.mirage.saving import load_graphs_from
from stillroom.condensation.mirage.task import GraphCondensation
from stillroom.condensation.mirage.trees import Tree, canonical, canonical_labels, parse

__all__ = [
    "AllGraphs",
    "GraphCondensation",
    "GraphNetwork",
    "GraphSet",
    "Mirage",
    "RandomGraphs",
    "Tree",
    "canonical",
    "canonical_labels",
    "distil_graphs",
    "fp_growth",
    "load_graphs",
    "load_graphs_from",
    "parse",
]

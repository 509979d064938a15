"""DP-KD: train on a small part of the data, taught by a network that has seen all of them.

What for: training again and again, or where storage is short, on a few percent of a data set, with little lost. Out
come the list of the samples to keep, the teacher's weight that suits so few, and the student.

The idea: data pruning keeps a fraction of the samples, at random or by a score, and loses accuracy. The soft answers of
a teacher of all data to the kept samples give much of it back, the more the fewer are kept; then a random choice is as
good as a clever one, and the wrong labels that scores pick as hard do no harm. The weight of the teacher against the
labels has to be found for each fraction: it rises as the fraction falls.

Source: Ben-Baruch, Botach, Kviatkovsky, Aggarwal and Medioni, "Distilling the Knowledge in Data Pruning", ICML 2025,
arXiv:2403.07854. Rules: EL2N and GraNd, Paul et al., NeurIPS 2021, arXiv:2107.07075; forgetting, Toneva et al., ICLR
2019, arXiv:1812.05159; prototypes, Sorscher et al., NeurIPS 2022, arXiv:2206.14486; herding, Welling, ICML 2009.

Deviations. All trainings have the same number of optimizer steps whatever is kept; the paper's own choice is not known
here, equal epochs are an option (`--method.budget epochs`). There is no public code; the grid of alpha, temperature,
networks and schedules of the paper are not known and are choices of this house. GraNd is the norm in the last layer
only, after one epoch, and EL2N the mean over 3 networks for the published 10 (both are options). Prototypes are found
in the features of a network that was trained on the labels, not of a self-supervised one, by Euclidean distance. Where
training labels are made wrong (`--task.label-noise`) validation labels stay right: alpha is chosen by cleaner data
than are trained on. Memorisation scores are left out: they need thousands of trainings.
"""

from __future__ import annotations

from stillroom.predictors.labels.data_pruning_kd.claims import sweep, sweep_figure, table
from stillroom.predictors.labels.data_pruning_kd.method import DataPruningKD, KeptAlone, pruned_kd_loss
from stillroom.predictors.labels.data_pruning_kd.task import INDICES, Kept, PrunedClassification

__all__ = [
    "INDICES",
    "DataPruningKD",
    "Kept",
    "KeptAlone",
    "PrunedClassification",
    "pruned_kd_loss",
    "sweep",
    "sweep_figure",
    "table",
]

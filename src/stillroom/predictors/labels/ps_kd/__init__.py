"""PS-KD: labels that are softened with what the network itself said in the epoch before.

What for: any supervised classification, without a teacher. The same network comes out, with better calibrated
confidences and often fewer errors; it costs a memory of one distribution a training sample.

The idea: the label of a sample is blended with the network's own output for it in the previous epoch, ever more so
as training goes on. A sample that the network has got surer of is then let go, and one that has become harder keeps
its whole gradient: the gradient on the wrong classes is rescaled by 1 - alpha (1 - P_y) / (1 - p_y).

Source: Kim, Ji, Yoon and Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021,
arXiv:2006.12000.

Where every token has a label (`--problem language-modelling`), a sample is a token: its row in the memory goes by the
number of the text and the place in it.

Deviations. From the paper: none in the method. A sample that was not seen before has its label for a prediction, in
any epoch (the authors' code has zeros for it after the first). The memory may be in half precision or cut to its
largest entries, and `past="snapshot"` keeps the network of the previous epoch instead, in evaluation mode. Labels
that are mixed anew in each epoch (mixup, cutmix) are blended with what was said of the mixture before, whose partner
was another; a snapshot answers to the mixture at hand. Of the paper's problems detection is not built, and language
models stand for translation.
"""

from __future__ import annotations

from stillroom.predictors.labels.ps_kd.method import PSKD, as_distributions, refined_targets, weight_of_past

__all__ = ["PSKD", "as_distributions", "refined_targets", "weight_of_past"]

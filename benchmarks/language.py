"""A step of `gkd` on a vocabulary of 32,000 tokens against TRL's trainers: time, memory, the same loss and weights.

    python benchmarks/language.py [--repetitions 7] [--beta 0.5] [--children 3] [--no-trainers]

One small pair of Llama models, random tokens, all rows from the data (nothing is written), float32, SGD at a
constant rate: every arm starts from the same weights and sees the same batches. The Engine's and TRL's whole
training loops are timed over the same steps: what a loop adds belongs to its step. TRL's Distillation
trainer, which has a chunked loss too, learns from its own texts alone; its loss is measured by itself, on the same
states and heads. Memory is what training adds to a process that has models and data.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import Arm, Stopwatch, interleave, peak_memory, ratio, report_memory, rows, save, table
from problem import Spectator
from stillroom.data.source import Source
from stillroom.engine import Engine
from stillroom.models.texts import Causal
from stillroom.optim import Recipe
from stillroom.predictors.language_modelling import LanguageModelling
from stillroom.predictors.language_models import GKD
from stillroom.predictors.parts.language.divergences import Divergence
from stillroom.predictors.parts.language.vocabularies import Link
from stillroom.predictors.parts.language.vocabulary import Head, Mixing, Tokens, distilled
from stillroom.teacher import Dense, Teacher

VOCABULARY, LENGTH, BATCH, STEPS, LR = 32_000, 128, 4, 3, 0.1
STUDENT, TEACHER = (128, 2), (256, 2)
"""Width and layers."""
TRL, OURS, LOGITS = "TRL GKDTrainer", "stillroom", "stillroom, ready logits"
LOSSES = (
    "TRL generalized_jsd_loss", "TRL chunked divergence", "distilled(), by head", "distilled(), ready logits",
)  # fmt: skip
BETA = [0.5]


class Rows:
    """The same random tokens for all, as a source of rows."""

    fixed, labels = True, None

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(VOCABULARY, (BATCH * STEPS, LENGTH + 1), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def fetch(self, ids: Tensor, view: int | None) -> tuple[Tensor, Tensor]:
        """Each row without its last token, and the tokens that follow."""
        found = self.tokens.index_select(0, ids)
        return found[:, :-1], found[:, 1:]

    def subset(self, ids: Tensor) -> Source:
        """Not needed here."""
        raise NotImplementedError


class Whole(nn.Module):
    """A model whose logits are made at once: the loss does not see its head."""

    def __init__(self, model: Causal) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Token ids [n, L] -> logits [n, L, V]."""
        return self.model(x)


class Problem(LanguageModelling):
    """Random tokens; the networks come from here and not by name."""

    def train(self) -> Any:
        """The rows."""
        return data()

    def make_student(self, seed: int) -> nn.Module:
        """A fresh copy of the student."""
        model = Causal(network(*STUDENT, seed=1))
        return Whole(model) if self.student == "whole" else model

    def make_teacher(self) -> Teacher:
        """The teacher."""
        return Teacher(Causal(network(*TEACHER, seed=2)))

    def link(self, *_: Any) -> Link:
        """One vocabulary."""
        return Link()

    @property
    def tokens(self) -> Any:
        """No tokenizer: nothing is written or read here."""
        return argparse.Namespace(eos_token_id=None)

    def score(self, *_: Any) -> dict[str, Any]:
        """Nothing."""
        return {}


@lru_cache
def data() -> Rows:
    """The rows, made once."""
    return Rows()


def network(width: int, layers: int, seed: int) -> Any:
    """A Llama with untied head and weights of the size that training leaves, so that distributions are not flat."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2 * LENGTH, pad_token_id=None,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaForCausalLM(config)
        nn.init.normal_(made.lm_head.weight, std=width**-0.5)
    return made


def ours(watch: Stopwatch, whole: bool = False) -> nn.Module:
    """`gkd` by the Engine; returns the student."""
    beta = BETA[0]
    method = GKD(beta=beta, normalised=beta in (0, 1), alpha=1.0, on_policy=0.0)
    recipe = Recipe("sgd", lr=LR, momentum=0.0, weight_decay=0.0, schedule="constant")
    engine = Engine(epochs=1, batch_size=BATCH, recipe=recipe, evaluate_every=0)
    task = Problem(student="whole" if whole else "", length=LENGTH, packing="none")  # answers are not kept
    product = engine.fit(method, task, 0, watcher=Spectator(watch)).product
    return product.model.network if whole else product.network


def trl(watch: Stopwatch) -> nn.Module:
    """TRL's trainer on the same rows in the same order; returns the student."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from stillroom.plan import Plan

    tokens = data().tokens[Plan(len(data()), BATCH, 1, 0).order(0)]

    def collate(found: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = tokens[[row["row"] for row in found]]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    class InOrder(GKDTrainer):
        """Rows as they come."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=LR, optim="sgd",
            lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=0.0, lmbda=0.0,
            beta=BETA[0], temperature=1.0, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, log_level="error", gradient_checkpointing=False, bf16=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = InOrder(
            model=network(*STUDENT, seed=1), teacher_model=network(*TEACHER, seed=2), args=config,
            data_collator=collate, processing_class=tokenizer(),
            train_dataset=Dataset.from_dict({"row": list(range(len(tokens)))}),
        )  # fmt: skip
        trainer.add_callback(timed(watch))
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return trainer.model


def timed(watch: Stopwatch) -> Any:
    """The watch runs from the beginning of TRL's loop to its end."""
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        """A callback."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Start."""
            watch.start()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            """Stop."""
            watch.stop()

    return Timed()


def tokenizer() -> Any:
    """TRL wants one, and uses its padding alone."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


# -- the loss by itself -----------------------------------------------------------------------------------------


@lru_cache
def states() -> tuple[Tensor, ...]:
    """Last states and heads of both, and the next tokens, of a batch."""
    x, y = data().fetch(torch.arange(BATCH), None)
    made: list[Tensor] = []
    for size, seed in ((STUDENT, 1), (TEACHER, 2)):
        model = network(*size, seed=seed)
        with torch.no_grad():
            made += [model.base_model(input_ids=x).last_hidden_state, model.lm_head.weight.detach()]
    return *made, y


def loss(watch: Stopwatch, name: str) -> Tensor:
    """Value and gradients of one loss over a batch, as one flat tensor."""
    h, w, u, v, y = states()
    h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
    beta = BETA[0]
    mixing = Mixing(1.0, Divergence(beta, normalised=beta in (0, 1)))
    watch.start()
    if name == LOSSES[0]:
        from trl.experimental.gkd import GKDTrainer

        with torch.no_grad():
            said = F.linear(u, v)
        value = GKDTrainer.generalized_jsd_loss(F.linear(h, w), said, y, beta=beta)
    elif name == LOSSES[1]:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        value = _chunked_divergence_loss(h, u, w, v, torch.ones_like(y), beta)[0]
    elif name == LOSSES[2]:
        value = distilled(Head(h, w), Tokens(y), Head(u, v), mixing).value
    else:
        with torch.no_grad():
            said = F.linear(u, v)
        value = distilled(F.linear(h, w), Tokens(y), Dense(said), mixing).value
    value.backward()
    watch.stop()
    assert h.grad is not None and w.grad is not None
    return torch.cat([value.detach().view(1), h.grad.flatten(), w.grad.flatten()])


# -- measuring --------------------------------------------------------------------------------------------------


def trainers() -> dict[str, Arm]:
    """The arms that train."""
    return {TRL: trl, OURS: ours, LOGITS: lambda watch: ours(watch, whole=True)}


def losses() -> dict[str, Arm]:
    """The arms that are a loss alone."""
    return {name: lambda watch, name=name: loss(watch, name) for name in LOSSES}


def apart(a: Any, b: Any) -> float:
    """The largest difference of two networks' weights, or of two tensors."""
    if isinstance(a, Tensor):
        return float((a - b).abs().max())
    there, here = a.state_dict(), b.state_dict()
    return max(float((there[key] - here[key]).abs().max()) for key in there)


def moved(made: nn.Module) -> float:
    """How far training took the weights."""
    return apart(made, network(*STUDENT, seed=1))


def measure(
    arms: dict[str, Arm], base: str, what: str, repetitions: int, children: int
) -> list[dict[str, Any]]:
    """Times and memory of `arms`, and how far their outcomes are from that of `base`."""
    times, made = interleave(arms, repetitions)
    found = rows(times, base, STEPS if base == TRL else 1)
    peaks = {name: peak_memory(__file__, f"{BETA[0]}/{name}", children) for name in arms} if children else {}
    lines, kept = [], []
    for name, row in found.items():
        extra = peaks.get(name, {})
        more = {"added_ratio": extra["added_mb"] / peaks[base]["added_mb"]} if extra else {}
        distance = apart(made[name], made[base])
        size = moved(made[name]) if base == TRL else float(made[name].abs().max())
        kept.append(
            {
                "what": what,
                "arm": name,
                "beta": BETA[0],
                **row,
                **extra,
                **more,
                "apart": distance,
                "of": size,
            }
        )
        added = f"{extra['added_mb']:.0f}" if extra else ""
        lines.append(
            (
                name,
                f"{row['cpu_ms']:.0f}",
                ratio(row),
                added,
                f"{more.get('added_ratio', 0):.2f}",
                distance,
                size,
            )
        )
    columns = ("arm", "CPU ms", "ratio [quartiles]", "training adds MB", "ratio", "apart", "of")
    table(f"{what}: beta {BETA[0]:g}, {BATCH} x {LENGTH} of {VOCABULARY:,} tokens", columns, lines)
    return kept


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--beta", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument(
        "--children", type=int, default=3, help="processes that memory is measured in; 0: it is not"
    )
    parser.add_argument("--no-trainers", action="store_true", help="the losses alone")
    parser.add_argument("--memory", metavar="ARM", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.memory:
        beta, _, name = options.memory.partition("/")
        BETA[0] = float(beta)
        data()
        if name in LOSSES:
            states()
        report_memory((trainers() | losses())[name])
        return
    found = []
    for BETA[0] in options.beta:
        if not options.no_trainers:
            found += measure(trainers(), TRL, "a step", options.repetitions, options.children)
        found += measure(losses(), LOSSES[0], "the loss alone", options.repetitions, options.children)
    save("language", found)


if __name__ == "__main__":
    main()

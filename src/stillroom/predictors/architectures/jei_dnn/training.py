"""Training exits on a frozen backbone: warm-up, head phases and gate phases, and what is chosen on validation data.

What validation data decide (frozen heads, the end of the warm-up, rho, the chosen epoch) is decided once at the start
of an epoch, from weights that all processes share, and kept in tensors that a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import UserError, require
from stillroom.method import Batch, Clock, Fit, Method, Result, Update, Updates
from stillroom.predictors.architectures.jei_dnn.heads import Gates, Heads
from stillroom.predictors.architectures.jei_dnn.losses import (
    best_exit,
    conformal_thresholds,
    cross_entropies,
    gate_loss,
    gate_targets,
    head_loss,
    positive_ratios,
    uncertainty,
    warm_up_weights,
)
from stillroom.predictors.architectures.jei_dnn.network import EarlyExit, Settings
from stillroom.predictors.architectures.jei_dnn.places import exit_paths
from stillroom.predictors.architectures.jei_dnn.task import EarlyExiting
from stillroom.predictors.parts.losses import hard_labels
from stillroom.task import Task

Features = tuple[list[Tensor], Tensor]


def head_steps(steps: int, period: int) -> int:
    """How many of `steps` are the heads' where gates and heads take turns of `period` steps, gates first."""
    turns, left = divmod(steps, 2 * period)
    return turns * period + max(0, left - period)


@dataclass(eq=False)
class ExitTraining(Method):
    """What all arms share: a frozen backbone with exits, its features, the schedule, and the choices by epoch."""

    exits: tuple[str, ...] = ()
    """Module paths in the teacher after which to exit, `*` standing for one name (blocks.*); none: its blocks."""
    warmup_epochs: int = 6
    """Epochs, at most, in which the heads alone learn, >= 0; they end when every head has stopped improving."""
    patience: int = 2
    """Epochs without better validation accuracy after which a head rests for the remaining warm-up, >= 1."""
    period: int = 30
    """Steps after which gates and heads take turns, >= 1 (200 in the authors' code)."""
    miscoverage: float = 0.05
    """Share of samples whose class the conformal sets may miss, in (0, 1)."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.warmup-epochs", self.warmup_epochs, 0)
        require("--method.patience", self.patience, 1)
        require("--method.period", self.period, 1)
        require("--method.miscoverage", self.miscoverage, 0, 1, ends="()")

    # -- what an arm says of itself -----------------------------------------------------------------------------------

    @property
    def lambdas(self) -> tuple[float, ...]:
        """The cost weights; each has a set of heads and gates of its own."""
        return (0.0,)

    @property
    def learns_gates(self) -> bool:
        """Whether there are gates."""
        return True

    def head_weights(self, network: EarlyExit, logits: Tensor, losses: Tensor) -> Tensor:
        """omega [n, K, L - 1] of a head phase, of the logits at all exits and the heads' losses [n, K, L - 1]."""
        raise NotImplementedError

    def worth(self, network: EarlyExit, logits: Tensor, y: Tensor) -> Tensor:
        """What the best epoch has most of [K], of logits [n, K, L, C] and labels of the validation split."""
        raise NotImplementedError

    def finished(self, heads: Heads, gates: Gates | None, logits: Tensor) -> EarlyExit:
        """The network to keep, of the chosen weights and their logits [n, K, L, C] on the validation split."""
        raise NotImplementedError

    # -- networks -----------------------------------------------------------------------------------------------------

    def bind(self, task: Task, seed: int) -> None:
        """Find the exits of the task's teacher and put heads and gates on them."""
        if not isinstance(task, EarlyExiting):
            raise UserError(
                f"method '{self.name}' does not work on a {type(task).__name__}: pass an EarlyExiting"
            )
        self.task, self.teacher = task, task.make_teacher()
        backbone, example = self.teacher.module, task.example()
        self.paths = exit_paths(backbone, self.exits, example)
        self.class_token = bool(getattr(backbone, "num_prefix_tokens", 0)) or hasattr(backbone, "class_token")
        self.widths = [1] * len(self.paths)
        features, final = self.assemble(Heads(self.widths, 1, 1), None, Settings(("",))).features(example)
        self.widths, self.classes = [one.shape[-1] for one in features], final.shape[-1]
        sets = len(self.lambdas)
        self.heads = Heads(self.widths, self.classes, sets)
        self.gates = Gates(len(self.paths), sets)
        self.network = self.assemble(self.heads, self.gates, Settings(("",))).measure(example.shape[1:])
        self._train: Features | None = None
        self._held: Features | None = None
        self.memory = self._fresh_memory(sets)

    def assemble(self, heads: Heads, gates: Gates | None, settings: Settings) -> EarlyExit:
        """The backbone with these exits."""
        return EarlyExit(self.teacher.module, self.paths, heads, gates, settings, self.class_token)

    def players(self) -> dict[str, nn.Module]:
        """Heads and gates, each with an optimizer of its own, so that who rests does not move."""
        found: dict[str, nn.Module] = {"heads": self.heads}
        return found | ({"gates": self.gates} if self.learns_gates else {})

    # -- features -----------------------------------------------------------------------------------------------------

    def _prepare(self, device: torch.device) -> None:
        """Ask the backbone once about the validation split and, for the scale of features, the training split."""
        if self._held is not None:
            return
        self.memory = {name: value.to(device) for name, value in self.memory.items()}
        source = self.task.train()
        train = self._ask(source, device)
        self.heads.standardise(train[0])
        self._train = train if source.fixed else None
        validation = self.task.images.validation
        self._held = self._ask(validation, device)
        assert validation.labels is not None
        self._held_labels = validation.labels.to(device)

    def _ask(self, source: Any, device: torch.device) -> Features:
        parts = [
            self.network.features(source.fetch(ids, view=None)[0].to(device))
            for ids in torch.arange(len(source)).split(256)
        ]
        return [torch.cat(one) for one in zip(*(f for f, _ in parts), strict=True)], torch.cat(
            [z for _, z in parts]
        )

    def _features(self, batch: Batch) -> Features:
        if self._train is None:
            return self.network.features(batch.x)
        features, final = self._train
        return [one.index_select(0, batch.index) for one in features], final.index_select(0, batch.index)

    # -- the algorithm ------------------------------------------------------------------------------------------------

    def updates(self, batch: Batch) -> Updates:
        """A step of the warm-up, of a gate phase or of a head phase."""
        clock = batch.clock
        self._prepare(batch.x.device)
        self._turn(clock)
        features = self._features(batch)
        turn = self.turn(clock)
        if turn == "gates":
            if self.learns_gates:
                yield self._gate_update(features, batch)
            return
        logits = self.network.all_logits(*features)
        losses = cross_entropies(logits[:, :, :-1], batch.y)
        if turn == "heads":
            weights = self.head_weights(self.network, logits, losses)
        else:
            weights = warm_up_weights(len(self.paths) + 1).to(losses.device)
        each = head_loss(losses, weights)
        yield Update("heads", each.sum(), items=len(batch), logs={"loss/heads": each.mean()})
        if turn == "warm-up":
            self._put_back(self.memory["resting"])

    def turn(self, clock: Clock) -> str:
        """Whose step it is: 'warm-up' (of the heads), 'gates' or 'heads'."""
        start = int(self.memory["warm until"])
        if start < 0:
            return "warm-up"
        return "heads" if (clock.step - start) // self.period % 2 else "gates"

    def _gate_update(self, features: Features, batch: Batch) -> Update:
        with torch.no_grad():
            logits = self.network.all_logits(*features)
            best = self._best(logits, batch.y)
            seen = uncertainty(logits[:, :, :-1])
        targets = gate_targets(best, len(self.paths) + 1)
        each = gate_loss(self.gates(seen), targets, self.memory["ratios"])
        return Update("gates", each.sum(), items=len(batch), logs={"loss/gates": each.mean()})

    def _best(self, logits: Tensor, y: Tensor) -> Tensor:
        weights = torch.tensor(self.lambdas, device=logits.device)
        return best_exit(cross_entropies(logits, y), self.network.shares.to(logits.device), weights)

    # -- by epoch -----------------------------------------------------------------------------------------------------

    def _fresh_memory(self, sets: int) -> dict[str, Tensor]:
        heads = (sets, len(self.paths))
        return {
            "epoch": torch.zeros((), dtype=torch.int64),
            "warm until": torch.tensor(-1 if self.warmup_epochs else 0),
            "waited": torch.zeros(heads, dtype=torch.int64),
            "accuracy": torch.zeros(heads),
            "resting": torch.zeros(heads, dtype=torch.bool),
            "ratios": torch.ones(heads),
            "rounds": torch.zeros((), dtype=torch.int64),
            "worth": torch.full((sets,), -torch.inf),
            **{
                f"kept {name}": value.detach().clone()
                for name, value in self._weights(self.heads, self.gates)
            },
        }

    @staticmethod
    def _weights(heads: Heads, gates: Gates) -> list[tuple[str, Tensor]]:
        """All weights, the sets on their first axis."""
        found: list[tuple[str, Tensor]] = [
            (f"weight{index}", value) for index, value in enumerate(heads.weights)
        ]
        return [*found, ("bias", heads.bias), ("gate weight", gates.weight), ("gate bias", gates.bias)]

    def state(self) -> dict[str, Tensor]:
        """What validation data have decided."""
        return self.memory

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.memory = {name: state[name].to(value.device) for name, value in self.memory.items()}

    def _turn(self, clock: Clock) -> None:
        """At the first step of an epoch: let the validation data decide about the one that is over."""
        memory = self.memory
        if clock.step == 0 and clock.epochs <= self.warmup_epochs:
            raise UserError(
                f"--method.warmup-epochs is {self.warmup_epochs} of {clock.epochs} epochs: pass fewer, or more "
                "--engine.epochs"
            )
        if clock.epoch <= int(memory["epoch"]):
            return
        memory["epoch"] = torch.full_like(memory["epoch"], clock.epoch)
        logits = self._held_logits(self.heads)
        if int(memory["warm until"]) < 0:
            self._judge_heads(logits)
            if clock.epoch >= self.warmup_epochs or bool(memory["resting"].all()):
                self._put_back(torch.ones_like(memory["resting"]))
                memory["warm until"] = torch.full_like(memory["warm until"], clock.step)
            return
        memory["ratios"] = positive_ratios(self._best(logits, self._held_labels), len(self.paths) + 1)
        rounds = self.rounds(clock)
        if rounds > int(memory["rounds"]):
            memory["rounds"] = torch.full_like(memory["rounds"], rounds)
            self._keep_if_better(logits)

    def rounds(self, clock: Clock) -> int:
        """How often both sides have had their turn: only then a network is worth judging, since one suits the other."""
        return (clock.step - int(self.memory["warm until"])) // (2 * self.period)

    def _keep_if_better(self, logits: Tensor) -> None:
        memory = self.memory
        worth = self.worth(self.network, logits, self._held_labels).to(memory["worth"])
        better = worth > memory["worth"]
        memory["worth"] = torch.where(better, worth, memory["worth"])
        for name, value in self._weights(self.heads, self.gates):
            memory[f"kept {name}"] = _chosen(better, value.detach(), memory[f"kept {name}"])

    def _held_logits(self, heads: Heads) -> Tensor:
        assert self._held is not None
        with torch.no_grad():
            early = heads(self._held[0])
            last = self._held[1][:, None, None].expand(-1, early.shape[1], 1, -1)
            return torch.cat([early.float(), last], 2)

    def _judge_heads(self, logits: Tensor) -> None:
        """After an epoch of the warm-up: keep heads that have become better, let those rest that have not."""
        memory = self.memory
        right = (logits[:, :, :-1].argmax(-1) == self._held_labels[:, None, None]).float().mean(0)
        awake = ~memory["resting"]
        better = awake & (right > memory["accuracy"])
        memory["accuracy"] = torch.where(better, right, memory["accuracy"])
        memory["waited"] = torch.where(better, 0, memory["waited"] + awake)
        for index, value in enumerate(self.heads.weights):
            memory[f"kept weight{index}"] = _chosen(
                better[:, index], value.detach(), memory[f"kept weight{index}"]
            )
        memory["kept bias"] = torch.where(better[..., None], self.heads.bias.detach(), memory["kept bias"])
        memory["resting"] = memory["resting"] | (memory["waited"] >= self.patience)
        self._put_back(memory["resting"])

    def _put_back(self, which: Tensor) -> None:
        """Give heads [K, L - 1] that are true in `which` the weights that were kept of them."""
        with torch.no_grad():
            for index, value in enumerate(self.heads.weights):
                value.copy_(_chosen(which[:, index], self.memory[f"kept weight{index}"], value))
            self.heads.bias.copy_(torch.where(which[..., None], self.memory["kept bias"], self.heads.bias))

    # -- what is kept -------------------------------------------------------------------------------------------------

    def product(self) -> EarlyExit:
        """The network with the weights of the best epoch, the one that has just ended among them."""
        device = self.heads.bias.device
        self._prepare(device)
        heads, gates = (
            Heads(self.widths, self.classes, len(self.lambdas)),
            Gates(len(self.paths), len(self.lambdas)),
        )
        heads.load_state_dict(self.heads.state_dict())
        gates.load_state_dict(self.gates.state_dict())
        heads, gates = heads.to(device), gates.to(device)
        if int(self.memory["warm until"]) >= 0:
            worth = self.worth(self.network, self._held_logits(self.heads), self._held_labels)
            older = worth.to(self.memory["worth"]) <= self.memory["worth"]
            with torch.no_grad():
                for name, value in self._weights(heads, gates):
                    value.copy_(_chosen(older, self.memory[f"kept {name}"], value))
        logits = self._held_logits(heads)
        made = self.finished(heads, gates, logits).to(device).measure(self.task.images.shape)
        taken, probabilities = made.leave(logits), logits.softmax(-1)
        for index, which in enumerate(made.settings.sets):
            args = (probabilities[:, which], self._held_labels, taken[:, index], self.miscoverage)
            made.conformal[index] = conformal_thresholds(*args)
        return made.eval()

    def run(self, task: Task, fit: Fit) -> Result:
        """One fit; counts whose steps they were, since arms compare at equal numbers of the heads' updates."""
        result = fit(self)
        start = int(self.memory["warm until"])
        own = self.heads_after(result.steps - start) if start >= 0 else 0
        result.extra |= {"updates of heads": float(max(start, 0) + own)}
        result.extra |= {"updates of gates": float(result.steps - max(start, 0) - own) * self.learns_gates}
        return result

    def heads_after(self, steps: int) -> int:
        """How many of `steps` after the warm-up are the heads'."""
        return head_steps(steps, self.period)


def _chosen(which: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the sets [K] that are true in `which`, else `old`."""
    return torch.where(which.view(-1, *[1] * (new.ndim - 1)), new, old)


def accuracy_of(logits: Tensor, y: Tensor, taken: Tensor) -> Tensor:
    """Accuracy [K] of logits [n, K, L, C] at the exits taken [n, K]; labels [n]."""
    at = taken[..., None, None].expand(-1, -1, 1, logits.shape[-1])
    return (logits.gather(2, at).squeeze(2).argmax(-1) == hard_labels(y)[:, None]).float().mean(0)

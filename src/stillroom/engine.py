"""The Engine runs a Method on a Task: the one training loop of the house.

What it owes a method that yields, and keeps: losses are weighted by their items over micro-batches and
processes, so the gradient does not depend on how a batch was cut; only the stepped player gets a gradient;
every random number is a function of (seed, step or epoch, sample), so a run that was killed and resumed ends with
the same bits as one that was not; the first loss that is not finite stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from stillroom import checkpoint, keeping
from stillroom.answers import Kept
from stillroom.errors import Interrupted, NonFinite, UserError, require
from stillroom.history import History
from stillroom.keeping import Where
from stillroom.method import Ask, Gather, Mean, Method, Result, Update, Updates
from stillroom.optim import Player, Recipe, all_finite
from stillroom.plan import BIND, GLOBAL, Feeder, Plan
from stillroom.runtime import Precision, Runtime, backward
from stillroom.seeds import seed_of, seeded
from stillroom.sharding import assemble, cut_networks, explained, gathered, graph_leaves
from stillroom.stopping import stop_signals
from stillroom.task import Task
from stillroom.window import Window


class Watcher:
    """Is told how a fit goes; the base class looks away."""

    def begins(self, steps: int, at: int) -> None:
        """The fit is at step `at` of `steps`."""

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        """`step` steps are done; `row` holds what was written to the metrics at this step, if anything was."""

    def ends(self) -> None:
        """The fit is over, well or not."""


@dataclass
class Engine:
    """Options of training, and the loop."""

    epochs: int = 100
    """Passes over the training data, >= 1."""
    steps: int = 0
    """Steps of the whole run, over all stages of a method that has several; 0 goes by `epochs`."""
    batch_size: int = 50
    """Samples a step, over all micro-batches and processes, >= 1."""
    accumulate: int = 1
    """Micro-batches that a process cuts its share of a step into, >= 1; changes memory, not the result."""
    workers: int = 0
    """Processes that decode and augment coming batches, >= 0; 0 does it in the training process. The same bits."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    """How players are trained, unless the method says otherwise."""
    precision: Precision = "float32"
    """Precision of forward passes; weights and optimizer state stay float32."""
    compile: bool = False
    """Compile the players with torch.compile; pays only after thousands of steps."""
    shard: Literal["no", "players", "all"] = "no"
    """Cut the trained networks, or the teacher as well, into one shard a process (FSDP2); alone, nothing is cut."""
    keep_teacher: Where = "memory"
    """Ask the teacher once about each sample: of data as they are, in memory; on disk, also of every augmented view."""
    keep_top_k: int = 0
    """Scores of an answer that are kept, the largest, with the mass of the rest; 0 keeps all."""
    keep_precision: Kept = "float16"
    """Precision of the answers on disk."""
    keep_limit: float = 20.0
    """GiB that the answers of a fit may take; more are refused on disk, and not kept in memory."""
    keep_views: int = 0
    """Views of augmented data, which then come round and repeat (other data than without); 0: a new one an epoch."""
    log_every: int = 20
    """Steps between rows of metrics, >= 1."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation split; 0 evaluates only the end."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 goes by `checkpoint_seconds`."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints, > 0."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk, >= 1."""

    def check(self) -> None:
        """Raise UserError for an option out of its range."""
        for name in ("epochs", "batch_size", "accumulate", "log_every", "keep_checkpoints"):
            require(f"--engine.{name.replace('_', '-')}", getattr(self, name), 1)
        for name in ("steps", "workers", "evaluate_every", "checkpoint_every"):
            require(f"--engine.{name.replace('_', '-')}", getattr(self, name), 0)
        require("--engine.checkpoint-seconds", self.checkpoint_seconds, 0, ends="(]")
        self.recipe.check()
        keeping.check(self)

    def quick(self) -> Engine:
        """A copy that trains for a moment, for tests and trials."""
        return replace(self, epochs=2, steps=min(self.steps, 8), evaluate_every=0)

    def fit(
        self,
        method: Method,
        task: Task,
        seed: int,
        folder: Path | None = None,
        watcher: Watcher | None = None,
    ) -> Result:
        """Train `method` on `task`; with a `folder`, keep metrics and checkpoints there and go on from them.

        The product comes back with its averaged weights where the recipe keeps an average. Raises NonFinite,
        Interrupted (after saving), and UserError for checkpoints that do not belong to this run.
        """
        self.check()
        return _Fit(self, method, task, seed, folder, watcher or Watcher()).run()


class _Fit:
    """One fit, from its first step or its last checkpoint to its end."""

    def __init__(
        self, engine: Engine, method: Method, task: Task, seed: int, folder: Path | None, watcher: Watcher
    ) -> None:
        self.engine, self.method, self.task, self.seed = engine, method, task, seed
        self.runtime = runtime = Runtime(engine.precision)
        source = method.source(task)
        self.plan = Plan(len(source), engine.batch_size, engine.epochs, seed, engine.steps, engine.keep_views)
        cut = (runtime.rank, runtime.size, engine.accumulate)
        self.feeder = Feeder(self.plan, source, *cut, runtime.device, engine.workers)
        self.weighted = engine.accumulate > 1 or runtime.size > 1
        self.folder, self.watcher = folder, watcher
        if folder and runtime.main:
            folder.mkdir(parents=True, exist_ok=True)
        self.history = History(folder / "metrics.jsonl" if folder and runtime.main else None)
        self.window = Window()
        self.step, self.seconds_before = 0, 0.0
        self.began = self.saved_at = time.perf_counter()
        self.last_good: Path | None = None
        self._set_up(keeping.chosen(engine, self.plan, source, task))

    def _set_up(self, keep: keeping.Keep | None) -> None:
        method, device = self.method, self.runtime.device
        with seeded(seed_of(self.seed, BIND)):
            method.bind(self.task, self.seed)
        modules = method.players()
        recipes = method.recipes(self.engine.recipe)
        odd = sorted(set(recipes) - set(modules))
        if odd:
            raise ValueError(f"method '{method.name}' has a recipe for '{odd[0]}', which is no player of it")
        teacher = getattr(method, "teacher", None)
        self.sharded = cut_networks(method.name, modules, teacher, self.engine, self.runtime)
        for module in modules.values():
            module.to(device).train()
        self.players = {n: Player(n, m, recipes.get(n, self.engine.recipe)) for n, m in modules.items()}
        self.leaves = {n: graph_leaves(m) for n, m in modules.items()}
        if self.engine.compile and not self.sharded:
            for module in modules.values():
                module.compile()
        if teacher is not None:
            teacher.to(device)
            teacher.forget()  # What an earlier fit had kept is about its samples.
            if keep is not None:
                teacher.keep(self.feeder.source, self.engine.batch_size, keep)

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Step to the end; leave the averaged weights, where there are any, in the players."""
        self._restore()
        self.watcher.begins(self.plan.steps, self.step)
        try:
            with self.runtime.private_random(), stop_signals() as stop:
                while self.step < self.plan.steps:
                    self._train()
                    self._look_after(stop)
            self._swap_averages()
            for network in self.sharded.values():
                assemble(network, self.runtime.device)
            return Result(self.method.product(), self._seconds(), self.step)
        finally:
            self.feeder.close()
            self.watcher.ends()
            self.method.unbind()

    def _train(self) -> None:
        """One step: the generators of all micro-batches in lockstep, each to its i-th yield before any goes on."""
        self.runtime.seed(seed_of(self.seed, GLOBAL, self.step, self.runtime.rank))
        batches, counts = self.feeder.batches(self.step)
        fillers = self.feeder.fillers(self.step, len(batches))
        counted = [counts] * len(batches) + [False] * len(fillers)
        flows = [self.method.updates(self.runtime.place(batch)) for batch in [*batches, *fillers]]
        answer: Tensor | None = None
        while True:
            asks = [self._ask(flow, answer, counts) for flow, counts in zip(flows, counted, strict=True)]
            first = self._agreed(asks)
            if first is None:
                break
            answer = self._update(asks) if isinstance(first, Update) else self._whole(first, asks)
        self.step += 1

    def _ask(self, flow: Updates, answer: Tensor | None, counts: bool) -> Ask | None:
        """What one generator yields next; a loss goes backward at once, so that its graph is freed."""
        with explained(self.method.name, bool(self.sharded)):
            try:
                with self.runtime.autocast():
                    ask = flow.send(answer)
            except StopIteration:
                return None
            if not isinstance(ask, Update):
                return ask if counts else replace(ask, values=ask.values[:0])
            self._vet(ask)
            ask = ask if counts else replace(ask, items=0)
            weight = float(ask.items if self.weighted else ask.items > 0)
            backward(ask, self.leaves[ask.player] if len(self.players) > 1 else None, weight)
            return ask

    def _update(self, asks: list[Any]) -> None:
        player = self.players[asks[0].player]
        if self.weighted:
            items = sum(ask.items for ask in asks)
            self.runtime.reduce_gradients(player.uncut, items, player.take_gradients())
        player.step(self.step, self.plan.steps, self.runtime.sum)
        self.runtime.average_buffers(player.module)
        self.window.add(self.step, asks, counts=True)

    def _whole(self, first: Mean | Gather, asks: list[Any]) -> Tensor:
        values = [ask.values for ask in asks]
        return self.runtime.mean(values) if isinstance(first, Mean) else self.runtime.rows(values)

    # -- what a method may not do -------------------------------------------------------------------------------

    def _vet(self, ask: Update) -> None:
        name = f"method '{self.method.name}'"
        if ask.player not in self.players:
            raise ValueError(f"{name} yields player '{ask.player}'; it has {sorted(self.players)}")
        if ask.loss.ndim or not ask.loss.requires_grad:
            raise ValueError(f"{name} yields a loss for '{ask.player}' that is no scalar with a gradient")
        if ask.items < 0:
            raise ValueError(f"{name} yields a loss over {ask.items} items for '{ask.player}'")
        if not torch.is_grad_enabled():
            raise ValueError(f"{name} yields inside torch.no_grad(): leave it before the yield")

    def _agreed(self, asks: list[Ask | None]) -> Ask | None:
        """The first ask, after seeing that all micro-batches ask for the same."""
        kinds = {ask.player if isinstance(ask, Update) else type(ask).__name__ for ask in asks}
        if len(kinds) > 1:
            raise ValueError(
                f"method '{self.method.name}' yields {sorted(kinds)} at once for the parts of one batch: the "
                "sequence of players may not depend on the data"
            )
        return asks[0]

    # -- around the steps ---------------------------------------------------------------------------------------

    def _look_after(self, stop: Callable[[], bool]) -> None:
        """Metrics, evaluation, checkpoints and the wish to stop, after a step."""
        last = self.step == self.plan.steps
        logging = last or self.step % self.engine.log_every == 0
        row = self._log() if logging else None
        if self._evaluation_due(last):
            row = {**(row or {}), **self._evaluate()}
        self.watcher.stepped(self.step, row)
        if self.runtime.size > 1 and not logging:
            return  # Processes agree on stopping and saving at logging steps only: asking costs a message.
        stopping, due = self.runtime.agree(stop(), self._save_due())
        if self.folder and (stopping or due or last):
            self._save()
        if stopping:
            raise Interrupted

    def _log(self) -> dict[str, Any]:
        row = {"step": self.step, "epoch": self.step / self.plan.steps_per_epoch}
        row |= self._finite(self.window.means(self.runtime.sum))
        self.window.clear()
        self.history.write(row)
        return row

    def _finite(self, means: dict[str, float]) -> dict[str, float]:
        bad = self.window.first_bad
        if bad is not None:
            self._stop_non_finite(f"{bad.name} is {bad.value} at step {bad.step}")
        return means

    def _stop_non_finite(self, what: str) -> None:
        good = (
            f"the last good checkpoint is '{self.last_good}'"
            if self.last_good
            else "there is no checkpoint yet"
        )
        raise NonFinite(
            f"{what} of method '{self.method.name}'; {good}: lower --engine.lr or pass --engine.clip 1"
        )

    def _evaluation_due(self, last: bool) -> bool:
        every = self.engine.evaluate_every * self.plan.steps_per_epoch
        return last or bool(every and self.step % every == 0)

    def _evaluate(self) -> dict[str, Any]:
        self._swap_averages()
        with explained(self.method.name, bool(self.sharded)):
            score = self.task.score(self.method.product(), "validation", self.runtime)
        self._swap_averages()
        numbers = {key: value for key, value in score.items() if isinstance(value, (int, float))}
        row = {"step": self.step, "epoch": self.step / self.plan.steps_per_epoch, "validation": numbers}
        self.history.write(row)
        return row

    def _swap_averages(self) -> None:
        for player in self.players.values():
            player.swap_average()

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _save_due(self) -> bool:
        if self.engine.checkpoint_every:
            return self.step % self.engine.checkpoint_every == 0
        return time.perf_counter() - self.saved_at > self.engine.checkpoint_seconds

    def _save(self) -> None:
        assert self.folder is not None
        self._finite(self.window.means(self.runtime.sum))
        for name, player in self.players.items():
            if any(self.runtime.agree(not all_finite(player.kept()))):
                self._stop_non_finite(f"a weight of player '{name}' is not finite at step {self.step}")
        tensors = self._tensors()
        if self.runtime.main:
            state = {
                "step": self.step,
                "seconds": self._seconds(),
                "history": self.history.mark(),
                "window": self.window.state(),
            }
            folder = self.folder / "checkpoints"
            keep = self.engine.keep_checkpoints
            self.last_good = checkpoint.save(folder, self.step, tensors, state, keep)
        self.runtime.barrier()
        self.saved_at = time.perf_counter()

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        files: dict[str, Mapping[str, Tensor]] = {"method": self.method.state()}
        for name, player in self.players.items():
            files[name] = checkpoint.weights(player.module)
            files[f"{name}.ema"] = player.ema_state()
            files[f"{name}.optimizer"] = player.state()
        return {stem: gathered(tensors, self.runtime.main) for stem, tensors in files.items()}

    def _restore(self) -> None:
        """Go on from the newest checkpoint, or start clean where there is none."""
        if self.folder is None:
            return
        if self.runtime.main:
            checkpoint.clean(self.folder / "checkpoints")
        found = checkpoint.listing(self.folder / "checkpoints")
        if not found:
            self.history.cut(0)
            return
        self.last_good = path = found[-1]
        state, files = checkpoint.load(path)
        try:
            self._take(path, state, files)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            why = f"does not belong to this run ({error})"
            raise UserError(f"checkpoint '{path}' {why}: remove it and resume") from None

    def _take(self, path: Path, state: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, player in self.players.items():
            checkpoint.load_weights(player.module, files.get(name, {}), path)
            player.load_ema(files.get(f"{name}.ema", {}))
            player.load_state(files.get(f"{name}.optimizer", {}))
        self.method.load_state(files.get("method", {}))
        if state["step"] > self.plan.steps:
            raise ValueError(f"it is at step {state['step']} of {self.plan.steps}")
        self.window.load(state["window"])
        self.history.cut(state["history"])
        self.step, self.seconds_before = state["step"], state["seconds"]

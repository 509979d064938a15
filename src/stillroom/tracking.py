"""Runs shown in TensorBoard, Weights & Biases and MLflow, through Accelerate's trackers. Only where it is asked for.

What a tracker is told: the run's options as hyper-parameters, the rows of metrics of each arm under the arm's name,
and at the end the scores, costs and verdict. It is kept in the run's folder, in `tracking/`: W&B is offline unless
WANDB_MODE says otherwise, MLflow writes a database there unless MLFLOW_TRACKING_URI says otherwise. A tracker that
fails is dropped with one warning; the run goes on, and its numbers are in metrics.jsonl all the same. What a fit takes
is measured with the telling in it: some milliseconds a row of metrics.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from uuid import uuid4

from stillroom.checkpoint import read_json, write_json
from stillroom.engine import Watcher
from stillroom.errors import UserError, reason

if TYPE_CHECKING:
    from stillroom.fitter import Watch

Name = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "stillroom"
FOLDER, STATE = "tracking", "state.json"
WHOLE = "run"
"""Under what name stands that which is said of no single arm."""


class Tracking:
    """The trackers of one run; without names, and on all processes but the main one, it does nothing."""

    def __init__(
        self, names: Sequence[str], run: Path, config: Mapping[str, Any], active: bool = True
    ) -> None:
        """`run` is the run's folder, which need not be there yet; `config` are its options.

        A run that was tracked before is tracked on as it was. Raises UserError for an unknown name and a missing
        library, on all processes.
        """
        for name in names:
            _check(name)
        self.folder, self.config = run / FOLDER, config
        self.state: dict[str, Any] = _read(self.folder / STATE)
        wanted = [*dict.fromkeys([*names, *self.state])] if active else []
        self.trackers: list[_Tracker] = [_KINDS[name](self.folder, self.state.get(name)) for name in wanted]
        self._arms: Counter[str] = Counter()
        self._started = False

    def watch(self, watch: Watch) -> Watch:
        """Makes watchers that also tell the trackers. A name that comes again is another arm: `name-2`."""
        if not self.trackers:
            return watch

        def both(arm: str) -> Watcher:
            if not self._started:
                self._start()  # here, so that no fit's seconds hold it
            self._arms[arm] += 1
            number = self._arms[arm]
            return _Told(self, arm if number == 1 else f"{arm}-{number}", watch(arm))

        return both

    def row(self, arm: str, row: Mapping[str, Any]) -> None:
        """A row of metrics of one arm; of one that was told before a run was killed nothing is said again."""
        numbers = _numbers({key: value for key, value in row.items() if key != "step"})
        self._all(lambda tracker: tracker.row(arm, int(row["step"]), numbers))

    def result(self, result: Mapping[str, Any]) -> None:
        """What came out: scores and costs of each arm, the cost of distilling, and the verdict."""
        for name, arm in result["arms"].items():
            parts = {
                key: arm[key] for key in ("test", "validation", "cost", "extra", "seconds") if key in arm
            }
            numbers = {f"result/{key}": value for key, value in _numbers(parts).items()}
            self._all(lambda tracker, name=name, numbers=numbers: tracker.result(name, numbers))
        verdict, interval = result["verdict"], result["verdict"]["interval"] or ()
        ends = dict(zip(("interval_low", "interval_high"), interval, strict=False))
        found = {"difference": verdict["difference"], **ends, "seconds": result["costs"]}
        self._all(lambda tracker: tracker.result(WHOLE, _numbers(found)))
        self._all(lambda tracker: tracker.text("verdict", verdict["text"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers if self._started else ():
            self._safely(tracker, tracker.finish)

    def _all(self, tell: Callable[[_Tracker], None]) -> None:
        if not self.trackers:
            return
        if not self._started:
            self._start()
        for tracker in list(self.trackers):
            self._safely(tracker, lambda tracker=tracker: tell(tracker))
        self._remember()

    def _start(self) -> None:
        """Late, at the first fit or the result: the run's folder is then there, and all options are known to do."""
        self._started = True
        for reports_home in ("WANDB_ERROR_REPORTING=false", "MLFLOW_DISABLE_TELEMETRY=true"):
            os.environ.setdefault(*reports_home.split("="))
        self.folder.mkdir(parents=True, exist_ok=True)
        options = _flat(self.config)
        for tracker in list(self.trackers):
            self._safely(tracker, lambda tracker=tracker: tracker.start(self.folder.parent.name, options))

    def _safely(self, tracker: _Tracker, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self.trackers = [other for other in self.trackers if other is not tracker]
            warnings.warn(
                f"{tracker.name} stopped tracking ({reason(error)}): the run goes on, its numbers are in "
                f"'{self.folder.parent}'",
                stacklevel=2,
            )

    def _remember(self) -> None:
        """What a resumed run needs to go on with the same tracked run."""
        self.state |= {tracker.name: tracker.memory for tracker in self.trackers}
        write_json(self.folder / STATE, self.state)


class _Told(Watcher):
    """A watcher beside which the trackers are told."""

    def __init__(self, tracking: Tracking, arm: str, inner: Watcher) -> None:
        self._tracking, self._arm, self._inner = tracking, arm, inner

    def begins(self, steps: int, at: int) -> None:
        self._inner.begins(steps, at)

    def stepped(self, step: int, row: Mapping[str, Any] | None) -> None:
        self._inner.stepped(step, row)
        if row is not None:
            self._tracking.row(self._arm, row)

    def ends(self) -> None:
        self._inner.ends()


# -- the three ----------------------------------------------------------------------------------------------------


class _Tracker:
    """One of Accelerate's trackers, and what differs between them."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """What has to be installed."""

    def __init__(self, folder: Path, memory: Mapping[str, Any] | None) -> None:
        self.folder, self.resumed = folder, memory is not None
        self.memory: dict[str, Any] = {"id": uuid4().hex, "steps": {}, **(memory or {})}
        self.held: Any = None

    def start(self, run: str, options: Mapping[str, Any]) -> None:
        """Open the tracked run called `run`, anew or where it was left."""
        raise NotImplementedError

    def row(self, arm: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of an arm at a step, unless that step was told before."""
        if step > self.memory["steps"].get(arm, -1):
            self.memory["steps"][arm] = step
            self.tell(arm, step, numbers)

    def tell(self, arm: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of an arm at a step."""
        self.held.log(_under(arm, numbers), step=step)

    def result(self, arm: str, numbers: Mapping[str, float]) -> None:
        """What came out of an arm."""
        self.tell(arm, self.memory["steps"].get(arm, 0), numbers)

    def text(self, name: str, value: str) -> None:
        """Words about the whole run."""
        self.held.log({name: value})

    def finish(self) -> None:
        """Close the tracked run."""
        if self.held is not None:
            self.held.finish()


class _TensorBoard(_Tracker):
    """Each arm is a run of its own, so that the same number of all arms lies in one plot."""

    name = "tensorboard"
    needs = ("tensorboard",)

    def __init__(self, folder: Path, memory: Mapping[str, Any] | None) -> None:
        super().__init__(folder, memory)
        self._writers: dict[str, Any] = {}

    def _writer(self, arm: str) -> Any:
        from accelerate.tracking import TensorBoardTracker

        if arm not in self._writers:
            self._writers[arm] = TensorBoardTracker(arm, self.folder / self.name)
            self._writers[arm].start()
        return self._writers[arm]

    def start(self, run: str, options: Mapping[str, Any]) -> None:
        if not self.resumed:
            self._writer(WHOLE).store_init_configuration(options)

    def tell(self, arm: str, step: int, numbers: Mapping[str, float]) -> None:
        self._writer(arm).log(numbers, step=step)

    def text(self, name: str, value: str) -> None:
        self._writer(WHOLE).log({name: value}, step=0)

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.finish()


class _WandB(_Tracker):
    """One run, its arms told apart by their names; each counts its own steps, so W&B's own counter is left alone."""

    name = "wandb"
    needs = ("wandb",)

    def start(self, run: str, options: Mapping[str, Any]) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self.held = WandBTracker(
            PROJECT,
            dir=str(self.folder),
            name=run,
            id=self.memory["id"],
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=quiet,
        )
        self.held.start()
        self.held.store_init_configuration(options)
        self._known: set[str] = set()

    def tell(self, arm: str, step: int, numbers: Mapping[str, float]) -> None:
        if arm not in self._known:
            self._known.add(arm)
            self.held.tracker.define_metric(f"{arm}/*", step_metric=f"{arm}/step")
        # An offline run that goes on would count from 0 again, and W&B takes no step twice.
        self.memory["told"] = self.memory.get("told", 0) + 1
        self.held.log(_under(arm, {"step": step, **numbers}), step=self.memory["told"])

    def result(self, arm: str, numbers: Mapping[str, float]) -> None:
        self.held.tracker.summary.update(_under(arm, numbers))

    def text(self, name: str, value: str) -> None:
        self.held.tracker.summary[name] = value


class _MLflow(_Tracker):
    """One run, its arms told apart by their names; in a database in the folder, unless a server is named."""

    name = "mlflow"
    needs = ("mlflow", "sqlalchemy", "alembic")

    def start(self, run: str, options: Mapping[str, Any]) -> None:
        import mlflow
        from accelerate.tracking import MLflowTracker

        self._own, files = not mlflow.is_tracking_uri_set(), None
        if self._own:
            mlflow.set_tracking_uri(f"sqlite:///{self.folder.resolve() / 'mlflow.db'}")
            files = (self.folder.resolve() / "mlflow").as_uri()
        known = self.memory["id"] if self.resumed else None
        self.held = MLflowTracker(PROJECT, logging_dir=files, run_id=known, run_name=run)
        with _hushed("mlflow", "alembic"):
            self.held.start()
        self.memory["id"] = self.held.tracker.info.run_id
        if not self.resumed:
            self.held.store_init_configuration(options)

    def tell(self, arm: str, step: int, numbers: Mapping[str, float]) -> None:
        # MLflow takes no other signs in a name, and refuses all of a row for one.
        super().tell(arm, step, {re.sub(r"[^\w\-. :/]", "_", key): value for key, value in numbers.items()})

    def text(self, name: str, value: str) -> None:
        import mlflow

        mlflow.set_tag(name, value)

    def finish(self) -> None:
        import mlflow

        super().finish()
        if self._own:
            forget: Any = None  # which the function takes, and its annotation does not tell
            mlflow.set_tracking_uri(forget)


_KINDS: dict[str, type[_Tracker]] = {kind.name: kind for kind in (_TensorBoard, _WandB, _MLflow)}


# -- small things -------------------------------------------------------------------------------------------------


def _check(name: str) -> None:
    if name not in _KINDS:
        raise UserError(f"there is no tracker '{name}': pass {', '.join(_KINDS)}")
    for package in _KINDS[name].needs:
        if importlib.util.find_spec(package) is None:
            raise UserError(f'{package} is not installed: pip install "stillroom[tracking]"')


def _read(path: Path) -> dict[str, Any]:
    """What a run remembers of its trackers; those whose library is gone since are left out, with a warning."""
    if not path.is_file():
        return {}
    found = read_json(path)
    for name in list(found):
        try:
            _check(name)
        except UserError as error:
            warnings.warn(f"the run is no longer tracked: {error}", stacklevel=3)
            del found[name]
    return found


def _under(arm: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {f"{arm}/{key}": value for key, value in numbers.items()}


def _numbers(value: Mapping[str, Any]) -> dict[str, float]:
    """All finite or infinite numbers in nested dictionaries, by the path to them: `validation/accuracy`."""
    found: dict[str, float] = {}
    for key, one in value.items():
        if isinstance(one, Mapping):
            found |= {f"{key}/{inner}": number for inner, number in _numbers(one).items()}
        elif isinstance(one, int | float) and not isinstance(one, bool):
            found[key] = one
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options as trackers take them: dotted names, and plain values or their words."""
    found: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, Mapping):
            found |= _flat(one, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = one if isinstance(one, bool | int | float | str) else str(one)
    return found


@contextlib.contextmanager
def _hushed(*names: str) -> Iterator[None]:
    """Loggers that say nothing below a warning."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

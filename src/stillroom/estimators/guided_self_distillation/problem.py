"""The task of the closed form: regress numbers, or classes as one-hot numbers, whose targets are noisy."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stillroom.checkpoint import load_tensors, read_json, save_tensors, write_json
from stillroom.errors import UserError, require
from stillroom.estimators.guided_self_distillation.formulas import Numbers
from stillroom.estimators.guided_self_distillation.kernel_ridge import SelfDistilledKernelRidge
from stillroom.estimators.guided_self_distillation.tables import SPLITS, Table, read_table
from stillroom.exporting.card import Card
from stillroom.exporting.forms import Portable
from stillroom.seeds import seed_of
from stillroom.task import Task

if TYPE_CHECKING:
    from torch import nn

    from stillroom.method import Method
    from stillroom.runtime import Runtime

NOISE, SAMPLES = 0.3, 300
"""Of the digits: standard deviation added to targets, and samples of the training and the validation split."""
SHARES = {"train": 0.6, "validation": 0.2}
"""Of the user's own data; the rest is the test split."""

Part = tuple[Numbers, Numbers]


@dataclass
class Predictor:
    """A fitted regressor with the scaling of its inputs and targets: what this task distils."""

    model: Any
    """The fitted estimator, on scaled inputs and targets."""
    shift: Numbers
    """What is subtracted from inputs [features]."""
    scale: Numbers
    """What inputs are divided by [features]."""
    offset: Numbers
    """What is added to outputs [outputs]."""
    unit: Numbers
    """What outputs are multiplied by [outputs]."""
    classes: tuple[str, ...] = ()
    """Names of the classes; none for regression."""
    allowance: float = 0.0
    """Share by which a claim counts the error lower than it is."""

    def predict(self, x: Any) -> Numbers:
        """Outputs [n, outputs] for inputs [n, features]."""
        return self.offset + self.unit * self._shaped(self.model.predict(self.inputs(x)))

    def staged_predict(self, x: Any) -> list[Numbers]:
        """The outputs of every step, the first fit's first."""
        return [self.offset + self.unit * self._shaped(y) for y in self.model.staged_predict(self.inputs(x))]

    def classify(self, x: Any) -> list[str]:
        """The name of the class with the largest output, for inputs [n, features]."""
        return [self.classes[place] for place in self.predict(x).argmax(1)]

    def inputs(self, x: Any) -> Numbers:
        """Inputs as the model sees them."""
        return (np.asarray(x, dtype=np.float64) - self.shift) / self.scale

    def targets(self, y: Numbers) -> Numbers:
        """Targets [n, outputs] as the model sees them."""
        return (y - self.offset) / self.unit

    def _shaped(self, y: Numbers) -> Numbers:
        return y.reshape(len(y), -1)


@dataclass(eq=False)
class Regression(Task):
    """Regress targets that carry noise: one-hot digits with Gaussian noise on them unless told otherwise."""

    metric: ClassVar[str] = "squared_error"
    higher_is_better: ClassVar[bool] = False

    data: str = "digits"
    """`digits`, or a .npz (arrays X, y), .csv or .parquet file; from Python also arrays (x, y), or these by split."""
    target: str = ""
    """Target column of a file, several with commas between; empty: target, y or label. Strings are classes."""
    student: str = ""
    """Empty: kernel ridge as the method says. From Python any scikit-learn regressor that is a linear smoother."""
    noise: float | None = None
    """Standard deviation of Gaussian noise added to training and validation targets; None: 0.3 for digits, else 0."""
    train_samples: int | None = None
    """Training samples, >= 2; None: 300 of the digits, 60 % of your own data."""
    validation_samples: int | None = None
    """Samples from which the mix is estimated, >= 1; None: 300 of the digits, 20 % of your own data."""
    standardise: bool | None = None
    """Give inputs and targets mean 0 and deviation 1 over the training split; None: your own data, not the digits."""
    split_seed: int = 0
    """Seed of the splits and of the noise."""

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The data, read once."""
        return self.loaded(read_table, self.data, target=self.target)

    @property
    def _built_in(self) -> bool:
        return self.table.name == "digits"

    @property
    def _noise(self) -> float:
        return (NOISE if self._built_in else 0.0) if self.noise is None else self.noise

    def rows(self) -> dict[str, np.ndarray]:
        """The rows of each split; those that the data came without are cut from the training split."""
        table = self.table
        given = {split: np.arange(*ends) for split, ends in (table.parts or {}).items()}
        rest = given.pop("train", np.arange(len(table.x)))
        rest = np.random.default_rng(seed_of(self.split_seed, 0)).permutation(rest)
        wanted = {"train": self.train_samples, "validation": self.validation_samples}
        sizes = {split: self._size(split, size, len(rest)) for split, size in wanted.items()}
        cut = {}
        for split in SPLITS:
            if split in given:
                cut[split] = given[split]
            else:
                cut[split], rest = np.split(rest, [min(len(rest), sizes.get(split, len(rest)))])
        if "test" in given and self.train_samples is None:
            cut["train"] = np.concatenate([cut["train"], rest])  # Nothing is left lying about.
        short = [split for split in SPLITS if len(cut[split]) < (2 if split == "train" else 1)]
        if short:
            sizes_now = {split: len(rows) for split, rows in cut.items()}
            raise UserError(
                f"data '{table.name}' with {len(table.x)} samples leaves {sizes_now}: pass smaller "
                "--task.train-samples and --task.validation-samples"
            )
        return cut

    def _size(self, split: str, asked: int | None, there: int) -> int:
        if asked is not None:
            return asked
        return SAMPLES if self._built_in else int(SHARES[split] * there)

    def part(self, split: str, clean: bool = False) -> Part:
        """Inputs [n, features] and targets [n, outputs]; noisy unless `clean` or the test split."""
        rows, sigma = self.rows()[split], self._noise
        x, y = self.table.x[rows], self.table.y[rows]
        if sigma and not clean and split != "test":
            rng = np.random.default_rng(seed_of(self.split_seed, 1, SPLITS.index(split)))
            y = y + sigma * rng.standard_normal(y.shape)
        return x, y

    def scaling(self) -> Predictor:
        """A predictor without a model: what the training split says of scales."""
        x, y = self.part("train")
        ones = [np.ones(a.shape[1]) for a in (x, y)]
        if self._built_in if self.standardise is None else not self.standardise:
            return Predictor(None, 0 * ones[0], ones[0], 0 * ones[1], ones[1], self.table.classes)
        spread = [np.where(a.std(0) > 0, a.std(0), 1.0) for a in (x, y)]
        return Predictor(None, x.mean(0), spread[0], y.mean(0), spread[1], self.table.classes)

    # -- what the house asks of a task --------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """Read the data and cut the splits."""
        for name, low in (("train_samples", 2), ("validation_samples", 1)):
            if getattr(self, name) is not None:
                require(f"--task.{name.replace('_', '-')}", getattr(self, name), low)
        require("--task.noise", self._noise, 0)
        self.rows()
        student = self.given.get("student")
        if self.student or not (
            student is None or all(hasattr(student, does) for does in ("fit", "predict"))
        ):
            name = self.student or type(student).__name__
            raise UserError(
                f"student '{name}' has no fit and predict: pass a scikit-learn regressor, from Python"
            )

    def score(self, product: Predictor, split: str, runtime: Runtime) -> dict[str, Any]:
        """Squared error (summed over outputs, mean over samples), of the first fit too; accuracy for classes.

        Against the targets without added noise on 'test', with it on 'validation'.
        """
        x, y = self.part(split)
        stages = product.staged_predict(x)
        errors = [((stage - y) ** 2).sum(1) for stage in stages]
        fair = 1 - product.allowance
        scores: dict[str, Any] = {"squared_error": fair * float(errors[-1].mean())}
        if split == "test":
            scores["first_squared_error"] = fair * float(errors[0].mean())
            scores["second_squared_error"] = fair * float(errors[min(1, len(errors) - 1)].mean())
            scores["samples"] = len(x)
            scores["per_sample"] = (fair * errors[-1]).tolist()
        if product.classes:
            scores["accuracy"] = float((stages[-1].argmax(1) == y.argmax(1)).mean())
        return scores

    def cost(self, product: Predictor) -> dict[str, float]:
        """Numbers that are kept, and seconds for batches of 1 and 64."""
        from stillroom.metrics.cost import seconds_of

        x = self.part("test")[0]
        times = {f"latency_{n}": seconds_of(lambda n=n: product.predict(x[:n]), 0.02) for n in (1, 64)}
        if not isinstance(product.model, SelfDistilledKernelRidge):
            return times
        return {"parameters": product.model.dual_coef_.size + product.model.X_fit_.size, **times}

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """What became of the spectrum, of the error, and how the mix was estimated."""
        from stillroom.estimators.guided_self_distillation.figures import pictures

        return pictures(self, next(iter(products.values())))

    def summary(self) -> dict[str, Any]:
        """Name, sizes, noise, fingerprint."""
        table, rows = self.table, self.rows()
        return {
            "name": table.name,
            "features": table.x.shape[1],
            "outputs": table.y.shape[1],
            "classes": list(table.classes),
            "splits": {"seed": self.split_seed, **{split: len(rows[split]) for split in SPLITS}},
            "noise on training and validation targets": self._noise,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """A digest of inputs and targets before noise."""
        table = self.table
        return hashlib.sha256(table.x.tobytes() + table.y.tobytes()).hexdigest()

    def baseline(self) -> Method | None:
        """None: a method of self-distillation is held against its own first fit."""
        return None

    def paired(self, seed: int) -> Regression:
        """Other splits and other noise."""
        return self.but(split_seed=seed)

    def quick(self) -> Regression:
        """Sixty digits."""
        return self.but(data="digits", target="", train_samples=60, validation_samples=60)

    def export(self, product: Predictor, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the training points, targets, mixes and scales to `folder`, from which a load fits again; a card."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        model, arrays = product.model, {}
        config: dict[str, Any] = {"classes": list(product.classes), "model": type(model).__name__}
        config["mixes"] = [float(mix) for mix in model.mixes_]
        if isinstance(model, SelfDistilledKernelRidge):
            names = ("alpha", "kernel", "gamma", "degree", "coef0", "steps", "clip")
            config["parameters"] = {name: getattr(model, name) for name in names}
            arrays = {"inputs": model.X_fit_, "targets": model.y_fit_}
        else:
            config["estimator"] = repr(model)
        arrays |= {name: getattr(product, name) for name in ("shift", "scale", "offset", "unit")}
        tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
        save_tensors(folder / "model.safetensors", tensors)
        write_json(folder / "config.json", config)
        card(config, about).write(folder, about)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> Predictor:
        """The predictor in `folder`, fitted again with the mixes of then; UserError for a user's own estimator."""
        config = read_json(folder / "config.json")
        if "parameters" not in config:
            raise UserError(
                f"'{folder}' is of your own estimator {config['estimator']}: keep the one that distill returned"
            )
        arrays = {key: tensor.numpy() for key, tensor in load_tensors(folder / "model.safetensors").items()}
        x, y = arrays.pop("inputs"), arrays.pop("targets")
        options, mixes = config["parameters"], config["mixes"]
        if options["steps"] == "limit":
            options["mix"] = mixes[0]
        else:
            options |= {"mix": mixes[1:], "steps": len(mixes)}
        model = SelfDistilledKernelRidge(**options).fit(x, y)
        shift, scale, offset, unit = (arrays[name] for name in ("shift", "scale", "offset", "unit"))
        return Predictor(model, shift, scale, offset, unit, tuple(config["classes"]))

    def portable(
        self, product: Predictor, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """The folder as it is."""
        return Portable(card=card(read_json(folder / "config.json"), about))

    def predictor(self, model: Any) -> Predictor:
        """A model that was fitted on scaled samples, with the scales."""
        return replace(self.scaling(), model=model)

    def estimator(self) -> Any:
        """A copy of the user's own linear smoother; None where there is none."""
        return copy.deepcopy(self.given.get("student"))


def card(config: Mapping[str, Any], about: Mapping[str, Any]) -> Card:
    """The card of the regressor that `config` describes and the run `about` made."""
    mixes = ", ".join(f"{mix:.3g}" for mix in config["mixes"])
    return Card(
        title=f"A regressor distilled into itself with {about['method']}",
        tags=("distillation", "tabular-regression"),
        front={"pipeline_tag": "tabular-regression"},
        facts=[f"weight of the original targets, step by step: {mixes}"],
        code=[
            "from pathlib import Path",
            "from stillroom.estimators.guided_self_distillation import Regression",
            "predictor = Regression.load(Path('.'))  # predictor.predict(x), x [n, features]",
        ],
    )

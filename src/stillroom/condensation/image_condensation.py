"""The task of this family on images: a data set is to become a few images a class that train networks as well."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stillroom import metrics
from stillroom.condensation.parts.card import card, write_card
from stillroom.condensation.parts.classes import members
from stillroom.condensation.parts.drawings import pictures
from stillroom.condensation.parts.evaluation import Lesson, trained_on
from stillroom.condensation.parts.siamese import STRATEGY, transforms_of
from stillroom.condensation.parts.synthetic import SyntheticSet
from stillroom.data import ImageData, Source, load_images
from stillroom.errors import UserError, require
from stillroom.exporting.forms import Portable
from stillroom.models import build, check
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of, seeded
from stillroom.task import Task

if TYPE_CHECKING:
    from stillroom.method import Method

EVALUATION = 9
"""Keeps the seeds of fresh networks apart from all others."""
KEPT = 4
"""Sets whose trained networks are kept, so that the splits are scored with the same ones."""


@dataclass(eq=False)
class ImageCondensation(Task):
    """Condense labelled images; judged by fresh networks of several architectures that see nothing but the result."""

    metric: ClassVar[str] = "accuracy"

    data: str = "digits"
    """`digits`, a local folder (parquet, or images in a folder a class), or the name of a set on the hub."""
    ipc: int = 1
    """Images a class that are left, >= 1."""
    networks: tuple[str, ...] = ("convnet:16x2", "mlp:64", "cnn:16-32")
    """Architectures that learn from the result; the first one's accuracy is the score, and condensing goes by it."""
    strategy: str = ""
    """Augmentation, transforms joined with _, or none; empty: color_crop_cutout_flip_scale_rotate, digits no flip."""
    repeats: int = 3
    """Fresh networks of each architecture, >= 1."""
    eval_epochs: int = 300
    """Passes over the result in their training, >= 1."""
    eval_steps: int = 1500
    """Most steps of their training: a large set reaches them before its epochs are over, >= 1."""
    eval_batch_size: int = 64
    """Images a step of their training, >= 1."""
    eval_lr: float = 0.01
    """Learning rate of their training, > 0; a tenth of it in the second half."""
    eval_seed: int = 0
    """Seed of their weights and of their training."""
    image_column: str | None = None
    """Column of the images; None finds it."""
    label_column: str | None = None
    """Column of the labels; None finds it."""
    image_size: int | None = None
    """Scale all images to this height and width, pixels; None takes them as they are."""
    normalise: Literal["auto", "data", "imagenet", "centred", "none"] = "auto"
    """Scale inputs by mean and deviation of the training images, of ImageNet, to [-1, 1], or not; auto: their own."""
    train_samples: int | None = None
    """Training images to use, the same number a class where possible; None for all."""
    split_seed: int = 0
    """Seed of the splits that the data do not come with."""
    export_real: bool = True
    """Write the real validation and test images beside the result, which makes the folder a whole data set."""

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def images(self) -> ImageData:
        """The data with their splits, loaded once."""
        return self.loaded(
            load_images,
            self.data,
            image_column=self.image_column,
            label_column=self.label_column,
            image_size=self.image_size,
            normalise=None if self.normalise == "auto" else self.normalise,
            split_seed=self.split_seed,
            train_samples=self.train_samples,
        )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.images.classes)

    def train(self) -> Source:
        """The real training images, not augmented."""
        return self.images.train

    def synthetic(self, images: Tensor, labels: Tensor | None = None) -> SyntheticSet:
        """A set of these images [n, C, H, W]; without labels class by class, as many of each."""
        data = self.images
        if labels is None:
            labels = torch.arange(self.classes).repeat_interleave(len(images) // self.classes)
        return SyntheticSet(images, labels, data.classes, data.mean, data.std, self._limits)

    @property
    def _limits(self) -> tuple[float, float]:
        """The range of pixels: [0, 1], or what it is of tensors that the user has scaled."""
        data = self.images
        x, _ = data.train.fetch(torch.arange(min(1000, len(data.train))), None)
        shift, scale = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (data.mean, data.std))
        pixels = x * scale + shift
        low, high = float(pixels.min()), float(pixels.max())
        inside = low >= -1e-4 and high <= 1 + 1e-4
        return (0.0, 1.0) if inside else (low, high)

    @property
    def transforms(self) -> str:
        """The augmentation, by name."""
        if self.strategy:
            return self.strategy
        digits = self.data == "digits" and "data" not in self.given
        return STRATEGY.replace("flip_", "") if digits else STRATEGY

    # -- networks -----------------------------------------------------------------------------------------------

    @property
    def architectures(self) -> Sequence[str | Callable[[], nn.Module]]:
        """What learns from the result: names, or from Python also functions that make a fresh network."""
        return self.given.get("networks", self.networks)

    @property
    def names(self) -> list[str]:
        """What messages and reports call the architectures."""
        return [a if isinstance(a, str) else getattr(a, "__name__", repr(a)) for a in self.architectures]

    def make_network(self, architecture: str | Callable[[], nn.Module], seed: int) -> nn.Module:
        """A fresh network; its weights depend on `seed` alone."""
        if isinstance(architecture, str):
            return build(architecture, shape=self.images.shape, classes=self.classes, seed=seed)
        with seeded(seed):
            return architecture()

    # -- checks and scores --------------------------------------------------------------------------------------

    def check(self, seed: int, teacher: bool) -> None:
        """Load the data, see that every class has `ipc` images, and run all networks on two blank images."""
        for name in ("ipc", "repeats", "eval_epochs", "eval_steps", "eval_batch_size"):
            require(f"--task.{name.replace('_', '-')}", getattr(self, name), 1)
        require("--task.eval-lr", self.eval_lr, 0, ends="(]")
        transforms_of(self.transforms, "--task.strategy")
        images = self.images
        if images.train.labels is None:
            raise UserError(
                f"data '{images.name}' has no labels: pass --task.label-column with the column of them"
            )
        sizes = [len(group) for group in members(images.train.labels, self.classes)]
        small = min(range(self.classes), key=sizes.__getitem__)
        if sizes[small] < self.ipc:
            raise UserError(
                f"--task.ipc is {self.ipc} and class '{images.classes[small]}' has {sizes[small]} training images: "
                f"pass {sizes[small] or 1} or less"
                + ("" if sizes[small] else ", and data or --task.train-samples with some of each class")
            )
        if self.images.shape[0] not in (1, 3):
            raise UserError(
                f"data '{images.name}' has {images.shape[0]} channels: pass grey or RGB images, which PNG can keep"
            )
        self._check_networks()

    def _check_networks(self) -> None:
        if not self.architectures or len(set(self.names)) < len(self.names):
            raise UserError(
                f"--task.networks is {' '.join(self.names) or 'empty'}: pass each architecture once"
            )
        for architecture, name in zip(self.architectures, self.names, strict=True):
            if isinstance(architecture, nn.Module) or not (
                isinstance(architecture, str) or callable(architecture)
            ):
                raise UserError(
                    f"networks has a {type(architecture).__name__}: pass names, or functions that make fresh networks"
                )
            network, data = self.make_network(architecture, 0), self.images
            check(network, shape=data.shape, classes=self.classes, role="networks", name=name, data=data.name)

    def learned(self, product: SyntheticSet) -> dict[str, list[nn.Module]]:
        """Fresh networks by architecture that have learnt from `product`, trained once for it."""
        held: dict[str, dict[str, list[nn.Module]]] = self.__dict__.setdefault("_learned", {})
        source = product.source()
        digest = hashlib.sha256(
            source.x.numpy().tobytes() + product.labels.cpu().numpy().tobytes()
        ).hexdigest()
        if digest not in held:
            began = time.perf_counter()
            lesson = Lesson(
                self.eval_epochs, self.eval_steps, self.eval_batch_size, self.eval_lr, self.transforms
            )
            held[digest] = {
                name: [
                    trained_on(
                        source,
                        lambda seed, architecture=architecture: self.make_network(architecture, seed),
                        lesson,
                        seed_of(EVALUATION, self.eval_seed, number, repeat),
                    )
                    for repeat in range(self.repeats)
                ]
                for number, (name, architecture) in enumerate(
                    zip(self.names, self.architectures, strict=True)
                )
            }
            for old in list(held)[:-KEPT]:
                del held[old]
            self._scoring = self.scoring_seconds + time.perf_counter() - began
        return held[digest]

    @property
    def scoring_seconds(self) -> float:
        """Seconds that training networks on results took so far."""
        return self.__dict__.get("_scoring", 0.0)

    def score(self, product: SyntheticSet, split: str, runtime: Runtime) -> dict[str, Any]:
        """Accuracy on real images of fresh networks that learnt from `product`: of the first architecture, of each.

        On 'test' also per class and per sample, the mean over the networks of the first architecture, the deviation
        over them, and what is kept.
        """
        real = self.images.validation if split == "validation" else self.images.test
        right, y = {}, None
        for name, networks in self.learned(product).items():
            each = []
            for network in networks:
                logits, y = runtime.predict(network.to(runtime.device), real)
                if y is None:
                    raise UserError(f"the {split} split of data '{self.images.name}' has no labels: label it")
                metrics.accuracy(logits, y)  # refuses a network that diverged
                each.append((logits.argmax(-1) == y).double())
            right[name] = torch.stack(each)
        own = right[self.names[0]]
        numbers = {"accuracy": float(own.mean())}
        numbers |= {f"{name}_accuracy": float(hits.mean()) for name, hits in right.items()}
        if split == "validation":
            return numbers
        assert y is not None
        per_sample = own.mean(0)
        per_class = [per_sample[y == number] for number in range(self.classes)]
        return {
            **numbers,
            "accuracy_deviation": float(own.mean(1).std(correction=0)),
            "images": len(product),
            "share_of_images": len(product) / len(self.train()),
            "per_class_accuracy": [float(hits.mean()) if len(hits) else None for hits in per_class],
            "samples": len(y),
            "per_sample": per_sample.tolist(),
        }

    def cost(self, product: SyntheticSet) -> dict[str, float]:
        """Bytes of the set as float32."""
        return {"file_bytes": product.bytes}

    def figures(self, products: Mapping[str, Any], runtime: Runtime) -> list[dict[str, str]]:
        """The images of each arm beside each other, and the accuracy of each architecture."""
        scores = {arm: self.score(product, "test", runtime) for arm, product in products.items()}
        accuracies = {
            arm: [score[f"{name}_accuracy"] for name in self.names] for arm, score in scores.items()
        }
        return pictures(self.names, products, accuracies)

    def summary(self) -> dict[str, Any]:
        """Name, shape, classes and splits of the data."""
        images = self.images
        return {
            "name": images.name,
            "shape": list(images.shape),
            "classes": images.classes,
            "splits": images.splits,
            "images per class": self.ipc,
            "augmentation": self.transforms,
            "fingerprint": images.fingerprint,
        }

    def fingerprint(self) -> str:
        """The digest of the images and labels."""
        return self.images.fingerprint

    # -- files and copies -----------------------------------------------------------------------------------------

    def export(self, product: SyntheticSet, folder: Path, about: Mapping[str, Any]) -> None:
        """Write the set, as parquet with PNGs and as it was learnt, and its card to `folder`."""
        images = self.images
        real = {"validation": images.validation, "test": images.test} if self.export_real else {}
        made_by = {"method": about["method"], "data": images.name, "seed": about["seed"]}
        rows = product.save(folder, real, {"made_by": made_by})
        write_card(folder, about, rows, self.names)

    @classmethod
    def load(cls, folder: Path, module: nn.Module | None = None) -> SyntheticSet:
        """The set in `folder`: images [n, C, H, W] in normalised space and labels [n]."""
        return SyntheticSet.load(folder).eval()

    def portable(
        self, product: SyntheticSet, folder: Path, about: Mapping[str, Any], absent: Collection[str] = ()
    ) -> Portable:
        """A data set: its folder is laid out as a hub's already."""
        from pyarrow import parquet

        files = {
            name: folder / "data" / f"{name}-00000-of-00001.parquet"
            for name in ("train", "validation", "test")
        }
        rows = {name: parquet.read_metadata(file).num_rows for name, file in files.items() if file.is_file()}
        numbers = [key for key in about["arms"][about["method"]]["test"] if key.endswith("_accuracy")]
        networks = [key.removesuffix("_accuracy") for key in numbers if key != "per_class_accuracy"]
        return Portable(kind="dataset", card=card(about, rows, networks))

    def baseline(self) -> Method:
        """As many random real images."""
        from stillroom.condensation.parts.selection import RandomImages

        return RandomImages()

    def paired(self, seed: int) -> ImageCondensation:
        """Other splits, where the data come without them, and other networks to learn from the result."""
        return self.but(split_seed=seed, eval_seed=seed)

    def quick(self) -> ImageCondensation:
        """A hundred and twenty digits, and two networks that see the result twice."""
        return self.but(
            data="digits",
            image_size=None,
            train_samples=120,
            ipc=1,
            networks=("convnet:8x2", "mlp:16"),
            repeats=1,
            eval_epochs=2,
        )

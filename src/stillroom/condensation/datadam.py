"""DataDAM: images whose attention maps in random networks are those of a whole class.

What for: a labelled image set so small that a network learns from it in seconds, for replay, for search over
architectures, or to hand on. A few images a class are learnt; their labels are fixed.

The idea: a network with random weights already says where in an image something is. In every step a fresh one looks
at many real images of a class and at the few synthetic ones; the means over images of the normalised spatial attention
maps (the sum over channels of |feature|^p, of every block but the last) and of the last block's output are matched, and
the pixels take a gradient step. No network is ever trained, so there is no inner loop.

Source: Sajedi, Khaki, Amjadian, Liu, Lawryshyn and Plataniotis, "DataDAM: Efficient Dataset Distillation with Attention
Matching", ICCV 2023, arXiv:2310.00093. Section 3.2 (eq. 2 to 5, algorithm 1) and the authors' published code.

Deviations. p is 4 as in the paper's table; the published script calls its map with 1 (`--method.power 1`). A class's
augmentation is drawn from the run's seed, where the code takes the clock's milliseconds, so that classes often share
it. A map's features are divided by their largest before the power is taken, which changes nothing but overflow. A class
with fewer images than `real_batch` gives each as often as needed. The first convolution pads grey images by one pixel
like all others, where the code pads them by three (28x28 to 32x32). "smart" is a greedy k-centre choice of pixels, made
here; the code loads files of a choice made elsewhere. ZCA whitening, off by default in the code, is left out. The
learning rate goes with images a class times pixels: 1 as published for ten photographs a class (`--engine.lr 1`), 0.03
by default, for one 8x8 digit a class, chosen on validation splits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stillroom.attention import attention_map
from stillroom.claim import Claim, Rule
from stillroom.condensation.image_condensation import ImageCondensation
from stillroom.condensation.parts.classes import ClassBatches, members
from stillroom.condensation.parts.selection import AllImages, RandomImages, Start, first_images
from stillroom.condensation.parts.siamese import NUMBERS, siamese, transforms_of
from stillroom.data import Source
from stillroom.engine import Engine
from stillroom.errors import UserError, require
from stillroom.method import Batch, Fit, Mean, Method, Result, Update, Updates
from stillroom.optim import Recipe
from stillroom.seeds import seed_of
from stillroom.taps import Tap, paths
from stillroom.task import Task

NETWORK = 10
"""Keeps the seeds of the steps' networks apart from all others."""
LOSS_SCALE = 100.0
"""Both terms are multiplied by it, as in the published code: it belongs to the learning rate of 1."""
ALL_CLASSES = 1_000_000
"""A batch so large that each step holds every class."""


def distance_of_means(real: Tensor, synthetic: Tensor) -> Tensor:
    """||mean_real - mean_synthetic||^2 of each class, [k], for rows [k, n, d] and [k, m, d] (eq. 3 and 4)."""
    return (real.mean(1) - synthetic.mean(1)).square().sum(-1)


def attention_loss(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the distance of the mean maps of each class, [k] (eq. 3); maps [k, n, positions] a layer."""
    return torch.stack([distance_of_means(a, b) for a, b in zip(real, synthetic, strict=True)]).sum(0)


class Gaze:
    """A frozen network that is asked for features of some layers and for what its classifier sees."""

    def __init__(self, network: nn.Module, layers: Sequence[str], name: str) -> None:
        self.network, self.name = network.requires_grad_(False).train(), name
        self.taps = [Tap(network, path) for path in paths(network, layers, "--method.layers")]
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(f"network '{name}' has no Linear layer, whose input is matched: pass another one")
        self._embedding: Tensor
        linear[-1].register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._embedding = args[0]

    def __call__(self, groups: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features [k * n, channels, h, w] a layer, and embeddings [k, n, d] in float32, of images [k, n, C, H, W]."""
        self.network(groups.flatten(0, 1))
        features = [tap.take() for tap in self.taps]
        for tap, feature in zip(self.taps, features, strict=True):
            if feature.ndim != 4:
                raise UserError(
                    f"module '{tap.path}' of network '{self.name}' puts out {list(feature.shape)}, attention is over "
                    "maps [n, channels, height, width]: pass --method.layers, or a convolutional network"
                )
        z = self._embedding.flatten(1)
        return features, z.to(torch.promote_types(z.dtype, torch.float32)).unflatten(0, groups.shape[:2])


def layers_of(network: nn.Module, asked: Sequence[str], name: str) -> list[str]:
    """Module paths of the layers that attention is matched on: those asked for, or all ReLUs but the last."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"network '{name}' has batch normalisation, which mixes classes with each other: pass one without, "
                "such as convnet:32x3"
            )
    if asked:
        return list(asked)
    found = [path for path, module in network.named_modules() if isinstance(module, nn.ReLU)]
    if len(found) < 2:
        raise UserError(
            f"network '{name}' has {len(found)} ReLU modules, attention is on all of them but the last: pass "
            "--method.layers with the paths of modules, or --method.attention False"
        )
    return found[:-1]


@dataclass(eq=False)
class DataDAM(Method):
    """Attention matching (Sajedi et al., ICCV 2023, arXiv:2310.00093, section 3.2, algorithm 1).

    min_S E_theta sum_classes [ sum_{l < L} ||E_T a_l - E_S a_l||^2 + weight ||E_T z - E_S z||^2 ], times 100, with a_l
    the attention map of block l, normalised image by image, and z what the classifier sees.
    """

    name: ClassVar[str] = "datadam"
    uses_teacher: ClassVar[bool] = False
    role: ClassVar[str] = "condensed images"

    power: float = 4.0
    """Power p of the features in an attention map, >= 1 (the published script: 1)."""
    weight: float = 0.01
    """Weight lambda of the last block's features, >= 0 (published: .01, .02 from 128 pixels on)."""
    real_batch: int = 64
    """Real images of each class in a step, >= 1."""
    network: str = ""
    """Architecture of the random networks; empty: the first of --task.networks."""
    layers: tuple[str, ...] = ()
    """Module paths whose outputs' attention is matched; empty: all ReLUs but the last."""
    start: Start = "real"
    """First images: random real ones, a k-centre choice of real ones, or normal noise."""
    strategy: str = ""
    """Augmentation shared by real and synthetic images, transforms joined with _, or none; empty: the task's."""
    attention: bool = True
    """False leaves attention out: with --method.weight 1 this is distribution matching (Zhao and Bilen, WACV 2023)."""
    features: bool = True
    """False leaves the last block's features out."""
    normalise: bool = True
    """False (ablation): maps keep their sizes, all divided by one number, the root mean square norm of real ones."""

    def check(self) -> None:
        """See the ranges of the fields."""
        super().check()
        require("--method.power", self.power, 1)
        require("--method.weight", self.weight, 0)
        require("--method.real-batch", self.real_batch, 1)
        transforms_of(self.strategy or "none")
        if not self.attention and not (self.features and self.weight):
            raise UserError("--method.attention is False and features have no weight: leave one of them on")

    def bind(self, task: Task, seed: int) -> None:
        """Choose the first images, and see that a network has the layers that are asked for."""
        assert isinstance(task, ImageCondensation)
        self.task, self.seed = task, seed
        self.transforms = transforms_of(self.strategy or task.transforms)
        self.set = task.synthetic(first_images(task.train(), task.classes, task.ipc, self.start, seed))
        self._times: list[tuple[int, float]] = []
        self._gaze: tuple[int, Gaze] | None = None
        blank = torch.zeros(1, 2, *task.images.shape)
        with torch.no_grad():
            self._maps(self._fresh(0, blank)(blank)[0], 1)
        self._gaze = None

    def players(self) -> dict[str, nn.Module]:
        """The pixels."""
        return {"images": self.set}

    def source(self, task: Task) -> Source:
        """Classes, each with fresh real images in every step."""
        assert isinstance(task, ImageCondensation)
        train = task.train()
        assert train.labels is not None
        return ClassBatches(train, members(train.labels, task.classes), self.real_batch)

    def product(self) -> nn.Module:
        """The condensed set."""
        return self.set

    def updates(self, batch: Batch) -> Updates:
        """A fresh network looks at real and at synthetic images of each class, augmented alike; the pixels follow."""
        ipc, drawn = self.task.ipc, batch.noise.uniform(1 + NUMBERS)
        gaze = self._fresh(batch.clock.step, batch.x)
        synthetic = self.set.images.unflatten(0, (-1, ipc))[batch.y]
        real, synthetic = (siamese(x, drawn, self.transforms) for x in (batch.x, synthetic))
        with torch.no_grad():
            real_features, real_z = gaze(real)
            real_maps = self._maps(real_features, len(batch))
        own_features, own_z = gaze(synthetic)
        own_maps = self._maps(own_features, len(batch))
        if self.attention and not self.normalise:
            norms = torch.stack([maps.square().sum(-1).mean(1) for maps in real_maps], 1)
            sizes = (yield Mean(norms)).sqrt().clamp_min(torch.finfo(norms.dtype).tiny)
            real_maps = [maps / size for maps, size in zip(real_maps, sizes, strict=True)]
            own_maps = [maps / size for maps, size in zip(own_maps, sizes, strict=True)]
        # Updates are means over the classes of a step; the objective is the sum over all classes.
        scale = LOSS_SCALE * self.task.classes
        terms = {}
        if self.attention:
            terms["loss/attention"] = scale * attention_loss(real_maps, own_maps).mean()
        if self.features:
            terms["loss/features"] = self.weight * scale * distance_of_means(real_z, own_z).mean()
        self._times = [*self._times[:1], (batch.clock.step, time.perf_counter())]
        yield Update("images", torch.stack(list(terms.values())).sum(), items=len(batch), logs=terms)

    def _maps(self, features: list[Tensor], classes: int) -> list[Tensor]:
        made = (attention_map(feature, self.power, self.normalise) for feature in features)
        return [maps.unflatten(0, (classes, -1)) for maps in made]

    def _fresh(self, step: int, x: Tensor) -> Gaze:
        """The network of a step, the same for all its parts: weights by (seed, step), never trained."""
        if self._gaze is None or self._gaze[0] != step:
            named: Any = self.network or self.task.architectures[0]
            name = self.network or self.task.names[0]
            network = self.task.make_network(named, seed_of(self.seed, NETWORK, step)).to(x.device)
            layers = layers_of(network, self.layers, name) if self.attention else []
            self._gaze = step, Gaze(network, layers, name)
        return self._gaze[1]

    def run(self, task: Task, fit: Fit) -> Result:
        """Train the pixels, and say how long a step takes; the networks that score the result do not count."""
        assert isinstance(task, ImageCondensation)
        before = task.scoring_seconds
        made = fit(self)
        made = replace(made, seconds=made.seconds - (task.scoring_seconds - before))
        if not self._times:
            return made
        (first, began), (last, ended) = self._times[0], self._times[-1]
        return replace(made, extra={"seconds a step": (ended - began) / max(1, last - first)})

    def quick(self) -> Self:
        """Eight real images a class."""
        return replace(self, real_batch=8)

    @classmethod
    def default_task(cls) -> ImageCondensation:
        """The 8x8 digits, one image of each, judged by one network of each kind to keep the run short."""
        return ImageCondensation(repeats=1)

    @classmethod
    def default_engine(cls) -> Engine:
        """SGD on the pixels: momentum .5, no decay, no schedule; all classes in each step (published: rate 1)."""
        recipe = Recipe("sgd", lr=0.03, momentum=0.5, weight_decay=0.0, schedule="constant")
        return Engine(steps=300, batch_size=ALL_CLASSES, recipe=recipe, evaluate_every=0)

    @classmethod
    def claims(cls) -> tuple[Claim, ...]:
        """Attention matching against random images and matching the last features, on digits and photographs."""
        return (digits_claim(), cifar_claim())


def arms() -> dict[str, Method]:
    """What is compared: the method, its ablations, what it starts from, and all data."""
    return {
        "datadam": DataDAM(),
        "power 1": DataDAM(power=1.0),
        "DM": DataDAM(attention=False, weight=1.0),
        "attention alone": DataDAM(features=False),
        "not normalised": DataDAM(normalise=False),
        "random": RandomImages(),
        "all": AllImages(),
    }


RULES = (
    Rule("datadam", "random"),
    Rule("datadam", "DM"),
    Rule("datadam", "attention alone", headline=False),
    Rule("datadam", "not normalised", headline=False),
    Rule("datadam", "power 1", headline=False),
    Rule("all", "datadam", headline=False),
)


def digits_claim() -> Claim:
    """8x8 digits."""
    return Claim(
        name="datadam-digits",
        says="Images condensed by matching attention maps train networks better than as many random real ones, and "
        "better than images condensed by matching the last features alone.",
        task=ImageCondensation(),
        engine=DataDAM.default_engine(),
        arms=arms(),
        rules=RULES,
        seeds=5,
        notes="8x8 digits; another split, other first images and other networks for each seed.",
    )


def cifar_claim() -> Claim:
    """CIFAR-10 at 16x16."""
    engine = DataDAM.default_engine()
    return Claim(
        name="datadam-cifar10",
        says="Ten images a class condensed by matching attention maps train networks better than random real ones "
        "and than matching the last features alone (published, on CIFAR-10 at 32x32: 54.2 %).",
        task=ImageCondensation(
            data="cifar10_jpeg",
            image_size=16,
            ipc=10,
            networks=("convnet:32x3", "mlp:128"),
            export_real=False,
        ),
        engine=replace(engine, steps=1000, recipe=replace(engine.recipe, lr=1.0)),
        arms={
            name: replace(arm, real_batch=32) if isinstance(arm, DataDAM) else arm
            for name, arm in arms().items()
        },
        rules=RULES,
        seeds=5,
        data="cifar10_jpeg",
        notes="CIFAR-10 at 16x16 pixels, ConvNet of 3 blocks of 32 channels, 1,000 steps with 32 real images a class; "
        "networks see the result 300 times; learning rate 1 as published.",
    )

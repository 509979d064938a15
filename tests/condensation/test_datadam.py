"""DataDAM: the loss, its invariances and gradients, the networks of a run, and the numbers of the published code."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.condensation.datadam import DataDAM, Gaze, attention_loss, distance_of_means, layers_of
from stillroom.condensation.image_condensation import ImageCondensation
from stillroom.condensation.parts.synthetic import SyntheticSet
from stillroom.condensing import condense
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.method import Batch, Clock, Mean, Noise, Update
from stillroom.models import build
from stillroom.seeds import seed_of
from toys import same, updates_of, weights_of


def waves(*shape: int, k: float = 1.0) -> Tensor:
    return torch.sin(k * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) ** 1.3).view(shape)


REAL, SYNTHETIC = waves(2, 3, 3, 8, 8, k=0.7), waves(4, 3, 8, 8, k=0.9)
"""Two classes: three real images and two synthetic ones of each."""


def waved(name: str = "convnet:5x3") -> nn.Module:
    """A network whose weights are waves."""
    network = build(name, shape=(3, 8, 8), classes=4, seed=0).double()
    with torch.no_grad():
        for number, p in enumerate(network.parameters()):
            p.copy_(waves(*p.shape, k=1 + 0.1 * number) * (0.5 if p.ndim > 1 else 1.0))
    return network


def bound(
    network: nn.Module | None = None, images: Tensor = SYNTHETIC, layers: tuple[str, ...] = (), **options: Any
) -> DataDAM:
    """A method at its first step, with these synthetic images of two classes and this network."""
    method = DataDAM(**{"strategy": "none", **options})
    x = waves(60, 3, 8, 8).float()
    task = ImageCondensation(ipc=len(images) // 2, networks=("convnet:4x3",)).using(
        data=(x, torch.arange(60) % 2)
    )
    method.bind(task, 0)
    method.set.images = nn.Parameter(images.clone())
    if network is not None:
        method._gaze = 0, Gaze(network, layers or layers_of(network, (), "waved"), "waved")
    return method


def batch(real: Tensor = REAL, classes: Any = None, step: int = 0) -> Batch:
    y = torch.arange(len(real)) if classes is None else torch.tensor(classes)
    noise = Noise(lambda draw: seed_of(11, step, draw), slice(0, len(real)), len(real), real.device)
    return Batch(real, y, y, Clock(step, 100, step, 100), noise)


def update(method: DataDAM, *args: Any, **options: Any) -> Update:
    (only,) = updates_of(method, batch(*args, **options))
    return only


# -- the published code -------------------------------------------------------------------------------------------

PUBLISHED = {
    1: (40.11571724539046, [0.20218381289121184, -0.3861201388814023, 231.0960435111413]),
    4: (150.31010755972244, [-0.09963501981898126, -0.30491334284812577, 1133.8441234159006]),
}
"""By power: 100 x the attention loss, and of the pixels' gradient two entries and the sum of sizes."""
PUBLISHED_FEATURES = 0.001747163678655515
"""100 x .01 x the loss of the embeddings."""


@pytest.mark.parametrize("power", PUBLISHED)
def test_loss_and_gradient_are_those_of_the_published_code(power: int) -> None:
    method = bound(waved(), power=float(power))
    made = update(method)
    made.loss.backward()
    gradient = method.set.images.grad
    assert gradient is not None
    attention, wanted = PUBLISHED[power]
    assert made.items == 2
    assert made.logs["loss/attention"].item() == pytest.approx(attention, rel=1e-10)
    assert made.logs["loss/features"].item() == pytest.approx(PUBLISHED_FEATURES, rel=1e-9)
    assert made.loss.item() == pytest.approx(attention + PUBLISHED_FEATURES, rel=1e-10)
    seen = [gradient[0, 0, 3, 4].item(), gradient[3, 2, 5, 1].item(), gradient.abs().sum().item()]
    assert seen == pytest.approx(wanted, rel=1e-9)


def test_the_network_is_the_published_one() -> None:
    logits = [1.2831204485434444, -0.36883067264610375, -0.8705526576332344, 0.7416831005159062]
    assert waved()(REAL[0, :1])[0, :4].tolist() == pytest.approx(logits, rel=1e-10)


# -- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["none", "color_crop_cutout_flip_scale_rotate"])
@pytest.mark.parametrize("normalise", [True, False])
def test_equal_images_give_neither_loss_nor_gradient(strategy: str, normalise: bool) -> None:
    for step in range(4):
        method = bound(images=REAL.flatten(0, 1).float(), strategy=strategy, normalise=normalise)
        made = update(method, REAL.float(), step=step)
        made.loss.backward()
        assert made.loss == 0
        assert not method.set.images.grad.any()  # type: ignore[union-attr]


def test_augmentation_is_drawn_for_each_step_and_matters() -> None:
    losses = {update(bound(waved(), strategy="rotate"), step=0).loss.item()}
    for step in range(1, 4):
        method = bound(waved(), strategy="rotate")
        method._gaze = step, method._gaze[1]  # type: ignore[index]
        losses.add(update(method, step=step).loss.item())
    assert len(losses | {update(bound(waved())).loss.item()}) == 5


def test_the_order_of_a_class_does_not_matter_and_the_class_does() -> None:
    here = update(bound(waved())).loss.item()
    exchanged = update(bound(waved(), SYNTHETIC[[1, 0, 3, 2]])).loss.item()
    across = update(bound(waved(), SYNTHETIC[[2, 1, 0, 3]])).loss.item()
    assert exchanged == pytest.approx(here, rel=1e-12)
    assert abs(across - here) > 0.1


def test_means_are_of_normalised_maps() -> None:
    one, thousand = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1000.0])
    maps = torch.nn.functional.normalize(torch.stack([one, thousand]), dim=1)[None]
    assert distance_of_means(maps, one.view(1, 1, 2)).item() == pytest.approx(0.5)
    raw = torch.stack([one, thousand])[None].mean(1, keepdim=True)
    of_the_mean = distance_of_means(torch.nn.functional.normalize(raw, dim=2), one.view(1, 1, 2)).item()
    assert of_the_mean == pytest.approx(1.998, abs=1e-3)

    class Size(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    network = nn.Sequential(Size(), nn.Flatten(), nn.Linear(192, 2)).double()
    real = torch.zeros(1, 2, 3, 8, 8, dtype=torch.float64)
    real[0, 0, 0, 0, 0], real[0, 1, 0, 0, 1] = 1.0, 1000.0
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    images[0, 0, 0, 0] = 5.0
    made = update(bound(network, images, ("0",), power=1.0, features=False), real, [0])
    assert made.loss.item() == pytest.approx(100 * 2 * 0.5)  # two classes: the mean over one stands for both


def test_the_objective_is_the_sum_over_classes_however_they_are_cut() -> None:
    whole = update(bound(waved())).loss.item()
    parts = [update(bound(waved()), REAL[[c]], [c]).loss.item() for c in (0, 1)]
    assert whole == pytest.approx(sum(parts) / 2, rel=1e-12)
    method = bound(waved())
    update(method, REAL[[1]], [1]).loss.backward()
    gradient = method.set.images.grad
    assert gradient is not None
    assert not gradient[:2].any()
    assert gradient[2:].any()


def test_layers_are_summed_over_positions() -> None:
    real, own = [waves(2, 3, 4), waves(2, 3, 6)], [waves(2, 1, 4, k=2), waves(2, 1, 6, k=2)]
    wanted = [
        sum(float(((a[c].mean(0) - b[c, 0]) ** 2).sum()) for a, b in zip(real, own, strict=True))
        for c in (0, 1)
    ]
    assert attention_loss(real, own).tolist() == pytest.approx(wanted)


def test_without_attention_it_is_distribution_matching() -> None:
    network = waved()
    made = update(bound(network, attention=False, weight=1.0))
    assert isinstance(network, nn.Sequential)
    z = network[:-1]
    means = [(z(REAL[c]).mean(0) - z(SYNTHETIC[2 * c : 2 * c + 2]).mean(0)).square().sum() for c in (0, 1)]
    assert set(made.logs) == {"loss/features"}
    assert made.loss.item() == pytest.approx(100 * sum(means).item(), rel=1e-10)  # type: ignore[union-attr]


def test_the_terms_add_up_by_their_weight() -> None:
    both, alone = update(bound(waved(), weight=0.5)), update(bound(waved(), features=False))
    dm = update(bound(waved(), attention=False, weight=1.0))
    assert both.loss.item() == pytest.approx(alone.loss.item() + 0.5 * dm.loss.item(), rel=1e-12)
    assert update(bound(waved(), weight=0.0)).loss.item() == pytest.approx(alone.loss.item(), rel=1e-12)


def test_without_normalisation_one_number_scales_all_maps() -> None:
    method, seen = bound(waved(), normalise=False, features=False, power=2.0), []
    flow = method.updates(batch())
    ask = flow.send(None)
    assert isinstance(ask, Mean)
    assert ask.values.shape == (2, 2)  # classes, layers
    seen = flow.send(ask.values.mean(0))
    network, total = waved(), 0.0
    assert isinstance(network, nn.Sequential)
    for layer in (3, 7):
        real, own = (network[:layer](x).square().sum(1).flatten(1) for x in (REAL.flatten(0, 1), SYNTHETIC))
        size = real.square().sum(1).mean().sqrt()
        for c in (0, 1):
            gap = real[3 * c : 3 * c + 3].mean(0) - own[2 * c : 2 * c + 2].mean(0)
            total += float((gap / size).square().sum())
    assert isinstance(seen, Update)
    assert seen.loss.item() == pytest.approx(100 * total, rel=1e-10)


def smooth() -> nn.Module:
    """Two blocks with a smooth activation."""
    torch.manual_seed(0)
    blocks = [
        [nn.Conv2d(a, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.Softplus(), nn.AvgPool2d(2)] for a in (3, 4)
    ]
    return nn.Sequential(*blocks[0], *blocks[1], nn.Flatten(), nn.Linear(16, 2)).double()


def test_the_gradient_is_the_slope_of_the_loss_and_of_the_pixels_alone() -> None:
    network, strategy = smooth(), "color_scale_rotate"
    method = bound(network, layers=("2",), strategy=strategy, weight=1.0)
    made = update(method)
    made.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    for place in [(0, 0, 3, 4), (3, 2, 5, 1)]:
        sides = []
        for by in (1e-5, -1e-5):
            moved = SYNTHETIC.clone()
            moved[place] += by
            sides.append(update(bound(network, moved, ("2",), strategy=strategy, weight=1.0)).loss.item())
        slope = (sides[0] - sides[1]) / 2e-5
        assert method.set.images.grad[place].item() == pytest.approx(slope, rel=1e-6, abs=1e-6)  # type: ignore[index]


def test_real_images_hold_no_graph() -> None:
    real = REAL.clone().requires_grad_()
    method = bound(waved())
    update(method, real).loss.backward()
    assert real.grad is None


# -- what is looked at --------------------------------------------------------------------------------------------


def test_attention_is_on_all_activations_but_the_last_and_features_are_what_the_classifier_sees() -> None:
    network = waved()
    assert isinstance(network, nn.Sequential)
    assert layers_of(network, (), "waved") == ["2", "6"]
    features, z = Gaze(network, ["2", "6"], "waved")(REAL)
    x = REAL.flatten(0, 1)
    assert torch.equal(features[0], network[:3](x))
    assert torch.equal(features[1], network[:7](x))
    assert torch.equal(z, network[:-1](x).view(2, 3, -1))
    assert network.training


class Tokens(nn.Module):
    """What puts out tokens instead of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 4, stride=4), nn.Linear(8, 10)
        self.tokens = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(self.body(x).flatten(2).transpose(1, 2)).mean(1))


def convolutional() -> nn.Module:
    """A user's own network."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 10),
    )


def bind(networks: Any, **options: Any) -> DataDAM:
    method = DataDAM(**options)
    method.check()
    method.bind(ImageCondensation(train_samples=100).using(networks=networks), 0)
    return method


@pytest.mark.parametrize(
    ("networks", "options", "says"),
    [
        (["resnet:8-8"], {}, "network 'resnet:8-8' has batch normalisation, which mixes classes"),
        (["mlp:8"], {}, "network 'mlp:8' has 1 ReLU modules, attention is on all of them but the last"),
        (["mlp:8-8"], {}, r"module '2' of network 'mlp:8-8' puts out \[2, 8\], attention is over maps"),
        ([Tokens], {"layers": ("tokens",)}, r"module 'tokens' of network 'Tokens' puts out \[2, 4, 8\]"),
        ([Tokens], {"layers": ("tokenz",)}, "--method.layers 'tokenz' is no module of Tokens"),
        (
            [lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())],
            {"attention": False},
            "has no Linear layer",
        ),
    ],
)
def test_networks_without_what_is_matched_are_refused(networks: Any, options: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        bind(networks, **options)


def test_without_attention_any_network_serves() -> None:
    bind(["mlp:8"], attention=False)
    bind([Tokens], attention=False)
    bind([convolutional])
    bind(["mlp:8"], network="convnet:4x2")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"power": 0.5}, "--method.power is 0.5: pass 1 or more"),
        ({"weight": -1.0}, "--method.weight is -1.0: pass 0 or more"),
        ({"real_batch": 0}, "--method.real-batch is 0: pass 1 or more"),
        ({"strategy": "crop_"}, "--method.strategy 'crop_' names ''"),
        ({"attention": False, "features": False}, "leave one of them on"),
        ({"attention": False, "weight": 0.0}, "leave one of them on"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DataDAM(**options).check()


# -- a run --------------------------------------------------------------------------------------------------------


def problem(**options: Any) -> ImageCondensation:
    return ImageCondensation(networks=("convnet:4x2",), repeats=1, eval_epochs=1, train_samples=60).but(
        **options
    )


def engine(steps: int) -> Engine:
    return replace(DataDAM.default_engine(), steps=steps)


class Noted(DataDAM):
    """Keeps the networks, images and classes of each step."""

    def updates(self, batch: Batch) -> Any:
        flow = super().updates(batch)
        ask = flow.send(None)
        self.__dict__.setdefault("noted", []).append((self._gaze[1].network, batch.x, batch.y))  # type: ignore[index]
        yield ask


def test_each_step_has_a_fresh_network_that_is_never_trained_and_fresh_images_of_all_classes() -> None:
    method = Noted(real_batch=4)
    engine(4).fit(method, problem(), 3)
    noted = method.__dict__["noted"]
    assert len(noted) == 4
    for step, (network, x, y) in enumerate(noted):
        fresh = build("convnet:4x2", shape=(1, 8, 8), classes=10, seed=seed_of(3, 10, step))
        assert same(weights_of(network), weights_of(fresh))
        assert x.shape == (10, 4, 1, 8, 8)
        assert sorted(y.tolist()) == list(range(10))
    states = [weights_of(network) for network, _, _ in noted]
    assert not any(same(states[0], other) for other in states[1:])
    by_class = [x[y.argsort()] for _, x, y in noted]
    assert not torch.equal(by_class[0], by_class[1])


def test_a_step_is_gradient_descent_on_the_pixels_with_momentum() -> None:
    method = DataDAM(real_batch=4)
    method.bind(problem(), 0)
    first = method.set.images.detach().clone()
    moved = [engine(n).fit(DataDAM(real_batch=4), problem(), 0).product for n in (1, 2)]
    assert isinstance(moved[0], SyntheticSet)
    assert torch.equal(moved[0].labels, torch.arange(10))

    gradients = []

    class Watching(DataDAM):
        def updates(self, batch: Batch) -> Any:
            for ask in super().updates(batch):
                gradients.append(torch.autograd.grad(ask.loss, self.set.images, retain_graph=True)[0])
                yield ask

    engine(2).fit(Watching(real_batch=4), problem(), 0)
    step = moved[0].images - first
    assert torch.allclose(step, -0.03 * gradients[0], atol=1e-6)
    assert torch.allclose(moved[1].images - moved[0].images, -0.03 * gradients[1] + 0.5 * step, atol=1e-5)


def test_condensing_brings_the_maps_of_other_networks_nearer() -> None:
    task = problem(ipc=2)
    made = [engine(n).fit(DataDAM(real_batch=6, start="noise"), task, 0).product for n in (1, 40)]

    def gap(images: Tensor) -> float:
        method = DataDAM(real_batch=6, strategy="none")
        method.bind(task, 99)
        method.set.images = nn.Parameter(images.detach().clone())
        x, y = method.source(task).fetch(torch.arange(10), 5)
        found = []
        for step in range(4):
            noise = Noise(lambda draw: draw, slice(0, 10), 10, x.device)
            (one,) = updates_of(method, Batch(x, y, y, Clock(step, 9, step, 9), noise))  # type: ignore[arg-type]
            found.append(one.loss.item())
        return sum(found)

    assert gap(made[1].images) < 0.7 * gap(made[0].images)


def test_the_command_line_condenses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = "--engine.steps 4 --task.ipc 2 --task.repeats 1 --task.eval-epochs 2 --task.networks convnet:4x2 mlp:4"
    status = main(["run", "datadam", *options.split(), "--method.start", "smart", "--out", str(out)])
    assert status == 0, capsys.readouterr().err
    text = (out / "report.html").read_text()
    assert "as many random real images" in text
    assert "image 2 of each class" in text
    assert (out / "student" / "data" / "train-00000-of-00001.parquet").is_file()


def test_python_condenses_data_and_networks_of_ones_own(tmp_path: Path) -> None:
    x, y = waves(90, 3, 8, 8).float(), torch.arange(90) % 3

    def small() -> nn.Module:
        return build("convnet:4x2", shape=(3, 8, 8), classes=3, seed=int(torch.randint(99999, ())))

    made, run = condense(
        (x, y),
        ipc=2,
        power=2.0,
        steps=3,
        lr=0.5,
        networks=[small, "mlp:4"],
        repeats=1,
        eval_epochs=2,
        out=tmp_path / "run",
    )
    assert (len(made), made.labels.tolist()) == (6, [0, 0, 1, 1, 2, 2])
    assert not made.training
    config = run.config
    assert (config["options"]["power"], config["task"]["ipc"]) == (2.0, 2)
    assert (config["engine"]["steps"], config["engine"]["recipe"]["lr"]) == (3, 0.5)
    assert run.result["arms"]["datadam"]["extra"]["seconds a step"] > 0
    assert same(weights_of(run.student()), weights_of(made))


def test_condense_serves_methods_of_other_tasks_by_name(tmp_path: Path) -> None:
    small = {"budget": 0.3, "molecules": 200, "steps": 5, "networks": ("gcn",), "depth": 1}
    made, run = condense("molecules", method="mirage", out=tmp_path / "run", **small)
    assert len(made) > 0
    assert run.config["method"] == "mirage"
    assert (run.config["task"]["budget"], run.config["task"]["networks"]) == (0.3, ["gcn"])
    with pytest.raises(
        UserError, match="neither method 'mirage' nor its task nor the engine has an option 'ipc'"
    ):
        condense("molecules", ipc=1, method="mirage")


def test_condense_refuses_what_nothing_takes() -> None:
    with pytest.raises(
        UserError, match="neither method 'datadam' nor its task nor the engine has an option 'spam'"
    ):
        condense("digits", spam=1)
    import stillroom

    assert stillroom.condense is condense


def test_the_claims_hold_the_arms_of_the_paper() -> None:
    digits, photographs = DataDAM.claims()
    for claim in (digits, photographs):
        assert len(claim.arms) == 7
        assert [(r.better, r.worse) for r in claim.rules if r.headline] == [
            ("datadam", "random"),
            ("datadam", "DM"),
        ]
        dm = claim.arms["DM"]
        assert isinstance(dm, DataDAM)
        assert (dm.attention, dm.features, dm.weight) == (False, True, 1.0)
    assert photographs.data == "cifar10_jpeg"
    assert (digits.engine.recipe.lr, photographs.engine.recipe.lr) == (0.03, 1.0)
    assert (photographs.task.ipc, photographs.task.image_size) == (10, 16)  # type: ignore[attr-defined]

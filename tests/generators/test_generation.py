"""The task of generators: data, networks, scores, pictures, latents, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stillroom
from laws import mixture
from pipelines import text_pipeline
from stillroom.data.points import SPREAD, draw_points, eight_centres, uneven_shares
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.generators.generation import Generation
from stillroom.generators.matching.f_distill import FDistill
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.latent import make_latent_space, parse_autoencoder
from stillroom.generators.parts.process import NAMED
from stillroom.generators.parts.sampler import Sampler
from stillroom.generators.undistilled import FewSteps, denoising_loss
from stillroom.models.denoisers import build_denoiser_network
from stillroom.runtime import Runtime
from stillroom.teaching import teach
from stillroom.workflow import Job, execute

ENGINE = Engine(steps=4, evaluate_every=0)


def taught(**changes: Any) -> Generation:
    task = Generation().quick().but(**changes)
    teach(task, ENGINE, None, Watcher)
    return task


@pytest.mark.parametrize("data", ["digits", "eight-gaussians", "checkerboard", "two-moons", "swiss-roll"])
def test_data_are_scored_beside_their_floor(data: str) -> None:
    task = taught(data=data)
    found = task.score(task.make_teacher().module, "test", Runtime())
    floor = found[f"{task.metric}_floor"]
    assert floor > 0
    assert math.isfinite(found[task.metric])
    assert math.isfinite(found["mmd_floor"])
    assert len(found["per_sample"]) == 10
    assert task.classes == len(task.samples.classes) > 1


@pytest.mark.parametrize("process", ["edm", "cosine"])
def test_a_teacher_that_is_trained_here_is_sampled_as_asked(process: str) -> None:
    task = taught(process=process, solver="ddim", steps=7, spacing="uniform", guidance=2.0)
    sampler = task.make_teacher().module
    assert isinstance(sampler, Sampler)
    assert sampler.plan == task.plan
    assert sampler.evaluations == 14


@pytest.mark.parametrize("process", ["cosine", "linear", "scaled-linear", "edm", "flow"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "score", "velocity"])
def test_every_process_and_letter_trains_and_samples(process: str, prediction: str) -> None:
    task = taught(process=process, prediction=prediction, data="two-moons")
    assert math.isfinite(task.score(task.make_teacher().module, "validation", Runtime())[task.metric])


def test_the_uneven_law_has_the_shares_that_it_says() -> None:
    """Counts of 20,000 points within five standard errors of shares that fall from 30 to 1."""
    _, which = draw_points("uneven-gaussians", 20_000, 0)
    shares = uneven_shares().double()
    assert float(shares[0] / shares[-1]) == pytest.approx(30, rel=1e-5)
    error = (shares * (1 - shares) / 20_000).sqrt()
    assert ((which.bincount() / 20_000 - shares).abs() < 5 * error).all()
    task = Generation(data="uneven-gaussians", conditional=False, teacher="exact", points=600)
    found = task.score(task.make_teacher().module, "test", Runtime())
    assert found["mode_distance"] < 0.05
    assert found["modes_covered"] == 1


@pytest.mark.parametrize("process", ["edm", "flow", "cosine"])
def test_the_exact_teacher_is_the_law(process: str) -> None:
    """The denoiser of tests/laws.py, on every process; and a sampler of many steps comes to the data's floor."""
    task = Generation(data="eight-gaussians", teacher="exact", process=process, points=600, steps=50)
    if process != "edm":
        task = task.but(spacing="uniform", solver="ddim", steps=200)
    sampler = task.make_teacher().module
    known = mixture(NAMED[process], eight_centres(), SPREAD, conditional=True)
    x, _ = task.samples.test.fetch(torch.arange(5), view=None)
    t, c = torch.tensor([0.05, 0.2, 0.5, 0.7, 0.9]), torch.tensor([0, 8, 3, 8, 7])
    assert torch.allclose(sampler.denoiser(x, t, c), known(x, t, c), atol=1e-5)
    found = task.score(sampler, "test", Runtime())
    assert found["sliced_wasserstein"] < 2 * found["sliced_wasserstein_floor"]
    assert found["wasserstein"] < 1.5 * found["wasserstein_floor"]
    assert found["modes_covered"] == 1


def test_an_exact_teacher_needs_a_law_and_a_student_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exact denoiser of data 'two-moons' is not known: pass --task.data"):
        Generation(data="two-moons", teacher="exact").make_teacher()
    task = Generation(data="eight-gaussians", teacher="exact").quick()
    with pytest.raises(UserError, match="no weights to start a student from: pass --task.student"):
        task.make_student(0)
    student = task.but(student="mlp:16x1")
    run, _ = execute(Job(FDistill(gan_weight=0.0, divergence="rkl"), student, ENGINE, 0), tmp_path / "run")
    assert run.result["arms"]["teacher"]["test"]["modes_covered"] == 1


@pytest.mark.parametrize("name", ["mlp:16x2", "unet:8-16", "dit:16x1@2"])
def test_networks_by_name_are_made_from_their_seed(name: str) -> None:
    a, b, c = (Generation(student=name).make_student(seed) for seed in (0, 0, 1))
    states = [torch.cat([p.flatten() for p in m.parameters()]) for m in (a, b, c)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_loss_of_what_is_known_is_zero() -> None:
    """A network that says the truth has no error, for every letter."""
    x0, eps, t = _three()
    for process, kind in [("cosine", "v"), ("flow", "velocity"), ("linear", "eps"), ("edm", "x0")]:
        denoiser = Denoiser(nn.Identity(), process, kind)
        p = denoiser.process
        a, s = p.alpha(t).unsqueeze(-1), p.sigma(t).unsqueeze(-1)
        truth = {"v": a * eps - s * x0, "velocity": eps - x0, "eps": eps, "x0": x0}[kind]
        denoiser.network = _Says(truth)
        assert denoising_loss(denoiser, x0, t, eps, None).abs().max() < 1e-20


def _three() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 2, dtype=torch.float64, generator=generator)
    return x0, eps, torch.linspace(0.1, 0.9, 5, dtype=torch.float64)


class _Says(nn.Module):
    def __init__(self, truth: torch.Tensor) -> None:
        super().__init__()
        self.truth = truth

    def forward(self, *args: Any) -> torch.Tensor:
        return self.truth


def test_a_page_shows_samples_and_ways(tmp_path: Path) -> None:
    task = taught(data="eight-gaussians")
    products = {"teacher": task.make_teacher().module, "few-steps": FewSteps().run(task, None).product}  # type: ignore[arg-type]
    titles = [figure["title"] for figure in task.figures(products, Runtime())]
    assert titles == ["Samples", "Ways"]


def test_a_users_denoiser_is_distilled_from_python(tmp_path: Path) -> None:
    teacher = Denoiser(build_denoiser_network("mlp:16x1", shape=(2,), classes=0, seed=0), "flow", "velocity")
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    student, run = stillroom.distill(
        teacher, None, points, "f-distill", engine=ENGINE, out=tmp_path / "run", divergence="rkl"
    )
    assert isinstance(student, Sampler)
    again = run.student()
    noise = torch.randn(5, 2)
    with torch.no_grad():
        assert torch.equal(again(noise), student(noise))
    assert run.result["verdict"]["kind"] in ("helped", "hurt", "no clear difference")
    assert "the teacher asked as often" in run.result["verdict"]["text"]


def test_latents_are_images_half_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr("stillroom.generators.parts.latent.STEPS", 3)
    samples = Generation().samples
    space = make_latent_space("kl:4@2", samples)
    made = space.samples(samples)
    assert made.shape == (4, 4, 4)
    assert made.deviation() == pytest.approx(0.5, abs=0.05)
    assert space.decode(made.test.fetch(torch.arange(3), None)[0]).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"steps": 0}, "--task.steps is 0: pass 1 or more"),
        (
            {"drop_condition": 1.0},
            "--task.drop-condition is 1.0: pass a number from 0 to 1 (itself excluded)",
        ),
        ({"score_samples": 5}, "--task.score-samples is 5: pass 50 or more"),
        (
            {"teacher": "none"},
            "this method needs a teacher and --task.teacher is 'none': pass an architecture",
        ),
        ({"teacher": "mlp:16"}, "architecture 'mlp:16' is not of a known form: write one like mlp:256x4"),
        ({"conditional": False, "guidance": 3.0}, "--task.guidance is 3 and the teacher is unconditional"),
        (
            {"process": "edm", "prediction": "v"},
            "prediction 'v' needs a variance preserving process, not 'edm'",
        ),
        ({"teacher": "unet:8-16-24-32-40"}, "needs square images whose side divides by 16, the data are 8x8"),
        (
            {"data": "two-moons", "teacher": "unet:8-16"},
            "architecture 'unet:8-16' is for images, the data are (2,)",
        ),
        ({"data": "eight-gausians"}, "eight-gausians"),
        ({"teacher_weights": "/no/such"}, "--task.teacher-weights '/no/such' holds neither a run's student"),
    ],
)
def test_mistakes_are_one_line_before_any_training(changes: dict, line: str) -> None:
    with pytest.raises(UserError) as told:
        Generation(**changes).check(0, True)
    assert line in str(told.value)
    assert "\n" not in str(told.value)


def test_what_says_nothing_of_itself_or_has_other_classes_is_refused() -> None:
    with pytest.raises(UserError, match="teacher Linear says neither process nor prediction: wrap it"):
        Generation().using(teacher=nn.Linear(2, 2)).check(0, True)
    network = build_denoiser_network("mlp:16x1", shape=(1, 8, 8), classes=4, seed=0)
    with pytest.raises(UserError, match="teacher has 4 classes, data 'digits' 10: pass a teacher with 10"):
        Generation().using(teacher=Denoiser(network, "edm", "edm", classes=4)).check(0, True)


@pytest.mark.parametrize(
    ("name", "line"), [("kl:4", "is no folder and not of"), ("kl:4@8", "the images have 12")]
)
def test_an_autoencoder_that_does_not_fit_is_one_line(name: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        parse_autoencoder(name, 12)


def test_a_text_pipeline_teaches_labelled_images_and_takes_the_student_back(tmp_path: Path) -> None:
    """--task.teacher-weights PIPELINE --task.autoencoder PIPELINE/vae --task.prompt 'a {}' on the digits."""
    pytest.importorskip("transformers")
    folder = text_pipeline(tmp_path / "pipeline")
    task = Generation(teacher_weights=str(folder), autoencoder=str(folder / "vae"), prompt="a {}")
    task = task.but(score_samples=60, features="pixels", solver="ddim", steps=3, spacing="uniform")
    run, student = execute(Job(FDistill(), task, ENGINE, 0), tmp_path / "run")
    assert task.space.shape == (4, 4, 4)
    assert student.denoiser.classes == 10
    index = json.loads((run.path / "student" / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert "guidance_scale=1)` samples it" in (run.path / "student" / "README.md").read_text()
    noise, c = torch.randn(2, 4, 4, 4), torch.tensor([1, 7])
    with torch.no_grad():
        assert torch.equal(run.student()(noise, c), student(noise, c))

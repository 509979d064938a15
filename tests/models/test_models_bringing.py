"""Models that a user brings, as teachers and students of real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import model_folders as zoo
import stillroom
from stillroom.engine import Engine
from stillroom.errors import UserError
from stillroom.models.bringing import Fitting
from stillroom.models.wrapping import Rescaled, describe, library_module
from stillroom.predictors.classification import Classification
from stillroom.teaching import teach

Y = torch.arange(40) % 4
X = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
OWN = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)

FOLDERS: dict[str, Callable[[Path], nn.Module]] = {
    "timm": lambda folder: zoo.timm_folder(folder, "test_vit", img_size=16),
    "transformers": lambda folder: zoo.hf_folder(folder, zoo.vit()),
    "torchvision": zoo.torchvision_folder,
}


def task(x: Tensor = X, y: Tensor = Y, **options) -> Classification:
    made = Classification(**{"teacher": "mlp:8", "student": "mlp:4", "teacher_epochs": 1, **options})
    return made.using(data=(x, y))  # type: ignore[return-value]


@pytest.fixture(params=FOLDERS)
def brought(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, nn.Module]:
    """A folder, and the network saved in it, in evaluation mode."""
    pytest.importorskip(request.param)
    return tmp_path / "my-model", FOLDERS[request.param](tmp_path / "my-model")


def logits(network: nn.Module, x: Tensor) -> Tensor:
    said = network.eval()(x)
    return said if isinstance(said, Tensor) else said.logits


# -- teachers ---------------------------------------------------------------------------------------------------------


def test_a_folder_as_the_teacher_is_trained_and_sees_what_it_was_trained_on(brought) -> None:
    folder, network = brought
    for made in (task(teacher=str(folder)), task(teacher="mlp:4", teacher_weights=str(folder))):
        assert made.teacher_job(Engine()) is None
        made.check(0, teacher=True)
        teacher = made.make_teacher()
        assert made.teacher_name == str(folder)
        torch.testing.assert_close(
            teacher.answer(X), logits(network, (X - OWN[0]) / OWN[1]), rtol=1e-5, atol=1e-5
        )


def test_the_datas_own_normalisation_changes_nothing_for_the_teacher(brought) -> None:
    folder, network = brought
    made = task(teacher=str(folder), normalise="data")
    x, _ = made.images.train.fetch(torch.arange(8), None)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (made.images.mean, made.images.std))
    wanted = logits(network, (x * std + mean - OWN[0]) / OWN[1])
    torch.testing.assert_close(made.make_teacher().answer(x), wanted, rtol=1e-5, atol=1e-5)


def test_a_teacher_of_other_classes_is_refused(brought) -> None:
    folder, _ = brought
    with pytest.raises(
        UserError, match=r"gives 4 classes, data '.*' has 5: pass --task.teacher with 5 classes"
    ):
        task(y=torch.arange(40) % 5, teacher=str(folder)).check(0, teacher=True)


def test_a_teacher_of_another_size_is_refused(brought) -> None:
    folder, _ = brought
    with pytest.raises(
        UserError,
        match=r"was trained on 16x16 images \(.*\), data '.*' have 24x24: pass --task.image-size 16",
    ):
        task(x=torch.rand(40, 3, 24, 24), teacher=str(folder)).check(0, teacher=True)


def test_grey_data_for_a_teacher_of_colours_are_refused(brought) -> None:
    folder, _ = brought
    with pytest.raises(UserError, match=r"the network takes 3 channels, the data have 1"):
        task(x=X[:, :1], teacher=str(folder)).check(0, teacher=True)


def test_numbers_that_the_user_has_scaled_are_not_taken_for_pixels(brought) -> None:
    folder, _ = brought
    with pytest.raises(
        UserError, match=r"teacher '.*' takes pixels less \(0.4, 0.5, 0.6\) over \(0.2, 0.25, 0.5\)"
    ):
        task(x=4 * X - 2, teacher=str(folder)).make_teacher()
    assert isinstance(
        task(x=4 * X - 2, teacher=str(folder), normalise="none").make_teacher().module, Rescaled
    )


def test_a_teacher_whose_normalisation_is_the_datas_has_no_layer_in_front(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    zoo.torchvision_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    images = task().images
    config["normalisation"] = {"mean": list(images.mean), "std": list(images.std)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert describe(task(teacher=str(tmp_path)).make_teacher().module) == "torchvision:resnet18"


def test_published_weights_see_what_they_were_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    made, asked = timm.create_model, []
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **more: asked.append(pretrained) or made(name, **more)
    )
    config = timm.models.get_pretrained_cfg("test_resnet")
    kept = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5), "input_size": (3, 16, 16), "num_classes": 4}
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda *a, **k: type(config)(**kept))
    options = {"teacher": "timm:test_resnet", "teacher_weights": "pretrained"}
    teacher = task(**options).make_teacher()
    assert asked == [True]
    inner = library_module(teacher.module)
    torch.testing.assert_close(teacher.answer(X), logits(inner, (X - OWN[0]) / OWN[1]), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"'timm:test_resnet' was trained on 4 classes, data '.*' has 5"):
        task(y=torch.arange(40) % 5, **options).make_teacher()


# -- students ---------------------------------------------------------------------------------------------------------


def test_a_folder_as_the_student_gives_the_initial_weights_and_a_new_head_where_it_must(brought) -> None:
    folder, network = brought
    same = task(student=str(folder))
    for seed in (0, 1):
        student = same.make_student(seed)
        torch.testing.assert_close(
            logits(student, X), logits(network, (X - OWN[0]) / OWN[1]), rtol=1e-5, atol=1e-5
        )
        assert all(value.requires_grad for value in student.parameters())
    other = task(y=torch.arange(40) % 5, student=str(folder))
    other.check(0, teacher=False)
    assert logits(other.make_student(0), X).shape == (40, 5)


def test_the_architecture_of_a_folder_is_trained_from_the_seed(brought) -> None:
    folder, _ = brought
    one, again, two = (task(student=f"config:{folder}").make_student(seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_teacher_by_the_architecture_of_a_folder_is_trained_here_and_known_by_what_is_in_it(
    brought,
) -> None:
    folder, _ = brought
    job = task(teacher=f"config:{folder}").teacher_job(Engine())
    assert job is not None and job.key["architecture"] is not None


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_folder_is_distilled_into_half_of_itself(
    brought, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = brought[1]
    monkeypatch.chdir(tmp_path)
    student, run = stillroom.distill(
        "./my-model", "shrink:depth=0.5", (X, Y), method="kd", epochs=1, out=tmp_path / "run"
    )
    assert logits(student, X).shape == (40, 4)
    size = sum(value.numel() for value in network.parameters())
    assert 0 < sum(value.numel() for value in student.parameters()) < size
    assert run.result["data"]["student"] == "shrink:depth=0.5"
    again = run.student()
    assert torch.equal(again(X), student(X))
    # and the run's student is as good a teacher as any
    assert torch.equal(task(teacher=str(run.path)).make_teacher().answer(X), student(X))


def test_both_arms_start_from_the_same_part_of_the_trained_teacher(tmp_path: Path) -> None:
    made = task(teacher="resnet:4-8@4", student="shrink:depth=0.5,width=0.5")
    made.check(0, teacher=True)
    untrained = made.make_student(0)
    teach(made, Engine(epochs=1), None, stillroom.engine.Watcher)
    one, two = made.make_student(0), made.make_student(0)
    assert describe(one) == "resnet:2-4@2"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.conv.weight, untrained.conv.weight)
    assert torch.equal(one.conv.weight, made.make_teacher().module.conv.weight[:2])


def test_a_method_without_a_teacher_gets_one_where_the_student_is_made_of_it(tmp_path: Path) -> None:
    made = task(teacher="mlp:8-8", student="shrink:depth=0.5")
    student, run = stillroom.distill(
        "mlp:8-8", "shrink:depth=0.5", (X, Y), "plain", task=made, epochs=1, out=tmp_path / "r"
    )
    assert "teacher" in run.result["arms"] and describe(student) == "mlp:8"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"teacher": "none", "student": "shrink:depth=0.5"},
            "is made of the teacher and --task.teacher is 'none'",
        ),
        ({"student": "shrink:depth=2"}, "write it like shrink:depth=0.5,width=0.5"),
        ({"teacher": "mlp:8", "student": "shrink:depth=0.5"}, "leaves MLP as it is"),
        ({"teacher": "./no-such-folder"}, "model folder 'no-such-folder' does not exist"),
        ({"student": "config:./no-such-folder"}, "model folder 'no-such-folder' does not exist"),
    ],
)
def test_what_cannot_be_had_is_said_before_any_training(options: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        task(**options).check(0, teacher=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_several_teachers_make_no_student() -> None:
    teacher = stillroom.Teacher(nn.Linear(2, 2), nn.Linear(2, 2))
    made = Classification(student="shrink:depth=0.5").using(data=(X, Y), teacher=teacher)
    with pytest.raises(UserError, match="is made of one teacher, and there are several"):
        made.make_student(0)  # type: ignore[attr-defined]


def test_networks_of_transformers_in_hand_need_no_adapter(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    student, run = stillroom.distill(
        zoo.vit(), zoo.vit(layers=1), (X, Y), "kd", epochs=1, out=tmp_path / "run"
    )
    assert isinstance(student.network, transformers.ViTForImageClassification)
    assert torch.equal(run.student()(X), student(X))
    student.network.save_pretrained(tmp_path / "plain")
    plain = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "plain", local_files_only=True
    )
    assert torch.equal(plain.eval()(pixel_values=X).logits, student(X))


def test_a_module_in_hand_is_cut_and_its_student_needs_the_module(tmp_path: Path) -> None:
    class Mine(nn.Module):
        def __init__(self, blocks: int = 4) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(768, 768), nn.ReLU()) for _ in range(blocks))
            self.head = nn.Linear(768, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    student, run = stillroom.distill(Mine(), "shrink:depth=0.5", (X, Y), "kd", epochs=1, out=tmp_path / "run")
    assert len(student.blocks) == 2
    with pytest.raises(UserError, match=r"names no known architecture"):
        run.student()
    assert torch.equal(run.student(Mine(2))(X), student(X))


def test_fitting_leaves_a_network_that_says_nothing() -> None:
    network = nn.Linear(2, 2)
    from stillroom.models.inputs import Inputs

    assert Fitting(task().images).rescaled(network, Inputs(), "teacher") is network

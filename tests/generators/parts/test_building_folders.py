"""Denoisers from folders of diffusers, and smaller ones made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import model_folders as zoo
import stillroom
from stillroom.errors import UserError
from stillroom.generators.generation import Generation
from stillroom.generators.parts.building import read_denoiser, shrunken
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.library import UNet2D, wrap
from stillroom.models.denoisers.shrinking import shrunken_network

CLASSES = 10
IMAGE = (1, 8, 8)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture
def model(diffusers, tmp_path: Path) -> tuple[Path, nn.Module]:
    """A folder of a UNet2DModel with labels, and the network."""
    network = zoo.lively(zoo.unet(CLASSES))
    network.save_pretrained(tmp_path / "my-model")
    return tmp_path / "my-model", network


def task(**options) -> Generation:
    small = {"score_samples": 50, "features": "pixels", "teacher_steps": 2, "steps": 2}
    return Generation(**{**small, "process": "cosine", "prediction": "eps", **options})


def asked(network: nn.Module, condition: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *IMAGE, generator=generator)
    labels = torch.tensor([1, 3]) if condition else None
    return network.eval()(x, torch.tensor([10.0, 500.0]), labels, None)


# -- a network of diffusers alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "diffusers:"])
def test_a_networks_folder_is_the_teacher_under_the_tasks_process(model, prefix: str) -> None:
    folder, network = model
    made = task(teacher=f"{prefix}{folder}")
    assert made.teacher_job(None) is None
    made.check(0, teacher=True)
    denoiser = made.make_teacher().module.denoiser
    said = denoiser.process.name, denoiser.prediction, denoiser.clock, denoiser.classes
    assert said == ("cosine", "eps", "index", CLASSES)
    x, t = torch.randn(2, *IMAGE), torch.tensor([0.2, 0.7])
    labels = torch.tensor([1, 3])
    wanted = network(x, 1000 * t - 1, labels).sample
    torch.testing.assert_close(denoiser.estimate(x, t, labels).value, wanted, rtol=1e-5, atol=1e-5)


def test_what_a_network_alone_does_not_say_has_to_be_said(model) -> None:
    folder, _ = model
    with pytest.raises(
        UserError, match=r"does not say what it predicts: pass --task.process and --task.prediction"
    ):
        task(teacher=str(folder), prediction="auto").check(0, teacher=True)
    with pytest.raises(UserError, match=r"does not say what it predicts"):
        read_denoiser(folder)


def test_students_of_a_networks_folder(model) -> None:
    folder, network = model
    one = task(student=str(folder)).make_student(0)
    assert all(
        torch.equal(a, b) for a, b in zip(one.network.model.parameters(), network.parameters(), strict=True)
    )
    assert all(value.requires_grad for value in one.parameters())
    fresh, again, other = (task(student=f"config:{folder}").make_student(seed) for seed in (1, 1, 2))
    assert isinstance(fresh.network, UNet2D) and fresh.classes == CLASSES
    a, b, c, d = (found.network.model.conv_in.weight for found in (fresh, again, other, one))
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, d)


def config(says: str):
    return lambda folder: (folder / "config.json").write_text(f'{{"_class_name": "{says}"}}')


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"1234"), "cannot be read"),
        (config("NoSuchNet"), "holds a 'NoSuchNet', which diffusers does not have"),
        (config("VQModel"), "VQModel is no network that Stillroom can call|cannot be read"),
    ],
)
def test_damaged_folders(model, harm, said: str) -> None:
    folder, _ = model
    harm(folder)
    with pytest.raises(UserError, match=said) as caught:
        task(teacher=str(folder)).check(0, teacher=True)
    assert "\n" not in str(caught.value)


def test_weights_that_would_run_code_are_refused(model) -> None:
    folder, network = model
    (folder / WEIGHTS).unlink()
    torch.save(network.state_dict(), folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="can run code when it is read"):
        task(teacher=str(folder)).check(0, teacher=True)


def test_a_pipelines_folder_is_the_teacher_without_more_said(diffusers, tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    diffusers.DDIMPipeline(unet=zoo.unet(), scheduler=scheduler).save_pretrained(tmp_path / "pipe")
    made = task(teacher=str(tmp_path / "pipe"), prediction="auto", conditional=False)
    made.check(0, teacher=True)
    assert made.make_teacher().module.denoiser.prediction == "v"
    student = task(student=f"config:{tmp_path / 'pipe'}", conditional=False).make_student(3)
    assert student.prediction == "v" and isinstance(student.network, UNet2D)


# -- smaller ones -----------------------------------------------------------------------------------------------------


def test_a_unet_loses_residual_blocks_and_keeps_the_weights_of_the_rest(diffusers) -> None:
    teacher = wrap(zoo.lively(zoo.unet(CLASSES)))
    student = shrunken_network(teacher, 0.5, 1.0, seed=0)
    assert student.model.config.layers_per_block == 1
    assert asked(student).shape == asked(teacher).shape
    old, new = teacher.model, student.model
    for a, b in ((old.down_blocks[0].resnets[0], new.down_blocks[0].resnets[0]),
                 (old.up_blocks[0].resnets[0], new.up_blocks[0].resnets[0]),
                 (old.up_blocks[0].resnets[2], new.up_blocks[0].resnets[1]),
                 (old.mid_block, new.mid_block)):  # fmt: skip
        assert all(
            torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )


def test_a_unets_channels_stay_multiples_of_its_groups_and_heads(diffusers) -> None:
    teacher = wrap(zoo.lively(zoo.unet(CLASSES)))
    student = shrunken_network(teacher, 1.0, 0.4, seed=0)
    assert list(student.model.config.block_out_channels) == [8, 16]
    assert asked(student).shape == asked(teacher).shape
    a, b = student.model.conv_in.weight, teacher.model.conv_in.weight
    assert torch.equal(a, b[:8])


@pytest.mark.parametrize(
    ("name", "depth", "width", "blocks"),
    [("mlp:16x4", 0.5, 0.5, [0, 3]), ("dit:32x4@2", 0.5, 0.5, [0, 3])],
)
def test_our_own_names_lose_blocks_and_width(
    diffusers, name: str, depth: float, width: float, blocks
) -> None:
    teacher = zoo.lively(build_denoiser_network(name, shape=IMAGE, classes=CLASSES, seed=0))
    deep = shrunken_network(teacher, depth, 1.0, seed=0)
    path = "blocks" if name.startswith("mlp") else "model.transformer_blocks"
    for place, number in enumerate(blocks):
        a, b = deep.get_submodule(f"{path}.{place}"), teacher.get_submodule(f"{path}.{number}")
        assert all(
            torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )
    small = shrunken_network(teacher, depth, width, seed=0)
    sizes = [sum(value.numel() for value in network.parameters()) for network in (teacher, deep, small)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert asked(small).shape == asked(teacher).shape
    whole = shrunken_network(teacher, 1.0, 1.0, seed=0)
    assert torch.equal(asked(whole), asked(teacher))


def test_the_conventions_stay_and_so_does_an_input_of_guidance() -> None:
    network = build_denoiser_network("mlp:16x4", shape=IMAGE, classes=CLASSES, seed=0)
    teacher = Denoiser(network, "cosine", "v", classes=CLASSES)
    teacher.accept_guidance()
    zoo.lively(teacher)
    student = shrunken(teacher, "shrink:depth=0.5", seed=0)
    assert student.config() == teacher.config() and student.takes_guidance
    assert torch.equal(student.network.guidance.last.weight, teacher.network.guidance.last.weight)


def test_networks_that_cannot_be_made_smaller() -> None:
    mine = Denoiser(nn.Identity(), "cosine", "v")
    with pytest.raises(
        UserError, match=r"^Identity cannot be made smaller by its config: pass --task.student"
    ):
        shrunken(mine, "shrink:depth=0.5", seed=0)
    one = Denoiser(build_denoiser_network("mlp:16x1", shape=IMAGE, classes=0, seed=0), "cosine", "v")
    with pytest.raises(UserError, match=r"^shrink:depth=0.5,width=1 leaves the mlp as it is"):
        shrunken(one, "shrink:depth=0.5", seed=0)


def test_a_teacher_is_distilled_into_a_part_of_itself(diffusers, tmp_path: Path) -> None:
    teacher = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=2, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=CLASSES + 1,
        add_attention=False,
    )  # fmt: skip
    zoo.lively(teacher).save_pretrained(tmp_path / "my-model")
    student, run = stillroom.distill(
        str(tmp_path / "my-model"), "shrink:depth=0.5", "digits", "guided-distillation", task=task(),
        steps=2, batch_size=8, out=tmp_path / "run",
    )  # fmt: skip
    assert student.denoiser.network.model.config.layers_per_block == 1
    again = run.student()
    z, labels = torch.randn(2, *IMAGE), torch.tensor([1, 3])
    assert torch.equal(again(z, labels), student(z, labels))

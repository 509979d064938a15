"""Students that are derived from their teacher."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import model_folders as zoo
from stillroom import models
from stillroom.errors import UserError
from stillroom.models.cutting import blocks_to_keep, count_left, cut, evenly
from stillroom.models.shrinking import Shrink, is_shrink, parse_shrink, shrink
from stillroom.models.transplanting import transplant
from stillroom.models.wrapping import ImageLogits, Rescaled, describe, library_module

SHAPE = (3, 32, 32)
X = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(1))


def named(name: str, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    return zoo.lively(models.build(name, shape=shape, classes=5, seed=0))


def answer(network: nn.Module, x: Tensor) -> Tensor:
    said = network.eval()(x)
    return said if isinstance(said, Tensor) else said.logits


# -- which blocks stay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "left", "ids"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),  # as DistilBERT was initialised (Sanh et al., 2019, arXiv:1910.01108)
        (4, 2, [0, 3]),
        (5, 3, [0, 2, 4]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (7, 1, [0]),
        (2, 1, [0]),
    ],
)
def test_blocks_are_kept_evenly_with_the_first_and_the_last(count: int, left: int, ids: list[int]) -> None:
    assert evenly(count, left) == ids


@pytest.mark.parametrize("count", range(1, 30))
def test_as_many_blocks_as_asked_for_and_no_block_twice(count: int) -> None:
    for left in range(1, count + 1):
        ids = evenly(count, left)
        assert len(set(ids)) == left and ids == sorted(ids) and ids[0] == 0
        assert left == 1 or ids[-1] == count - 1
        gaps = {b - a for a, b in itertools.pairwise(ids)}
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("count", "depth", "left"),
    [(12, 0.5, 6), (3, 0.5, 2), (2, 0.5, 1), (1, 0.5, 1), (12, 1.0, 12), (12, 0.01, 1)],
)
def test_how_many_blocks_are_left(count: int, depth: float, left: int) -> None:
    assert count_left(count, depth) == left


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("shrink:depth=0.5,width=0.25", Shrink(0.5, 0.25)),
        ("shrink:width=0.5", Shrink(1.0, 0.5)),
        ("shrink:depth=1", Shrink(1.0, 1.0)),
    ],
)
def test_what_a_name_says(name: str, wanted: Shrink) -> None:
    assert is_shrink(name) and parse_shrink(name) == wanted and parse_shrink(wanted.name) == wanted


@pytest.mark.parametrize(
    "name",
    [
        *("shrink:", "shrink", "shrink:0.5", "shrink:depth=0", "shrink:depth=1.5", "shrink:depth=x"),
        *("shrink:deep=0.5", "shrink:depth=0.5,depth=0.5", "shrink:depth=nan", "shrink:depth=0.5,"),
    ],
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(UserError, match=r"write it like shrink:depth=0.5,width=0.5, each in \(0, 1\]$"):
        parse_shrink(name)


# -- the limit: nothing is taken away ---------------------------------------------------------------------------------


WHOLE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ours": lambda: (named("resnet:4-8@3"), X),
    "timm": lambda: (named("timm:test_vit"), X),
    "torchvision": lambda: (named("torchvision:resnet18"), X),
    "bert": lambda: (zoo.bert(), IDS),
    "gpt2": lambda: (zoo.gpt2(), IDS),
    "llama": lambda: (zoo.llama(), IDS),
    "vit": lambda: (ImageLogits(zoo.vit(image_size=32)), X),
    "plain": lambda: (zoo.lively(Plain(4)), X),
}


def whole(kind: str) -> tuple[nn.Module, Tensor]:
    for library in ("timm", "torchvision"):
        if kind == library:
            pytest.importorskip(library)
    if kind in ("bert", "gpt2", "llama", "vit"):
        pytest.importorskip("transformers")
    return WHOLE[kind]()


class Residual(nn.Module):
    """x + conv(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Plain(nn.Module):
    """A user's own network: a stem, equal blocks in a ModuleList, a head."""

    def __init__(self, blocks: int, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(blocks))
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("kind", WHOLE)
def test_all_of_it_is_an_exact_copy(kind: str) -> None:
    teacher, x = whole(kind)
    teacher.requires_grad_(False)
    student = shrink(teacher, 1, 1, example=x[:1])
    assert torch.equal(answer(student, x), answer(teacher, x))
    assert all(value.requires_grad for value in student.parameters())
    assert not any(value.requires_grad for value in teacher.parameters())
    with torch.no_grad():
        next(iter(student.parameters())).add_(1)
    assert not torch.equal(next(iter(student.parameters())), next(iter(teacher.parameters())))


@pytest.mark.parametrize("kind", WHOLE)
def test_half_the_depth_is_every_second_block_with_its_own_weights(kind: str) -> None:
    teacher, x = whole(kind)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = shrink(teacher, 0.5, example=x[:1])
    assert student.training
    assert answer(student, x).shape == answer(teacher, x).shape
    held, left = teacher.state_dict(), student.state_dict()
    assert all(torch.equal(held[key], before[key]) for key in before)
    assert len(left) < len(held)
    everywhere = list(held.values())
    assert all(any(a.shape == b.shape and torch.equal(a, b) for b in everywhere) for a in left.values())


@pytest.mark.parametrize("kind", ["ours", "timm", "torchvision", "vit"])
def test_a_student_is_built_again_from_what_describes_it(kind: str, tmp_path: Path) -> None:
    teacher, x = whole(kind)
    for depth, width in ((0.5, 1.0), (0.5, 0.5)):
        if kind == "torchvision" and width != 1:
            continue
        student = zoo.lively(shrink(teacher, depth, width, example=x[:1]), seed=2)
        about = {
            "architecture": describe(student),
            "shape": list(SHAPE),
            "classes": answer(student, x).shape[1],
        }
        folder = tmp_path / f"{depth}-{width}"
        models.save_student(folder, student, about)
        assert torch.equal(models.load_student(folder)(x), student(x))


# -- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (zoo.bert, "bert.encoder.layer"),
        (zoo.gpt2, "transformer.h"),
        (zoo.llama, "model.layers"),
        (zoo.vit, "vit.layers"),
    ],
)
def test_kept_layers_of_transformers_and_the_config_that_says_so(make, blocks: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    teacher = make(layers=6, **({"image_size": 32} if make is zoo.vit else {}))
    student = shrink(teacher, 0.5)
    assert student.config.num_hidden_layers == 3
    old, new = teacher.get_submodule(blocks), student.get_submodule(blocks)
    for place, kept in enumerate([0, 3, 5]):
        for a, b in zip(old[kept].state_dict().values(), new[place].state_dict().values(), strict=True):
            assert torch.equal(a, b)
    held = [part.layer_idx for part in student.modules() if isinstance(getattr(part, "layer_idx", None), int)]
    assert sorted(set(held)) in ([], [0, 1, 2])
    assert bool(held) == (make in (zoo.bert, zoo.gpt2, zoo.llama))
    x = X if make is zoo.vit else IDS
    student.eval().save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(answer(again, x), answer(student, x))
    assert isinstance(again, transformers.PreTrainedModel)


@pytest.mark.parametrize("make", [zoo.gpt2, zoo.llama])
def test_a_shrunken_language_model_reads_its_own_cache(make) -> None:
    pytest.importorskip("transformers")
    student = shrink(make(layers=6), 0.5).eval()
    at_once = student(IDS).logits
    first = student(IDS[:, :5], use_cache=True)
    then = student(IDS[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, then], 1), at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [zoo.bert, zoo.gpt2, zoo.llama, zoo.vit])
def test_the_heads_that_are_left_are_the_first_ones(make) -> None:
    """Half the heads: their queries, keys and values are the leading rows of each, whether fused or not."""
    pytest.importorskip("transformers")
    teacher = make(**({"image_size": 32} if make is zoo.vit else {}))
    student = shrink(teacher, 1.0, 0.67)
    size = teacher.config.hidden_size // teacher.config.num_attention_heads
    kept = student.config.num_attention_heads
    assert kept == round(0.67 * teacher.config.num_attention_heads)
    assert student.config.hidden_size == kept * size
    x = X if make is zoo.vit else IDS
    assert answer(student, x).shape == answer(teacher, x).shape
    old, new = dict(teacher.named_parameters()), dict(student.named_parameters())
    seen = 0
    for name, value in new.items():
        if "c_attn" in name:
            parts = old[name].chunk(3, -1)
            wanted = [part[tuple(slice(0, kept * size) for _ in part.shape)] for part in parts]
            assert torch.equal(value, torch.cat(wanted, -1)), name
        else:
            assert torch.equal(value, old[name][tuple(slice(0, n) for n in value.shape)]), name
        seen += value.shape != old[name].shape
    assert seen > len(new) // 2


def test_grouped_keys_and_values_still_divide_the_heads() -> None:
    pytest.importorskip("transformers")
    student = shrink(zoo.llama(heads=6, groups=3), 1.0, 0.67)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (4, 2)
    assert student.config.head_dim == 8
    assert answer(student, IDS).shape == (2, 9, 20)


def test_stages_of_transformers_lose_blocks_and_channels() -> None:
    pytest.importorskip("transformers")
    teacher = ImageLogits(zoo.hf_resnet())
    student = shrink(teacher, 0.5, 0.5)
    config = student.network.config
    assert (config.depths, config.hidden_sizes, config.embedding_size) == ([2, 2], [8, 16], 4)
    assert answer(student, X).shape == (2, 4)


def test_a_wrapper_of_another_room_stays_around_a_smaller_network() -> None:
    pytest.importorskip("transformers")

    class Causal(nn.Module):
        def __init__(self, network: nn.Module, pad: int) -> None:
            super().__init__()
            self.network, self.pad = network, pad

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.clamp(min=self.pad)).logits

    teacher = Causal(zoo.gpt2(), 3)
    student = shrink(teacher, 0.5)
    assert type(student) is Causal and student.pad == 3
    assert len(student.network.transformer.h) == 2 and len(teacher.network.transformer.h) == 4
    torch.testing.assert_close(
        answer(student, IDS), shrink(teacher.network, 0.5).eval()(IDS.clamp(min=3)).logits
    )


def test_a_head_on_a_bare_encoder_reads_what_is_left_of_it() -> None:
    transformers = pytest.importorskip("transformers")

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = zoo.lively(transformers.BertModel(zoo.bert().config, add_pooling_layer=False))
            self.head = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x).last_hidden_state.mean(1))

    teacher = Pooled()
    student = shrink(teacher, 0.5, 0.67)
    assert type(student) is Pooled and student.encoder.config.num_hidden_layers == 2
    assert student.head.in_features == student.encoder.config.hidden_size == 16
    assert torch.equal(student.head.weight, teacher.head.weight[:, :16])
    assert torch.equal(student.head.bias, teacher.head.bias) and teacher.head.in_features == 24
    assert answer(student, IDS).shape == (2, 5)


# -- timm and torchvision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "resnet10t", "test_convnext"])
@pytest.mark.parametrize(("depth", "width"), [(0.5, 1.0), (1.0, 0.5), (0.5, 0.5)])
def test_a_student_of_timm_loads_in_plain_timm(name: str, depth: float, width: float, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    options = {"layers": (2, 1, 1, 1)} if name == "resnet10t" else {}
    description = {"library": "timm", "name": name, "options": {"in_chans": 3, **options}}
    if name == "test_vit":
        description["options"]["img_size"] = 32
    teacher = zoo.lively(models.build(description, shape=SHAPE, classes=5, seed=0))
    student = zoo.lively(shrink(teacher, depth, width, example=X[:1]), seed=4)
    said = describe(student)
    assert said["library"] == "timm" and said["name"] == name
    models.save_student(tmp_path, student, {"architecture": said, "shape": list(SHAPE), "classes": 5})
    plain = timm.create_model(name, **said["options"], checkpoint_path=str(tmp_path / "model.safetensors"))
    assert torch.equal(plain.eval()(X), student(X))


def test_the_heads_that_are_left_of_timms_fused_layers_are_the_first_ones() -> None:
    pytest.importorskip("timm")
    teacher = named("timm:test_vit")
    student = shrink(teacher, 1.0, 0.5, example=X[:1])
    old, new = teacher.blocks[0].attn, student.blocks[0].attn
    assert (old.num_heads, new.num_heads) == (2, 1)
    wanted = torch.cat([part[:32, :32] for part in old.qkv.weight.chunk(3)])
    assert torch.equal(new.qkv.weight, wanted)


def test_blocks_that_change_the_shape_stay_in_torchvisions_stages() -> None:
    pytest.importorskip("torchvision")
    teacher = named("torchvision:resnet50")
    student = shrink(teacher, 0.5, example=X[:1])
    assert [len(student.get_submodule(f"layer{i}")) for i in (1, 2, 3, 4)] == [2, 2, 3, 2]
    for stage, kept in (("layer1", [0, 2]), ("layer3", [0, 3, 5])):
        for place, number in enumerate(kept):
            a, b = student.get_submodule(stage)[place], teacher.get_submodule(stage)[number]
            assert all(
                torch.equal(x, y)
                for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
            )


def test_bottlenecks_of_torchvision_become_narrow() -> None:
    pytest.importorskip("torchvision")
    student = shrink(named("torchvision:resnet50"), 1.0, 0.5, example=X[:1])
    assert describe(student)["options"] == {"num_classes": 5, "width_per_group": 32}
    assert answer(student, X).shape == (2, 5)


# -- our own networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "width", "student"),
    [
        ("resnet:16-32@4", 0.5, 0.5, "resnet:8-16@2"),
        ("mlp:64-32-16", 0.5, 1.0, "mlp:64-16"),
        ("cnn:8-16-32-64", 0.5, 0.5, "cnn:4-32"),
        ("convnet:16x3", 0.34, 0.5, "convnet:8x1"),
        ("mlp:10", 1.0, 0.25, "mlp:2"),
    ],
)
def test_our_own_networks_have_the_name_of_the_smaller_one(
    name: str, depth: float, width: float, student: str
) -> None:
    assert describe(shrink(named(name), depth, width, example=X[:1])) == student


def test_hidden_layers_of_a_perceptron_keep_their_weights_and_the_head_its_own() -> None:
    teacher = named("mlp:6-6-6-6")
    student = shrink(teacher, 0.5, example=X[:1])
    for new, old in ((1, 1), (3, 7), (5, 9)):
        assert torch.equal(student[new].weight, teacher[old].weight)
        assert torch.equal(student[new].bias, teacher[old].bias)


def test_fresh_weights_where_a_layer_has_more_inputs_than_the_teachers() -> None:
    teacher = named("mlp:8-2-8")
    student = shrink(teacher, 0.5, example=X[:1], seed=3)
    fresh = models.build("mlp:8-8", shape=SHAPE, classes=5, seed=3)
    assert torch.equal(student[3].weight[:, :2], teacher[5].weight)
    assert torch.equal(student[3].weight[:, 2:], fresh[3].weight[:, 2:])


# -- modules of the user's own ----------------------------------------------------------------------------------------


def test_a_plain_module_loses_blocks_and_says_nothing_of_how_to_be_built() -> None:
    teacher = zoo.lively(Plain(5))
    student = shrink(teacher, 0.5)
    assert type(student) is Plain and len(student.blocks) == 3 and len(teacher.blocks) == 5
    for place, number in enumerate([0, 2, 4]):
        assert torch.equal(student.blocks[place].conv.weight, teacher.blocks[number].conv.weight)
    assert describe(student) is None


def test_the_width_of_a_plain_module_cannot_be_derived() -> None:
    with pytest.raises(
        UserError, match=r"^the width of Plain cannot be derived: pass shrink:depth=... alone, or"
    ):
        shrink(Plain(4), 0.5, 0.5, example=X[:1])


@pytest.mark.parametrize(
    "network", [Plain(1), nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, 5))]
)
def test_without_repeated_blocks_nothing_can_be_taken(network: nn.Module) -> None:
    with pytest.raises(
        UserError, match=r"^shrink:depth=0.5,width=1 leaves (Plain|Sequential) as it is, which has too few"
    ):
        shrink(network, 0.5, example=X[:1])


def test_a_teacher_that_does_not_take_the_data_is_said_to() -> None:
    with pytest.raises(UserError, match=r"^Plain fails on an input of shape \(1, 1, 32, 32\)"):
        shrink(Plain(4), 0.5, example=X[:1, :1])


class Staged(nn.Module):
    """Two stages in one Sequential; the first block of each changes the shape, the third has other weights."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Down(3, 4), *(Down(4, 4) for _ in range(3)), Down(4, 6), *(Down(6, 6) for _ in range(3))]
        self.body = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


class Down(nn.Module):
    """conv, with parts of its own that repeat too."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(before, width, 1)
        self.parts = nn.Sequential(Residual(width), Residual(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(self.enter(x))


def test_a_block_that_changes_the_shape_begins_a_stage_and_blocks_stay_whole() -> None:
    network = Staged()
    assert blocks_to_keep(network, 0.5, X[:1]) == {"body": [0, 3, 4, 7]}
    assert blocks_to_keep(network, 0.25, X[:1]) == {"body": [0, 4]}
    # without an input, weights of the same shapes tell which are of one stage
    assert blocks_to_keep(network, 0.5) == {"body": [0, 1, 3, 4, 5, 7]}


def test_looking_for_blocks_leaves_no_trace() -> None:
    network = named("resnet:4-8@3").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    blocks_to_keep(network, 0.5, X[:1])
    assert network.training and not any(part._forward_hooks for part in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_cutting_keeps_names_and_numbers_the_rest_anew() -> None:
    network = nn.Module()
    network.numbered = nn.ModuleList(nn.Linear(n, 1) for n in (1, 2, 3))
    network.named = nn.Sequential()
    for name in "abc":
        network.named.add_module(name, nn.Identity())
    cut(network, {"numbered": [0, 2], "named": [0, 2]})
    assert [name for name, _ in network.named_children()] == ["numbered", "named"]
    assert list(network.numbered._modules) == ["0", "1"] and network.numbered[1].in_features == 3
    assert list(network.named._modules) == ["a", "c"]


# -- wrappers, and copying itself -------------------------------------------------------------------------------------


def test_a_rescaled_teacher_makes_a_rescaled_student() -> None:
    teacher = Rescaled(named("resnet:4-8@3"), (2.0, 3.0, 4.0), (0.1, 0.2, 0.3))
    student = shrink(teacher, 0.5, example=X[:1])
    assert isinstance(student, Rescaled) and torch.equal(student.shift, teacher.shift)
    assert describe(library_module(student)) == "resnet:4-8@2"
    assert not torch.equal(answer(student, X), answer(library_module(student), X))


def test_what_no_copy_reaches_is_named() -> None:
    source, target = (
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
    )
    assert transplant(source, target) == ["1.weight", "1.bias"]
    assert torch.equal(target[1].weight, source[1].weight[:2])
    assert transplant(source, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))) == []

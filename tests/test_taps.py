"""Features by module path, and their pooling."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.taps import Tap, module_at, paths, pool


def network() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU())
    return nn.Sequential(body, nn.Flatten(), nn.Linear(80, 3))


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# -- pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(2, 5, 4, 4), (2, 5, 4, 3), (2, 4, 4, 4), (2, 1, 1, 1), (2, 3, 1, 1), (2, 4, 3, 4)]
)
def test_maps_of_channels_first_are_averaged_over_space(shape: tuple[int, ...]) -> None:
    feature = numbers(*shape)
    assert torch.equal(pool(feature), feature.mean((2, 3)))
    assert pool(feature).shape == shape[:2]


@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (2, 7, 7, 1), (2, 1, 1, 6)])
def test_maps_of_channels_last_are_averaged_over_space(shape: tuple[int, ...]) -> None:
    feature = numbers(*shape)
    assert torch.equal(pool(feature), feature.mean((1, 2)))
    assert pool(feature).shape == (2, shape[3])


def test_tokens_are_averaged_or_the_first_stands_for_all() -> None:
    feature = numbers(2, 7, 5)
    assert torch.equal(pool(feature), feature.mean(1))
    assert torch.equal(pool(feature, class_token=True), feature[:, 0])


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 2, 2, 2), (2,)])
def test_anything_else_is_flattened(shape: tuple[int, ...]) -> None:
    feature = numbers(*shape) if len(shape) > 1 else numbers(2, 1)
    assert torch.equal(pool(feature), feature.reshape(2, -1))


def test_a_class_token_is_no_concern_of_maps_and_vectors() -> None:
    for shape in ((2, 5, 4, 4), (2, 4, 4, 5), (2, 5)):
        assert torch.equal(pool(numbers(*shape), class_token=True), pool(numbers(*shape)))


# -- taps -------------------------------------------------------------------------------------------------------


def test_a_tap_takes_what_its_module_put_out_with_its_graph() -> None:
    net, x = network(), numbers(2, 1, 4, 4)
    tap = Tap(net, "0.1")
    logits = net(x)
    seen = tap.take()
    assert torch.equal(seen, net[0](x))
    assert torch.equal(logits, net[2](seen.flatten(1)))
    seen.sum().backward()
    assert net[0][0].weight.grad is not None
    assert net[2].weight.grad is None


def test_the_output_of_the_last_pass_is_taken_once() -> None:
    net = network()
    tap = Tap(net, "0.0")
    net(numbers(2, 1, 4, 4))
    net(numbers(3, 1, 4, 4))
    assert len(tap.take()) == 3
    with pytest.raises(
        UserError, match=r"^module '0.0' took no part in the forward pass: name one that does$"
    ):
        tap.take()


def test_a_tap_pools_to_a_vector() -> None:
    net, x = network(), numbers(2, 1, 4, 4)
    tap = Tap(net, "0")
    net(x)
    torch.testing.assert_close(tap.take_vector(), net[0](x).mean((2, 3)))


class Tokens(nn.Module):
    """A network of tokens, of which the first may be a class token."""

    def __init__(self, name: str | None, value: object) -> None:
        super().__init__()
        self.blocks = nn.Identity()
        if name is not None:
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@pytest.mark.parametrize(
    ("name", "value", "first"),
    [
        (None, None, False),
        ("num_prefix_tokens", 0, False),
        ("num_prefix_tokens", 1, True),
        ("class_token", nn.Parameter(torch.zeros(1, 1, 5)), True),
    ],
)
def test_the_network_says_whether_it_has_a_class_token(name: str | None, value: object, first: bool) -> None:
    net, x = Tokens(name, value), numbers(2, 7, 5)
    tap = Tap(net, "blocks")
    net(x)
    assert torch.equal(tap.take_vector(), x[:, 0] if first else x.mean(1))


def test_a_tap_leaves_the_network_as_it_was() -> None:
    net, x = network(), numbers(2, 1, 4, 4)
    before, keys = net(x), list(net.state_dict())
    tap = Tap(net, "0.1")
    assert torch.equal(net(x), before)
    assert list(net.state_dict()) == keys
    tap.remove()
    tap.take()
    net(x)
    with pytest.raises(UserError, match="took no part"):
        tap.take()
    assert not any(module._forward_hooks for module in net.modules())


class Says(nn.Module):
    """Puts out what `make` makes of its input."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x, x + 1),
        lambda x: [x, x + 1],
        lambda x: (None, x, x + 1),
        lambda x: ((x, x + 1), x + 2),
        lambda x: namedtuple("Two", "a b")(x, x + 1),
    ],
)
def test_of_several_outputs_the_first_tensor_is_taken(make: Callable[[Tensor], object]) -> None:
    net, x = nn.Sequential(Says(make)), numbers(2, 3)
    tap = Tap(net, "0")
    net(x)
    assert torch.equal(tap.take(), x)


def test_of_a_librarys_model_output_the_first_tensor_is_taken() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    x = numbers(2, 3)
    net = nn.Sequential(Says(lambda x: outputs.ImageClassifierOutput(logits=x, hidden_states=(x + 1,))))
    tap = Tap(net, "0")
    net(x)
    assert torch.equal(tap.take(), x)


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda x: {"x": x}, "dict"), (lambda x: None, "NoneType"), (lambda x: (), "tuple")],
)
def test_a_module_that_puts_out_no_tensor_is_named(make: Callable[[Tensor], object], name: str) -> None:
    net = nn.Sequential(Says(make))
    Tap(net, "0")
    with pytest.raises(
        UserError, match=rf"^module '0' puts out a {name}, not a tensor: name another module$"
    ):
        net(numbers(2, 3))


# -- paths ------------------------------------------------------------------------------------------------------


def test_a_path_is_that_of_named_modules() -> None:
    net = network()
    assert module_at(net, "0.1") is net[0][1]


@pytest.mark.parametrize("path", ["layers.3.attention", "layer.0", ""])
def test_a_wrong_path_lists_the_nearest(path: str) -> None:
    layer = nn.ModuleDict({"attention": nn.Identity(), "mlp": nn.Identity()})
    net = nn.ModuleDict({"layers": nn.ModuleList([layer]), "head": nn.Identity()})
    with pytest.raises(UserError, match=rf"'{path}' .*ModuleDict.*: .*the nearest are .*layers\.0") as caught:
        module_at(net, path)
    near = str(caught.value).partition("nearest are ")[2].split(", ")
    assert len(near) == 5
    assert set(near) <= {name for name, _ in net.named_modules()}
    if path:
        assert near[0] == {"layers.3.attention": "layers.0.attention", "layer.0": "layers.0"}[path]


def test_the_option_that_gave_the_path_is_named() -> None:
    with pytest.raises(UserError, match="^--method.middle 'x' "):
        Tap(network(), "x", flag="--method.middle")


def test_a_network_without_modules_has_no_near_ones() -> None:
    with pytest.raises(UserError, match=r"'x' .*Identity.* the nearest are none$"):
        module_at(nn.Identity(), "x")


# -- wildcards --------------------------------------------------------------------------------------------------


def deep() -> nn.Module:
    """A stem, twelve blocks of two parts, and stages named layer1 and layer2."""
    block = lambda: nn.ModuleDict({"attn": nn.Identity(), "mlp": nn.ModuleDict({"fc": nn.Identity()})})  # noqa: E731
    stage = lambda: nn.Sequential(nn.Identity(), nn.Identity())  # noqa: E731
    parts = {"stem": nn.Identity(), "blocks": nn.ModuleList(block() for _ in range(12))}
    return nn.ModuleDict({**parts, "layer1": stage(), "layer2": stage(), "mlp": nn.Identity()})


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("blocks.*.attn", [f"blocks.{i}.attn" for i in range(12)]),
        ("layer?.1", ["layer1.1", "layer2.1"]),
        ("layer*", ["layer1", "layer2"]),
        ("blocks.1?", ["blocks.10", "blocks.11"]),
        ("blocks.[02].mlp", ["blocks.0.mlp", "blocks.2.mlp"]),
        ("**.mlp", [*(f"blocks.{i}.mlp" for i in range(12)), "mlp"]),
        ("blocks.0.**", ["blocks.0", "blocks.0.attn", "blocks.0.mlp", "blocks.0.mlp.fc"]),
        ("**.0.**.fc", ["blocks.0.mlp.fc"]),
        ("blocks.3", ["blocks.3"]),
    ],
)
def test_a_pattern_finds_its_paths_in_the_networks_order(pattern: str, found: list[str]) -> None:
    assert paths(deep(), pattern) == found


def test_a_star_stays_within_one_name() -> None:
    assert paths(deep(), "blocks.*") == [f"blocks.{i}" for i in range(12)]
    assert paths(deep(), "*") == ["stem", "blocks", "layer1", "layer2", "mlp"]


def test_two_stars_find_every_module_but_the_network_itself() -> None:
    net = deep()
    assert paths(net, "**") == [path for path, _ in net.named_modules() if path]


def test_several_patterns_come_one_after_the_other_and_no_path_twice() -> None:
    assert paths(deep(), ["layer2", "layer?", "stem"]) == ["layer2", "layer1", "stem"]


def test_a_pattern_without_a_match_names_the_option_and_the_nearest_paths() -> None:
    with pytest.raises(UserError) as caught:
        paths(deep(), "blocks.*.attention", "--method.layers")
    said = str(caught.value)
    assert said.startswith(
        "--method.layers 'blocks.*.attention' is no module of ModuleDict: pass one of its own"
    )
    near = said.partition("nearest are ")[2].split(", ")
    assert len(near) == 5 and all(name.endswith(".attn") for name in near)


def test_of_several_patterns_the_one_without_a_match_is_named() -> None:
    with pytest.raises(UserError, match=r"'layerx.\*' is no module"):
        paths(deep(), ["layer1", "layerx.*"])

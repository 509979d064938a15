"""Adapters: the authors' numbers, an untouched base, every form of block, files that go without the base."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pipelines
from stillroom.errors import UserError
from stillroom.generators.parts.denoiser import Denoiser
from stillroom.generators.parts.sampler import Plan, Sampler
from stillroom.generators.parts.saving import load_sampler, save_sampler
from stillroom.models.denoisers import build_denoiser_network
from stillroom.models.denoisers.adapters import (
    ADAPTERS,
    AdaptedNetwork,
    Told,
    positions,
)
from stillroom.models.denoisers.adapting import (
    adapt,
    chosen_blocks,
    load_adapters,
    save_adapters,
    weights_digest,
)
from stillroom.models.denoisers.library import wrap
from toys import same, weights_of

BOTH = pytest.mark.parametrize("architecture", ["offset", "cross_attention"])


def wave(shape: tuple[int, ...], k: int) -> Tensor:
    """Numbers that need no file: .4 sin(.37 i + k)."""
    count = torch.Size(shape).numel()
    return (0.4 * (0.37 * torch.arange(count, dtype=torch.float64) + k).sin()).reshape(shape).float()


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with no weight left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


class Tokens(nn.Module):
    """A user's own network: 2-D vectors as two tokens, with prompts of tokens as conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(1, 8), nn.Linear(8, 1)
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.clock = nn.Linear(1, 5)
        self.halve = nn.Conv1d(2, 1, 1)
        self.spare = nn.Linear(8, 8)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, guidance: Tensor | None) -> Tensor:
        h = self.enter(x.unsqueeze(-1)) + condition.mean((1, 2)).view(-1, 1, 1)
        for layer in self.layers:
            h = h + layer(h, h, h, need_weights=False)[0]
        return self.leave(h).squeeze(-1) + 0 * self.halve(h).sum() + time.unsqueeze(-1)

    def embed_time(self, time: Tensor) -> Tensor:
        return self.clock(time.unsqueeze(-1))

    def embed_condition(self, condition: Tensor) -> Tensor:
        return condition


def text_unet() -> nn.Module:
    pytest.importorskip("diffusers")
    return wrap(pipelines.text_unet())


CASES = ["mlp:16x2", "unet:8-16", "dit:16x2@2", "text", "own"]


def case(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor], list[str]]:
    """A network with no weight at zero, an example of its inputs, and the blocks to adapt."""
    if name == "own":
        example = torch.randn(3, 2), torch.rand(3), torch.randn(3, 4, 6)
        return shaken(Tokens()), example, ["layers.*"]
    if name == "text":
        return shaken(text_unet()), (wave((3, 1, 8, 8), 0), 99 * torch.rand(3), torch.randn(3, 5, 12)), []
    if not name.startswith("mlp"):
        pytest.importorskip("diffusers")
    network = build_denoiser_network(name, shape=(1, 8, 8), classes=4, seed=0)
    return shaken(network), (wave((3, 1, 8, 8), 0), 99 * torch.rand(3), torch.tensor([0, 3, 4])), []


def adapted(
    name: str, architecture: Any = "cross_attention", **options: Any
) -> tuple[AdaptedNetwork, tuple[Any, ...]]:
    base, example, blocks = case(name)
    return adapt(base, example, blocks=blocks, architecture=architecture, **options), example


# -- the authors' numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "prompt", "wanted"),
    [
        ("offset", False, (0.2591375, -0.0805078, 0.7044678, -0.7421142, 0.6772752, 0.9884806)),
        ("offset", True, (0.2695801, -0.0901933, 0.7057360, -0.7325682, 0.6975264, 1.0087318)),
        ("cross_attention", False, (-0.4682044, 0.2290617, -0.3145291, -0.5068171, -0.4627415, -0.1409804)),
        ("cross_attention", True, (-0.5180040, 0.2950475, -0.3279008, -0.4682778, -0.4908141, -0.1838632)),
    ],
)
def test_adapters_are_the_authors(architecture: str, prompt: bool, wanted: tuple[float, ...]) -> None:
    """y = h + A of their AdditiveCFGAdapter (cfg_mult 10) and CrossAttentionCFGAdapter with these very weights."""
    adapter = ADAPTERS[architecture](4, 4, 5, 7, 6)
    with torch.no_grad():
        for k, value in enumerate(adapter.state_dict().values()):
            value.copy_(wave(tuple(value.shape), k))
    h, w = wave((2, 3, 4), 100), torch.tensor([1.5, 4.0]) * (10 if architecture == "offset" else 1)
    told = Told(w, wave((2, 5), 101), wave((2, 3, 7) if prompt else (2, 7), 102))
    found = (h + adapter(h, told)).flatten()[[0, 5, 10, 13, 19, 23]]
    assert found.tolist() == pytest.approx(wanted, abs=2e-6)


def test_positions_are_the_authors_and_do_not_end() -> None:
    table = positions(300, 6, torch.zeros(1))
    assert table[5].tolist() == pytest.approx(
        (-0.9589243, 0.2300017, 0.0107720, 0.2836622, 0.9731902, 0.9999420), abs=1e-6
    )
    assert table[79].tolist() == pytest.approx(
        (-0.4441127, -0.5014403, 0.1693798, -0.8959709, -0.8651922, 0.9855509), abs=1e-5
    )


@BOTH
def test_an_adapter_says_nothing_at_first_and_listens_to_all_it_is_told(architecture: str) -> None:
    adapter = ADAPTERS[architecture](4, 3, 5, 7, 6)
    h, told = torch.randn(2, 9, 4), Told(torch.tensor([1.0, 2.0]), torch.randn(2, 5), torch.randn(2, 7))
    assert not adapter(h, told).any()
    shaken(adapter)
    before = adapter(h, told)
    assert before.shape == (2, 1 if architecture == "offset" else 9, 3)
    others = {"scale": told.scale + 1, "time": told.time + 1, "condition": told.condition + 1}
    for name, other in others.items():
        moved = Told(**{**told.__dict__, name: other})
        assert (adapter(h, moved) - before).abs().max() > 1e-6, name
    looks = bool((adapter(h + 1, told) - before).abs().max() > 1e-6)
    assert looks == (architecture == "cross_attention")
    assert {name for name, _ in adapter.named_buffers()} == {"scale.frequencies", "scale.phases"}


# -- the base -------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_the_base_is_untouched_and_every_adapter_counts(name: str, architecture: str) -> None:
    network, (x, t, c) = adapted(name, architecture)
    base, w = network.base, torch.tensor([1.0, 3.0, 6.0])
    digest = weights_digest(base)
    with (
        torch.no_grad()
    ):  # with gradients torch's own attention takes another way, and differs in the last bit
        before = base(x, t, c, None)
        assert torch.equal(network(x, t, c, w), before)
    for adapter in network.adapters.values():
        kept = copy.deepcopy(adapter.state_dict())
        shaken(adapter)
        assert not torch.allclose(network(x, t, c, w), before, atol=1e-7)
        adapter.load_state_dict(kept)
    shaken(network.adapters)
    network(x, t, c, w).square().mean().backward()
    assert all(p.grad is None for p in base.parameters())
    assert all(p.grad is not None and p.grad.any() for p in network.adapters.parameters() if p.ndim > 1)
    with torch.no_grad():
        assert torch.equal(base(x, t, c, None), before)
    assert weights_digest(base) == digest
    assert not any(m._forward_hooks for p, m in base.named_modules() if p in network.sites.blocks)


@pytest.mark.parametrize("name", CASES)
def test_samples_do_not_mix_and_scales_matter(name: str) -> None:
    network, (x, t, c) = adapted(name)
    shaken(network.adapters)
    with torch.no_grad():
        said = network(x, t, c, torch.tensor([1.0, 3.0, 6.0]))
        other = network(x, t, c, torch.tensor([1.0, 5.0, 6.0]))
    assert torch.allclose(said[[0, 2]], other[[0, 2]], atol=1e-6)
    assert not torch.allclose(said[1], other[1], atol=1e-6)
    with torch.no_grad():
        assert torch.equal(network(x, t, c, None), network(x, t, c, torch.ones(3)))


def test_default_blocks() -> None:
    pytest.importorskip("diffusers")
    assert chosen_blocks(case("mlp:16x2")[0], ()) == ["blocks.0", "blocks.1"]
    assert chosen_blocks(case("dit:16x2@2")[0], ()) == [
        "model.transformer_blocks.0.attn1",
        "model.transformer_blocks.1.attn1",
    ]
    text = chosen_blocks(case("text")[0], ())
    assert len(text) == 4  # one downwards, one in the middle, both upwards
    assert all(path.endswith("transformer_blocks.0.attn2") for path in text)
    pixels = chosen_blocks(case("unet:8-16")[0], ())
    assert "model.mid_block.attentions.0" in pixels
    assert all(path.split(".")[-2] == "attentions" for path in pixels)


def test_an_error_inside_leaves_no_adapter_behind() -> None:
    network, (x, t, c) = adapted("mlp:16x2")
    shaken(network.adapters)
    before = network.base(x, t, c, None)
    with pytest.raises(RuntimeError):
        network(x[:, :, :3], t, c, None)
    assert torch.equal(network.base(x, t, c, None), before)


def test_copies_modes_and_what_is_trained() -> None:
    network, (x, t, c) = adapted("mlp:16x2")
    network.train()
    assert network.adapters.training
    assert not any(part.training for part in network.base.modules())
    other = copy.deepcopy(network)
    shaken(other.adapters)
    assert torch.equal(network(x, t, c, None), network.base(x, t, c, None))
    assert not torch.equal(other(x, t, c, None), network(x, t, c, None))
    counts = [sum(p.numel() for p in part.parameters()) for part in (network.adapters, network.base)]
    assert network.share == counts[0] / counts[1]
    assert {key.split(".")[0] for key in network.state_dict()} == {"base", "adapters"}


def test_a_base_in_half_precision_has_adapters_in_single() -> None:
    base, (x, t, c), _ = case("mlp:16x2")
    network = adapt(base.bfloat16(), (x.bfloat16(), t.bfloat16(), c))
    assert network(x.bfloat16(), t.bfloat16(), c, torch.tensor([1.0, 2.0, 3.0])).dtype == torch.bfloat16
    assert next(network.adapters.parameters()).dtype == torch.float32


# -- files ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_adapters_go_without_their_base(name: str, architecture: str, tmp_path: Path) -> None:
    """Onto the base that they were made for, and onto another checkpoint of its architecture."""
    network, (x, t, c) = adapted(name, architecture, scales=(1.0, 9.0), multiplier=2.0)
    shaken(network.adapters)
    save_adapters(tmp_path, network)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "adapters.safetensors")
    assert all(any(key.startswith(f"{path}.") for path in network.sites.blocks) for key in tensors)
    assert sum(v.numel() for v in tensors.values()) == sum(
        v.numel() for v in weights_of(network.adapters).values()
    )
    about = json.loads((tmp_path / "adapters.json").read_text())
    assert (about["architecture"], about["hidden"], about["scales"]) == (architecture, 12, [1.0, 9.0])
    assert about["base_name"] == type(network.base).__name__
    assert about["base_digest"] == weights_digest(network.base)
    w = torch.tensor([1.0, 3.0, 6.0])
    bare = copy.deepcopy(network.base)
    again = load_adapters(bare, tmp_path)
    assert torch.equal(again(x, t, c, w), network(x, t, c, w))
    other = shaken(copy.deepcopy(network.base), 5)
    moved = load_adapters(other, tmp_path)
    assert same(weights_of(moved.adapters), weights_of(network.adapters))
    assert not torch.equal(moved(x, t, c, w), network(x, t, c, w))


@pytest.mark.parametrize("name", CASES)
def test_a_sampler_with_adapters_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    network, (x, _, c) = adapted(name)
    shaken(network.adapters)
    null = torch.zeros(c.shape[1:]) if c.is_floating_point() else None
    clock: Any = "unit" if name == "own" else "index"
    denoiser = Denoiser(
        network,
        "cosine",
        "eps",
        classes=0 if null is not None else 4,
        clock=clock,
        takes_guidance=True,
        null=null,
    )
    sampler = Sampler(denoiser, Plan("ddim", 3, guidance=3.0)).eval()
    save_sampler(tmp_path, sampler, {})
    if name == "own":
        with pytest.raises(UserError, match=r"user's own: pass load_sampler\(folder, network\)"):
            load_sampler(tmp_path)
    again = load_sampler(tmp_path, Tokens() if name == "own" else None)
    assert again.evaluations == 3
    with torch.no_grad():
        assert torch.equal(again(x, c), sampler(x, c))
    given = load_sampler(tmp_path, copy.deepcopy(network) if name == "own" else case(name)[0])
    with torch.no_grad():
        assert torch.equal(given(x, c), sampler(x, c))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "mlp:16x2",
            {"blocks": ["block.*"]},
            r"^--method.blocks 'block.\*' is no module of ResidualMLP.*blocks",
        ),
        (
            "own",
            {},
            r"^--method.blocks is empty and Tokens is none of ours: pass its blocks' module paths, such as",
        ),
        ("own", {"blocks": ["spare"]}, r"^--method.blocks 'spare' took no part in the forward pass"),
        ("own", {"blocks": ["clock"], "architecture": "offset"}, ""),
        (
            "own",
            {"blocks": ["halve"], "architecture": "cross_attention"},
            r"^--method.blocks 'halve' turns 2 tokens into 1: pass --method.architecture offset",
        ),
        (
            "mlp:16x2",
            {"architecture": "cross_attention", "hidden": 7},
            r"^--method.hidden is 7 and cross_attention needs an even width: pass 8$",
        ),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict[str, Any], line: str) -> None:
    base, example, _ = case(name)
    if not line:
        with pytest.raises(UserError, match="took no part"):  # it is asked for the embedding alone
            adapt(base, example, **options)
        return
    with pytest.raises(UserError, match=line):
        adapt(base, example, **options)


def test_a_base_must_embed_and_blocks_must_keep_the_samples() -> None:
    with pytest.raises(UserError, match=r"^Linear has no method embed_time"):
        adapt(nn.Linear(2, 2), (torch.zeros(1, 2), torch.zeros(1), torch.zeros(1)))
    base, example, _ = case("own")
    base.leave = nn.Sequential(nn.Flatten(0, 1), nn.Linear(8, 1), nn.Unflatten(0, (-1, 2)))
    with pytest.raises(
        UserError, match=r"^--method.blocks 'leave.1' has \(6, 8\) for 3 samples: name a block"
    ):
        adapt(base, example, blocks=["leave.1"])


def test_adapters_of_another_architecture_are_refused(tmp_path: Path) -> None:
    network, (x, t, c) = adapted("mlp:16x2")
    save_adapters(tmp_path, network)
    small = build_denoiser_network("mlp:16x1", shape=(1, 8, 8), classes=4, seed=0)
    with pytest.raises(
        UserError, match=r"^ResidualMLP has no block 'blocks.1', which has an adapter: pass a base"
    ):
        load_adapters(small, tmp_path)
    wide = load_adapters(build_denoiser_network("mlp:32x2", shape=(1, 8, 8), classes=4, seed=0), tmp_path)
    with pytest.raises((UserError, RuntimeError)):
        wide(x, t, c, None)
    with pytest.raises(UserError, match="does not exist"):
        load_adapters(small, tmp_path / "nowhere")
    (tmp_path / "adapters.json").write_text("{}")
    with pytest.raises(UserError, match=r"describes no adapters: pass a folder of save_adapters"):
        load_adapters(small, tmp_path)

"""The spatial attention map: invariances, limits, and the numbers of DataDAM's published code."""

from __future__ import annotations

import pytest
import torch

from stillroom.attention import attention_map

F = torch.sin(torch.arange(1, 37, dtype=torch.float64) ** 1.3).view(2, 3, 2, 3)

PUBLISHED = {
    1: [0.4277553094840548, 0.29962625754729244, 0.24753356096283338, 0.3948028036172765, 0.5052019298467758],
    2: [0.431966605922972, 0.28229476917445673, 0.21326742030788506, 0.3274004291110589, 0.5258139502373899],
    4: [0.441846161659164, 0.25059403510540346, 0.19023877231181813, 0.2121704699648519, 0.5076383141057602],
}
"""Of the second map, the first five positions: get_attention(F, param=1, exp=p, norm='l2')."""

AS_IT_IS = {
    1: [1.0685642293867863, 1.8239773205988543, 2.536914816011537],
    4: [0.5033222512642022, 0.45886095262928445, 1.7339868259217686],
}
"""Of the first map, the first three positions: norm='none-vectorized'."""


@pytest.mark.parametrize("power", PUBLISHED)
def test_maps_are_those_of_the_published_code(power: int) -> None:
    made = attention_map(F, power)
    assert made.shape == (2, 6)
    assert torch.allclose(made[1, :5], F.new_tensor(PUBLISHED[power]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("power", AS_IT_IS)
def test_sizes_are_kept_where_asked(power: int) -> None:
    made = attention_map(F, power, normalise=False)
    assert torch.allclose(made[0, :3], F.new_tensor(AS_IT_IS[power]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [-1.0, 1e-9, 3.0, 1e9])
@pytest.mark.parametrize("power", [1.0, 4.0, 64.0])
def test_a_map_does_not_change_with_scale_sign_or_the_order_of_channels(factor: float, power: float) -> None:
    assert torch.allclose(attention_map(F, power), attention_map(factor * F[:, [2, 0, 1]], power), atol=1e-12)


def test_a_high_power_leaves_the_largest_channel() -> None:
    largest = F.abs().amax(1).flatten(1)
    assert torch.allclose(attention_map(F, 64), torch.nn.functional.normalize(largest**64, dim=1), atol=0.02)
    far = (attention_map(F, 2) - torch.nn.functional.normalize(largest**2, dim=1)).abs().max()
    assert far > 0.1


def test_the_power_comes_before_the_norm() -> None:
    one = torch.tensor([[[[1.0, 2.0]]]])
    assert torch.allclose(attention_map(one, 2), torch.tensor([[1.0, 4.0]]) / 17**0.5)


def test_features_of_any_size_neither_overflow_nor_vanish() -> None:
    for size in (1e-30, 1e30):
        assert torch.allclose(attention_map(F.float() * size, 4), attention_map(F.float(), 4), atol=1e-6)


def test_nothing_is_nothing_with_a_gradient() -> None:
    blank = torch.zeros(1, 2, 3, 3, requires_grad=True)
    for power in (1, 4):
        made = attention_map(blank, power)
        made.sum().backward()
        assert torch.equal(made, torch.zeros(1, 9))
        assert torch.isfinite(blank.grad).all()  # type: ignore[arg-type]


def test_half_precision_is_computed_in_full() -> None:
    half = F.to(torch.bfloat16)
    assert attention_map(half, 4).dtype == torch.float32
    assert torch.equal(attention_map(half, 4), attention_map(half.float(), 4))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("power", [1.0, 2.5, 4.0])
def test_gradients(normalise: bool, power: float) -> None:
    x = F.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: attention_map(f, power, normalise), x)

"""Texts that models write: which tokens may be drawn, that a row depends on its own numbers, beams, prompts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stillroom.data.texts import PAD
from stillroom.data.tokens import characters
from stillroom.errors import UserError
from stillroom.models.text_names import build_causal
from stillroom.models.texts import Causal
from stillroom.predictors.parts.language.heads import headed, scores
from stillroom.predictors.parts.language.prompts import prompt_sizes, prompts_of, replaced, targets_of
from stillroom.predictors.parts.language.sampling import Sampling, beams, sampled
from stillroom.predictors.parts.language.vocabulary import Head

TEXT = ["the cat sat on the mat, and the hat was flat"]


@pytest.fixture(scope="module", params=["gpt:32x2", "llama:32x2"])
def model(request: pytest.FixtureRequest) -> Causal:
    made = build_causal(request.param, tokenizer=characters(TEXT), length=32, seed=0)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3.0)  # so that what was read matters
    return made


class Plain(nn.Module):
    """The same network as one that keeps nothing."""

    def __init__(self, model: Causal) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def prompts() -> Tensor:
    return torch.tensor([[5, 6, 7, 8], [9, PAD, PAD, PAD], [10, 11, PAD, PAD]])


def numbers(seed: int = 0) -> Tensor:
    return torch.rand(3, 12, generator=torch.Generator().manual_seed(seed))


# -- drawing a token --------------------------------------------------------------------------------------------------


def test_tokens_come_as_often_as_they_are_likely() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    u = (torch.arange(1000) + 0.5) / 1000
    drawn = Sampling().choose(p.log().expand(1000, -1), u).bincount(minlength=4)
    assert drawn.tolist() == [500, 0, 300, 200]
    warm = Sampling(temperature=2.0).choose(p.log().expand(1000, -1), u).bincount(minlength=4) / 1000
    assert torch.allclose(warm, p.sqrt() / p.sqrt().sum(), atol=2e-3)


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(top_k=1), [0, 0, 1000, 0]),
        (Sampling(top_k=2), [400, 0, 600, 0]),
        (Sampling(top_p=0.6), [0, 0, 1000, 0]),
        (Sampling(top_p=0.61), [400, 0, 600, 0]),
        (Sampling(top_k=3, top_p=1.0), [350, 0, 525, 125]),
    ],
)
def test_only_the_likeliest_are_drawn(sampling: Sampling, wanted: list[int]) -> None:
    """Masses 0.35, 0.025, 0.525 and 0.1; top_p keeps the token with which the mass is reached."""
    p = torch.tensor([0.35, 0.025, 0.525, 0.1], dtype=torch.float64)
    if sampling.top_p < 1 or sampling.top_k == 2:
        p = torch.tensor([0.4, 0.0, 0.6, 0.0], dtype=torch.float64)
    u = (torch.arange(1000) + 0.5) / 1000
    drawn = sampling.choose(p.log().expand(1000, -1), u).bincount(minlength=4)
    if sampling.top_k == 3:
        wanted = [round(1000 * x / 0.975) for x in (0.35, 0.0, 0.525, 0.1)]
    assert all(abs(int(a) - b) <= 1 for a, b in zip(drawn, wanted, strict=True))


def test_the_last_number_before_1_draws_a_possible_token() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]])
    assert int(Sampling().choose(p.log(), torch.tensor([1 - 2**-24]))) == 1


# -- writing ----------------------------------------------------------------------------------------------------------


def test_keys_and_values_kept_or_not_the_text_is_the_same(model: Causal) -> None:
    kept = sampled(model, prompts(), numbers(), Sampling(), (3,), 14)
    assert torch.equal(kept, sampled(Plain(model), prompts(), numbers(), Sampling(), (3,), 14))


def test_a_row_depends_on_its_own_numbers_alone(model: Causal) -> None:
    """However a batch is cut: what keeps accumulation and several processes exact."""
    whole = sampled(model, prompts(), numbers(), Sampling(), (3,), 14)
    for i in range(3):
        size = int((prompts()[i] != PAD).sum())
        alone = sampled(model, prompts()[i : i + 1, :size], numbers()[i : i + 1], Sampling(), (3,), 14)
        assert torch.equal(alone[0][alone[0] != PAD], whole[i][whole[i] != PAD])


def test_every_token_is_the_one_that_its_number_draws(model: Causal) -> None:
    """Against whole forward passes over the finished rows."""
    rows = sampled(model, prompts(), numbers(), Sampling(1.3), (), 14)
    with torch.no_grad():
        logits = model.eval()(rows)
    for i, size in enumerate([4, 1, 2]):
        assert torch.equal(rows[i, :size], prompts()[i, :size])
        filled = int((rows[i] != PAD).sum())
        assert filled == min(14, size + 12)
        for at in range(size, filled):
            token = Sampling(1.3).choose(logits[i, at - 1 : at], numbers()[i, at - size : at - size + 1])
            assert int(token) == int(rows[i, at])


def test_a_text_ends_after_its_stop_and_the_model_is_left_as_it_was(model: Causal) -> None:
    model.train()
    state = torch.random.get_rng_state()
    free = sampled(model, prompts(), numbers(), Sampling())
    stop = int(free[0, 6])
    rows = sampled(model, prompts(), numbers(), Sampling(), (stop,))
    end = 4 + (free[0, 4:] == stop).nonzero()[0].item()
    assert torch.equal(rows[0, : end + 1], free[0, : end + 1])
    assert bool((rows[0, end + 1 :] == PAD).all())
    assert model.training and torch.equal(state, torch.random.get_rng_state())


def test_weights_that_were_cast_while_writing_still_get_gradients(model: Causal) -> None:
    """Autocast keeps its casts for the whole step, and those made without gradients would hide the weights."""
    with torch.autocast("cpu", torch.bfloat16):
        sampled(model, prompts(), numbers(), Sampling(), (), 8)
        model(prompts().clamp_min(0)).float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.ndim > 1)
    model.zero_grad()


def test_a_beam_finds_what_is_likelier_than_the_greedy_text(model: Causal) -> None:
    def likelihood(rows: Tensor) -> list[float]:
        with torch.no_grad():
            log_p = model.eval()(rows).log_softmax(-1)
        sizes = [4, 1, 2]
        return [
            sum(float(log_p[i, at - 1, rows[i, at]]) for at in range(sizes[i], sizes[i] + 4))
            for i in range(3)
        ]

    greedy = sampled(model, prompts(), torch.zeros(3, 4), Sampling(top_k=1), (), 10)
    found = beams(model, prompts(), 4, 4, None, 10)
    assert all(a >= b - 1e-4 for a, b in zip(likelihood(found), likelihood(greedy), strict=True))
    assert torch.equal(found[:, :1], prompts()[:, :1])
    with pytest.raises(UserError, match="beam search needs a transformers model"):
        beams(Plain(model), prompts(), 4, 4, None, 10)


# -- heads ------------------------------------------------------------------------------------------------------------


def test_states_and_head_make_the_logits(model: Causal) -> None:
    assert headed(model) and not headed(Plain(model))
    x = torch.tensor([[5, 6, 7, PAD], [8, 9, 10, 11]])
    packed = torch.stack([x, torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1]])], 1)
    for given in (x, packed):
        made = scores(model.eval(), given, True)
        assert isinstance(made, Head)
        counted = x != PAD
        assert torch.allclose(made.logits()[counted], model(given)[counted], atol=1e-5)


def test_a_network_that_caps_its_logits_keeps_them_to_itself() -> None:
    made = build_causal("gpt:16x1", tokenizer=characters(TEXT), length=32, seed=0)
    made.network.lm_head.register_forward_hook(lambda module, inputs, out: 5 * (out / 5).tanh() + 1)
    assert not headed(made)


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_are_what_does_not_count_or_the_first_tokens() -> None:
    x = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, PAD, PAD, PAD]])
    y = torch.tensor([[-100, -100, 4, 5, -100], [2, 3, 4, 5, -100], [2, -100, -100, -100, -100]])
    sizes = prompt_sizes(x, y, 4)
    assert sizes.tolist() == [3, 4, 2]
    assert prompts_of(x, sizes).tolist() == [[1, 2, 3, PAD], [1, 2, 3, 4], [1, 2, PAD, PAD]]


def test_targets_begin_with_the_first_written_token() -> None:
    rows = torch.tensor([[1, 2, 7, 8, PAD], [1, 9, PAD, PAD, PAD]])
    assert targets_of(rows, torch.tensor([2, 1])).tolist() == [
        [-100, 7, 8, -100, -100],
        [9, -100, -100, -100, -100],
    ]


def test_written_rows_take_their_places() -> None:
    x, y = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[2, -100], [4, -100], [6, -100]])
    rows, targets = torch.tensor([[8, 9, 10]]), torch.tensor([[9, 10, -100]])
    new_x, new_y = replaced(x, y, rows, targets, torch.tensor([False, True, False]))
    assert new_x.tolist() == [[1, 2, PAD], [8, 9, 10], [5, 6, PAD]]
    assert new_y.tolist() == [[2, -100, -100], [9, 10, -100], [6, -100, -100]]

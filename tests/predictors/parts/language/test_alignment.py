"""Vocabularies: same, in another order, with further tokens; what is refused; text read in other tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.data.tokens import byte_pairs, characters
from stillroom.errors import UserError
from stillroom.predictors.parts.language.alignment import aligned, roles, same, special_map, strings
from stillroom.predictors.parts.language.divergences import Divergence
from stillroom.predictors.parts.language.translation import Translation
from stillroom.predictors.parts.language.vocabularies import link
from stillroom.predictors.parts.language.vocabulary import Mixing, Tokens, distilled
from stillroom.teacher import Dense

TEXT = ["the cat sat on the mat, and the hat was flat", "a rat ran at the cat"]


def logits(width: int, seed: int) -> Tensor:
    return torch.randn(1, 4, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss(student: Tensor, teacher: Tensor, alignment: Any, beta: float = 0.0) -> tuple[Tensor, Tensor]:
    """Value and gradient of the teacher's term."""
    student = student.clone().requires_grad_()
    tokens = Tokens(torch.zeros(1, 4, dtype=torch.int64))
    value = distilled(student, tokens, Dense(teacher), Mixing(1.0, Divergence(beta)), alignment).value
    return value, torch.autograd.grad(value, student)[0]


# -- comparing strings ------------------------------------------------------------------------------------------------


def test_the_same_strings_need_nothing() -> None:
    assert same(["a", "b", "c"], ["a", "b", "c"]) is None


def test_vocabularies_of_one_size_and_other_words_are_refused_by_the_first_that_differs() -> None:
    with pytest.raises(UserError, match="token 1 is 'b' to the student and 'c' to the teacher") as error:
        same(["a", "b", "c"], ["a", "c", "b"])
    assert "\n" not in str(error.value) and "--method.align" in str(error.value)


def test_a_longer_vocabulary_is_refused_where_it_goes_on() -> None:
    with pytest.raises(
        UserError, match=r"token 2 is no token to the student and 'c' to the teacher \(2 and 3 tokens"
    ):
        same(["a", "b"], ["a", "b", "c"])


def test_padding_of_the_last_layer_is_no_difference() -> None:
    """The same tokenizer under logits of two widths: ids that no string has are put together."""
    alignment = same(["a", "b", "c", None], ["a", "b", "c", None, None, None])
    assert alignment is not None and alignment.bucketed
    s, t = logits(4, 0), logits(6, 1)
    value, _ = loss(s, t, alignment)
    p, q = (
        torch.cat([x[..., :3], x[..., 3:].sum(-1, keepdim=True)], -1) for x in (t.softmax(-1), s.softmax(-1))
    )
    assert float(value) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), abs=1e-12)


def test_strings_of_a_tokenizer_by_id() -> None:
    made = characters(TEXT)
    found = strings(made, len(made) + 2)
    assert found[:4] == ["<pad>", "<unk>", "<s>", "</s>"]
    assert found[-3:] == ["w", None, None]
    assert made.convert_ids_to_tokens(10) == found[10]


# -- aligning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_another_order_is_a_permutation(beta: float) -> None:
    own, order = list("abcdefg"), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    alignment = aligned(own, [own[i] for i in order], {})
    assert not alignment.bucketed
    s, t = logits(7, 0), logits(7, 1)
    mixed = loss(s, t[..., order], alignment, beta)
    straight = loss(s, t, None, beta)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(mixed, straight, strict=True))
    x = torch.tensor([[0, 3, 6, -1]])
    assert [own[order[i]] for i in alignment.ids(x)[0, :3]] == ["a", "d", "g"]
    assert int(alignment.ids(x)[0, 3]) == -1


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_tokens_that_one_side_lacks_are_one_bucket(beta: float) -> None:
    """Against autograd through the buckets written out."""
    alignment = aligned(list("abxcy"), list("cqabrs"), {})
    assert alignment.bucketed
    s, t = logits(5, 0).requires_grad_(), logits(6, 1)
    p, q = t.softmax(-1), s.softmax(-1)
    p = torch.cat([p[..., [2, 3, 0]], p[..., [1, 4, 5]].sum(-1, keepdim=True)], -1)
    q = torch.cat([q[..., [0, 1, 3]], q[..., [2, 4]].sum(-1, keepdim=True)], -1)
    m = beta * p + (1 - beta) * q
    if 0 < beta < 1:
        each = (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()) / (beta * (1 - beta))
    else:
        each = p * (p / q).log() if beta == 0 else q * (q / p).log()
    right = each.sum(-1).mean()
    (slope,) = torch.autograd.grad(right, s)
    value, own = loss(s.detach(), t, alignment, beta)
    assert float(value) == pytest.approx(float(right), abs=1e-12)
    assert (own - slope).abs().max() < 1e-12


def test_further_tokens_of_one_side_alone_are_left_out_of_its_distribution() -> None:
    """A teacher with more tokens is asked what it would say of the student's; no divergence is infinite."""
    alignment = aligned(list("abc"), list("abcde"), {})
    assert not alignment.bucketed
    s, t = logits(3, 0), logits(5, 1)
    for beta in (0.0, 0.5, 1.0):
        mine, right = loss(s, t, alignment, beta), loss(s, t[..., :3], None, beta)
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(mine, right, strict=True))


def test_special_tokens_meet_by_role_and_by_name() -> None:
    mine = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    theirs = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "bos_token": "<|end|>"}
    assert special_map(mine, theirs, ()) == {"</s>": "<|end|>"}
    named = special_map(mine, theirs, ("<mask>=<|pad|>",))
    alignment = aligned(["a", "</s>", "<mask>", "b"], ["<|pad|>", "b", "<|end|>", "a"], named)
    assert alignment.to_teacher.tolist() == [3, 2, 0, 1]
    with pytest.raises(UserError, match="STUDENT=TEACHER"):
        special_map(mine, theirs, ("oops",))


def test_two_special_tokens_that_would_be_one_are_refused() -> None:
    with pytest.raises(UserError, match="are one to the teacher"):
        aligned(["<a>", "<b>", "c"], ["<t>", "c"], {"<a>": "<t>", "<b>": "<t>"})


def test_vocabularies_with_little_in_common_are_refused() -> None:
    with pytest.raises(UserError, match="share 1 of 26 and 26 tokens: pass --method.align uld"):
        aligned([chr(97 + i) for i in range(26)], ["a", *(chr(900 + i) for i in range(25))], {})


def test_links_by_tokenizer() -> None:
    one, other = characters(TEXT), characters(["zebra", *TEXT])
    size = len(one)
    assert link("none", (), (one, size), (one, size)).alignment is None
    with pytest.raises(UserError, match="the vocabularies differ: token 7 is 'c' to the student and 'b'"):
        link("none", (), (one, size), (other, len(other)))
    alignment = link("strings", (), (one, size), (other, len(other))).alignment
    assert alignment is not None
    x = torch.tensor(one("the cat", add_special_tokens=False).input_ids)
    assert other.decode(alignment.ids(x).tolist()) == "the cat"
    assert roles(one)["eos_token"] == "</s>"
    assert link("uld", (), (one, size), (other, len(other))).translation is not None


# -- the same text in other tokens ------------------------------------------------------------------------------------


def test_a_text_is_compared_where_both_finish_a_token() -> None:
    student, teacher = characters(TEXT), byte_pairs(TEXT * 20, 290)
    own = torch.tensor([student("the cat sat", add_special_tokens=False).input_ids])
    y = torch.zeros_like(own)
    ids, partner = Translation(student, teacher)(own, y)
    read = ids[0][ids[0] >= 0].tolist()
    assert teacher.decode(read) == "the cat sat"
    assert len(read) < own.shape[-1]
    ends = {len(teacher.decode(read[: i + 1])): i for i in range(len(read))}
    assert partner[0].tolist() == [ends.get(i + 1, -1) for i in range(own.shape[-1])]


def test_the_other_way_round_several_texts_padding_and_what_does_not_count() -> None:
    student, teacher = byte_pairs(TEXT * 20, 290), characters(TEXT)
    rows = [student(text, add_special_tokens=False).input_ids for text in ("the hat", "a rat ran")]
    own = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], True, -1)
    y = torch.zeros_like(own)
    y[1, 0] = -100
    ids, partner = Translation(student, teacher)(own, y)
    width = ids.shape[-1]
    assert teacher.decode(ids[1][ids[1] >= 0].tolist()) == "a rat ran"
    for row, tokens in enumerate(rows):
        for at in range(len(tokens)):
            expected = row * width + len(student.decode(tokens[: at + 1])) - 1
            assert int(partner[row, at]) == (-1 if int(y[row, at]) == -100 else expected)
    assert bool((partner[own < 0] == -1).all())


def test_special_tokens_are_not_read_and_have_no_partner() -> None:
    student, teacher = characters(TEXT), byte_pairs(TEXT * 20, 290)
    own = torch.tensor([[*student("the cat", add_special_tokens=False).input_ids, student.eos_token_id]])
    ids, partner = Translation(student, teacher)(own, torch.zeros_like(own))
    assert teacher.decode(ids[0].tolist()) == "the cat"
    assert int(partner[0, -1]) == -1 and int(partner[0, -2]) == ids.shape[-1] - 1


def test_a_teacher_that_cannot_say_where_its_tokens_stand_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not tell where its tokens stand"):
        Translation(characters(TEXT), Slow())

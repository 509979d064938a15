"""The methods of language models: what each step learns, limits of their shares, vocabularies, and their task."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.answers import top_k
from stillroom.engine import Engine, Watcher
from stillroom.errors import UserError
from stillroom.fitter import Fitter
from stillroom.method import Batch, Method
from stillroom.models.text_names import build_causal
from stillroom.predictors.language_modelling import LanguageModelling
from stillroom.predictors.language_models import GKD, NextToken, SequenceKD
from stillroom.predictors.parts.language.sampling import Sampling, sampled
from stillroom.predictors.parts.language.scores import on_own_text, text_bytes
from stillroom.runtime import Runtime
from stillroom.seeds import seed_of
from stillroom.teacher import Teacher
from stillroom.teaching import teach
from stillroom.workflow import distill
from toys import apart, batch_of, same, updates_of, weights_of


@pytest.fixture(scope="module")
def task(shared_cache: Path) -> LanguageModelling:
    """The built-in text, tiny; the teacher taught for a moment."""
    made = LanguageModelling().quick()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(shared_cache))
        teach(made, Engine(), None, Watcher)
    return made


def bound(method: Method, task: LanguageModelling) -> Any:
    method.check()
    method.source(task)
    method.bind(task, 0)
    method.student.eval()
    return method


def some(task: LanguageModelling, rows: int = 4) -> Batch:
    x, y = task.train().fetch(torch.arange(rows), None)
    return batch_of(x, y)


def gradient(method: Method, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
    """The update that a method yields, and its gradient by name."""
    (update,) = updates_of(method, batch)
    method.student.zero_grad()
    update.loss.backward()
    grads = {n: p.grad.clone() for n, p in method.student.named_parameters() if p.grad is not None}
    method.student.zero_grad()
    return update, grads


def alike(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> bool:
    return a.keys() == b.keys() and apart(a, b) < tolerance


# -- one step ---------------------------------------------------------------------------------------------------------


def test_next_token_is_cross_entropy_over_the_tokens_that_count(task: LanguageModelling) -> None:
    method, batch = bound(NextToken(), task), some(task)
    batch.y[0, :5] = -100
    update, grads = gradient(method, batch)
    right = F.cross_entropy(method.student(batch.x).flatten(0, 1), batch.y.flatten())
    right.backward()
    assert update.items == int((batch.y != -100).sum())
    assert float(update.loss) == pytest.approx(float(right), abs=1e-6)
    assert alike(grads, {n: p.grad for n, p in method.student.named_parameters()})


@pytest.mark.parametrize(("beta", "alpha"), [(0.0, 0.9), (0.4, 0.5), (1.0, 1.0)])
def test_gkd_on_data_is_the_mixed_loss(task: LanguageModelling, beta: float, alpha: float) -> None:
    method, batch = bound(GKD(beta=beta, alpha=alpha, on_policy=0.0), task), some(task)
    update, grads = gradient(method, batch)
    wanted = batch.y != -100
    z, v = method.student(batch.x)[wanted], method.teacher.module(batch.x)[wanted]
    s, t = z.softmax(-1), v.softmax(-1)
    if beta in (0, 1):
        a, b = (t, s) if beta == 0 else (s, t)
        soft = (a * (a / b).log()).sum(-1).mean()
    else:
        m = beta * t + (1 - beta) * s
        each = beta * t * (t / m).log() + (1 - beta) * s * (s / m).log()
        soft = each.sum(-1).mean() / (beta * (1 - beta))
    right = (1 - alpha) * F.cross_entropy(z, batch.y[wanted]) + alpha * soft
    right.backward()
    assert float(update.loss) == pytest.approx(float(right), abs=1e-5)
    assert alike(grads, {n: p.grad for n, p in method.student.named_parameters()}, 1e-5)


class Kept(Teacher):
    """A teacher whose three largest answers a token were kept."""

    keeps = True

    def __call__(self, batch: Batch) -> Any:
        return top_k(self.ask(batch.x), 3)


def test_kept_answers_are_asked_for_on_the_datas_own_rows(task: LanguageModelling) -> None:
    """k tokens and the rest's mass: a coarser KL, so a smaller one. A text just written is not kept."""
    batch = some(task)
    costs = {}
    for teacher in (Teacher, Kept):
        for share in (0.0, 1.0):
            method = bound(GKD(alpha=1.0, on_policy=share, prompt=4, new_tokens=5), task)
            method.teacher = teacher(method.teacher.module)
            costs[teacher, share] = float(gradient(method, some(task))[0].loss)
    log_t = task.make_teacher().answer(batch.x).log_softmax(-1)
    log_s = bound(GKD(), task).student(batch.x).log_softmax(-1)
    top = log_t.topk(3).indices
    t, s = (
        torch.cat([x.gather(-1, top).exp(), 1 - x.gather(-1, top).exp().sum(-1, True)], -1)
        for x in (log_t, log_s)
    )
    right = (t * (t / s).log()).sum(-1)[batch.y != -100].mean()
    assert costs[Kept, 0.0] == pytest.approx(float(right), abs=1e-5)
    assert costs[Kept, 0.0] < costs[Teacher, 0.0]
    assert costs[Kept, 1.0] == costs[Teacher, 1.0]


def test_without_the_teachers_share_gkd_is_next_token_to_the_bit(task: LanguageModelling) -> None:
    plain = gradient(bound(NextToken(), task), some(task))[1]
    assert same(plain, gradient(bound(GKD(alpha=0.0, on_policy=0.0), task), some(task))[1])
    assert not same(plain, gradient(bound(GKD(alpha=1e-3, on_policy=0.0), task), some(task))[1])


def test_texts_of_its_own_are_judged_by_the_teacher_alone(task: LanguageModelling) -> None:
    """All rows written by the student: its own tokens are no labels, whatever alpha is, and the prompt is no text."""
    batch = some(task)
    method = bound(GKD(alpha=0.5, on_policy=1.0, prompt=4, new_tokens=6), task)
    update, grads = gradient(method, batch)
    x, y, labelled = method._texts(some(task))
    assert not bool(labelled.any())
    assert torch.equal(x[:, :4], batch.x[:, :4])
    assert torch.equal(y[:, 3:-1][y[:, 3:-1] != -100], x[:, 4:][x[:, 4:] != -1])
    assert bool((y[:, :3] == -100).all()) and update.items == int((y != -100).sum()) <= 4 * 6
    wanted = y != -100
    log_s, log_t = method.student(x)[wanted].log_softmax(-1), method.teacher.module(x)[wanted].log_softmax(-1)
    right = 0.5 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    right.backward()
    assert float(update.loss) == pytest.approx(float(right), abs=1e-6)
    assert alike(grads, {n: p.grad for n, p in method.student.named_parameters()})


def test_which_rows_it_writes_depends_on_the_share_and_the_rows_numbers(task: LanguageModelling) -> None:
    written = {}
    for share in (0.0, 1e-9, 0.5, 1 - 1e-9, 1.0):
        method = bound(GKD(on_policy=share, prompt=4, new_tokens=3), task)
        labelled = method._texts(some(task, 16))[2]
        written[share] = set() if labelled is None else set((~labelled).nonzero().flatten().tolist())
    assert written[0.0] == written[1e-9] == set()
    assert written[1.0] == written[1 - 1e-9] == set(range(16))
    assert 0 < len(written[0.5]) < 16


def test_a_share_just_above_0_is_the_loss_without(task: LanguageModelling) -> None:
    none, hardly = (gradient(bound(GKD(on_policy=p), task), some(task)) for p in (0.0, 1e-9))
    assert float(none[0].loss) == pytest.approx(float(hardly[0].loss), abs=1e-6)
    assert alike(none[1], hardly[1])


def test_the_teachers_texts_are_written_once_and_learnt(task: LanguageModelling) -> None:
    method, batch = bound(SequenceKD(prompt=5, new_tokens=9), task), some(task)
    kept = method._texts
    assert len(kept) == len(task.train())
    rows, sizes = kept.rows("text", batch.index).long(), kept.rows("size", batch.index).long()
    assert sizes.tolist() == [5] * 4 and torch.equal(rows[:, :5], batch.x[:, :5])
    assert bool(((rows != -1).sum(-1) <= 14).all())
    update, _ = gradient(method, batch)
    y = torch.full_like(rows, -100)
    y[:, 4:-1] = rows[:, 5:].where(rows[:, 5:] >= 0, -100)
    right = F.cross_entropy(method.student(rows).flatten(0, 1), y.flatten())
    assert float(update.loss) == pytest.approx(float(right), abs=1e-6)
    before = kept.folder.stat().st_mtime_ns
    assert bound(SequenceKD(prompt=5, new_tokens=9), task)._texts.folder == kept.folder
    assert kept.folder.stat().st_mtime_ns == before
    assert bound(SequenceKD(prompt=5, new_tokens=9, top_k=2), task)._texts.folder != kept.folder


def test_without_the_teachers_texts_sequence_kd_is_next_token_to_the_bit(task: LanguageModelling) -> None:
    plain = gradient(bound(NextToken(), task), some(task))[1]
    for share in (0.0, 1e-9):
        assert same(plain, gradient(bound(SequenceKD(share=share, new_tokens=3), task), some(task))[1])
    half = gradient(bound(SequenceKD(share=0.5, new_tokens=3), task), some(task))[1]
    whole = gradient(bound(SequenceKD(share=1.0, new_tokens=3), task), some(task))[1]
    assert not alike(plain, half) and not alike(half, whole)


def test_a_beam_writes_likelier_texts(task: LanguageModelling) -> None:
    costs = {}
    for beams in (1, 4):
        texts = bound(SequenceKD(prompt=5, new_tokens=6, beams=beams), task)._texts
        rows = texts.rows("text").long()
        y = torch.full_like(rows, -100)
        y[:, 4:-1] = rows[:, 5:].where(rows[:, 5:] >= 0, -100)
        with torch.no_grad():
            costs[beams] = float(F.cross_entropy(task.make_teacher().module(rows).flatten(0, 1), y.flatten()))
    assert costs[4] < costs[1]


def test_packed_texts_are_learnt_apart(task: LanguageModelling) -> None:
    """Rows of several texts: the same loss as of each text by itself."""
    texts = {
        "train": ["def f", "import os", "a = b", "class A"] * 3,
        "validation": ["def g"],
        "test": ["x = y"],
    }
    losses = []
    for packing in ("documents", "none"):
        made = task.using(data=texts).but(
            packing=packing, length=32, student_samples=None, train_samples=None
        )
        made.teach(build_causal("gpt:16x1", tokenizer=made.tokens, length=32, seed=5))
        method = bound(GKD(on_policy=0.0, alpha=0.5), made)
        x, y = made.train().fetch(torch.arange(len(made.train())), None)
        assert x.ndim == (3 if packing == "documents" else 2)
        losses.append(updates_of(method, batch_of(x, y))[0])
    assert losses[0].items == losses[1].items
    assert float(losses[0].loss) == pytest.approx(float(losses[1].loss), abs=1e-5)
    packed = task.using(data=texts).but(packing="documents", length=32, student_samples=None)
    packed.teach(task.make_teacher().module)
    with pytest.raises(UserError, match="rows hold several texts"):
        bound(GKD(), packed)


# -- vocabularies -----------------------------------------------------------------------------------------------------


TEXTS = {
    "train": ["the cat sat on the mat", "a hat, a bat"] * 20,
    "validation": ["a cat sat"],
    "test": ["the hat sat"],
}


def folder(tmp_path: Path, tokenizer: Any, name: str = "gpt:16x1", seed: int = 3) -> str:
    """A small random language model with its tokenizer, as transformers saves them."""
    place = tmp_path / f"model-{seed}-{len(tokenizer)}"
    build_causal(name, tokenizer=tokenizer, length=32, seed=seed).network.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def with_teacher(place: str, **options: Any) -> LanguageModelling:
    task = LanguageModelling(teacher=place, student="gpt:16x1", length=24, packing="none", **options)
    return task.but(tokenizer="characters").using(data=TEXTS)


def permuted(tokenizer: Any, extra: str = "") -> Any:
    """A character tokenizer whose tokens stand in the reverse order, and further ones."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = [*sorted(tokenizer.get_vocab(), reverse=True), *extra]
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(found)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def test_a_teacher_of_other_words_is_refused_in_one_line(tmp_path: Path) -> None:
    from stillroom.data.tokens import characters

    own = characters(TEXTS["train"])
    task = with_teacher(folder(tmp_path, permuted(own)))
    task.check(0, True)
    with pytest.raises(
        UserError, match="the vocabularies differ: token 0 is '<pad>' to the student and 't'"
    ) as error:
        bound(GKD(), task)
    assert "\n" not in str(error.value)


def test_the_same_tokens_in_another_order_are_the_same_teacher(tmp_path: Path) -> None:
    """A teacher with permuted rows of embedding and head: value and gradient of the one that it was made from."""
    from stillroom.data.tokens import characters

    own = characters(TEXTS["train"])
    other = permuted(own)
    teacher = build_causal("gpt:16x1", tokenizer=own, length=32, seed=4)
    straight = with_teacher("gpt:16x1")
    straight.teach(teacher)
    place = folder(tmp_path, other, seed=4)
    turned = with_teacher(place)
    back = torch.tensor(
        [own.convert_tokens_to_ids(t) for t in other.convert_ids_to_tokens(range(len(other)))]
    )
    with torch.no_grad():
        network = turned.make_teacher().module.network
        network.load_state_dict(teacher.network.state_dict())
        network.transformer.wte.weight.copy_(teacher.network.transformer.wte.weight[back])
    batches = [some(straight), some(turned)]
    assert torch.equal(batches[0].x, batches[1].x)
    a, b = (
        gradient(bound(GKD(align=align, on_policy=0.5, prompt=4, new_tokens=5, beta=0.3), task), batch)
        for align, task, batch in zip(("none", "strings"), (straight, turned), batches, strict=True)
    )
    assert float(a[0].loss) == pytest.approx(float(b[0].loss), abs=1e-6)
    assert alike(a[1], b[1])
    scored = turned.score(turned.make_student(0), "test", Runtime())
    assert scored["agreement"] == straight.score(straight.make_student(0), "test", Runtime())["agreement"]


def test_a_teacher_that_lacks_a_token_of_the_data_is_refused(tmp_path: Path) -> None:
    from stillroom.data.tokens import characters

    task = with_teacher(folder(tmp_path, permuted(characters(["the mat hat on b, "]))))
    with pytest.raises(UserError, match=r"the teacher has no token 'c', which is in the data \(2 such\)"):
        bound(GKD(align="strings"), task)


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_a_teacher_of_other_tokens_teaches_by_sorted_probabilities(tmp_path: Path, on_policy: float) -> None:
    from stillroom.data.tokens import byte_pairs

    task = with_teacher(folder(tmp_path, byte_pairs(TEXTS["train"], 280)))
    method, batch = bound(GKD(align="uld", on_policy=on_policy, prompt=4, new_tokens=5), task), some(task)
    update, grads = gradient(method, batch)
    assert 0 < float(update.logs["loss/teacher"]) <= 2
    assert max(float(g.abs().max()) for g in grads.values()) > 0
    teacher = task.make_teacher().module
    found = task.score(teacher, "test", Runtime())
    assert "agreement" not in found and found["bits_per_byte"] > 0
    assert "agreement" not in task.score(method.student, "test", Runtime())


def test_texts_cross_between_vocabularies(tmp_path: Path) -> None:
    from stillroom.data.tokens import byte_pairs

    task = with_teacher(folder(tmp_path, byte_pairs(TEXTS["train"], 280)))
    texts = bound(SequenceKD(prompt=6, new_tokens=4), task)._texts
    row = texts.rows("text")[0].long()
    assert task.tokens.decode(row[:6].tolist()) == TEXTS["train"][0][:6]
    assert int((row >= 0).sum()) > 6


# -- the task ---------------------------------------------------------------------------------------------------------


def test_scores_are_what_they_are_called(task: LanguageModelling) -> None:
    student = task.make_student(0)
    found = task.score(student, "test", Runtime())
    x, y = task.rows("test")
    wanted = y != -100
    with torch.no_grad():
        logits, said = student.eval()(x)[wanted], task.make_teacher().module(x)[wanted]
    nats = F.cross_entropy(logits, y[wanted])
    assert found["nats_per_token"] == pytest.approx(float(nats), abs=1e-5)
    assert found["perplexity"] == pytest.approx(float(nats.exp()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == y[wanted]).float().mean()))
    assert found["agreement"] == pytest.approx(float((logits.argmax(-1) == said.argmax(-1)).float().mean()))
    ends = int((y == task.tokens.eos_token_id).sum())
    size = text_bytes(task.tokens, y)
    assert size == len(task.tokens.decode(y[wanted].tolist(), skip_special_tokens=True).encode())
    assert size >= int(wanted.sum()) - ends  # a character has a byte or more
    assert found["bits_per_byte"] == pytest.approx(
        float(nats) * int(wanted.sum()) / size / 0.6931471805599453
    )
    assert len(found["per_sample"]) == len(x)
    assert task.score(task.make_teacher().module, "test", Runtime()).get("agreement") is None


def test_the_divergence_on_own_texts_is_that_of_its_own_texts(task: LanguageModelling) -> None:
    """By the definition, over texts written here; of a student that is its teacher it is 0."""
    student = task.make_student(0)
    x, _ = task.rows("test")
    prompts, numbers = x[:, :6], torch.rand(len(x), 24, generator=torch.Generator().manual_seed(0))
    rows = sampled(student, prompts, numbers, Sampling(), (task.tokens.eos_token_id,), 24)
    wanted = rows[:, 6:] != -1
    with torch.no_grad():
        s, t = (
            m(rows)[:, 5:-1][wanted].log_softmax(-1) for m in (student.eval(), task.make_teacher().module)
        )
    right = float((s.exp() * (s - t)).sum(-1).mean())
    assert task.score(student, "test", Runtime())["kl_on_own_text"] == pytest.approx(right, abs=1e-5)
    assert abs(on_own_text(task, copy.deepcopy(task.make_teacher().module), Runtime())) < 1e-6


def test_a_student_is_left_as_transformers_reads_it(task: LanguageModelling, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stillroom.workflow import Job, execute

    run, student = execute(Job(GKD().quick(), task, Engine(epochs=1, batch_size=10), 0), tmp_path / "run")
    place = run.path / "student"
    network, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    x = torch.tensor([tokenizer("The with", add_special_tokens=False).input_ids])
    assert tokenizer.decode(x[0]) == "The with"
    assert torch.equal(network.eval()(x).logits, student.eval()(x))
    assert torch.equal(run.student()(x), student(x))
    card = (place / "README.md").read_text()
    assert "AutoModelForCausalLM" in card and "nats a token" in card
    again = task.but(teacher=str(place), tokenizer="auto")
    assert again.taught and again.teacher_job(Engine()) is None
    assert torch.equal(again.make_teacher().module(x), student(x))
    earlier = task.but(teacher_weights=str(run.path))
    assert torch.equal(earlier.make_teacher().module(x), student(x))


def test_a_network_of_ones_own_from_python(tmp_path: Path) -> None:
    """Any module from token ids to logits; transformers models as they are."""
    from stillroom.data.tokens import characters

    class Own(nn.Module):
        def __init__(self, tokens: int) -> None:
            super().__init__()
            self.inside, self.out = nn.Embedding(tokens, 8), nn.Linear(8, tokens)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inside(x.clamp_min(0)))

    tokenizer = characters(TEXTS["train"])
    teacher = build_causal("gpt:16x1", tokenizer=tokenizer, length=32, seed=1).network
    task = LanguageModelling(length=16, packing="none", tokenizer="characters")
    method = GKD(prompt=3, new_tokens=3)
    product, run = distill(
        teacher, Own(len(tokenizer)), TEXTS, method, task=task, out=tmp_path / "run", epochs=1, batch_size=20
    )
    assert isinstance(product, Own)
    loaded = run.student(Own(len(tokenizer)))
    assert same(weights_of(loaded), weights_of(product))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": "gpt:abc"}, "malformed sizes"),
        ({"student_samples": 10**6}, "--task.student-samples is 1000000: pass 1 to"),
        ({"teacher": "none"}, "this method needs a teacher"),
        ({"teacher_steps": 0}, "--task.teacher-steps is 0"),
        ({"teacher_weights": "nowhere"}, "--task.teacher-weights 'nowhere' holds no model"),
    ],
)
def test_what_does_not_fit_is_said_before_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        LanguageModelling().quick().but(**options).check(0, True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (GKD(beta=1.5), "--method.beta is 1.5: pass a number from 0 to 1"),
        (GKD(beta=0.0, normalised=False), "so it is 0 for any student: drop --method.no-normalised"),
        (GKD(beta=1.0, normalised=False), "--method.beta is 1 and the divergence is not normalised"),
        (GKD(temperature=0.0), "--method.temperature is 0.0"),
        (GKD(top_p=0.0), "--method.top-p is 0.0"),
        (SequenceKD(beams=0), "--method.beams is 0"),
        (SequenceKD(share=-0.1), "--method.share is -0.1"),
    ],
)
def test_options_out_of_range(method: Method, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method.check()


def test_the_paper_scale_is_allowed_between_the_ends() -> None:
    GKD(beta=1e-6, normalised=False).check()
    GKD(beta=0.0).check()
    GKD(beta=1.0).check()


def test_other_methods_tasks_are_refused() -> None:
    from stillroom.predictors.classification import Classification

    with pytest.raises(UserError, match="trains language models, not what"):
        NextToken().bind(Classification(), 0)


def test_shares_of_rows_differ_by_seed_and_teachers_by_the_options_that_make_them(
    task: LanguageModelling,
) -> None:
    one, other = task.paired(1), task.paired(2)
    assert not torch.equal(*(t.train().fetch(torch.arange(4), None)[0] for t in (one, other)))
    jobs = [t.teacher_job(Engine()) for t in (task, task.but(student_samples=10, subset_seed=3), one)]
    assert all(job is not None for job in jobs)
    keys = [(job.seed, job.task.student, job.task.student_samples) for job in jobs if job]
    assert keys[0] == keys[1] and keys[0] != keys[2]
    assert seed_of(1) != seed_of(2)


def test_accumulation_cuts_written_batches_without_a_trace(task: LanguageModelling) -> None:
    """Rows with prompts of other lengths, so that parts differ in tokens and width."""
    texts = {"train": [("the cat", " sat on the mat"), ("a", " hat"), ("the bat sat", ", a mat")] * 6,
             "validation": ["a cat"], "test": ["a hat"]}  # fmt: skip
    made = task.using(data=texts).but(packing="none", student_samples=None, train_samples=None)
    made.teach(build_causal("gpt:16x1", tokenizer=made.tokens, length=24, seed=5))
    weights = []
    for parts in (1, 3):
        method = GKD(alpha=0.5, new_tokens=6)
        engine = replace(GKD.default_engine(), epochs=2, batch_size=7, accumulate=parts, evaluate_every=0)
        weights.append(weights_of(Fitter(engine, made, 0)(method).product))
    assert apart(*weights) < 1e-5

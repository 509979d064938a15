"""Texts of any origin: nothing lost, nothing counted twice, padding and targets where they belong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.data import tokens as token_room
from stillroom.data.documents import text_columns
from stillroom.data.packing import IGNORED, PAD, best_fit
from stillroom.data.reviews import reviews
from stillroom.data.texts import TextData, load_texts
from stillroom.data.tokens import byte_pairs, characters, open_tokenizer, read_tokenizer, vocabulary_digest
from stillroom.errors import UserError
from text_toys import TEXTS, saved, tokenizer

LABELLED = (
    [f"text number {i} is {'fine' if i % 2 else 'bad'}" for i in range(60)],
    [i % 2 for i in range(60)],
)
DOCUMENTS = [("ab" * (1 + i % 40)) + f"\n{i}" for i in range(50)]


def everything(source: Any) -> tuple[Tensor, Tensor]:
    x, y = source.fetch(torch.arange(len(source)), None)
    return x, y


def texts_of(data: TextData, split: str) -> list[str]:
    x, _ = everything(getattr(data, split))
    return [data.tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in x]


# -- tokenizers -------------------------------------------------------------------------------------------------


def test_characters_are_tokens_and_come_back() -> None:
    text = "Tab\tand\nline, é 漢 and  two spaces"
    made = characters([text])
    assert len(made) == 4 + len(set(text))
    ids = made(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text)
    assert made.decode(ids) == text
    assert made("Z", add_special_tokens=False).input_ids == [made.unk_token_id]
    assert made("a").input_ids == [
        made.cls_token_id,
        *made("a", add_special_tokens=False).input_ids,
        made.sep_token_id,
    ]


def test_byte_pairs_have_the_size_that_was_asked_for_and_come_back() -> None:
    made = byte_pairs(reviews(400)[0], 320)
    assert len(made) == 320
    for text in ("the acting was not good", "漢 é  \n", ""):
        assert made.decode(made(text, add_special_tokens=False).input_ids) == text
    assert vocabulary_digest(made) == vocabulary_digest(byte_pairs(reviews(400)[0], 320))
    assert vocabulary_digest(made) != vocabulary_digest(byte_pairs(reviews(400, seed=1)[0], 321))


def test_a_tokenizer_is_saved_and_read_back(tmp_path: Path) -> None:
    for kind in ("characters", "bpe"):
        made = tokenizer(kind)
        made.save_pretrained(tmp_path / kind)
        again = open_tokenizer(str(tmp_path / kind), list)
        assert again(TEXTS).input_ids == made(TEXTS).input_ids
        assert (again.eos_token_id, again.pad_token_id) == (made.eos_token_id, made.pad_token_id)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bpe:12", "smaller than its bytes: pass bpe:260 or more"),
        ("bpe:many", "has no size: write it like bpe:2000"),
        ("charcters", "is no folder here"),
        ("./nowhere", "is no folder here"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_one_line(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_texts(LABELLED, name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_tokenizer(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_trained_tokenizer_sees_the_training_split_alone() -> None:
    parts = {
        "train": (["aa", "bb"] * 4, [0, 1] * 4),
        "test": (["cc", "aa"], [0, 1]),
        "validation": (["b", "a"], [0, 1]),
    }
    data = load_texts(parts, "characters")
    assert set(data.tokenizer.get_vocab()) == {*token_room.SPECIAL, "a", "b"}
    assert everything(data.test)[0][0].tolist()[:4] == [2, 1, 1, 3]


# -- texts to classify ------------------------------------------------------------------------------------------


def test_rows_are_the_texts_padded_on_the_right() -> None:
    data = load_texts(LABELLED, "characters", length=64)
    x, y = everything(data.train)
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    assert len(x) == 42
    real = x >= 0
    assert (x[~real] == PAD).all()
    assert (real.int().diff(dim=-1) <= 0).all()
    assert sorted(texts_of(data, "train") + texts_of(data, "validation") + texts_of(data, "test")) == sorted(
        LABELLED[0]
    )
    assert [int("fine" in text) for text in texts_of(data, "train")] == y.tolist()
    assert torch.equal(data.train.labels, y)
    assert data.classes == ["0", "1"]


def test_a_batch_is_as_wide_as_its_longest_rounded_up() -> None:
    texts = ["a" * n for n in range(1, 41)]
    data = load_texts(
        {
            "train": (texts, [n % 2 for n in range(40)]),
            "test": (["a", "b"], [0, 1]),
            "validation": (["a", "b"], [0, 1]),
        },
        "characters",
        length=30,
    )
    assert data.train.fetch(torch.tensor([0]), None)[0].shape == (1, 8)
    assert data.train.fetch(torch.tensor([0, 6]), None)[0].shape == (
        2,
        16,
    )  # 7 characters and two special tokens
    assert data.train.fetch(torch.tensor([39]), None)[0].shape == (1, 30)  # 32 would be longer than allowed


def test_long_texts_are_cut_and_counted_and_keep_their_end_token() -> None:
    data = load_texts(LABELLED, "characters", length=12)
    x, _ = everything(data.train)
    assert x.shape[1] == 12
    assert (x[:, -1] == data.tokenizer.sep_token_id).all()
    assert data.splits["train"]["cut"] == 42
    assert data.splits["train"]["tokens"] == 42 * 12
    assert load_texts(LABELLED, "characters", length=64).splits["train"]["cut"] == 0


def test_pairs_are_one_row(tmp_path: Path) -> None:
    rows = {
        "premise": [f"p{i}" for i in range(40)],
        "hypothesis": [f"h{i}" for i in range(40)],
        "label": [i % 2 for i in range(40)],
    }
    data = load_texts(datasets.Dataset.from_dict(rows), "characters")
    x, _ = everything(data.train)
    assert ((x == data.tokenizer.sep_token_id).sum(-1) == 2).all()
    swapped = load_texts(datasets.Dataset.from_dict(rows), "characters", text_column="hypothesis, premise")
    first = data.tokenizer.convert_ids_to_tokens(everything(data.train)[0][0].tolist()[1:2])
    assert (
        first,
        swapped.tokenizer.convert_ids_to_tokens(everything(swapped.train)[0][0].tolist()[1:2]),
    ) == (["p"], ["h"])
    single = load_texts(datasets.Dataset.from_dict(rows), "characters", text_column="premise")
    assert ((everything(single.train)[0] == single.tokenizer.sep_token_id).sum(-1) == 1).all()


def test_a_subset_is_renumbered() -> None:
    train = load_texts(LABELLED, "characters").train
    part = train.subset(torch.tensor([5, 3, 9]))
    x, y = part.fetch(torch.tensor([1, 2]), None)
    expected = train.fetch(torch.tensor([3, 9]), None)
    assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])
    assert torch.equal(part.labels, train.labels[torch.tensor([5, 3, 9])])
    assert torch.equal(
        part.subset(torch.tensor([2])).fetch(torch.tensor([0]), None)[0],
        train.fetch(torch.tensor([9]), None)[0],
    )


def test_the_fingerprint_notices_what_changes_the_samples() -> None:
    def print_of(texts: Any = LABELLED, tokens: Any = "characters", **options: Any) -> str:
        return load_texts(texts, tokens, **options).fingerprint

    changed = ([*LABELLED[0][:-1], "something else"], LABELLED[1])
    flipped = (LABELLED[0], [1 - y for y in LABELLED[1]])
    prints = [
        print_of(), print_of(changed), print_of(flipped), print_of(tokens="bpe:300"), print_of(length=12),
        print_of(split_seed=1), print_of(train_samples=20), print_of(targets="next"), print_of(packing="blocks"),
        print_of(packing="documents"),
    ]  # fmt: skip
    assert print_of() == prints[0]
    assert len(set(prints)) == len(prints)


def test_splits_are_stratified_and_recorded() -> None:
    texts = [f"t{i}" for i in range(100)]
    labels = [int(i < 80) for i in range(100)]
    data = load_texts((texts, labels), "characters", train_samples=35)
    counts = {s: everything(getattr(data, s))[1].bincount().tolist() for s in ("train", "validation", "test")}
    assert counts == {"train": [7, 28], "validation": [2, 8], "test": [4, 16]}
    assert data.splits["train"]["samples"] == 35
    assert "stratified" in data.splits["test"]["origin"]
    json.dumps(data.splits)


# -- language modelling -----------------------------------------------------------------------------------------


def pairs(x: Tensor, y: Tensor) -> list[tuple[int, int]]:
    """Every token with its target, where there is one."""
    ids = x[:, 0] if x.ndim == 3 else x
    kept = y != IGNORED
    return sorted(zip(ids[kept].tolist(), y[kept].tolist(), strict=True))


def stream_pairs(data: TextData) -> list[tuple[int, int]]:
    """What is to be learned of the training documents, made by hand."""
    from stillroom.data.splits import hold_out

    rows = hold_out(None, len(DOCUMENTS), {"test": 10, "validation": 5}, 0)["train"].tolist()
    found = []
    for row in rows:
        ids = [
            *data.tokenizer(DOCUMENTS[row], add_special_tokens=False).input_ids,
            data.tokenizer.eos_token_id,
        ]
        found += list(itertools.pairwise(ids))
    return sorted(found)


@pytest.mark.parametrize("packing", ["blocks", "documents"])
@pytest.mark.parametrize("length", [7, 16, 400])
def test_every_token_is_a_target_once_and_none_across_documents(packing: Any, length: int) -> None:
    data = load_texts(DOCUMENTS, "characters", length=length, packing=packing)
    x, y = everything(data.train)
    assert x.shape[-1] <= length
    assert pairs(x, y) == stream_pairs(data)
    ids = x[:, 0] if x.ndim == 3 else x
    assert int((ids >= 0).sum()) == data.splits["train"]["tokens"]
    assert (y[ids < 0] == IGNORED).all()


def test_rows_of_single_documents_are_cut_and_counted() -> None:
    whole = load_texts(DOCUMENTS, "characters", length=400, targets="next")
    assert pairs(*everything(whole.train)) == stream_pairs(whole)
    assert whole.splits["train"]["cut"] == 0
    short = load_texts(DOCUMENTS, "characters", length=16, targets="next")
    x, y = everything(short.train)
    assert x.shape == (35, 16)
    long = (load_lengths(whole) > 16).sum()
    assert short.splits["train"]["cut"] == int(long) > 0
    assert ((y[:, -1] != IGNORED).sum()) == int(long)  # what follows a cut is still its target


def load_lengths(data: TextData) -> Tensor:
    x, _ = everything(data.train)
    return (x >= 0).sum(-1)


def test_blocks_are_one_stream_in_the_documents_order() -> None:
    data = load_texts(DOCUMENTS, "characters", length=16, packing="blocks")
    x, y = everything(data.train)
    flat = x.flatten()[x.flatten() >= 0]
    target = y.flatten()[: len(flat)]
    counted = target[:-1] != IGNORED
    assert torch.equal(flat[1:][counted], target[:-1][counted])
    ends = flat == data.tokenizer.eos_token_id
    assert torch.equal(target == IGNORED, ends)
    assert len(x) == -(-len(flat) // 16)


def test_packed_rows_number_their_documents() -> None:
    data = load_texts(DOCUMENTS, "characters", length=48, packing="documents")
    x, _ = everything(data.train)
    ids, numbers = x[:, 0], x[:, 1]
    assert torch.equal(ids < 0, numbers < 0)
    for row, number in zip(ids, numbers, strict=True):
        real = number[number >= 0]
        assert real[0] == 0
        assert set(real.diff().tolist()) <= {0, 1}
        for document in range(int(real.max()) + 1):
            last = row[number == document][-1]
            assert last == data.tokenizer.eos_token_id or int((number == document).sum()) == 48
    assert (ids >= 0).float().mean() > 0.9


def test_prompts_are_read_and_not_learned() -> None:
    rows = {"prompt": [f"q{i}?" for i in range(30)], "completion": [f" {i}!" for i in range(30)]}
    data = load_texts(datasets.Dataset.from_dict(rows), "characters", targets="next")
    x, y = everything(data.train)
    tokens = data.tokenizer
    for ids, target in zip(x, y, strict=True):
        text = tokens.decode(ids[ids >= 0], skip_special_tokens=True)
        learned = tokens.decode(target[target != IGNORED])
        assert learned == text[text.index("?") + 1 :] + tokens.eos_token
    packed = load_texts(datasets.Dataset.from_dict(rows), "characters", packing="documents", length=40)
    assert pairs(*everything(packed.train)) == pairs(x, y)


def test_a_tokenizer_that_begins_texts_begins_documents(tmp_path: Path) -> None:
    from tokenizers import processors

    made = characters(["ab"])
    made.bos_token = "<s>"
    data = load_texts(["ab", "ba", "b"] * 4, made, targets="next")
    assert everything(data.train)[0][0, 0] == made.bos_token_id
    inner = made.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert (
        everything(load_texts(["ab", "ba", "b"] * 4, made, targets="next").train)[0][0, 0]
        != made.bos_token_id
    )
    made.eos_token = made.sep_token = None
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_texts(["ab", "ba", "b"] * 4, made, targets="next")


@pytest.mark.parametrize("sizes", [[5, 3, 3, 2, 2, 1, 1, 7], [1] * 30, [8, 8], list(range(1, 9)) * 5])
def test_best_fit_fills_rows_as_the_slow_rule_says(sizes: list[int]) -> None:
    """Held against the rule written out: the largest first, to the row with the least room that is enough."""
    rows: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        rooms = [(8 - sum(sizes[i] for i in row), r) for r, row in enumerate(rows)]
        fits = [(room, r) for room, r in rooms if room >= sizes[index]]
        if fits:
            rows[min(fits)[1]].append(index)
        else:
            rows.append([index])
    found = best_fit(sizes, 8)
    assert sorted(i for row in found for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= 8 for row in found)
    assert len(found) == len(rows)
    assert sorted(sum(sizes[i] for i in row) for row in found) == sorted(
        sum(sizes[i] for i in row) for row in rows
    )


# -- where texts come from --------------------------------------------------------------------------------------


def test_folders_of_tables(tmp_path: Path) -> None:
    rows = {"sentence": LABELLED[0], "label": LABELLED[1], "other": [0.5] * 60}
    expected = load_texts(LABELLED, "characters").fingerprint
    for kind in ("parquet", "csv", "json"):
        folder = tmp_path / kind
        folder.mkdir()
        getattr(datasets.Dataset.from_dict(rows), f"to_{kind}")(folder / f"train.{kind}")
        data = load_texts(str(folder), "characters")
        assert data.fingerprint == expected
        assert data.name == kind


def test_folders_of_text_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("bad", "good"):
            folder = tmp_path / "labelled" / split / label
            folder.mkdir(parents=True)
            for i in range(10):
                (folder / f"{i}.txt").write_text(f"{label} {split} {i}", encoding="utf-8")
    data = load_texts(tmp_path / "labelled", "characters")
    assert data.classes == ["bad", "good"]
    assert len(data.test) == 20
    assert all(
        data.classes[y] in text for text, y in zip(texts_of(data, "test"), data.test.labels, strict=True)
    )
    stream = load_texts(tmp_path / "labelled", "characters", packing="documents", length=32)
    assert stream.classes == []
    assert stream.train.labels is None


def test_one_text_file_is_cut_in_three_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    for place in (tmp_path / "book.txt", tmp_path):
        data = load_texts(place, "characters", packing="blocks", length=64)
        parts = []
        for split in ("train", "validation", "test"):
            x, _ = everything(getattr(data, split))
            parts.append(data.tokenizer.decode(x.flatten()[x.flatten() >= 0], skip_special_tokens=True))
        assert "".join(parts) == text
        assert all(part.endswith("\n") for part in parts)
        assert [round(len(part) / len(text), 2) for part in parts] == [0.7, 0.1, 0.2]


def test_a_stream_is_read_once_onto_disk_and_is_as_what_it_streams() -> None:
    rows = [{"text": text, "label": label} for text, label in zip(*LABELLED, strict=True)]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    data = load_texts(stream, "characters")
    assert data.fingerprint == load_texts(LABELLED, "characters").fingerprint
    split = load_texts(
        {"train": stream, "test": stream.take(4)}, "characters", packing="documents", length=64
    )
    assert split.splits["test"]["samples"] == 4


def test_tokens_too_many_for_memory_are_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_texts(DOCUMENTS, "characters", length=16, packing="documents")
    monkeypatch.setattr(token_room, "_IN_MEMORY", 100)
    monkeypatch.setattr(token_room, "_DOCUMENTS", 3)
    found = load_texts(DOCUMENTS, "characters", length=16, packing="documents")
    assert isinstance(found.train.tokens.flat, np.memmap)  # type: ignore[attr-defined]
    assert found.fingerprint == expected.fingerprint
    for split in ("train", "validation", "test"):
        for ours, theirs in zip(
            everything(getattr(found, split)), everything(getattr(expected, split)), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_columns_are_found_or_told() -> None:
    features = datasets.Features(
        {"a": datasets.Value("string"), "b": datasets.Value("string"), "y": datasets.Value("int64")}
    )
    with pytest.raises(
        UserError, match=r"has 2 columns of strings among \['a', 'b', 'y'\]: pass --task.text-column"
    ):
        text_columns(features, None, "y", "data")
    assert text_columns(features, "b", "y", "data") == ("b",)
    assert text_columns(features, "a,b", "y", "data") == ("a", "b")
    for wrong in ("c", "y", "a,c", "a,b,a"):
        with pytest.raises(UserError, match="text-column"):
            text_columns(features, wrong, "y", "data")
    named = datasets.Features({"text": datasets.Value("string"), "id": datasets.Value("string")})
    assert text_columns(named, None, None, "data") == ("text",)


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (3, {}, "data of type int cannot be read as text"),
        ((["a", "b"], [0]), {}, "2 texts and 1 labels"),
        ((["a", None, "b"] * 4, [0, 1, 0] * 4), {}, "is a NoneType, not a text"),
        ("./nowhere", {}, "data folder './nowhere' does not exist"),
        (LABELLED, {"length": 1}, "--task.length is 1"),
        (LABELLED, {"train_samples": 0}, "--task.train-samples is 0"),
        (LABELLED, {"train_samples": 400}, "has 42 training samples, 400 were asked for"),
        (LABELLED, {"packing": "blocks", "targets": "labels"}, "--task.packing is 'blocks'"),
        ({"test": LABELLED, "other": LABELLED}, {}, "no training split"),
        (([], []), {}, "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_line(data: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_texts(data, "characters", **options)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="has no texts"):
        load_texts(tmp_path, "characters")
    with pytest.raises(UserError, match="is a file: pass a .txt file"):
        load_texts(tmp_path / "a.bin", "characters")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="is not UTF-8"):
        load_texts(tmp_path / "a.txt", "characters", targets="next")


# -- built-in ---------------------------------------------------------------------------------------------------


def test_the_help_topics_are_there_whatever_python() -> None:
    data = load_texts("pydoc", "characters", length=128, packing="blocks")
    tokens = [data.splits[split]["tokens"] for split in ("train", "validation", "test")]
    assert sum(tokens) > 400_000
    assert 0.65 < tokens[0] / sum(tokens) < 0.75
    assert len(data.tokenizer) < 200


def test_reviews_are_a_function_of_their_seed_and_balanced() -> None:
    texts, labels = reviews(1000)
    assert (texts, labels) == reviews(1000)
    assert texts != reviews(1000, seed=1)[0]
    assert sum(labels) == 500


def test_a_count_of_words_tells_little_of_a_review() -> None:
    """Of two-clause reviews each has a twin of the same words and the other label."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = reviews(4000)
    twins = [
        (a, b)
        for a, b in zip(texts[::2], texts[1::2], strict=True)
        if a.count(" the ") or a.startswith("although")
    ]
    assert len(twins) > 1000
    assert all(sorted(a.replace(",", "").split()) == sorted(b.replace(",", "").split()) for a, b in twins)
    counts = CountVectorizer().fit_transform(texts)
    model = LogisticRegression(max_iter=300).fit(counts[:3000], labels[:3000])
    assert model.score(counts[3000:], labels[3000:]) < 0.7


def test_a_model_s_own_folder_serves_as_tokenizer(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert")
    data = load_texts(LABELLED, str(folder))
    assert data.tokenizer.get_vocab() == tokenizer().get_vocab()

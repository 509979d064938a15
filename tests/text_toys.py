"""Small random transformers models with tokenizers, saved to a folder and read back through the real loading code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from stillroom.data.tokens import byte_pairs, characters

TEXTS = [
    "the acting was good, but the script was dull",
    "although the music was stale, the ending was moving",
    "not a word of it is true",
    "a fine film",
    "one two three four five six seven eight nine ten",
] * 2


def tokenizer(kind: str = "characters") -> Any:
    return characters(TEXTS) if kind == "characters" else byte_pairs(TEXTS, 300)


def config(family: str, tokens: int, **options: Any) -> Any:
    """A configuration of BERT, DistilBERT, GPT-2, Llama or RoBERTa, 16 wide and 2 layers deep."""
    shared: dict[str, Any] = {"vocab_size": tokens, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if family == "gpt2":
        sizes: dict[str, Any] = {"n_positions": 96, "n_embd": 16, "n_layer": 2, "n_head": 2}
        return transformers.GPT2Config(**sizes | shared | options)
    if family == "distilbert":
        sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 96}
        return transformers.DistilBertConfig(**sizes | shared | options)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = {
        "bert": transformers.BertConfig,
        "llama": transformers.LlamaConfig,
        "roberta": transformers.RobertaConfig,
        "mistral": transformers.MistralConfig,
    }
    if family in ("llama", "mistral"):
        sizes["num_key_value_heads"] = 1
    return kinds[family](**{"max_position_embeddings": 98} | sizes | shared | options)


def saved(
    folder: Path, family: str, head: str = "SequenceClassification", tokens: Any = None, **options: Any
) -> Path:
    """A folder with a small random model of `family` and its tokenizer; `head` '' is the bare encoder."""
    tokens = tokens or tokenizer()
    made = config(family, len(tokens), **options)
    torch.manual_seed(0)
    kind = {
        "SequenceClassification": transformers.AutoModelForSequenceClassification,
        "CausalLM": transformers.AutoModelForCausalLM,
        "": transformers.AutoModel,
    }[head]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind.from_config(made)
    with torch.no_grad():  # wider than they are made, so that logits differ from text to text
        for value in model.parameters():
            value.mul_(5)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def uneven() -> Any:
    """A problem of language models whose 13 rows have all lengths: a short text each."""
    import datasets

    from stillroom.predictors.language_modelling import LanguageModelling

    words = " ".join(TEXTS).split()
    texts = [" ".join(words[i % 7 : i % 7 + 1 + i % 5]) for i in range(60)]
    task = LanguageModelling(
        packing="none", length=64, student="gpt:16x1", teacher="none", student_samples=13
    )
    return task.using(data=datasets.Dataset.from_dict({"text": texts}))

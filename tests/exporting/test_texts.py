"""Networks on text as graphs: any number of texts of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.exporting import graphs
from stillroom.exporting.agreement import agreement
from stillroom.exporting.forms import Graph


class Reader(nn.Module):
    """Token ids [n, L], padded with -1, to logits: a stand-in for networks on text."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        mask = x >= 0
        return self.network(input_ids=x.clamp_min(0), attention_mask=mask.long()).logits


def tokens(count: int) -> dict[str, Tensor]:
    """Texts of 2 to 12 tokens."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 30, (count, 12), generator=generator)
    lengths = torch.randint(2, 13, (count, 1), generator=generator)
    return {"x": torch.where(torch.arange(12) < lengths, x, -1)}


def reader(kind: str) -> Reader:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "encoder":
            config = transformers.BertConfig(vocab_size=30, num_labels=3, **sizes)
            return Reader(transformers.BertForSequenceClassification(config)).eval()
        config = transformers.LlamaConfig(vocab_size=30, use_cache=False, num_key_value_heads=2, **sizes)
        return Reader(transformers.LlamaForCausalLM(config)).eval()


@pytest.mark.parametrize("form", graphs.WRITERS)
@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_texts_of_any_number_and_length(kind: str, form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    graph = Graph(reader(kind), tokens, "random tokens", "logits", axes={"x": {1: "length"}})
    file, write, run = graphs.WRITERS[form]
    facts = write(tmp_path, graph)
    assert facts["inputs"] == {"x": {"shape": ["batch", "length"], "type": "int64"}}
    assert facts["output"] == {"logits": ["batch", 3] if kind == "encoder" else ["batch", "length", 30]}
    assert facts.get("largest", {}) == ({"length": 512} if kind == "encoder" else {})
    call = run(tmp_path / file, graph, 1)
    assert agreement(graph, call)["relative_difference"] < 1e-5
    for length in (1, 5, 12):
        x = tokens(3)["x"][:, :length].contiguous()
        with torch.no_grad():
            assert torch.allclose(call({"x": x}), graph.network(x), atol=1e-5)

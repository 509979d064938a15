"""Classes said in words, for networks that are conditioned on text: embedded once by a pipeline's own text encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import UserError, reason


def embed_prompts(folder: Path, prompts: Sequence[str]) -> Tensor:
    """Token embeddings [prompts, tokens, width] by `tokenizer/` and `text_encoder/` of a pipeline folder.

    The last hidden state of the encoder over prompts padded to the tokenizer's length, as Stable Diffusion's pipeline
    has it. Raises UserError where the folder lacks either, or transformers is not installed.
    """
    from stillroom.generators.parts.pipelines import refuse_code

    library = _transformers()
    for part in ("tokenizer", "text_encoder"):
        if not (folder / part).is_dir():
            raise UserError(
                f"'{folder}' has a network that is conditioned on text and no {part}/: save the pipeline whole"
            )
    refuse_code(folder / "text_encoder")
    name = str(
        json.loads((folder / "text_encoder" / "config.json").read_text()).get("architectures", ["?"])[0]
    )
    kind = getattr(library, name, None)
    if kind is None:
        raise UserError(f"'{folder / 'text_encoder'}' holds a '{name}', which transformers does not have")
    bars = library.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = kind.from_pretrained(folder / "text_encoder", local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the text encoder in '{folder}' cannot be read ({reason(error)}): save it again"
        ) from None
    finally:
        if shown:
            bars.enable_progress_bar()
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    tokens = tokenizer(list(prompts), return_tensors="pt", **options)
    with torch.no_grad():
        return encoder.eval()(tokens.input_ids)[0].float()


def _transformers() -> Any:
    try:
        import transformers as library
    except ImportError:
        raise UserError('transformers is not installed: pip install "stillroom[text]"') from None
    return library

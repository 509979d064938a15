"""Small networks and pipelines of diffusers with random weights, for the tests that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
"""What prompts are made of: a token each."""


def text_unet() -> Any:
    """A UNet2DConditionModel on [n, 1, 8, 8] and prompts [n, tokens, 12]."""
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=8,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def text_pipeline(folder: Path, channels: int = 4, side: int = 4, image_channels: int = 1) -> Path:
    """A StableDiffusionPipeline with all its parts, images twice as wide as its latents; returns `folder`."""
    import diffusers
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=2 * len(CHARACTERS) + 3,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=8,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
        unet = diffusers.UNet2DConditionModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
        vae = diffusers.AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            latent_channels=channels,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            sample_size=2 * side,
            scaling_factor=0.5,
        )
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": encoder,
        "tokenizer": _tokenizer(folder),
        "unet": unet,
        "scheduler": diffusers.DDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False
        ),
    }
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(**parts, **nothing).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    import transformers

    names = ["<|startoftext|>", "<|endoftext|>", "<unk>", *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({name: i for i, name in enumerate(names)}))
    merges.write_text("#version: 0.2\n")
    made = transformers.CLIPTokenizer(
        str(vocabulary), str(merges), model_max_length=8, pad_token="<|endoftext|>", unk_token="<unk>"
    )
    vocabulary.unlink()
    merges.unlink()
    return made

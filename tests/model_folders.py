"""Small random models of each library, saved as the library saves them, for the tests that read them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn


@contextmanager
def seeded(seed: int = 0):
    """Inside, torch's generator draws from `seed`; weights do not depend on what ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in evaluation mode with all its floats random, so that nothing is zero or one by construction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator) * 0.2
                value.copy_(noise.abs() + 0.5 if "running_var" in name else noise)
    return module.eval()


def timm_folder(
    folder: Path, name: str = "test_vit", classes: int = 4, safe: bool = True, **options: Any
) -> nn.Module:
    """A model of timm, saved by its own `save_for_hf`."""
    import timm
    from timm.models import save_for_hf

    options = {"num_classes": classes, "in_chans": 3, **options}
    network = lively(timm.create_model(name, **options))
    config = network.pretrained_cfg | {"input_size": (options["in_chans"], 16, 16)}
    network.pretrained_cfg = config | {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5)}
    save_for_hf(network, str(folder), model_args=options, safe_serialization=safe)
    return network


def vit(classes: int = 4, layers: int = 4, **options: Any) -> Any:
    """transformers' ViT for images [n, 3, 16, 16]."""
    import transformers

    made = {"image_size": 16, "patch_size": 4, "num_channels": 3, "hidden_size": 24, "num_attention_heads": 3}
    made |= {"intermediate_size": 48, "num_hidden_layers": layers, "num_labels": classes, **options}
    return lively(transformers.ViTForImageClassification(transformers.ViTConfig(**made)))


def hf_resnet(classes: int = 4) -> Any:
    """transformers' ResNet for images [n, 3, 16, 16], of two stages with three blocks."""
    import transformers

    config = transformers.ResNetConfig(
        num_channels=3,
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[3, 3],
        num_labels=classes,
        layer_type="basic",
    )
    return lively(transformers.ResNetForImageClassification(config))


def bert(layers: int = 4, classes: int = 2) -> Any:
    """transformers' BERT for sequences of 20 words."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=24, num_hidden_layers=layers, num_attention_heads=3, intermediate_size=48,
        max_position_embeddings=16, num_labels=classes,
    )  # fmt: skip
    return lively(transformers.BertForSequenceClassification(config))


def gpt2(layers: int = 4) -> Any:
    """transformers' GPT-2 on 20 words."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=20, n_positions=16, n_embd=24, n_layer=layers, n_head=3, bos_token_id=0, eos_token_id=1
    )
    return lively(transformers.GPT2LMHeadModel(config))


def llama(layers: int = 4, heads: int = 4, groups: int = 2) -> Any:
    """transformers' Llama on 20 words, with grouped keys and values."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8 * heads, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return lively(transformers.LlamaForCausalLM(config))


def hf_folder(folder: Path, network: Any, size: int | None = 16) -> Any:
    """`network` as transformers saves it, with an image processor's config where `size` is given."""
    network.save_pretrained(folder)
    if size is not None:
        said = {
            "do_resize": True, "size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.5],
            "image_processor_type": "ViTImageProcessor",
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return network


def torchvision_folder(
    folder: Path, name: str = "resnet18", classes: int = 4, file: str = "model.safetensors"
) -> Any:
    """torchvision's network: its state dict and the config that says what it is."""
    import torchvision

    network = lively(torchvision.models.get_model(name, weights=None, num_classes=classes))
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(network.state_dict(), folder / file)
    else:
        torch.save(network.state_dict(), folder / file)
    about = {"architecture": f"torchvision:{name}", "shape": [3, 16, 16], "classes": classes}
    about["normalisation"] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.5]}
    (folder / "config.json").write_text(json.dumps(about))
    return network


def unet(classes: int | None = None, channels: int = 1) -> Any:
    """diffusers' UNet2DModel for images [n, channels, 8, 8], two residual blocks a level."""
    import diffusers

    with seeded():
        return diffusers.UNet2DModel(
            sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=2, block_out_channels=(16, 32),
            norm_num_groups=8, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=None if classes is None else classes + 1,
        )  # fmt: skip

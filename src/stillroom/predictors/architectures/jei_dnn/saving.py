"""The folder of a network with exits: weights of all of it, a config that builds it again, a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.data import ImageData
from stillroom.errors import UserError
from stillroom.exporting.card import Card
from stillroom.models import build, load_student, read_config, save_student
from stillroom.models.wrapping import Description
from stillroom.predictors.architectures.jei_dnn.heads import Gates, Heads
from stillroom.predictors.architectures.jei_dnn.network import EarlyExit, Settings


def save(
    product: EarlyExit,
    folder: Path,
    about: Mapping[str, Any],
    images: ImageData,
    backbone: Description | None,
    name: str,
) -> None:
    """Write `model.safetensors`, `config.json` and `README.md`."""
    config = {
        "architecture": None,
        "backbone": backbone,
        "network": f"{name} with exits",
        "shape": list(images.shape),
        "classes": len(images.classes),
        "labels": images.classes,
        "normalisation": {"mean": list(images.mean), "std": list(images.std)},
        "exits": product.exits,
        "widths": [weight.shape[-1] for weight in product.heads.weights],
        "sets": product.heads.sets,
        "gates": product.gates is not None,
        "rule": product.settings.rule,
        "settings": list(product.settings.names),
        "setting_sets": list(product.settings.sets),
        "class_token": product.class_token,
        "multiply_adds": product.costs.tolist(),
        "full": product.full.item(),
        "made_by": {"method": about["method"], "data": images.name, "seed": about["seed"]},
    }
    save_student(folder, product, config)
    card(config, about).write(folder, about)


def load(folder: Path, module: nn.Module | None = None) -> EarlyExit:
    """The network that `save` wrote, in evaluation mode; `module` is a backbone of the user's own.

    Raises UserError where the backbone has no name to build it by and none is passed, and for foreign folders.
    """
    config = read_config(folder)
    if not isinstance(config.get("exits"), list):
        raise UserError(
            f"'{folder}' holds no network with exits: pass the 'student' folder of a run of jei-dnn"
        )
    if module is None:
        name = config.get("backbone")
        if not isinstance(name, (str, dict)):
            raise UserError(
                f"the backbone in '{folder}' is a network of your own: pass load(folder, module=backbone)"
            )
        module = build(name, shape=config["shape"], classes=config["classes"], seed=0)
    heads = Heads(config["widths"], config["classes"], config["sets"])
    gates = Gates(len(config["widths"]), config["sets"]) if config["gates"] else None
    settings = Settings(tuple(config["settings"]), config["rule"], tuple(config["setting_sets"]))
    made = EarlyExit(module, config["exits"], heads, gates, settings, config["class_token"])
    load_student(folder, made)
    return made


def card(config: Mapping[str, Any], about: Mapping[str, Any]) -> Card:
    """The card of the network with exits that `config` describes and the run `about` made."""
    test = about["arms"][about["method"]]["test"]
    costs = [f"{cost / config['full']:.1%}" for cost in config["multiply_adds"]]
    shares = ("cost", "accuracy", "expected_calibration_error", "coverage")
    rows = [
        [str(index), row["name"], *(f"{row[share]:.1%}" for share in shares), f"{row['set_size']:.2f}"]
        for index, row in enumerate(row for row in test["settings"] if row["chosen"])
    ]
    headings = ("setting", "", "mean cost", "accuracy", "calibration error", "coverage", "set size")
    return Card(
        title=f"{config['network']}, by {about['method']}",
        tags=("early-exit", "image-classification"),
        front={"pipeline_tag": "image-classification"},
        table=[headings, *rows],
        facts=[
            f"exits after {', '.join(config['exits'])} and at the end, at {', '.join(costs)} of the full cost",
            f"inputs: {tuple(config['shape'])}, scaled to [0, 1], then (x - mean) / std with "
            f"mean {config['normalisation']['mean']}, std {config['normalisation']['std']}",
        ],
        code=[
            "from pathlib import Path",
            "from stillroom.predictors.architectures.jei_dnn import EarlyExiting",
            f"network = EarlyExiting.load(Path('.'){'' if config['backbone'] else ', module=backbone'})",
            "answer = network.predict(x, setting=0)  # label, probabilities, exit, cost, sets",
        ],
    )

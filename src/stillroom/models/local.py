"""Networks in folders: Stillroom's own, timm's, transformers' and torchvision's, recognised by what is in them.

- a run, or its `student` folder: `config.json` with `architecture`, `shape`, `classes`, and `model.safetensors`;
- timm's (`save_for_hf`): `config.json` with `architecture`, `num_classes`, maybe `model_args` and `pretrained_cfg`;
- transformers' (`save_pretrained`): `config.json` with `model_type`, maybe `preprocessor_config.json`;
- torchvision has no folders of its own: its state dict as `model.safetensors` (or `model.pth`) beside a `config.json`
  of Stillroom's form, `{"architecture": "torchvision:resnet18", "shape": [3, 32, 32], "classes": 10}`, and, where the
  inputs were scaled, `"normalisation": {"mean": [...], "std": [...]}`;
- diffusers': `config.json` with `_class_name`, or a pipeline's `model_index.json`; no classifiers.

Weights are safetensors, or torch's files read without running what is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from stillroom.errors import UserError
from stillroom.models.files import CONFIG, load_student, read_config
from stillroom.models.foreign import fill_all, fill_but_head, read_foreign, weights_file
from stillroom.models.inputs import Inputs, of_student, of_timm, read_object
from stillroom.models.libraries import READING, timm_made, timm_options
from stillroom.models.names import build, buildable
from stillroom.models.wrapping import told

Kind = Literal["stillroom", "timm", "transformers", "diffusers", "pipeline"]


@dataclass(frozen=True)
class Opened:
    """A network from a folder, and what the folder says of its inputs."""

    network: nn.Module
    inputs: Inputs = field(default_factory=Inputs)


def student_folder(folder: Path) -> Path:
    """`folder`, or the `student` folder of the run in it."""
    return folder / "student" if (folder / "student").is_dir() else folder


def recognise(folder: Path) -> Kind:
    """Whose folder it is; UserError where there is none, and for a config of no known kind."""
    if not folder.is_dir():
        raise UserError(f"model folder '{folder}' does not exist: pass the folder of a saved model or a run")
    if (folder / "model_index.json").is_file():
        return "pipeline"
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"'{folder}' has no config.json, so what it holds is not known: save the model with its config"
        )
    config = read_object(folder / CONFIG)
    if "_class_name" in config:
        return "diffusers"
    if "model_type" in config:
        return "transformers"
    name = config.get("architecture")
    if "classes" in config or "shape" in config or buildable(name):
        return "stillroom"
    if isinstance(name, str):
        return "timm"
    said = ", ".join(sorted(config)[:4]) or "nothing"
    raise UserError(
        f"'{folder / CONFIG}' is of no known kind (it says {said}): pass a folder of Stillroom, timm (architecture), "
        "transformers (model_type) or diffusers (_class_name)"
    )


def open_folder(
    folder: Path,
    library: str | None = None,
    *,
    shape: Sequence[int],
    classes: int | None,
    fresh: bool = False,
) -> Opened:
    """The classifier in `folder`, in training mode, with its weights, and what it says of its inputs.

    `classes` None: with the head that it has. Else with a new one, drawn from torch's global generator, where it has
    another number of classes. `fresh`: the architecture alone, made for images of `shape` (C, H, W) and `classes`,
    with fresh weights. `library` insists on one. Raises UserError, one line, for anything that cannot be read.
    """
    folder = student_folder(folder)
    kind = recognise(folder)
    if library is not None and kind != library:
        raise UserError(f"'{folder}' is a folder of {kind}, not of {library}: drop the prefix '{library}:'")
    if kind in ("diffusers", "pipeline"):
        what = read_object(folder / (CONFIG if kind == "diffusers" else "model_index.json")).get(
            "_class_name"
        )
        raise UserError(f"'{folder}' holds a {what} of diffusers, which is no classifier: pass a classifier")
    if kind == "transformers":
        return _of_transformers(folder, shape, classes, fresh)
    return (_of_timm if kind == "timm" else _of_ours)(folder, shape, classes, fresh)


def _of_transformers(folder: Path, shape: Sequence[int], classes: int | None, fresh: bool) -> Opened:
    from stillroom.models import transformers_images as theirs

    if fresh:
        return Opened(theirs.from_config(folder, shape, classes or 1))
    return Opened(theirs.from_folder(folder, classes), theirs.inputs_of(folder))


def _of_timm(folder: Path, shape: Sequence[int], classes: int | None, fresh: bool) -> Opened:
    config = read_object(folder / CONFIG)
    name, said = str(config["architecture"]), config.get("model_args")
    options = {k: v for k, v in (said if isinstance(said, dict) else {}).items() if k not in READING}
    if fresh:
        options |= timm_options(name, shape, classes or 1)
        network = timm_made(name, options)
        return Opened(told(network, {"library": "timm", "name": name, "options": options}))
    about = config.get("pretrained_cfg")
    about = about if isinstance(about, dict) else config
    path = weights_file(folder)
    tensors = read_foreign(path)
    head = _count(folder, config, "num_classes")
    options["num_classes"] = head
    first = tensors.get(f"{about.get('first_conv')}.weight")
    if first is not None and "in_chans" not in options:
        options["in_chans"] = int(first.shape[1])
    size = about.get("input_size")
    if (
        timm_options(name, (3, 0, 0), 1).get("img_size")
        and "img_size" not in options
        and isinstance(size, list)
    ):
        options["img_size"] = size[-2:]
    options["num_classes"] = head if classes is None else classes
    network = timm_made(name, options)
    fill_but_head(network, tensors, path, head, options["num_classes"])
    inputs = of_timm(about, options, f"'{folder / CONFIG}'")
    return Opened(told(network, {"library": "timm", "name": name, "options": options}), inputs)


def _of_ours(folder: Path, shape: Sequence[int], classes: int | None, fresh: bool) -> Opened:
    config = read_config(folder)
    name, head = config.get("architecture"), _count(folder, config, "classes")
    if name is None or not buildable(name):
        raise UserError(
            f"'{folder / CONFIG}' names no known architecture ({name!r}): pass its network from Python"
        )
    seed = _drawn()
    if fresh:
        return Opened(build(name, shape=shape, classes=classes or 1, seed=seed))
    path = weights_file(folder)
    if path.suffix == ".safetensors" and classes in (None, head):
        return Opened(load_student(folder).train(), of_student(config, f"'{folder / CONFIG}'"))
    own = _shape(folder, config)
    network = build(name, shape=own, classes=head if classes is None else classes, seed=seed)
    tensors = read_foreign(path)
    if classes is None:
        fill_all(network, tensors, path)
    else:
        fill_but_head(network, tensors, path, head, classes)
    return Opened(network, of_student(config, f"'{folder / CONFIG}'"))


def _drawn() -> int:
    """A seed from torch's global generator, which the caller has seeded."""
    import torch

    return int(torch.randint(2**31, ()))


def _count(folder: Path, config: dict[str, Any], key: str) -> int:
    count = config.get(key)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"'{folder / CONFIG}' says {key} {count!r}: write the number of classes into it")
    return count


def _shape(folder: Path, config: dict[str, Any]) -> list[int]:
    shape = config.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or {type(size) for size in shape} != {int}:
        raise UserError(f"'{folder / CONFIG}' has shape {shape!r}: write (channels, height, width) into it")
    return shape

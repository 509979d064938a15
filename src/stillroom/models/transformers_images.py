"""Image classifiers of transformers, by a name on the hub or from a folder. The library is imported when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.errors import UserError, reason
from stillroom.hub import asked, quiet, transformers
from stillroom.models.inputs import Inputs, of_processor
from stillroom.models.wrapping import ImageLogits

NO_CODE = {"trust_remote_code": False}


def from_hub(name: str, shape: Sequence[int], classes: int | None, pretrained: bool) -> nn.Module:
    """The image classifier `name` of the hub, from the cache or fetched, for inputs [n, *shape].

    With `pretrained` with its weights, and a new head where it has another number of `classes`, if given. Raises
    UserError in one line for a name that is neither here nor to be reached, and for a model that classifies no images.
    """
    if pretrained:
        return _read(name, classes, head=classes is not None)
    return _fresh(_config(name), shape, classes or 1, f"transformers:{name}")


def from_config(folder: Path, shape: Sequence[int], classes: int) -> nn.Module:
    """The architecture that a folder describes, with fresh weights, for inputs [n, *shape] and `classes`."""
    return _fresh(_config(folder), shape, classes, f"config:{folder}")


def from_folder(folder: Path, classes: int | None) -> nn.Module:
    """The image classifier in a folder, with its weights.

    `classes` None: with its own head, all of which has to be there. Else a new head where it has another number.
    """
    return _read(folder, classes, head=classes is not None)


def rebuilt(description: Mapping[str, Any]) -> nn.Module:
    """The classifier with fresh weights that `ImageLogits.description` describes; UserError for anything else."""
    library, kind = transformers(), str(description.get("kind"))
    made, config = getattr(library, kind, None), description.get("config")
    if not (
        isinstance(made, type) and issubclass(made, library.PreTrainedModel) and isinstance(config, dict)
    ):
        raise UserError(
            f"transformers has no model {kind!r}: install the version that the student was made with"
        )
    options = {key: value for key, value in config.items() if key not in ("transformers_version", "dtype")}
    try:
        with quiet():
            return ImageLogits(made(made.config_class.from_dict(options)))
    except Exception as error:
        raise UserError(
            f"a {kind} cannot be built from its config ({reason(error)}): export it again"
        ) from error


def inputs_of(place: str | Path) -> Inputs:
    """What the image processor of a folder, or of a name on the hub, says; nothing where there is none."""
    if isinstance(place, Path) and not (place / "preprocessor_config.json").is_file():
        return Inputs()
    library = transformers()
    try:
        with quiet():
            said, _ = library.ImageProcessingMixin.get_image_processor_dict(str(place), **_where(place))
    except OSError:
        return Inputs()
    return of_processor(said, f"preprocessor_config.json of '{place}'")


def _config(place: str | Path) -> Any:
    return _asked(
        place, lambda: transformers().AutoConfig.from_pretrained(str(place), **_where(place), **NO_CODE)
    )


def _fresh(config: Any, shape: Sequence[int], classes: int, name: str) -> nn.Module:
    config.num_labels = classes
    if hasattr(config, "num_channels"):
        config.num_channels = shape[0]
    if hasattr(config, "image_size"):
        config.image_size = shape[1] if shape[1] == shape[2] else list(shape[1:])
    try:
        with quiet():
            return ImageLogits(transformers().AutoModelForImageClassification.from_config(config, **NO_CODE))
    except Exception as error:
        raise UserError(_no_classifier(name, config, error)) from error


def _read(place: str | Path, classes: int | None, head: bool) -> nn.Module:
    config = _config(place)
    other = classes is not None and classes != config.num_labels
    if other:
        config.num_labels = classes
    kind = transformers().AutoModelForImageClassification
    if type(config) not in kind._model_mapping:
        raise UserError(_no_classifier(str(place), config, None))

    def read() -> Any:
        options: dict[str, Any] = {"ignore_mismatched_sizes": other, "output_loading_info": True}
        return kind.from_pretrained(
            str(place), config=config, dtype=torch.float32, **options, **_where(place), **NO_CODE
        )

    network, found = _asked(place, read)
    _check_found(network, found, place, classes if head else None)
    return ImageLogits(network).train()


def _check_found(network: Any, found: Mapping[str, Any], place: str | Path, classes: int | None) -> None:
    """Raise UserError where weights were missing in the file; those of a head for `classes` may be, if given."""
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    odd = sorted(found["missing_keys"])
    odd += [entry[0] for entry in sorted(found["mismatched_keys"])]
    if classes is not None:
        odd = [key for key in odd if shapes.get(key, (0,))[0] != classes]
    if odd:
        raise UserError(
            f"'{place}' has no weights for {odd[0]!r} of its {type(network).__name__}: pass a trained classifier, or "
            f"config:{place} for fresh weights"
        )


def _where(place: str | Path) -> dict[str, Any]:
    return {"local_files_only": True} if isinstance(place, Path) else {}


def _asked(place: str | Path, ask: Any) -> Any:
    """What `ask()` gives; its errors in one line of ours. A name is first looked for on this machine."""
    try:
        with quiet(), asked(place):
            return ask()
    except Exception as error:
        if isinstance(place, Path):
            raise UserError(_unreadable(place, error)) from error
        raise UserError(
            f"transformers has no model '{place}' on this machine, and none came from the hub ({reason(error)}): pass "
            "a folder ./my-model, or fetch it where there is a network"
        ) from error


def _unreadable(folder: Path, error: Exception) -> str:
    if type(error).__name__ == "UnpicklingError":
        return (
            f"the weights in '{folder}' hold more than tensors and could run code: save them as safetensors"
        )
    return f"the model in '{folder}' cannot be read ({reason(error)}): save it again with save_pretrained"


def _no_classifier(name: str, config: Any, error: Exception | None) -> str:
    kind = getattr(config, "model_type", type(config).__name__)
    if error is None or "Unrecognized configuration" in str(error):
        return f"'{name}' is a '{kind}', which classifies no images: pass an image classifier"
    return f"the '{kind}' of '{name}' cannot be built ({reason(error)}): correct its config"

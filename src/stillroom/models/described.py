"""From the description in a student's config, a JSON object, to the network; names are `names`' matter."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stillroom.errors import UserError
from stillroom.models.libraries import timm_made, torchvision_made
from stillroom.models.wrapping import Rescaled, told, within

COMPOSED = {
    "branched": "stillroom.predictors.parts.branches:of_description",
    "joint": "stillroom.predictors.labels.sla_sd.network:of_description",
}
"""Networks that systems make of others, by kind: what builds one from (description, shape, classes)."""


def from_description(description: Mapping[str, Any], shape: Sequence[int], classes: int) -> nn.Module:
    """The network with fresh weights, drawn from torch's global generator, for inputs [n, *shape].

    `library` is timm or torchvision (with `name` and `options`), transformers (with `kind`, its class, and `config`),
    or stillroom: then `kind` is 'rescaled' (`scale`, `shift`, `network`), 'cut' (`kept`: the blocks left of each
    container, by its module path, and `network`), or one of `COMPOSED`. Raises UserError for anything else.
    """
    library, kind = description.get("library"), description.get("kind")
    if library in ("timm", "torchvision"):
        return _of_vision(description, classes)
    if library == "transformers":
        from stillroom.models.transformers_images import rebuilt

        return rebuilt(description)
    if library == "stillroom" and kind in ("rescaled", "cut"):
        return _around(description, shape, classes)
    if library == "stillroom" and kind in COMPOSED:
        return _composed(description, shape, classes)
    raise UserError(f"an architecture of library {library!r}, kind {kind!r}, is not known: export it again")


def _of_vision(description: Mapping[str, Any], classes: int) -> nn.Module:
    name, options = description.get("name"), description.get("options", {})
    if not isinstance(name, str) or not isinstance(options, dict):
        raise UserError(f"an architecture of {description['library']} has the name {name!r}: export it again")
    options = {**options, "num_classes": classes}
    make = timm_made if description["library"] == "timm" else torchvision_made
    return told(make(name, options), {"library": description["library"], "name": name, "options": options})


def _around(description: Mapping[str, Any], shape: Sequence[int], classes: int) -> nn.Module:
    inner = within(description)
    if isinstance(inner, str):
        from stillroom.models.names import named

        network = named(inner, shape, classes)
    else:
        network = from_description(inner, shape, classes)
    try:
        if description["kind"] == "rescaled":
            return Rescaled(network, description["scale"], description["shift"])
        from stillroom.models.cutting import cut

        kept = {str(path): [int(i) for i in ids] for path, ids in description["kept"].items()}
        return told(cut(network, kept), dict(description))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"an architecture of kind '{description['kind']}' is not whole ({error!r}): export it again"
        ) from None


def _composed(description: Mapping[str, Any], shape: Sequence[int], classes: int) -> nn.Module:
    home, _, name = COMPOSED[description["kind"]].partition(":")
    return getattr(importlib.import_module(home), name)(description, shape, classes)

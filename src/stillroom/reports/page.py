"""From templates and values to one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stillroom.reports import formats
from stillroom.reports.drawing import checked, with_prefix
from stillroom.reports.palette import variables

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


class Figures:
    """Places figures on one page: each gets ids of its own."""

    def __init__(self) -> None:
        self.placed = 0

    def __call__(self, svg: str) -> Markup:
        """The SVG as markup for a template."""
        from markupsafe import Markup

        self.placed += 1
        return Markup(with_prefix(svg, f"fig{self.placed}-"))  # Drawn or checked by drawing.py.


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page of `template` (a file in reports/templates); everything in `values` is escaped."""
    colours = {"light": variables(dark=False), "dark": variables(dark=True)}
    return _environment().get_template(template).render(values, **colours, figure=Figures()) + "\n"


def plates(figures: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Figures (title, svg and maybe a caption of each) for a template; UserError where one is not one of ours."""
    return [
        {"title": f["title"], "caption": f.get("caption") or "", "svg": checked(f["svg"], f["title"])}
        for f in figures
    ]


def coded(text: str) -> Markup:
    """Escaped text with what stands `between backticks` as code, and units that stay with their numbers."""
    from markupsafe import Markup, escape

    bound = re.sub(r"(\d) (%|points)", rf"\1{formats.SPACE}\2", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", bound))


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("stillroom.reports")
    environment = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"coded": coded, "spoken": formats.spoken, "duration": formats.duration}
    return environment

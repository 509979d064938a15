"""From a matplotlib drawing to an SVG that belongs in a page: themed, small, readable by a screen reader."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from stillroom.errors import UserError
from stillroom.reports.palette import COLOURS, SENTINELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, PAPER = (SENTINELS[name] for name in ("ink", "muted", "grid", "paper"))

TAGS = "svg g defs path use text tspan rect circle line clipPath title image"
ALLOWED = set(TAGS.split())
FUNCTIONS = {"url", "var", "rotate", "translate", "scale", "matrix"}
PICTURE = re.compile(r"data:image/png;base64,iVBORw0KGgo[A-Za-z0-9+/]+={0,2}")  # Starts with PNG's signature.
PLACING = {"id", "x", "y", "width", "height", "transform", "style", "opacity"}

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "stillroom",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "image.composite_image": False,  # Else images are resampled instead of handed on pixel by pixel.
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


def draw(width: float, height: float, title: str, paint: Callable[[Axes], None]) -> str:
    """An SVG of `width` x `height` units, about ten of which are the height of its text, with what `paint` draws.

    The user's own matplotlib settings have no say, and none are changed; the same input gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    file = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The text is set by the browser: that matplotlib's own font lacks a letter matters to nobody.
        warnings.filterwarnings("ignore", message=".*missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.04)
        figure = Figure(figsize=(width / 72, height / 72), layout=layout)
        paint(figure.subplots())
        figure.savefig(file, format="svg")
    return _tidy(file.getvalue(), title)


def _tidy(svg: str, title: str) -> str:
    """Drop what a page has no use for, and let its CSS choose colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r"<[^>]+>", lambda tag: _tidy_tag(tag[0], used), svg)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    box = re.findall(r'viewBox="[^"]+"', svg)[0]
    head = f'<svg {box} width="100%" role="img" aria-labelledby="title" style="stroke-linejoin: round">'
    body = svg[svg.index(">") + 1 :]
    return re.sub(r">\s+<", ">\n<", f'{head}<title id="title">{escape(title)}</title>{body}').strip()


def _tidy_tag(tag: str, used: set[str]) -> str:
    tag = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", tag)
    tag = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag).replace("xlink:href", "href")
    tag = re.sub(r'font: [^;"]*?([\d.]+px)[^;"]*', r"font-size: \1", tag)  # As matplotlib 3.9 writes it.
    tag = re.sub(r' font-family: [^;"]*;?| transform="rotate\(-0 [^"]*"', "", tag)
    if tag.startswith("<image"):  # Its scale is a small factor of many pixels: no digit of it is spare.
        return tag.replace("base64,\n", "base64,")
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    for colour in COLOURS:
        tag = tag.replace(colour.sentinel, f"var(--{colour.name})")
    return tag


def with_prefix(svg: str, prefix: str) -> str:
    """The same SVG with `prefix` before all its ids, so that several can live on one page."""

    def rename(tag: re.Match[str]) -> str:
        named = re.sub(r'( (?:id|aria-labelledby)=")', rf"\g<1>{prefix}", tag[0])
        return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", named)

    return re.sub(r"<[^>]+>", rename, svg)


def checked(svg: str, title: str) -> str:
    """The SVG itself; UserError where it is not one that `draw` can have made.

    A run's folder may come from somebody else, and its page must not run or load anything.
    """
    if re.search(r"<[!?]", svg):
        raise UserError(f"figure '{title}' holds declarations: draw it with stillroom.reports.figures")
    try:
        elements = list(ElementTree.fromstring(svg).iter())
    except ElementTree.ParseError as error:
        raise UserError(
            f"figure '{title}' is no SVG ({error}): draw it with stillroom.reports.figures"
        ) from None
    for element in elements:
        strange = [element.tag] if element.tag not in ALLOWED else []
        strange += [name for name, value in element.items() if not _harmless(element.tag, name, value)]
        if strange:
            raise UserError(
                f"figure '{title}' holds '{strange[0]}', which no page may: draw it with stillroom.reports.figures"
            )
    return svg


def _harmless(tag: str, name: str, value: str) -> bool:
    """Whether an attribute neither runs nor loads anything: references stay inside the figure.

    An image carries its own pixels, as a PNG, and has no `src`: inside a title a browser takes it for an `img`.
    """
    if tag == "image" and name == "href":
        return bool(PICTURE.fullmatch(value))
    if tag == "image" and name not in PLACING:
        return False
    functions = set(re.findall(r"([^\s:;,]*)\(", value))
    plain = functions <= FUNCTIONS and not re.search(r"\\|url\((?!#)", value)
    inside = name.lower() != "href" or value.startswith("#")
    return plain and inside and bool(re.fullmatch(r"(?!on)[a-z][a-z0-9-]*", name, re.IGNORECASE))

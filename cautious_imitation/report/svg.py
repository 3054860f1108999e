"""A matplotlib figure as SVG that lives inside an HTML page.

matplotlib writes a stand-alone file: an XML header, fixed size, fonts, and ``style`` attributes, which a strict
Content-Security-Policy refuses. Inside a page the figure takes the page's font, text colour and width instead.
"""

from __future__ import annotations

import io
import re

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from cautious_imitation.report.axes import INK

_SALT = "cautious_imitation"
_FONT_PROPERTIES = {"font", "font-family", "font-stretch", "font-variant"}


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """Render ``figure`` as an ``<svg>`` element, the same bytes for the same figure.

    Args:
        figure: what to draw.
        name: letters, digits and hyphens, unique on the page; it prefixes every identifier in the element.
        description: what the figure shows, for readers who cannot see it.

    Raises:
        ValueError: if ``name`` cannot be an identifier.
    """
    if not re.fullmatch(r"[a-zA-Z][\w-]*", name):
        raise ValueError(f"name must be a letter followed by letters, digits or hyphens, got {name!r}")
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "none", "font.family": ["DejaVu Sans"]}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' style="([^"]*)"', _attributes, text)
    text = text.replace(INK, "currentColor").replace("xlink:href", "href")
    text = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    view_box = re.search(r'viewBox="[^"]*"', text)
    if view_box is None:
        raise ValueError("matplotlib wrote an SVG without viewBox; use matplotlib >= 3.9")
    body = text[text.index(">", text.index("<svg")) + 1 :].strip()
    head = f'<svg class="figure" role="img" aria-label="{escape(description)}" {view_box.group()}>'
    return Markup(head + body)


def _attributes(match: re.Match[str]) -> str:
    """Presentation attributes with the meaning of a ``style`` attribute, fonts left to the page."""
    written = []
    for declaration in match.group(1).split(";"):
        key, _, value = declaration.partition(":")
        key, value = key.strip(), value.strip()
        if key == "font":
            size = re.search(r"([\d.]+)px", value)
            written.append(f'font-size="{size.group(1)}"' if size else "")
            written.append('font-style="italic"' if "italic" in value or "oblique" in value else "")
        elif key and key not in _FONT_PROPERTIES:
            written.append(f'{key}="{value.removesuffix("px") if key == "font-size" else value}"')
    return "".join(f" {attribute}" for attribute in written if attribute)

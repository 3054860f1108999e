"""Text as it is, safe in a page: nothing in it acts, and what has no shape of its own is given one."""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup, escape

from cautious_imitation.oracles.hidden_characters import is_hidden

_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")
_SPACES = {" ": ("␣", "space"), "\n": ("↵", "line end"), "\t": ("⇥", "tab")}
# Their pictures (␀) are missing in many fonts.
_CONTROLS = [
    "NUL",
    "SOH",
    "STX",
    "ETX",
    "EOT",
    "ENQ",
    "ACK",
    "BEL",
    "BS",
    "HT",
    "LF",
    "VT",
    "FF",
    "CR",
    "SO",
    "SI",
    "DLE",
    "DC1",
    "DC2",
    "DC3",
    "DC4",
    "NAK",
    "SYN",
    "ETB",
    "CAN",
    "EM",
    "SUB",
    "ESC",
    "FS",
    "GS",
    "RS",
    "US",
]


def visible(text: str) -> Markup:
    r"""Text for a page: HTML as written, and a mark for every control character, line feeds and tabs apart.

    Characters that turn the direction of writing, have no width or no meaning get their code point. Joiners within
    words of scripts that need them, and within emoji, stay.

    >>> str(visible("<b>\x00"))
    '&lt;b&gt;<span class="control" role="img" aria-label="U+0000 control character" title=...>NUL</span>'
    >>> "U+202E" in visible("abc\u202edef"), "U+200D" in visible("👩\u200d👩")
    (True, False)
    """
    pieces, end = list[Markup](), 0
    for found in _UNUSUAL.finditer(text):
        if is_hidden(text, found.start()):
            pieces += escape(text[end : found.start()]), _mark(found.group())
            end = found.end()
    return Markup("").join([*pieces, escape(text[end:])])


def visible_symbol(text: str) -> Markup:
    r"""A short text of which every character matters, spaces at its ends and line ends among them.

    >>> "␣" in visible_symbol(" the"), "↵" in visible_symbol("\n")
    (True, True)
    """
    n_before = len(text) - len(text.lstrip())
    body, after = text[n_before:].rstrip(), text[len(text.rstrip()) :] if text.strip() else ""
    return Markup("").join(
        [
            *map(_space, text[:n_before]),
            *(_space(piece) if piece in ("\n", "\t") else visible(piece) for piece in re.split(r"([\n\t])", body)),
            *map(_space, after),
        ]
    )


def _mark(character: str) -> Markup:
    code = f"U+{ord(character):04X}"
    name = f"{code} {unicodedata.name(character, 'control character')}"
    shape = _CONTROLS[ord(character)] if character < " " else "DEL" if character == "\x7f" else code
    return Markup('<span class="control" role="img" aria-label="{0}" title="{0}">{1}</span>').format(name, shape)


def _space(character: str) -> Markup:
    if character not in _SPACES:
        return visible(character)
    shape, name = _SPACES[character]
    return Markup('<span class="space" role="img" aria-label="{0}" title="{0}">{1}</span>').format(name, shape)

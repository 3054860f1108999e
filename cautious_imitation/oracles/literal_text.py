"""Text of others as it is: nothing in it can move the cursor, change a colour or turn the line around.

What a run asks about may come from anywhere. A terminal obeys escape sequences whoever wrote them, so every character
that is not seen as itself is drawn as a sign instead.
"""

from __future__ import annotations

import unicodedata

from rich.text import Text

HIDDEN = "reverse dim"
"""Style of the signs that stand for something that cannot be seen."""

_JOINERS = "\u200c\u200d"
_DELETE = "\x7f"


def literal(text: str, style: str = "", *, one_line: bool = False) -> Text:
    r"""``text`` for the terminal, with a sign in place of every character that would not be seen as itself.

    Control characters become their pictures, everything else that is invisible (of either direction, of no width, no
    character at all) its escape as Python writes it. Rich's markup and emoji codes stay what they are.

    Args:
        text: whatever it is.
        style: how to draw what is seen.
        one_line: whether ends of lines, tabs, and spaces at both ends get a sign too.

    >>> literal("\x1b[31mred\u202e").plain
    '␛[31mred\\u202e'
    >>> literal(" no\n", one_line=True).plain
    '␣no␊'
    """
    text = text.replace("\r\n", "\n")
    if not one_line:
        text = text.replace("\t", "    ")
    drawn = Text(style=style, tab_size=4)
    first, last = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    plain: list[str] = []
    for place, character in enumerate(text):
        if one_line and character == " " and not first <= place < last:
            sign = "␣"
        elif _seen(character) or (character == "\n" and not one_line) or _joins(text, place):
            plain.append(character)
            continue
        else:
            sign = _sign(character)
        drawn.append("".join(plain)).append(sign, HIDDEN)
        plain.clear()
    return drawn.append("".join(plain))


def _seen(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _joins(text: str, place: int) -> bool:
    """Whether it is a joiner within a script, or an emoji, that is written with joiners."""
    between = text[place - 1 : place] + text[place + 1 : place + 2]
    return text[place] in _JOINERS and len(between) == 2 and all(c > "\xff" and c.isprintable() for c in between)


def _sign(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))
    if character == _DELETE:
        return "␡"
    return character.encode("unicode_escape").decode("ascii")

"""Text of others as it is: nothing in it can move the cursor, change a colour or turn the line around.

What a run asks about may come from anywhere. A terminal obeys escape sequences whoever wrote them, so every character
that is not seen as itself is drawn as a sign instead.
"""

from __future__ import annotations

from rich.text import Text

from cautious_imitation.oracles.hidden_characters import is_hidden

HIDDEN = "reverse dim"
"""Style of the signs that stand for something that cannot be seen."""

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
        elif (character == "\n" and not one_line) or not is_hidden(text, place):
            plain.append(character)
            continue
        else:
            sign = _sign(character)
        drawn.append("".join(plain)).append(sign, HIDDEN)
        plain.clear()
    return drawn.append("".join(plain))


def _sign(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))
    if character == _DELETE:
        return "␡"
    return character.encode("unicode_escape").decode("ascii")

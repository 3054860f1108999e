"""Characters of others' texts that would not be seen as themselves, wherever they are shown."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"


def is_hidden(text: str, index: int) -> bool:
    r"""Whether a character has no shape of its own, or acts on what is around it.

    Control characters do, line ends and tabs among them, and what turns the direction of writing, has no width or no
    meaning. Joiners within words of scripts that need them, and within emoji, do not.

    >>> [is_hidden("a\x1b\u202e b", i) for i in range(5)]
    [False, True, True, False, False]
    """
    character = text[index]
    if character in _JOINERS:
        around = text[index - 1 : index] + text[index + 1 : index + 2]
        return len(around) < 2 or not all(c > "\xff" and c.isprintable() for c in around)
    # Selectors of the supplement are used to hide text in text.
    if "\U000e0100" <= character <= "\U000e01ef":
        return True
    return not character.isprintable() and unicodedata.category(character) != "Zs"

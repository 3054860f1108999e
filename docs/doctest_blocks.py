"""Shows the doctests of docstrings as code: Markdown takes a bare ``>>>`` for a quotation."""

from __future__ import annotations

import re

from griffe import Extension, Object

_DOCTEST = re.compile(r"^( *)>>> .*(?:\n(?!\s*\n).*)*", re.MULTILINE)


def fenced(text: str) -> str:
    r"""Put every doctest, up to its blank line, into a code block.

    >>> fenced("Adds.\n\n>>> 1 + 1\n2\n\nEnd.").splitlines()
    ['Adds.', '', '```pycon', '>>> 1 + 1', '2', '```', '', 'End.']
    """
    return _DOCTEST.sub(lambda match: f"{match[1]}```pycon\n{match[0]}\n{match[1]}```", text)


class DoctestBlocks(Extension):
    """Rewrites each docstring as it is read."""

    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        """Fence the doctests of ``obj``."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)

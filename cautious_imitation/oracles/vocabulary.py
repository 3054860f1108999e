"""How symbols are written for people, and how what people write becomes symbols."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from cautious_imitation.demonstrations import Message
from cautious_imitation.dialogue_labels import ACTS

if TYPE_CHECKING:
    from cautious_imitation.language.chat_reader import ChatReader

_SHOWN_NAMES = 20
_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")


class Vocabulary(ABC):
    """How the symbols of one alphabet are written and read.

    >>> vocabulary = Vocabulary.names(["end of turn", "greeting", "question"])
    >>> vocabulary.text([1, 2, 0]), vocabulary.symbols("greeting, end of turn")
    ('greeting, question, end of turn', (1, 0))
    """

    @staticmethod
    def names(names: Iterable[str]) -> Vocabulary:
        """Symbols with names, for small alphabets: symbol i is ``names[i]``.

        A text is names with commas between them, or nothing if every name is a single character.

        Raises:
            ValueError: if there are no names, or one is empty, is there twice, has blanks around it or holds a comma.
        """
        return _Names(names)

    @staticmethod
    def dialogue_acts() -> Vocabulary:
        """The symbols of ``Demonstrations.dialogue_acts``, those of the other speaker after "user: ".

        >>> Vocabulary.dialogue_acts().text([14, 9])
        'user: question, user: end of turn'
        """
        return _Names([*ACTS, *(f"user: {act}" for act in ACTS)])

    @staticmethod
    def numbers() -> Vocabulary:
        """Symbols of which nothing is known but their numbers.

        >>> Vocabulary.numbers().symbols("3, 1")
        (3, 1)
        """
        return _Numbers()

    @staticmethod
    def tokenizer(tokenizer: Any) -> Vocabulary:
        """The tokens of a language model.

        Args:
            tokenizer: of Transformers. Conversations, and replies in words, need a fast one.
        """
        return _Tokens(tokenizer)

    @abstractmethod
    def text(self, symbols: Iterable[int]) -> str:
        """Symbols as people read them.

        Raises:
            ValueError: if a symbol is none of the alphabet's.
        """

    @abstractmethod
    def symbols(self, text: str) -> tuple[int, ...]:
        """What people wrote as symbols; the inverse of ``text``.

        Raises:
            ValueError: "text does not ..." if it cannot be written in these symbols.
        """

    def label(self, symbol: int) -> str:
        """One symbol on its own.

        A token that is only a part of a character is shown by its bytes, as ``<0xE2>``; one that the tokenizer does not
        know, where a network has more tokens, by its number, as ``<token 50300>``.

        Raises:
            ValueError: if it is none of the alphabet's.
        """
        return self.text((symbol,))

    def conversation(self, symbols: Iterable[int]) -> tuple[Message, ...] | None:
        """The conversation that symbols are, as in ``Query``; empty if it has not begun, None if they are none."""
        return None

    def messages(self, symbols: Iterable[int]) -> tuple[Message, ...]:
        """``conversation``, or no messages."""
        return self.conversation(symbols) or ()

    def words(self, symbols: Iterable[int]) -> str:
        """``text`` without what only a model reads: special tokens.

        Raises:
            ValueError: if a symbol is none of the alphabet's.
        """
        return self.text(symbols)

    def reply(self, context: Sequence[int], text: str) -> tuple[int, ...]:
        """A whole reply in words as the actions that follow ``context``, the end of the turn among them.

        Where symbols have names, the text names all of them.

        Raises:
            ValueError: if the text cannot be written in these symbols.
        """
        return self.symbols(text)

    def said(self, context: Sequence[int], actions: Sequence[int]) -> tuple[str, bool]:
        """Actions that follow ``context`` as words, and whether they end the turn; the inverse of ``reply``.

        Raises:
            ValueError: if an action is none of the alphabet's.
        """
        return self.text(actions), True


def as_vocabulary(value: Any) -> Vocabulary | None:
    """A vocabulary of what stands for one: itself, a list of names, a tokenizer, or None if nobody knows.

    Raises:
        ValueError: if it is none of these.

    >>> as_vocabulary(["left", "right"]).label(1)
    'right'
    """
    if value is None or isinstance(value, Vocabulary):
        return value
    if callable(value) and hasattr(value, "decode"):
        return Vocabulary.tokenizer(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return Vocabulary.names(value)
    raise ValueError(
        f"vocabulary must be a Vocabulary, a list of names, a tokenizer or None, got {value!r:.200}; for names pass "
        'a list, as in ["left", "right"]'
    )


def is_part_of_a_character(label: str) -> bool:
    """Whether a label shows bytes that are no text on their own."""
    return _BYTES.fullmatch(label) is not None


class _Names(Vocabulary):
    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        if not self._names:
            raise ValueError("names must hold a name a symbol, got none")
        self._separator = "" if all(isinstance(name, str) and len(name) == 1 for name in self._names) else ", "
        for name in self._names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"names must be strings that are not empty, got {name!r}")
            if self._separator and ("," in name or name != name.strip()):
                raise ValueError(
                    f"names must hold no comma, which stands between them, and no blanks around them, got {name!r}"
                )
        self._symbols = {name: symbol for symbol, name in enumerate(self._names)}
        if len(self._symbols) < len(self._names):
            twice = next(name for symbol, name in enumerate(self._names) if self._symbols[name] != symbol)
            raise ValueError(f"names must differ, got {twice!r} twice")
        folded = {name.casefold(): symbol for name, symbol in self._symbols.items()}
        # People do not mind capitals, unless names differ by nothing else.
        self._folded = folded if len(folded) == len(self._names) else {}

    def text(self, symbols: Iterable[int]) -> str:
        return self._separator.join(self._name(int(symbol)) for symbol in symbols)

    def symbols(self, text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")] if self._separator else list(text)
        symbols = tuple(self._symbol(part) for part in parts if part)
        if not symbols:
            raise ValueError(f"text does not name a symbol, got {text!r}; {self._known()}")
        return symbols

    def _name(self, symbol: int) -> str:
        if not 0 <= symbol < len(self._names):
            raise ValueError(f"symbol must be in 0..{len(self._names) - 1}, which have names, got {symbol}")
        return self._names[symbol]

    def _symbol(self, name: str) -> int:
        symbol = self._symbols.get(name, self._folded.get(name.casefold()))
        if symbol is None:
            close = difflib.get_close_matches(name, self._names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"text does not name a symbol with {name!r}{hint}; {self._known()}")
        return symbol

    def _known(self) -> str:
        more = ", ..." if len(self._names) > _SHOWN_NAMES else ""
        return f"names are: {', '.join(self._names[:_SHOWN_NAMES])}{more}"


class _Numbers(Vocabulary):
    def text(self, symbols: Iterable[int]) -> str:
        return " ".join(str(int(symbol)) for symbol in symbols)

    def symbols(self, text: str) -> tuple[int, ...]:
        parts = text.replace(",", " ").split()
        if not parts or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"text does not consist of numbers, got {text!r}; symbols have no names here, as in '3 1'")
        return tuple(map(int, parts))


class _Tokens(Vocabulary):
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, symbols: Iterable[int]) -> str:
        return self._decoded(symbols, specials=True)

    def words(self, symbols: Iterable[int]) -> str:
        return self._decoded(symbols, specials=False)

    def label(self, symbol: int) -> str:
        text = self.text((symbol,))
        piece: str | None = self._tokenizer.convert_ids_to_tokens(int(symbol))
        if piece is None:
            return f"<token {symbol}>"
        if not text or "\ufffd" in text:
            bytes_ = [_bytes_of_characters().get(character) for character in piece]
            if is_part_of_a_character(piece) or not all(byte is not None for byte in bytes_):
                return piece
            return "".join(f"<0x{byte:02X}>" for byte in bytes_)
        # Decoders of whole texts drop the blank before the first word.
        return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text

    def symbols(self, text: str) -> tuple[int, ...]:
        tokens = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise ValueError(f"text does not come to any token of this tokenizer, got {text!r}; write some words")
        if self._tokenizer.unk_token_id is not None and self._tokenizer.unk_token_id in tokens:
            raise ValueError(
                f"text does not consist of what this tokenizer knows, got {text!r}; leave out characters that the "
                "model cannot read"
            )
        return tokens

    def conversation(self, symbols: Iterable[int]) -> tuple[Message, ...] | None:
        return self._reader().messages(symbols) if getattr(self._tokenizer, "is_fast", False) else None

    def reply(self, context: Sequence[int], text: str) -> tuple[int, ...]:
        if text:
            self.symbols(text)
        return self._reader().reply(context, text)

    def said(self, context: Sequence[int], actions: Sequence[int]) -> tuple[str, bool]:
        return self._reader().said(context, actions)

    def _reader(self) -> ChatReader:
        from cautious_imitation.language.chat_reader import chat_reader

        return chat_reader(self._tokenizer)

    def _decoded(self, symbols: Iterable[int], *, specials: bool) -> str:
        tokens = [int(symbol) for symbol in symbols]
        if any(token < 0 for token in tokens):
            raise ValueError(f"symbol must be a token >= 0, got {min(tokens)}")
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=not specials, clean_up_tokenization_spaces=False)
        return text


@cache
def _bytes_of_characters() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as: printable ones as themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

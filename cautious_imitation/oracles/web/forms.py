"""Answers as they are typed into forms."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cautious_imitation.oracles.protocol import Act, Decline, Query
from cautious_imitation.oracles.web.desk import MAX_TEXT_LENGTH, FormError, TooLong
from cautious_imitation.oracles.words import SILENCE, in_words, knows_silence

_MOST_ACTIONS = 10_000


def act_in(form: Mapping[str, str], query: Query) -> Act:
    """The answer in a form: a button, numbers, words, or that nothing is said.

    Words go on where the agent has begun a reply, after a blank if they begin a new word.

    Raises:
        FormError: if there is none, or it cannot be read.

    >>> from cautious_imitation.demonstrations import Message
    >>> query = Query((0,), n_actions=9, messages=(Message(role="assistant", content="I like choco"),))
    >>> act_in({"act": "3"}, query), act_in({"actions": "3, 1 4"}, query)
    (Act((3,)), Act((3, 1, 4)))
    >>> act_in({"text": "very much."}, query), act_in({"text": "late.", "within": "yes"}, query)
    (Act(text=' very much.'), Act(text='late.'))
    """
    if form.get("nothing") == "yes" and knows_silence(query):
        return SILENCE
    if "act" in form:
        return Act((_number(form["act"]),))
    if "actions" in form:
        typed = [piece for piece in re.split(r"[\s,;]+", form["actions"]) if piece]
        if not typed:
            raise FormError("Write one number or several, or decline.")
        if len(typed) > _MOST_ACTIONS:
            raise TooLong(
                f"An answer may have {_MOST_ACTIONS:,} actions, this one has {len(typed):,}; nothing was kept."
            )
        return Act(tuple(map(_number, typed)))
    text = form.get("text", "")
    if not text.strip():
        raise FormError("Write a reply, or decline.")
    if len(text) > MAX_TEXT_LENGTH:
        raise TooLong(
            f"An answer may have {MAX_TEXT_LENGTH:,} characters, this one has {len(text):,}; nothing was kept."
        )
    return in_words(text, query, within_word=form.get("within") == "yes")


def decline_in(form: Mapping[str, str], query: Query) -> Decline:
    """The decline in a form; as ``act_in``, but no matter which question it is.

    Raises:
        FormError: if there is no reason, or it is not said whether it depends on the answer.

    >>> decline_in({"reason": "No time", "independent": "yes"}, Query((), n_actions=1))
    Decline(reason='No time', independent=True)
    """
    reason = form.get("reason", "").strip()
    if not reason:
        raise FormError("Say in a few words why there is no answer.")
    if len(reason) > MAX_TEXT_LENGTH:
        raise TooLong(
            f"A reason may have {MAX_TEXT_LENGTH:,} characters, this one has {len(reason):,}; nothing was kept."
        )
    return Decline(reason, independent=form.get("independent") == "yes")


def _number(typed: str) -> int:
    # int() also reads "1_0" and digits of other scripts, which nobody means.
    if not re.fullmatch(r"[0-9]{1,18}", typed):
        raise FormError(f"Actions are whole numbers like 3, not “{typed[:40]}”.")
    return int(typed)

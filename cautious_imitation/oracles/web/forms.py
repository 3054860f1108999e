"""Answers as they are typed into forms."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cautious_imitation.oracles.protocol import Act, Decline
from cautious_imitation.oracles.web.desk import MAX_TEXT_LENGTH, FormError, TooLong

_MOST_ACTIONS = 10_000


def act_in(form: Mapping[str, str]) -> Act:
    """The answer in a form: a button, numbers, or words.

    Raises:
        FormError: if there is none, or it cannot be read.

    >>> act_in({"act": "3"}).actions, act_in({"actions": "3, 1 4"}).actions, act_in({"text": "Ah."}).text
    ((3,), (3, 1, 4), 'Ah.')
    """
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
    return Act(text=text)


def decline_in(form: Mapping[str, str]) -> Decline:
    """The decline in a form.

    Raises:
        FormError: if there is no reason, or it is not said whether it depends on the answer.

    >>> decline_in({"reason": "No time", "independent": "yes"})
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

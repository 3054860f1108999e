"""Worlds to imitate and fine-tune in; importing this package registers them with Gymnasium.

>>> import gymnasium, cautious_imitation.environments
>>> gymnasium.make("cautious_imitation/UntilEvent-v0", horizon=8).action_space
Discrete(5)
"""

from __future__ import annotations

from gymnasium import register

_GYM = "cautious_imitation.environments.gym"

register(
    id="cautious_imitation/DialogueActs-v0",
    entry_point=f"{_GYM}:dialogue_acts_env",
    vector_entry_point=f"{_GYM}:dialogue_acts_vector_env",
)
register(
    id="cautious_imitation/UntilEvent-v0",
    entry_point=f"{_GYM}:until_event_env",
    vector_entry_point=f"{_GYM}:until_event_vector_env",
)

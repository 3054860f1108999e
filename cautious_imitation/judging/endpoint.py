"""Models behind an OpenAI-compatible HTTP endpoint as judges."""

from __future__ import annotations

from typing import Any

from cautious_imitation.judging.oracle import OracleJudge
from cautious_imitation.oracles.endpoint import EndpointOracle


class EndpointJudge(OracleJudge):
    """Asks a model behind a chat completions endpoint, by way of an ``EndpointOracle``, which says how.

    Args:
        url: where the API begins, such as ``http://127.0.0.1:8000/v1``.
        model: its name there.
        name: what the verdicts are filed under; default the model's.
        pairs_at_once: how many are asked before their verdicts are kept.
        **options: those of ``EndpointOracle``: key, retries, pauses, what is sent in addition. The model answers as is
            likeliest, unless ``temperature`` says otherwise.

    Raises:
        ValueError: if an argument cannot be used.
        ImportError: if the extra ``oracle`` is not installed.

    >>> EndpointJudge("http://127.0.0.1:8000/v1", "llama", key_variable=None).name
    'llama'
    """

    def __init__(
        self, url: str, model: str, *, name: str | None = None, pairs_at_once: int = 16, **options: Any
    ) -> None:
        super().__init__(EndpointOracle(url, model, **options), name or model, pairs_at_once=pairs_at_once)

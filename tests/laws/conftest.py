"""Every law takes these fixtures and so runs over the whole table."""

from __future__ import annotations

import pytest

from cautious_imitation.hypotheses.base import Hypotheses
from tests.laws.table import IMPLEMENTATIONS, Implementation, sequences


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    found: Implementation = request.param
    return found


@pytest.fixture(scope="session")
def trained(implementation: Implementation) -> Hypotheses:
    """An instance that has learned ``sequences()``; laws only ask it."""
    return implementation.make().fit(sequences())

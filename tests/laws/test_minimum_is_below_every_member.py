"""Law 2: the plausible minimum is at most each plausible member, action by action, and a sub-distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from tests.laws.table import alphas, contexts, drawn, sampled_members


@drawn
@given(context=contexts, alpha=alphas)
def test_minimum_is_below_every_member(trained, context, alpha):
    minimum, members = np.asarray(trained.plausible_min(context, alpha)), trained.plausible(context, alpha)
    for log_nu in sampled_members(members, np.random.default_rng(0)):
        assert (minimum <= log_nu + 1e-9).all()
    assert np.exp(minimum).sum() <= 1 + 1e-12


@drawn
@given(context=contexts, alpha=alphas)
def test_minimum_is_reached(trained, context, alpha):
    """The class's own route to the minimum, usually a faster one, is that of its plausible set."""
    minimum = np.exp(np.asarray(trained.plausible_min(context, alpha)))
    assert minimum == pytest.approx(np.exp(np.asarray(trained.plausible(context, alpha).minimum())), rel=1e-9)

"""The plausible maximum is at least each plausible member, action by action, and no more than it has to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from tests.laws.table import alphas, balls, contexts, drawn, sampled_members


@drawn
@given(context=contexts, alpha=alphas)
def test_maximum_is_above_every_member(trained, context, alpha):
    members = trained.plausible(context, alpha)
    maximum = np.asarray(members.maximum())
    for log_nu in sampled_members(members, np.random.default_rng(0)):
        assert (maximum >= log_nu - 1e-9).all()
    assert (maximum >= np.asarray(members.minimum()) - 1e-9).all()
    assert (maximum <= 1e-12).all()


@drawn
@given(context=contexts)
def test_maximum_of_points_is_reached(trained, context):
    members = trained.plausible(context, 0.5)
    found = list(balls(members))
    if any(radius > 0 for _, radius in found):
        return
    largest = np.max([np.exp(log_nu) for log_nu, _ in found], axis=0)
    assert np.exp(np.asarray(members.maximum())) == pytest.approx(largest, rel=1e-9)

"""Law 3: KL to each plausible member <= worst_kl <= KL to plausible_min."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from tests.laws.table import alphas, balls, contexts, drawn, kl, like, logs, policies, sampled_members


@drawn
@given(context=contexts, alpha=alphas, pi=policies)
def test_worst_kl_is_between_members_and_minimum(trained, context, alpha, pi):
    worst = float(trained.worst_kl(context, like(trained, logs(pi)), alpha))
    for log_nu in sampled_members(trained.plausible(context, alpha), np.random.default_rng(0)):
        assert kl(pi, log_nu) <= worst * (1 + 1e-9) + 1e-12
    assert worst <= kl(pi, np.asarray(trained.plausible_min(context, alpha))) + 1e-9


@drawn
@given(context=contexts, alpha=alphas)
def test_doing_as_one_member_costs_at_least_its_radius(trained, context, alpha):
    """What was seen is not known better than the ball around it: KL(p || theta) = radius on its boundary."""
    for log_centre, radius in balls(trained.plausible(context, alpha)):
        worst = float(trained.worst_kl(context, like(trained, log_centre), alpha))
        assert worst >= radius * (1 - 1e-9) - 1e-12

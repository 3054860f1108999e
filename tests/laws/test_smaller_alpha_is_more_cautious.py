"""Law 4: with a smaller alpha the set grows, the minimum falls and the worst KL rises; alpha is in (0, 1]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from tests.laws.table import N_SYMBOLS, alphas, contexts, drawn, like, logs, policies, sampled_members


@drawn
@given(context=contexts, one=alphas, other=alphas, pi=policies)
def test_smaller_alpha_is_more_cautious(trained, context, one, other, pi):
    small, large = sorted([one, other])
    minima = [np.asarray(trained.plausible_min(context, alpha)) for alpha in (small, large)]
    assert (minima[0] <= minima[1] + 1e-9).all()
    charges = [float(trained.worst_kl(context, like(trained, logs(pi)), alpha)) for alpha in (small, large)]
    assert charges[0] >= charges[1] * (1 - 1e-9) - 1e-12
    larger_set = trained.plausible(context, small)
    for log_nu in sampled_members(trained.plausible(context, large), np.random.default_rng(0)):
        assert bool(larger_set.contains(like(trained, log_nu)))


def test_alpha_matters(trained):
    """The laws above would hold for a class that ignores alpha."""
    context = [0, 1]
    assert (np.asarray(trained.plausible_min(context, 1e-9)) < np.asarray(trained.plausible_min(context, 1.0))).any()
    assert list(sampled_members(trained.plausible(context, 1.0), np.random.default_rng(0)))


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.0000001, float("nan")])
def test_alpha_outside_its_range_is_refused(trained, alpha):
    log_pi = like(trained, np.full(N_SYMBOLS, -np.log(N_SYMBOLS)))
    for ask in (
        lambda: trained.plausible([0], alpha),
        lambda: trained.plausible_min([0], alpha),
        lambda: trained.worst_kl([0], log_pi, alpha),
    ):
        with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got"):
            ask()

"""Law 1: the mixture is a distribution, before and after learning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from tests.laws.table import N_SYMBOLS, contexts, drawn


@drawn
@given(context=contexts)
def test_mixture_sums_to_one(implementation, trained, context):
    for hypotheses in (implementation.make(), trained):
        log_probs = np.asarray(hypotheses.mixture(context))
        assert log_probs.shape == (N_SYMBOLS,)
        assert np.exp(log_probs).sum() == pytest.approx(1.0, abs=1e-12)

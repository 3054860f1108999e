"""Predictions hold a whole probability, as exactly as their precision allows."""

from __future__ import annotations

import numpy as np
import pytest

from cautious_imitation.types import Prediction


@pytest.mark.parametrize(("dtype", "within"), [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_a_total_of_one_is_meant_as_far_as_the_precision_goes(dtype, within):
    for excess, fits in ((0.5 * within, True), (-0.5 * within, True), (3 * within, False), (-3 * within, False)):
        log_probs = np.log(np.array([0.5, 0.25 + excess], dtype=dtype))
        log_ask = np.log(np.array(0.25, dtype=dtype))
        if fits:
            assert Prediction(log_probs, log_ask).ask_probability == pytest.approx(0.25)
        else:
            with pytest.raises(ValueError, match="total probability of 1 within"):
                Prediction(log_probs, log_ask)

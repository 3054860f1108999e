"""Drawing from a prediction, held against its definition and the frequencies that it should have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cautious_imitation.sampling import CountedGenerator, draw
from cautious_imitation.types import Prediction


def prediction(p: list[float]) -> Prediction:
    """``p`` are the probabilities of the actions; the rest is asking."""
    with np.errstate(divide="ignore"):
        return Prediction(np.log(p), np.log(max(0.0, 1 - sum(p))))


@given(
    weights=st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]), min_size=2, max_size=5).filter(any),
    u=st.floats(0, 1, exclude_max=True),
)
def test_it_inverts_the_distribution_function(weights: list[float], u: float) -> None:
    p = np.array(weights) / sum(weights)
    drawn = draw(prediction(p[:-1].tolist()), np.array([u]))
    edges = np.cumsum(p)
    if np.abs(edges - u).min() < 1e-9 or u > 1 - 1e-9:
        return
    place = int((edges <= u).sum())
    assert bool(drawn.asks[0]) == (place == len(p) - 1)
    if place < len(p) - 1:
        assert drawn.symbols[0] == place


def test_where_it_always_asks_the_smallest_number_asks_too_and_there_is_nothing_instead() -> None:
    drawn = draw(prediction([0.0, 0.0]), np.array([0.0]))
    assert drawn.asks.tolist() == [True]
    assert drawn.symbols.tolist() == [2]


def test_where_it_never_asks_the_largest_number_acts() -> None:
    drawn = draw(prediction([0.5, 0.5, 0.0]), np.array([1 - 2**-53]))
    assert drawn.asks.tolist() == [False]
    assert drawn.symbols.tolist() == [1]


def test_what_is_done_instead_has_the_frequencies_of_acting() -> None:
    n = 100_000
    uniforms = np.random.default_rng(0).random(n)
    p = [0.1, 0.3, 0.2]
    drawn = draw(Prediction(np.log([p] * n), np.log([0.4] * n)), uniforms)
    assert abs(drawn.asks.mean() - 0.4) < 0.01
    instead = np.bincount(drawn.symbols[drawn.asks], minlength=3) / drawn.asks.sum()
    assert instead == pytest.approx(np.array(p) / 0.6, abs=0.01)


def test_torch_and_numpy_draw_alike() -> None:
    uniforms = np.random.default_rng(0).random(50)
    log_probs, log_ask = np.log([[0.1, 0.3, 0.2]] * 50), np.log([0.4] * 50)
    one = draw(Prediction(log_probs, log_ask), uniforms)
    other = draw(Prediction(torch.tensor(log_probs), torch.tensor(log_ask)), uniforms)
    assert one.symbols.tolist() == other.symbols.tolist()
    assert one.asks.tolist() == other.asks.tolist()


def test_numbers_depend_on_the_place_and_not_on_what_was_drawn_before() -> None:
    dice, fresh = CountedGenerator(3, 1), CountedGenerator(3, 1)
    seen = {}
    for row in range(4):
        for position in range(5):
            generator = dice.at(row, position)
            generator.random(position)
            generator.integers(7, dtype=np.int32)
            seen[row, position] = dice.at(row, position).random()
    assert len(set(seen.values())) == 20
    for (row, position), number in reversed(seen.items()):
        assert fresh.at(row, position).random() == number
    assert CountedGenerator(3, 2).at(0, 0).random() != seen[0, 0]
    philox = np.random.Philox(key=np.random.SeedSequence((3, 1)).generate_state(2, np.uint64), counter=[0, 0, 4, 3])
    assert np.random.Generator(philox).random() == seen[3, 4]


def test_half_a_word_that_is_left_over_does_not_show_elsewhere() -> None:
    """32-bit draws keep the other half of a 64-bit number for the next one."""
    dice = CountedGenerator(0)
    first = dice.at(0, 0).integers(2**31, size=4, dtype=np.int32).tolist()
    dice.at(0, 1).integers(2**31, dtype=np.int32)
    assert dice.at(0, 0).integers(2**31, size=4, dtype=np.int32).tolist() == first

"""The test of coverage on held-out demonstrations: it rarely cries wolf, it finds wolves, it refuses known sheep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cautious_imitation.coverage import check_coverage, log_e_value
from cautious_imitation.demonstrations import Demonstrations, sequence_digests
from cautious_imitation.environments.dialogue_acts import STUDENT_ENDED, dialogue_acts_world, sample_demonstrations
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.finite import FiniteHypotheses
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.types import Array

Floats = NDArray[np.float64]

TAU = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05]])
"""What a Markov demonstrator does after each of its actions."""


def chains(rng: np.random.Generator, n: int, length: int, table: Floats = TAU) -> NDArray[np.int64]:
    """``[n, length]`` sequences that begin as if action 0 came before."""
    symbols = np.zeros((n, length + 1), dtype=np.int64)
    cumulative = np.cumsum(table, axis=1)
    for t in range(length):
        symbols[:, t + 1] = (cumulative[symbols[:, t]] <= rng.random((n, 1))).sum(axis=1)
    return symbols[:, 1:]


def knowing(table: Floats) -> BayesianImitator:
    """Grants exactly ``table``: with the true one, the hardest case that still covers."""
    return BayesianImitator(FiniteHypotheses([np.log(table)], start_symbol=0))


def tree(n_symbols: int = 3) -> ContextTree:
    return ContextTree(n_symbols, 1, start_symbol=0)


def test_the_e_value_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    p, happened = rng.random(30), rng.random(30) < 0.3
    terms = []
    for rate in (0.05, 0.15, 0.4, 1.0, 2.5, 6.0):
        terms.append(
            np.prod([np.exp(-rate * h) / (1 - q + q * np.exp(-rate)) for q, h in zip(p, happened, strict=True)])
        )
    assert log_e_value(p, happened) == pytest.approx(np.log(np.mean(terms)))


@pytest.mark.parametrize("granted", [1.0, 0.8])
def test_the_e_value_has_a_mean_of_at_most_one_in_contexts_chosen_to_fool_it(granted: float) -> None:
    """The next probability depends on what happened: a high one after every success, as long as evidence is missing."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(20_000):
        p: list[float] = []
        happened: list[bool] = []
        for _ in range(12):
            probability = 0.9 if happened and happened[-1] else 0.3 if sum(happened) < 3 else 0.05
            happened.append(bool(rng.random() < probability))
            p.append(granted * probability)
        values.append(np.exp(log_e_value(p, happened)))
    mean, error = np.mean(values), np.std(values) / len(values) ** 0.5
    assert mean <= 1 + 3 * error
    if granted == 1.0:
        assert mean >= 1 - 4 * error, "under equality the mean is one"
        assert error < 0.05
    shy = [np.exp(log_e_value([0.5] * 12, rng.random(12) < 0.4)) for _ in range(2_000)]
    assert np.mean(shy) > 1.05, "an event less frequent than granted raises it"


def test_an_imitator_that_covers_is_rejected_in_at_most_one_of_twenty_sets() -> None:
    rng = np.random.default_rng(2)
    imitator = knowing(TAU)
    rejected = [check_coverage(imitator, chains(rng, 10, 30)).rejected for _ in range(300)]
    assert np.mean(rejected) <= 0.05
    raw = [min(row.p for row in check_coverage(imitator, chains(rng, 10, 30)).rows) for _ in range(300)]
    assert np.mean(np.array(raw) <= 0.05) < 9 * 0.05
    assert min(raw) < 0.5, "nothing was at stake"


def test_a_cautious_imitator_of_the_demonstrator_is_not_rejected() -> None:
    rng = np.random.default_rng(3)
    imitator = CautiousImitator(tree(), alpha=1e-4).fit(list(chains(rng, 20, 50)))
    report = check_coverage(imitator, chains(rng, 100, 50))
    assert not report.rejected
    assert 0 < report.ask_share < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_an_imitator_of_somebody_else_is_rejected_where_it_is_wrong(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wrong = TAU.copy()
    wrong[1] = [0.4, 0.3, 0.3]
    imitator = CautiousImitator(tree(), alpha=0.1).fit(list(chains(rng, 40, 50, wrong)))
    report = check_coverage(imitator, chains(rng, 40, 50))
    assert report.rejected
    assert {(row.group, row.action) for row in report.violations} == {(1, 0)}


def test_too_bold_an_imitator_is_rejected_and_a_cautious_one_is_not() -> None:
    world = dialogue_acts_world()
    rejected = {0.0: 0, 8.0: 0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        few, held_out = sample_demonstrations(world, 300, rng), sample_demonstrations(world, 20_000, rng)
        for level in rejected:
            trees = ContextTree(9, 2, n_context_symbols=18, start_symbol=STUDENT_ENDED)
            imitator = CautiousImitator(trees, alpha=np.exp(-level)).fit(few)
            rejected[level] += check_coverage(imitator, held_out).rejected
    assert rejected == {0.0: 5, 8.0: 0}


def by_last(history: Any) -> Any:
    return int(history[-1]) if len(history) else 0


def by_parity(history: Any) -> Any:
    return "even" if len(history) % 2 == 0 else "odd"


@pytest.mark.parametrize("groups", [None, by_parity])
@pytest.mark.parametrize("windowed", [True, False])
def test_rows_are_sums_counts_and_p_values_of_each_group(windowed: bool, groups: Callable[..., Any] | None) -> None:
    rng = np.random.default_rng(4)
    sequences = [chain[: 5 + i] for i, chain in enumerate(chains(rng, 8, 20))]
    imitator: Any = CautiousImitator(tree(), 0.3).fit(list(chains(rng, 5, 40))) if windowed else knowing(TAU[::-1])
    report = check_coverage(imitator, sequences, groups=groups)
    group_of = groups or by_last
    places = [(s[:t], int(s[t])) for s in sequences for t in range(len(s))]
    assert report.n_actions == len(places)
    for row in report.rows:
        mine = [(h, symbol) for h, symbol in places if group_of(h) == row.group]
        granted = [np.exp(imitator.predict(h).log_probs)[row.action] for h, _ in mine]
        happened = [symbol == row.action for _, symbol in mine]
        assert row.granted == pytest.approx(sum(granted))
        assert row.count == sum(happened)
        assert row.p == pytest.approx(min(1.0, np.exp(-log_e_value(granted, happened))))
    assert report.ask_share == pytest.approx(np.mean([imitator.predict(h).ask_probability for h, _ in places]))
    n_groups = 2 if groups else imitator.hypotheses.n_context_symbols if windowed else 3
    assert report.n_tested == 3 * n_groups
    assert sum(row.count for row in report.rows) <= len(places)
    assert {row.group for row in report.rows} == {group_of(h) for h, _ in places}
    ordered = sorted(report.rows, key=lambda row: row.p)
    largest = 0.0
    for i, row in enumerate(ordered):
        largest = max(largest, min(1.0, (report.n_tested - i) * row.p))
        assert row.adjusted_p == pytest.approx(largest)


def test_a_class_of_depth_zero_sees_no_symbol_but_has_groups() -> None:
    chain = chains(np.random.default_rng(5), 4, 30)
    imitator = BayesianImitator(ContextTree(3, 0)).fit(list(chain[:2]))
    assert {row.group for row in check_coverage(imitator, chain[2:]).rows} == {0, 1, 2, 3}


def test_only_the_demonstrators_own_actions_are_tested() -> None:
    chain = chains(np.random.default_rng(6), 1, 60)[0]
    actors = np.arange(60, dtype=np.uint8) % 3
    report = check_coverage(knowing(TAU), Demonstrations((chain,), (actors,)))
    assert report.n_actions == 20
    assert sum(row.count for row in report.rows) == 20
    nobody = Demonstrations((chain,), (np.ones(60, dtype=np.uint8),))
    with pytest.raises(ValueError, match="must hold actions of the demonstrator, got none"):
        check_coverage(knowing(TAU), nobody)
    unknown = Demonstrations((np.array([0, 1, 3]),), (np.zeros(3, dtype=np.uint8),))
    with pytest.raises(ValueError, match=r"the demonstrator's actions must hold symbols in 0\.\.2, got 3"):
        check_coverage(knowing(TAU), unknown)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_the_level_is_a_probability(level: float) -> None:
    with pytest.raises(ValueError, match=rf"level must be in \(0, 1\), got {level}"):
        check_coverage(knowing(TAU), [[0, 1]], level=level)


def test_the_level_decides_what_is_a_violation() -> None:
    held_out = chains(np.random.default_rng(7), 20, 30)
    imitator = knowing(np.full((3, 3), 1 / 3))
    adjusted = sorted({row.adjusted_p for row in check_coverage(imitator, held_out).rows})
    assert 0 < adjusted[0] < adjusted[1] < 1
    strict = check_coverage(imitator, held_out, level=(adjusted[0] + adjusted[1]) / 2)
    assert {row.adjusted_p for row in strict.violations} == {adjusted[0]}
    assert not check_coverage(imitator, held_out, level=adjusted[0] / 2).rejected


def test_a_report_reads_well() -> None:
    rng = np.random.default_rng(8)
    good = check_coverage(knowing(TAU), chains(rng, 10, 30))
    assert str(good).splitlines() == [
        "Coverage is not contradicted at level 0.05: 0 of 9 pairs of group and action are granted more than 300 "
        "actions show.",
        "The imitator would have asked at 0.0% of them.",
        "Whether it learned from these sequences is not known: it remembers none that it learned.",
    ]
    bad = check_coverage(knowing(np.full((3, 3), 1 / 3)), chains(rng, 40, 30))
    lines = str(bad).splitlines()
    assert lines[0].startswith(f"Coverage is rejected at level 0.05: {len(bad.violations)} of 9 pairs")
    assert lines[3] == "group  action   granted   count  adjusted p"
    assert len(lines) == 4 + len(bad.violations)
    first = bad.violations[0]
    assert lines[4].split() == [
        str(first.group), str(first.action), f"{first.granted:.1f}", str(first.count), f"{first.adjusted_p:.2g}"
    ]  # fmt: skip
    many = check_coverage(knowing(np.full((3, 3), 1 / 3)), chains(rng, 400, 30), groups=lambda history: len(history))
    assert len(many.violations) > 10
    assert str(many).splitlines()[-1] == f"and {len(many.violations) - 10} more"


def test_sequences_that_were_learned_are_refused_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    learned, others = chains(rng, 5, 40), chains(rng, 5, 40)
    imitator = CautiousImitator(tree(), 0.1).fit(list(learned))
    assert check_coverage(imitator, others).overlap_checked
    mixed = [*others[:3], learned[2], others[4], learned[0]]
    message = r"must be held out, got sequence 3 of 40 symbols and 1 more, which the imitator has learned from; split"
    with pytest.raises(ValueError, match=message):
        check_coverage(imitator, mixed)
    imitator.save(tmp_path)
    loaded = CautiousImitator.load(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_coverage(loaded, mixed)
    assert check_coverage(loaded, others) == check_coverage(imitator, others)
    with pytest.raises(ValueError, match="got sequence 0 of 40 symbols, which"):
        check_coverage(loaded.fit(list(others)), others[:1])
    with pytest.raises(ValueError, match="got sequence 0 of 40 symbols, which"):
        check_coverage(loaded, learned[:1])


def test_short_sequences_recur_by_chance() -> None:
    imitator = CautiousImitator(tree(), 0.1).fit(iter([[0, 1] * 7, [0, 1] * 8]))
    check_coverage(imitator, [[0, 1] * 7])
    with pytest.raises(ValueError, match="sequence 0 of 16 symbols"):
        check_coverage(imitator, [[0, 1] * 8])
    fitted = CautiousImitator(tree().fit([[0, 1] * 8]), 0.1)
    assert not check_coverage(fitted, [[0, 1] * 8]).overlap_checked


def test_what_could_not_be_learned_is_not_remembered() -> None:
    imitator = CautiousImitator(tree(), 0.1)
    with pytest.raises(ValueError, match="sequence"):
        imitator.fit([[0, 1] * 8, [99] * 16])
    assert not imitator.learned_digests
    assert not CautiousImitator(tree(), 0.1).learned_digests
    BayesianImitator(tree()).fit([[0, 1] * 8])
    assert not BayesianImitator(tree()).learned_digests, "one imitator's sequences are not another's"


def test_digests_tell_sequences_apart_whatever_holds_them() -> None:
    symbols = list(range(16))
    alike: list[Array] = [symbols, np.array(symbols, dtype=np.uint8), np.array(symbols, dtype=np.int64)]
    assert len(set(sequence_digests(alike).values())) == 1
    others = [symbols, symbols[::-1], [*symbols, 0], [*symbols[:-1], 14]]
    assert len(set(sequence_digests(others).values())) == 4

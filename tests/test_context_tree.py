"""The context tree as a data structure: ways to learn, contexts, batches, files, growth, and what it refuses.

Its answers are checked in ``test_context_tree_enumeration.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.hypotheses.context_tree import ContextTree
from tests.reference_trees import all_contexts, chain, learned_pairs

LEAVES = [("kt", "none"), ("profile", "none"), ("profile", "support"), ("profile", "bic")]

each_leaf = pytest.mark.parametrize(("leaf", "complexity"), LEAVES)


@each_leaf
def test_fit_update_and_prequential_learn_the_same(leaf, complexity):
    rng = np.random.default_rng(1)
    sequences = [chain(n, 4, rng) for n in (30, 0, 1, 17)]
    settings: dict[str, Any] = {"n_context_symbols": 5, "leaf": leaf, "complexity": complexity}
    at_once, one_by_one = ContextTree(2, 3, **settings).fit(sequences), ContextTree(2, 3, **settings)
    walked, in_batches = ContextTree(2, 3, **settings), ContextTree(2, 3, **settings)
    for context, symbol in learned_pairs(sequences, 2):
        one_by_one.update(context, symbol)
    for sequence in sequences:
        walked.prequential(sequence, 0.1)
    pairs = [((4, 4, 4, *context)[-3:], symbol) for context, symbol in learned_pairs(sequences, 2)]
    in_batches.update([context for context, _ in pairs], [symbol for _, symbol in pairs])
    every_context = all_contexts(5, 3)[-(5**3) :]
    for other in (one_by_one, walked, in_batches):
        assert other.n_nodes == at_once.n_nodes > 1
        assert other.log_loss_nats == at_once.log_loss_nats
        assert other.map_tree().log_score == at_once.map_tree().log_score
        np.testing.assert_array_equal(other.mixture(every_context), at_once.mixture(every_context))
        np.testing.assert_array_equal(
            other.plausible_min(every_context, 0.1), at_once.plausible_min(every_context, 0.1)
        )


@pytest.mark.parametrize(
    ("leaf", "complexity", "rule"),
    [*((*leaf, "best") for leaf in LEAVES), ("kt", "none", "total"), ("profile", "none", "anytime")],
)
def test_prequential_predicts_from_the_prefix(leaf, complexity, rule):
    rng = np.random.default_rng(2)
    before, sequence = chain(20, 3, rng), chain(40, 3, rng)
    settings: dict[str, Any] = {"n_context_symbols": 4, "leaf": leaf, "complexity": complexity, "plausible": rule}
    tree = ContextTree(2, 2, **settings).fit([before])
    mixtures, minima = tree.prequential(sequence, 0.05)
    for t, symbol in enumerate(sequence):
        if symbol >= 2:
            assert (mixtures[t] == 0).all()
            assert (minima[t] == 0).all()
            continue
        prefix = ContextTree(2, 2, **settings).fit([before, sequence[:t]])
        np.testing.assert_allclose(mixtures[t], prefix.mixture(sequence[:t]), rtol=0, atol=1e-13)
        np.testing.assert_allclose(np.exp(minima[t]), np.exp(prefix.plausible_min(sequence[:t], 0.05)), atol=1e-13)
    assert {0, 1, 2} <= set(sequence)


def test_prequential_log_loss_is_that_of_the_tree():
    sequence = chain(500, 2, np.random.default_rng(6))
    tree = ContextTree(2, 4)
    mixtures, _ = tree.prequential(sequence, 0.5)
    assert -mixtures[np.arange(500), sequence].sum() == pytest.approx(tree.log_loss_nats, abs=1e-9)


def test_prequential_block_by_block_is_one_sequence():
    sequence = chain(60, 3, np.random.default_rng(7))
    whole, blocks = ContextTree(2, 3, n_context_symbols=4), ContextTree(2, 3, n_context_symbols=4)
    expected = whole.prequential(sequence, 0.05)
    found = [blocks.prequential(sequence[i : i + 7], 0.05, context=sequence[:i]) for i in range(0, 60, 7)]
    for one, parts in zip(expected, zip(*found, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), one)
    assert blocks.log_loss_nats == pytest.approx(whole.log_loss_nats, abs=1e-12)


def test_short_contexts_are_padded_and_only_the_last_symbols_count():
    tree = ContextTree(2, 3, start_symbol=1, n_context_symbols=4).fit([chain(60, 2, np.random.default_rng(4))])
    for answer in (tree.mixture, lambda c: tree.plausible_min(c, 0.1), tree.path_counts):
        np.testing.assert_array_equal(answer([]), answer([1, 1, 1]))
        np.testing.assert_array_equal(answer([0]), answer([1, 1, 0]))
        np.testing.assert_array_equal(answer([3, 0, 2, 1, 0]), answer([2, 1, 0]))
    assert (tree.mixture([0]) != tree.mixture([1])).any()


def test_batches_of_any_shape_answer_one_by_one():
    rng = np.random.default_rng(9)
    tree = ContextTree(3, 2).fit([chain(80, 3, rng)])
    contexts, policies = rng.integers(4, size=(2, 5, 2)), np.log(rng.dirichlet(np.ones(3), size=(2, 5)))
    members = tree.plausible(contexts, 0.1)
    assert members.log_centres.shape == (2, 5, 3, 3)
    assert members.plausible.shape == members.radii_nats.shape == (2, 5, 3)
    assert tree.path_counts(contexts).shape == (2, 5, 3, 3)
    for i in np.ndindex(2, 5):
        np.testing.assert_array_equal(tree.mixture(contexts)[i], tree.mixture(contexts[i]))
        np.testing.assert_array_equal(tree.plausible_min(contexts, 0.1)[i], tree.plausible_min(contexts[i], 0.1))
        assert tree.worst_kl(contexts, policies, 0.1)[i] == tree.worst_kl(contexts[i], policies[i], 0.1)
        assert tree.map_depth(contexts)[i] == tree.map_depth(contexts[i])
    assert tree.mixture(np.zeros((0, 2), dtype=np.int64)).shape == (0, 3)
    np.testing.assert_array_equal(tree.mixture(np.zeros((4, 0), dtype=np.int64)), np.tile(tree.mixture([]), (4, 1)))


def test_symbols_from_n_symbols_on_are_context_only():
    tree = ContextTree(2, 1, n_context_symbols=4).fit([[0, 2, 1, 2, 1]])
    assert tree.path_counts([]).tolist() == [[1, 2], [1, 0]]
    assert tree.path_counts([2])[1].tolist() == [0, 2]
    assert tree.map_tree().leaves.keys() <= {(), (2,), (3,)}


def test_demonstrations_say_whose_action_it_was():
    codes = actor_codes(["demonstrator", "imitator", "demonstrator", "environment", "demonstrator"])
    tree = ContextTree(2, 1, n_context_symbols=4).fit(Demonstrations(([0, 1, 1, 0, 0],), (codes,)))
    assert tree.path_counts([1]).tolist() == [[2, 1], [0, 1]]
    assert tree.path_counts([0])[1].tolist() == [1, 0]


def test_contexts_do_not_reach_across_sequences():
    tree = ContextTree(2, 2)
    assert tree.fit([[1, 1, 1], [0], [0]]).path_counts([]).tolist()[1] == [2, 1]
    assert tree.path_counts([1])[1].tolist() == [0, 2]


def test_the_table_grows_with_the_contexts_seen_and_keeps_every_count():
    rng = np.random.default_rng(12)
    sequence = rng.integers(2, size=20_000)
    tree = ContextTree(2, 16).fit([sequence])
    suffixes = {tuple(sequence[t - d : t]) for d in range(6) for t in range(d, len(sequence))}
    assert tree.n_nodes > 50_000
    for suffix in list(suffixes)[::7]:
        d, windows = len(suffix), np.lib.stride_tricks.sliding_window_view(sequence, len(suffix) + 1)
        after = windows[(windows[:, :d] == suffix).all(axis=1), d]
        assert tree.path_counts(suffix)[d].tolist() == np.bincount(after, minlength=2).tolist()
    again = ContextTree(2, 16)
    for t, symbol in enumerate(sequence[:300]):
        again.update(sequence[max(0, t - 16) : t], symbol)
    np.testing.assert_array_equal(
        again.mixture(sequence[:300]), ContextTree(2, 16).fit([sequence[:300]]).mixture(sequence[:300])
    )


@each_leaf
def test_questions_change_nothing(leaf, complexity, tmp_path):
    rng = np.random.default_rng(10)
    tree = ContextTree(3, 2, leaf=leaf, complexity=complexity).fit([chain(40, 3, rng)])
    tree.save(tmp_path / "before")
    for context in all_contexts(4, 2):
        tree.mixture(context)
        tree.plausible_min(context, 0.1)
        tree.worst_kl(context, np.log([0.2, 0.3, 0.5]), 0.1)
        tree.plausible(context, 0.1).best_response(np.array([1.0, 0.0, 0.5]), 0.3)
        tree.map_depth(context)
        tree.path_counts(context)[:] = 77
    for counts in tree.map_tree().leaves.values():
        counts[:] = 77
    tree.save(tmp_path / "after")
    for name in ("context_tree.safetensors", "context_tree.json"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"leaf": "kt", "plausible": "total", "stop_prob": 0.3},
        {"complexity": "support", "start_symbol": 2, "n_context_symbols": 9},
        {"complexity": "bic"},
        {"plausible": "anytime"},
    ],
)
def test_save_and_load_keep_everything_bit_for_bit(settings, tmp_path):
    rng = np.random.default_rng(11)
    first, second = chain(3000, 3, rng), chain(50, 3, rng)
    tree = ContextTree(3, 4, **settings).fit([first])
    tree.save(tmp_path / "tree")
    assert sorted(p.name for p in (tmp_path / "tree").iterdir()) == ["context_tree.json", "context_tree.safetensors"]
    loaded = ContextTree.load(tmp_path / "tree")
    for _ in range(2):
        contexts = rng.integers(3, size=(200, 4))
        assert (loaded.n_nodes, loaded.log_loss_nats) == (tree.n_nodes, tree.log_loss_nats)
        assert loaded.map_tree().log_score == tree.map_tree().log_score
        np.testing.assert_array_equal(loaded.mixture(contexts), tree.mixture(contexts))
        for mine, theirs in zip(
            vars(loaded.plausible(contexts, 0.01)).values(), vars(tree.plausible(contexts, 0.01)).values(), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
        tree.fit([second])
        loaded.fit([second])


def test_an_empty_tree_is_saved_and_loaded(tmp_path):
    ContextTree(2, 3).save(tmp_path)
    tree = ContextTree.load(tmp_path)
    assert tree.n_nodes == 0
    assert tree.fit([[0, 1]]).log_loss_nats == ContextTree(2, 3).fit([[0, 1]]).log_loss_nats


def test_loading_what_is_not_there_or_from_another_version(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        ContextTree.load(tmp_path)
    ContextTree(2, 1).save(tmp_path)
    file = tmp_path / "context_tree.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 99}))
    with pytest.raises(ValueError, match="schema"):
        ContextTree.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_symbols": 0}, "n_symbols must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"depth": 60}, "depth must be at most .* got 60"),
        ({"n_context_symbols": 0}, "n_context_symbols must be at least 1, got 0"),
        ({"start_symbol": 3}, r"start_symbol must be in 0\.\.2, got 3"),
        ({"start_symbol": -1}, "start_symbol .* got -1"),
        ({"stop_prob": 0.0}, r"stop_prob must be in \(0, 1\), got 0.0"),
        ({"stop_prob": 1 - 2.0 ** (1 - 60)}, "stop_prob .* got 1.0; .* leave it out"),
        ({"stop_prob": float("nan")}, "stop_prob .* got nan"),
        ({"leaf": "laplace"}, "leaf must be one of profile, kt, got 'laplace'"),
        ({"complexity": "aic"}, "complexity must be one of none, support, bic, got 'aic'"),
        ({"plausible": "cumulative"}, "plausible must be one of best, total, anytime, got 'cumulative'"),
        ({"leaf": "kt", "complexity": "bic"}, "complexity must be .* got 'bic'"),
        ({"plausible": "total"}, 'plausible must be "best" or "anytime" .* got "total"'),
        ({"plausible": "anytime", "leaf": "kt"}, 'leaf must be "profile" .* got "kt"'),
        ({"plausible": "anytime", "complexity": "bic"}, """complexity must be "none" .* got 'bic'"""),
    ],
)
def test_bad_settings_name_the_argument_the_value_and_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        ContextTree(**({"n_symbols": 2, "depth": 2} | settings))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.plausible_min([0], 1.5), r"alpha must be in \(0, 1\], got 1.5"),
        (lambda t: t.plausible([0], 0.0), "alpha .* got 0.0"),
        (lambda t: t.worst_kl([0], np.log([0.5, 0.5]), -0.1), "alpha .* got -0.1"),
        (lambda t: t.prequential([0], float("nan")), "alpha .* got nan"),
        (lambda t: t.mixture([0, 3]), r"context must hold symbols in 0\.\.2, got 3"),
        (lambda t: t.mixture([[0, 1], [0, -1]]), "context .* got -1"),
        (lambda t: t.mixture(0), "context must be a sequence of symbols, got the scalar 0"),
        (lambda t: t.mixture([0.7]), "context .* got .*0.7"),
        (lambda t: t.update([0], 2), r"symbol must hold symbols in 0\.\.1, got 2"),
        (lambda t: t.update([0], -1), "symbol .* got -1"),
        (lambda t: t.update([0], 0.5), "symbol .* got .*0.5"),
        (lambda t: t.update([3], 0), "context .* got 3"),
        (lambda t: t.update([[0], [1]], 0), r"symbol must have shape \(2,\) to go with context, got \(\)"),
        (lambda t: t.fit([[0, 1], [0, 3]]), r"sequence must hold symbols in 0\.\.2, got 3"),
        (lambda t: t.fit([[0, -1]]), "sequence .* got -1"),
        (lambda t: t.fit([[0.5, 1.0]]), "sequence .* got .*0.5"),
        (lambda t: t.fit([0, 1, 0]), "sequence"),
        (lambda t: t.fit([[[0, 1], [1, 0]]]), "sequence"),
        (lambda t: t.prequential([0, 5], 0.5), "sequence .* got 5"),
        (lambda t: t.prequential([0], 0.5, context=[3]), "context .* got 3"),
        (lambda t: t.prequential([0], 0.5, context=[[0], [1]]), r"context must be one sequence .* got shape \(2, 1\)"),
        (lambda t: t.worst_kl([0], np.log([0.5, 0.25, 0.25]), 0.5), r"log_pi must have shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_calls_name_the_argument_and_the_value_and_learn_nothing(call, message):
    tree = ContextTree(2, 2)
    with pytest.raises(ValueError, match=message):
        call(tree)
    assert tree.n_nodes == 0


def test_actions_that_no_context_can_hold_are_refused():
    """With fewer context symbols than actions a sequence would look up contexts that do not exist."""
    with pytest.raises(ValueError, match=r"n_context_symbols|sequence"):
        ContextTree(3, 2, n_context_symbols=2).fit([[0, 2, 1, 0]])
    tree = ContextTree(3, 0, n_context_symbols=1).fit([[0, 2, 1, 0]])
    assert tree.path_counts([]).tolist() == [[2, 1, 1]]

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.divergences import kl
from cautious_imitation.hypotheses.finite import FiniteHypotheses

Floats = NDArray[np.float64]

K, V = 4, 3
RULES = ("best", "cumulative", "anytime")
ALPHAS = (1.0, 0.7, 0.2, 1e-3, 1e-12)


def tables(seed: int, shapes: tuple[tuple[int, ...], ...] = ((V, V, V), (V, V), (V,), (V, V))) -> list[Floats]:
    """Markov tables of several orders over V symbols, rows normalised."""
    generator = np.random.default_rng(seed)
    return [np.log(generator.dirichlet(np.ones(shape[-1]), size=shape[:-1])) for shape in shapes]


def row(table: Floats, context: list[int], start: int = 0) -> Floats:
    """The prediction of a table by the plain rule."""
    padded = [start] * (table.ndim - 1) + context
    return table[tuple(padded[len(padded) - (table.ndim - 1) :])]


def brute_force_weights(
    members: list[Floats], sequences: list[list[int]], prior: Floats, temperature: float, switching_rate: float
) -> Floats:
    """Bayes' rule and fixed share in plain probabilities."""
    weights = prior.copy()
    for sequence in sequences:
        for t, symbol in enumerate(sequence):
            if symbol < V:
                weights = weights * np.array([np.exp(row(m, sequence[:t])[symbol]) for m in members]) ** temperature
                weights = (1 - switching_rate) * weights / weights.sum() + switching_rate * prior
    return weights


def brute_force_plausible(weights: Floats, prior: Floats, rule: str, alpha: float) -> list[bool]:
    if rule == "best":
        return [bool(w >= alpha * weights.max() * (1 - 1e-12)) for w in weights]
    if rule == "anytime":
        return [bool(w >= alpha * p * (1 - 1e-9)) for w, p in zip(weights, prior, strict=True)]
    before = [[v for j, v in enumerate(weights) if (-v, j) <= (-w, i)] for i, w in enumerate(weights)]
    return [bool(w >= alpha * sum(seen) * (1 - 1e-12)) for w, seen in zip(weights, before, strict=True)]


@st.composite
def learned_class(draw: st.DrawFn) -> tuple[FiniteHypotheses, list[Floats], Floats]:
    """A class after some evidence, its members, and its weights by brute force."""
    members = tables(draw(st.integers(0, 1000)))
    prior = np.array(draw(st.lists(st.floats(0.01, 1), min_size=K, max_size=K)))
    prior /= prior.sum()
    temperature, switching_rate = draw(st.sampled_from([1.0, 0.3])), draw(st.sampled_from([0.0, 0.05]))
    sequences = draw(st.lists(st.lists(st.integers(0, V - 1), max_size=12), min_size=1, max_size=3))
    hypotheses = FiniteHypotheses(
        members,
        prior=prior,
        temperature=temperature,
        switching_rate=switching_rate,
        plausible=draw(st.sampled_from(RULES)),
        start_symbol=0,
    ).fit(sequences)
    return hypotheses, members, brute_force_weights(members, sequences, prior, temperature, switching_rate)


@given(learned_class())
def test_weights_are_those_of_brute_force(learned: tuple[FiniteHypotheses, list[Floats], Floats]) -> None:
    hypotheses, _, weights = learned
    np.testing.assert_allclose(np.exp(hypotheses.log_weights), weights, rtol=1e-9)


@given(learned_class(), st.sampled_from(ALPHAS))
def test_the_three_rules(learned: tuple[FiniteHypotheses, list[Floats], Floats], alpha: float) -> None:
    hypotheses, _, weights = learned
    prior = np.exp(hypotheses.posterior.log_prior)
    expected = brute_force_plausible(weights, prior, hypotheses.posterior.rule, alpha)
    assert hypotheses.plausible_members(alpha).tolist() == expected
    assert any(expected)


@given(learned_class(), st.lists(st.integers(0, V - 1), max_size=4))
def test_the_mixture_is_the_weighted_sum(
    learned: tuple[FiniteHypotheses, list[Floats], Floats], context: list[int]
) -> None:
    hypotheses, members, weights = learned
    expected = sum(w * np.exp(row(m, context)) for w, m in zip(weights, members, strict=True))
    np.testing.assert_allclose(np.exp(hypotheses.mixture(context)), expected, rtol=1e-9)
    np.testing.assert_allclose(np.exp(hypotheses.mixture(context)).sum(), 1)


@given(learned_class(), st.lists(st.integers(0, V - 1), max_size=4), st.sampled_from(ALPHAS), st.integers(0, 1000))
def test_caution_is_bounded_by_the_plausible_members(
    learned: tuple[FiniteHypotheses, list[Floats], Floats], context: list[int], alpha: float, seed: int
) -> None:
    hypotheses, members, _ = learned
    log_pi = np.log(np.random.default_rng(seed).dirichlet(np.ones(V)))
    chosen = [row(m, context) for m, yes in zip(members, hypotheses.plausible_members(alpha), strict=True) if yes]
    minimum, worst = hypotheses.plausible_min(context, alpha), hypotheses.worst_kl(context, log_pi, alpha)
    np.testing.assert_array_equal(minimum, np.min(chosen, axis=0))
    np.testing.assert_allclose(worst, max(kl(log_pi, one) for one in chosen), rtol=1e-12)
    assert worst <= kl(log_pi, minimum) + 1e-12
    by_set = hypotheses.plausible(context, alpha)
    np.testing.assert_array_equal(by_set.minimum(), minimum)
    np.testing.assert_allclose(by_set.worst_kl(log_pi), worst, rtol=1e-12)
    assert by_set.log_centres.shape == (K, V)


@given(learned_class(), st.integers(0, 1000))
def test_a_smaller_alpha_is_never_less_cautious(
    learned: tuple[FiniteHypotheses, list[Floats], Floats], seed: int
) -> None:
    hypotheses = learned[0]
    log_pi = np.log(np.random.default_rng(seed).dirichlet(np.ones(V)))
    for larger, smaller in pairwise(ALPHAS):
        assert (hypotheses.plausible_members(smaller) >= hypotheses.plausible_members(larger)).all()
        assert (hypotheses.plausible_min([1, 2], smaller) <= hypotheses.plausible_min([1, 2], larger)).all()
        assert hypotheses.worst_kl([1, 2], log_pi, smaller) >= hypotheses.worst_kl([1, 2], log_pi, larger)


def functions_of(members: list[Floats]) -> list[Any]:
    return [lambda context, m=m: row(m, [int(s) for s in context]) for m in members]


def batched_functions_of(members: list[Floats]) -> list[Any]:
    one = functions_of(members)
    return [lambda c, f=f: np.apply_along_axis(f, -1, np.concatenate([c * 0, c], axis=-1)) for f in one]


class Recent(torch.nn.Module):
    """Logits from the last two symbols, for the last position or for all."""

    def __init__(self, table: Floats, everywhere: bool) -> None:
        super().__init__()
        full = np.broadcast_to(table, (V,) * (4 - table.ndim - 1) + table.shape) if table.ndim < 3 else table
        self.table = torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(full)) + 1.5)
        self.everywhere = everywhere

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        before = torch.cat([torch.zeros_like(context[:, :1]), context[:, :-1]], dim=1)
        logits = self.table[before, context]
        return logits if self.everywhere else logits[:, -1]


def made(kind: str, members: list[Floats], **options: Any) -> FiniteHypotheses:
    if kind == "tables":
        return FiniteHypotheses(members, start_symbol=0, **options)
    if kind == "functions":
        return FiniteHypotheses(functions_of(members), n_symbols=V, **options)
    if kind == "batched functions":
        return FiniteHypotheses(batched_functions_of(members), n_symbols=V, batched=True, **options)
    modules = [Recent(m, everywhere=kind == "modules, everywhere") for m in members]
    return FiniteHypotheses(modules, n_symbols=V, start_symbol=0, **options)


KINDS = ("tables", "functions", "batched functions", "modules", "modules, everywhere")
SEQUENCES = [[0, 1, 2, 2, 1, 0, 0, 2], [1, 1, 4, 0, 4, 4, 2], [2]]


@pytest.mark.parametrize("switching_rate", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_fit_is_one_update_after_the_other(kind: str, switching_rate: float) -> None:
    members = tables(7)
    sequences = [[s for s in sequence if s < V] for sequence in SEQUENCES]
    fitted = made(kind, members, switching_rate=switching_rate).fit(sequences)
    updated = made(kind, members, switching_rate=switching_rate)
    for sequence in sequences:
        for t, symbol in enumerate(sequence):
            updated.update(sequence[:t], symbol)
    np.testing.assert_allclose(fitted.log_weights, updated.log_weights, rtol=1e-12)
    expected = brute_force_weights(members, sequences, np.full(K, 1 / K), 1.0, switching_rate)
    np.testing.assert_allclose(np.exp(fitted.log_weights), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_contexts_one_by_one(kind: str) -> None:
    hypotheses = made(kind, tables(8)).fit([[0, 1, 2, 2, 1, 0]])
    contexts = np.random.default_rng(0).integers(V, size=(2, 3, 5))
    log_pi = np.log(np.random.default_rng(1).dirichlet(np.ones(V), size=(2, 3)))
    log_pi = torch.from_numpy(log_pi) if kind.startswith("modules") else log_pi
    mixture, minimum = hypotheses.mixture(contexts), hypotheses.plausible_min(contexts, 0.3)
    worst = hypotheses.worst_kl(contexts, log_pi, 0.3)
    marked = hypotheses.plausible(contexts, 0.3)
    assert mixture.shape == minimum.shape == (2, 3, V)
    assert marked.log_centres.shape == (2, 3, K, V)
    assert marked.plausible.shape == marked.radii_nats.shape == (2, 3, K)
    assert worst.shape == (2, 3)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(mixture[i], hypotheses.mixture(contexts[i]), rtol=1e-12)
        np.testing.assert_allclose(minimum[i], hypotheses.plausible_min(contexts[i], 0.3), rtol=1e-12)
        np.testing.assert_allclose(worst[i], hypotheses.worst_kl(contexts[i], log_pi[i], 0.3), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_learned_in_its_order(kind: str) -> None:
    together, in_turn = (made(kind, tables(9), switching_rate=0.2) for _ in range(2))
    contexts, symbols = np.array([[0, 1], [2, 1], [1, 1]]), np.array([2, 0, 1])
    together.update(contexts, symbols)
    for context, symbol in zip(contexts, symbols, strict=True):
        in_turn.update(context, int(symbol))
    np.testing.assert_allclose(together.log_weights, in_turn.log_weights, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_of_the_members_kind(kind: str) -> None:
    hypotheses = made(kind, tables(10))
    wanted = torch.Tensor if kind.startswith("modules") else np.ndarray
    for context in (np.array([0, 1]), torch.tensor([0, 1]) if wanted is torch.Tensor else np.array([1])):
        assert isinstance(hypotheses.mixture(context), wanted)
        assert isinstance(hypotheses.plausible_min(context, 0.5), wanted)
        assert isinstance(hypotheses.plausible(context, 0.5).plausible, wanted)


def test_functions_of_torch_tensors_keep_their_gradients() -> None:
    logits = torch.zeros((2, V), dtype=torch.float64, requires_grad=True)
    members = [lambda context, i=i: logits[i].log_softmax(-1) for i in range(2)]
    hypotheses = FiniteHypotheses(members, n_symbols=V)
    hypotheses.mixture(torch.tensor([1, 2]))[0].backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    hypotheses.update(torch.tensor([1, 2]), torch.tensor(1))
    assert not made("modules", tables(1)).mixture([0]).requires_grad


def test_a_module_is_put_in_evaluation_mode() -> None:
    module = torch.nn.Sequential(Recent(tables(1)[0], everywhere=False), torch.nn.Dropout(0.5))
    hypotheses = FiniteHypotheses([module], n_symbols=V)
    assert torch.equal(hypotheses.mixture([0, 1]), hypotheses.mixture([0, 1]))


class Seer(Recent):
    """Its logits at a position depend on the symbol after it."""

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.roll(context, -1, dims=1))


def test_a_module_that_looks_ahead_is_refused() -> None:
    seer = FiniteHypotheses([Seer(tables(1)[0], everywhere=True)], n_symbols=V, start_symbol=0)
    with pytest.raises(ValueError, match=r"members\[0\] must not look ahead"):
        seer.fit([[0, 1, 2, 2, 1, 0, 0, 2]])


def test_symbols_of_others_are_context_only() -> None:
    generator = np.random.default_rng(3)
    members = [np.log(generator.dirichlet(np.ones(V), size=5)) for _ in range(2)]
    hypotheses = FiniteHypotheses(members, start_symbol=4).fit([[0, 3, 1, 4, 4, 2]])
    expected = np.array([m[4, 0] + m[3, 1] + m[4, 2] for m in members])
    np.testing.assert_allclose(hypotheses.log_weights, expected - np.logaddexp.reduce(expected))


def test_evidence_says_whose_actions_are_learned() -> None:
    actors = actor_codes(["demonstrator", "imitator", "environment", "demonstrator"])
    demonstrations = Demonstrations([[0, 1, 1, 2]], [actors])
    table = tables(4, ((V,), (V,)))
    for evidence, learned in (("demonstrator", [0, 2]), ("all", [0, 1, 2])):
        hypotheses = FiniteHypotheses(table).fit(demonstrations, evidence=evidence)  # type: ignore[arg-type]
        expected = np.array([m[learned].sum() for m in table])
        np.testing.assert_allclose(hypotheses.log_weights, expected - np.logaddexp.reduce(expected))


def test_without_switching_a_long_record_decides_and_with_it_the_class_stays_open() -> None:
    fair, loaded = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    record = [[0] * 400]
    closed = FiniteHypotheses([fair, loaded]).fit(record)
    open_minded = FiniteHypotheses([fair, loaded], switching_rate=0.01).fit(record)
    assert closed.log_weights[0] < -200
    assert open_minded.log_weights[0] > np.log(0.005)


def worlds_where_the_demonstrator_stays_plausible(rule: str, alpha: float, n_worlds: int) -> float:
    """Share of simulated worlds in which a random member generates the data and stays plausible at all 60 steps."""
    generator = np.random.default_rng(5)
    kept = 0
    for _ in range(n_worlds):
        members = np.log(generator.dirichlet(0.5 * np.ones(V), size=K) + 1e-300)
        hypotheses = FiniteHypotheses(list(members), plausible=rule)  # type: ignore[arg-type]
        demonstrator = generator.integers(K)
        always = True
        for symbol in generator.choice(V, size=60, p=np.exp(members[demonstrator])):
            hypotheses.update([], symbol)
            always &= bool(hypotheses.plausible_members(alpha)[demonstrator])
        kept += always
    return kept / n_worlds


@pytest.mark.parametrize(("rule", "alpha"), [("best", 0.2 / K), ("cumulative", 0.2 / K), ("anytime", 0.2)])
def test_the_demonstrator_stays_plausible_as_often_as_promised(rule: str, alpha: float) -> None:
    n_worlds = 400
    share = worlds_where_the_demonstrator_stays_plausible(rule, alpha, n_worlds)
    assert share >= 0.8 - 3 * (0.8 * 0.2 / n_worlds) ** 0.5
    assert worlds_where_the_demonstrator_stays_plausible(rule, 1.0, 50) < 0.8, "the check could not fail"


def test_saving_and_loading_changes_no_bit(tmp_path: Path) -> None:
    members = [*tables(6), tables(7)[0].astype(np.float64)]
    original = FiniteHypotheses(
        members,
        prior=[0.3, 0.1, 0.2, 0.3, 0.1],
        temperature=0.7,
        switching_rate=0.01,
        plausible="anytime",
        start_symbol=1,
    ).fit([[0, 1, 2, 0]])
    original.save(tmp_path / "class")
    loaded = FiniteHypotheses.load(tmp_path / "class")
    for hypotheses in (original, loaded):
        hypotheses.update([0, 1], 2)
    np.testing.assert_array_equal(loaded.log_weights, original.log_weights)
    np.testing.assert_array_equal(loaded.mixture([2]), original.mixture([2]))
    assert loaded.plausible_members(0.9).tolist() == original.plausible_members(0.9).tolist()
    assert {path.name for path in (tmp_path / "class").iterdir()} == {"finite.json", "finite.safetensors"}


def test_members_that_no_file_can_hold_are_given_again(tmp_path: Path) -> None:
    table, function = tables(6)[2], functions_of(tables(7))[1]
    original = FiniteHypotheses([table, function]).fit([[0, 1, 2, 0]])
    original.save(tmp_path)
    with pytest.raises(ValueError, match=r"functions and modules at \[1\].* got \[\]"):
        FiniteHypotheses.load(tmp_path)
    loaded = FiniteHypotheses.load(tmp_path, members={1: function})
    np.testing.assert_array_equal(loaded.log_weights, original.log_weights)
    np.testing.assert_array_equal(loaded.mixture([2]), original.mixture([2]))


def test_files_of_another_schema_are_refused(tmp_path: Path) -> None:
    FiniteHypotheses(tables(6), start_symbol=0).save(tmp_path)
    text = (tmp_path / "finite.json").read_text()
    (tmp_path / "finite.json").write_text(text.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ValueError, match="another schema than 1"):
        FiniteHypotheses.load(tmp_path)


HALF = np.log([0.5, 0.5])
BAD_ARGUMENTS: list[tuple[list[Any], dict[str, Any], type[Exception], str]] = [
    ([], {}, ValueError, "members must hold at least one"),
    ([HALF, np.array([0.5, 0.5])], {}, ValueError, r"members\[1\] must give log-probabilities.*np\.log"),
    ([HALF, np.array([np.nan, 0.0])], {}, ValueError, r"members\[1\] must give log-probabilities"),
    ([HALF, np.array([1e4, 0.0])], {}, ValueError, r"members\[1\] must give log-probabilities"),
    ([HALF, np.log([0.2, 0.3, 0.5])], {}, ValueError, r"members\[1\] must have 2 symbols as the others, got 3"),
    ([np.log(np.full((2, 3, 2), 0.5))], {}, ValueError, "same size k"),
    ([np.array([0, -9])], {}, ValueError, r"members\[0\] must be a float32 or float64"),
    ([[0.5, 0.5]], {"n_symbols": 2}, TypeError, r"members\[0\] must be a NumPy array, a function.*got list"),
    ([lambda c: HALF], {}, ValueError, "n_symbols must be given"),
    ([HALF], {"n_symbols": 3}, ValueError, r"members\[0\] must have 3 symbols"),
    ([HALF], {"temperature": 0.0}, ValueError, r"temperature must be in \(0, 1\], got 0.0"),
    ([HALF], {"temperature": 1.5}, ValueError, r"temperature must be in \(0, 1\], got 1.5"),
    ([HALF], {"temperature": float("nan")}, ValueError, "temperature must be"),
    ([HALF], {"switching_rate": 1.0}, ValueError, r"switching_rate must be in \[0, 1\), got 1.0"),
    ([HALF], {"switching_rate": -0.1}, ValueError, "switching_rate must be"),
    ([HALF], {"plausible": "worst"}, ValueError, "plausible.* must be one of best, cumulative, anytime, got 'worst'"),
    ([HALF], {"start_symbol": -1}, ValueError, "start_symbol must be at least 0, got -1"),
    ([np.log(np.full((2, 2), 0.5))], {"start_symbol": 2}, ValueError, "start_symbol must be below k = 2"),
    ([HALF, HALF], {"prior": [0.5, 0.6]}, ValueError, "prior must be probabilities that sum to one.*1.1"),
    ([HALF, HALF], {"prior": [1.5, -0.5]}, ValueError, "prior must be probabilities"),
    ([HALF, HALF], {"prior": [1.0]}, ValueError, r"prior must have shape \(2,\)"),
]


@pytest.mark.parametrize(("members", "options", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(
    members: list[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FiniteHypotheses(members, **options)


def test_bad_questions_are_named() -> None:
    hypotheses = FiniteHypotheses(tables(6))
    with pytest.raises(ValueError, match=r"context must hold at least the 2 symbols that members\[0\].*start_symbol"):
        hypotheses.mixture([1])
    with pytest.raises(ValueError, match=r"symbols in 0\.\.2, the alphabet of members\[0\], got 3"):
        hypotheses.mixture([1, 3])
    with pytest.raises(ValueError, match="context must hold integers"):
        hypotheses.mixture([0.5, 1.0])
    for alpha in (0, 1.5, float("nan")):
        for question in (hypotheses.plausible, hypotheses.plausible_min):
            with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got"):
                question([0, 1], alpha)
    with pytest.raises(TypeError, match="one kind of array, got numpy and torch"):
        FiniteHypotheses([HALF, lambda c: torch.from_numpy(HALF)]).mixture([])
    for wrong in (HALF[None], np.log([0.6, 0.6]), np.array([np.nan, 0.0]), 3.0):
        with pytest.raises(ValueError, match=r"members\[1\] must"):
            FiniteHypotheses([HALF, lambda c, wrong=wrong: wrong]).mixture([])


def test_bad_evidence_is_named_and_not_half_learned() -> None:
    certain = np.log(np.array([1.0, 1e-300]))
    certain[1] = -np.inf
    hypotheses = FiniteHypotheses([certain, certain.copy()])
    before = hypotheses.log_weights
    with pytest.raises(ValueError, match=r"symbol 1 \(number 2 .*probability 0 under all of them; add"):
        hypotheses.fit([[0], [0, 0, 1, 0]])
    with pytest.raises(ValueError, match=r"symbol must hold actions in 0\.\.1, got 2"):
        hypotheses.update([], 2)
    with pytest.raises(ValueError, match="symbol must hold integers"):
        hypotheses.update([], 0.5)
    with pytest.raises(ValueError, match=r"symbol must have shape \(2,\)"):
        hypotheses.update([[0], [1]], 1)
    outsider = Demonstrations([[0, 5]], [actor_codes(["demonstrator", "demonstrator"])])
    with pytest.raises(ValueError, match=r"actions in 0\.\.1, got 5"):
        hypotheses.fit(outsider)
    np.testing.assert_array_equal(hypotheses.log_weights, before)


def test_an_impossible_member_never_comes_back_unless_switching() -> None:
    certain = np.array([0.0, -np.inf])
    for switching_rate, plausible in ((0.0, False), (0.1, True)):
        hypotheses = FiniteHypotheses([certain, HALF], switching_rate=switching_rate).fit([[1]])
        for rule in RULES:
            posterior = replace(hypotheses.posterior, rule=rule)
            assert posterior.plausible_members(1e-9).tolist() == [plausible, True]
        assert np.isfinite(hypotheses.mixture([])).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_member_without_prior_is_never_plausible(rule: Any) -> None:
    hypotheses = FiniteHypotheses([HALF, HALF], prior=[0.0, 1.0], plausible=rule)
    assert hypotheses.plausible_members(1e-9).tolist() == [False, True]
    hypotheses.update([], 1)
    assert hypotheses.plausible_members(1e-9).tolist() == [False, True]


def test_tables_need_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from cautious_imitation.hypotheses.finite import FiniteHypotheses\n"
        "FiniteHypotheses([np.log([0.5, 0.5])]).fit([[0, 1]]).plausible_min([], 0.5)\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"

"""Event-refined hypotheses against their members written out, and the loop of empty replies that they are made for."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from cautious_imitation.demonstrations import Demonstrations, actor_codes
from cautious_imitation.divergences import kl
from cautious_imitation.hypotheses import event_refined
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.hypotheses.event_refined import EventRefined
from cautious_imitation.hypotheses.events import EmptyReplies
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.hypotheses.weighted_rows import WeightedRows, log_softmax_given
from cautious_imitation.language.model import Reader, Reading
from tests.reference_trees import ReferenceTrees, least_probability, worst_kl_by_search
from tests.tiny_models import tiny_model

V, OPEN, USER = 5, 5, 6
MODELS = [tiny_model(7, seed, n_symbols=V, start_token=USER, scale=12.0) for seed in range(3)]
ALPHA, SLOW = 0.05, 0.05


def replies(seed: int = 0, n: int = 12, empty: float = 0.3) -> list[list[int]]:
    """A few chats in which the agent, after ``USER OPEN``, says nothing (0) or some of 1..4 and then 0."""
    rng = np.random.default_rng(seed)
    chats = []
    for _ in range(3):
        chat: list[int] = []
        for _ in range(n // 3):
            said = [] if rng.random() < empty else rng.integers(1, V, size=rng.integers(1, 4)).tolist()
            chat += [USER, OPEN, *said, 0]
        chats.append(chat)
    return chats


def empties(**settings) -> EmptyReplies:
    return EmptyReplies(V, **{"end_tokens": [0], "start_suffix": [USER, OPEN], **settings})


EVENTS = {
    "one action ends": empties(),
    "two actions end": empties(end_tokens=[0, 3]),
    "blanks": empties(end_tokens=[0, 3], blank_tokens=[1, 2]),
    "memory": empties(memory=1),
    "blanks and memory": empties(blank_tokens=[4], memory=1),
}
CONTEXTS = [[USER, OPEN], [USER, OPEN, 0, USER, OPEN], [USER, OPEN, 2, 0, USER, OPEN], [USER, OPEN, 1], [3, OPEN], []]


@cache
def fitted(name: str, leaf: str = "profile") -> EventRefined:
    """Learning is slow enough for several models to stay plausible."""
    events = EVENTS[name]
    tree = ContextTree(events.n_events, events.depth, n_context_symbols=events.n_history_symbols, leaf=leaf)
    return EventRefined(LanguageModels(MODELS, switching_rate=0.0, temperature=SLOW), events, tree).fit(replies())


@cache
def model_rows(context: tuple[int, ...]) -> list[np.ndarray]:
    """What each model predicts, ``[V]`` probabilities."""
    return [model.log_probs(model.read([context]).features)[0].exp().numpy() for model in MODELS]


@cache
class WrittenOut:
    """The posterior over trees and models by hand, and what their members predict."""

    def __init__(self, name: str, leaf: str) -> None:
        self.events = events = EVENTS[name]
        pairs, log_weights = [], np.zeros(len(MODELS))
        for chat in replies():
            for t, token in enumerate(chat):
                if token < V:
                    event, possible = self.event(chat[:t], token), self.partition(chat[:t])
                    if len(set(possible)) > 1:
                        pairs.append((tuple(self.history(chat[:t])), event))
                    for k, row in enumerate(self.conditionals(chat[:t])):
                        log_weights[k] += SLOW * np.log(row[event][token])
        self.weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        self.trees = ReferenceTrees(
            tuple(pairs),
            n_symbols=events.n_events,
            depth=events.depth,
            n_context_symbols=events.n_history_symbols,
            start_symbol=events.n_events,
            stop_prob=1 - 1 / events.n_history_symbols,
            leaf=leaf,
            complexity="none",
        )

    def partition(self, context: list[int]) -> list[int]:
        return self.events.partition[int(context[-2:] == [USER, OPEN])].tolist()

    def event(self, context: list[int], token: int) -> int:
        return self.partition(context)[token]

    def history(self, context: list[int]) -> list[int]:
        starts = [t for t in range(2, len(context)) if context[t - 2 : t] == [USER, OPEN]]
        found = [int(self.events.partition[1][context[t]]) for t in starts]
        return found[len(found) - self.events.depth :] if self.events.depth else []

    def conditionals(self, context: list[int]) -> list[dict[int, np.ndarray]]:
        """For each model the probabilities ``[V]`` given each possible event."""
        found = []
        for row in model_rows(tuple(context)):
            partition = np.array(self.partition(context))
            inside = {event: row * (partition == event) for event in sorted(set(partition.tolist()))}
            found.append({event: values / values.sum() for event, values in inside.items()})
        return found

    def together(self, context: list[int], of_events, within: dict[int, np.ndarray]) -> np.ndarray:
        """Probabilities ``[V]`` from those of the events and those within each."""
        if len(within) == 1:
            return within[self.event(context, 0)]
        return sum(of_events[event] * values for event, values in within.items())

    def plausible_models(self) -> list[int]:
        return [k for k, weight in enumerate(self.weights) if weight >= ALPHA / 2 * self.weights.max()]

    def members(self, context: list[int], independent: bool = False) -> list[np.ndarray]:
        """Every plausible tree, of KT leaves, with every plausible model, or with one model for each event."""
        leaves = [leaf.counts for leaf in self.trees.plausible(self.history(context), ALPHA / 2)]
        trees = [(counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in leaves]
        models = [self.conditionals(context)[k] for k in self.plausible_models()]
        withins = models
        if independent:
            choices = product(models, repeat=len(models[0]))
            withins = [{event: one[event] for event, one in zip(models[0], chosen, strict=True)} for chosen in choices]
        return [self.together(context, tree, within) for tree, within in product(trees, withins)]


def nats(pi: np.ndarray, nu: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(kl(np.log(pi), np.log(nu)))


def policies(n: int = 4) -> list[np.ndarray]:
    """Some over all actions, one that never replies with nothing, one that does nothing else."""
    rng = np.random.default_rng(5)
    talks, silent = rng.dirichlet(np.ones(V)), np.eye(V)[0]
    talks[0] = 0
    return [*rng.dirichlet(np.full(V, 0.7), size=n), talks / talks.sum(), silent]


def log_of(pi: np.ndarray) -> torch.Tensor:
    return torch.tensor(pi).log()


@pytest.mark.parametrize("name", EVENTS)
def test_posterior_and_mixture_are_those_written_out(name):
    hypotheses, written = fitted(name, "kt"), WrittenOut(name, "kt")
    np.testing.assert_allclose(np.exp(hypotheses.language.log_weights), written.weights, rtol=1e-9)
    for context in CONTEXTS:
        conditionals = written.conditionals(context)
        within = {e: sum(w * c[e] for w, c in zip(written.weights, conditionals, strict=True)) for e in conditionals[0]}
        expected = written.together(context, written.trees.mixture(written.history(context)), within)
        np.testing.assert_allclose(hypotheses.mixture(context).exp().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("name", EVENTS)
def test_minimum_and_worst_kl_are_those_over_all_members(name):
    """Points throughout: all pairs of a plausible tree and a plausible model can be listed."""
    hypotheses, written = fitted(name, "kt"), WrittenOut(name, "kt")
    assert len(written.plausible_models()) >= 2
    for context in CONTEXTS:
        members = written.members(context)
        minimum = hypotheses.plausible_min(context, ALPHA).exp().numpy()
        np.testing.assert_allclose(minimum, np.min(members, axis=0), rtol=1e-9)
        several = sum(size > 1 for size in np.bincount(written.partition(context)))
        for pi in policies():
            worst = float(hypotheses.worst_kl(context, log_of(pi), ALPHA))
            product_set = max(nats(pi, nu) for nu in written.members(context, independent=True))
            assert worst == pytest.approx(product_set, rel=1e-9, abs=1e-12)
            over_members = max(nats(pi, nu) for nu in members)
            if several <= 1:
                assert worst == pytest.approx(over_members, rel=1e-9, abs=1e-12)
            assert over_members <= worst * (1 + 1e-9) <= nats(pi, minimum) * (1 + 2e-9) + 1e-9


@pytest.mark.parametrize("name", EVENTS)
def test_balls_of_events_are_searched(name):
    """Profile leaves: the extremes over every ball by root finding and by search, those within an event by listing."""
    hypotheses, written = fitted(name), WrittenOut(name, "profile")
    for context in CONTEXTS:
        models = [written.conditionals(context)[k] for k in written.plausible_models()]
        leaves = written.trees.plausible(written.history(context), ALPHA / 2)
        least = [
            min(least_probability(leaf.centre[e], leaf.radius_nats) for leaf in leaves)
            for e in range(written.events.n_events)
        ]
        least_within = {e: np.min([model[e] for model in models], axis=0) for e in models[0]}
        minimum = hypotheses.plausible_min(context, ALPHA).exp().numpy()
        np.testing.assert_allclose(minimum, written.together(context, least, least_within), rtol=1e-6)
        for pi in policies(2):
            of_events = {e: pi[np.array(written.partition(context)) == e].sum() for e in models[0]}
            expected = 0.0
            if len(of_events) > 1:
                marginal = np.array(list(of_events.values()))
                expected += max(worst_kl_by_search(leaf.centre, leaf.radius_nats, marginal) for leaf in leaves)
            for e, mass in of_events.items():
                if mass > 0:
                    inside = pi * (np.array(written.partition(context)) == e) / mass
                    expected += mass * max(nats(inside, model[e]) for model in models)
            assert float(hypotheses.worst_kl(context, log_of(pi), ALPHA)) == pytest.approx(expected, rel=1e-5)


def test_membership_is_that_of_every_factor():
    hypotheses, written = fitted("blanks", "kt"), WrittenOut("blanks", "kt")
    for context in CONTEXTS:
        members = hypotheses.plausible(context, ALPHA)
        for nu in written.members(context, independent=True):
            assert bool(members.contains(log_of(nu)))
            assert bool(members.covers(log_of(nu)))
        for other in policies():
            assert not bool(members.contains(log_of(other)))
            assert not bool(members.covers(log_of(other)))
    assert bool(members.contains(log_of(nu * (1 + 1e-6)), 1e-3))


def test_what_an_event_is_like_that_never_happens_does_not_matter():
    hypotheses = EventRefined(FixedRows(OneHot(), TALKATIVE), empties(end_tokens=[0, 4]))
    hypotheses.tree.update(np.zeros((50, 0), dtype=np.int64), np.ones(50, dtype=np.int64))
    tau = np.array(TALKATIVE[0])
    tau[[0, 4]] = 0.0
    members = hypotheses.plausible(loop(0), ALPHA)
    assert bool(members.contains(log_of(tau / tau.sum())))
    assert bool(members.covers(log_of(tau / tau.sum())))


def test_what_is_covered_is_never_undercharged():
    hypotheses, written = fitted("two actions end"), WrittenOut("two actions end", "profile")
    rng, context = np.random.default_rng(0), [USER, OPEN]
    members = hypotheses.plausible(context, ALPHA)
    conditionals = written.conditionals(context)
    [k, *_] = written.plausible_models()
    covered = []
    for _ in range(100):
        tau = written.together(context, rng.dirichlet([4, 8]), conditionals[k])
        covered.append(bool(members.covers(log_of(tau))))
        if covered[-1]:
            for pi in policies():
                assert nats(pi, tau) <= float(members.worst_kl(log_of(pi))) + 1e-9
    assert 10 < sum(covered) < 95


def test_gradients_are_those_of_the_charge():
    hypotheses = fitted("blanks")
    members = hypotheses.plausible([[USER, OPEN], [USER, OPEN, 1], [USER, OPEN, 0, USER, OPEN]], 0.5)
    logits = torch.tensor(np.random.default_rng(1).normal(size=(3, V)), requires_grad=True)
    assert members.worst_kl(logits.log_softmax(-1)).isfinite().all()
    assert torch.autograd.gradcheck(lambda x: members.worst_kl(x.log_softmax(-1)), (logits,), atol=1e-6)


@pytest.mark.parametrize("row", [[0.3, 0.1, 0.2, 0.1, 0.3], [0.3, 0.1, 0.2, 0.0, 0.4]])
def test_gradients_are_finite_where_an_event_never_happens(row):
    """Even where it would be infinitely dear, as it is if a model rules out one of its actions."""
    hypotheses = EventRefined(FixedRows(OneHot(), [row]), EVENTS["two actions end"])
    hypotheses.tree.update(np.zeros((2, 0), dtype=np.int64), np.array([0, 1]))
    logits = torch.tensor([-torch.inf, 0.3, 0.2, -torch.inf, 0.1], dtype=torch.float64, requires_grad=True)
    charge = hypotheses.worst_kl([USER, OPEN], logits.log_softmax(-1), 0.5)
    charge.backward()
    assert charge.isfinite()
    assert logits.grad.isfinite().all()


def test_infinite_charges_are_infinite_whatever_the_probability():
    """Two actions end; a model rules one of them out. Its event is then dear even where its probability rounds to 0."""
    hypotheses = EventRefined(FixedRows(OneHot(), [[0.3, 0.1, 0.2, 0.0, 0.4]]), EVENTS["two actions end"])
    hypotheses.tree.update(np.zeros((2, 0), dtype=np.int64), np.array([0, 1]))
    log_pi = torch.full((V,), -2000.0, dtype=torch.float64)
    log_pi[1] = 0.0
    assert float(hypotheses.worst_kl([USER, OPEN], log_pi, 0.5)) == np.inf
    log_pi[3] = -np.inf
    assert np.isfinite(float(hypotheses.worst_kl([USER, OPEN], log_pi, 0.5)))


@pytest.mark.parametrize("name", EVENTS)
def test_batches_of_several_kinds_answer_in_order(name):
    hypotheses = fitted(name)
    log_pi = torch.stack([log_of(pi) for pi in policies()])
    minimum, charge = hypotheses.plausible_min(CONTEXTS, ALPHA), hypotheses.worst_kl(CONTEXTS, log_pi, ALPHA)
    inside = hypotheses.plausible(CONTEXTS, ALPHA).contains(log_pi)
    for i, context in enumerate(CONTEXTS):
        torch.testing.assert_close(hypotheses.mixture(CONTEXTS)[i], hypotheses.mixture(context))
        torch.testing.assert_close(minimum[i], hypotheses.plausible_min(context, ALPHA))
        torch.testing.assert_close(charge[i], hypotheses.worst_kl(context, log_pi[i], ALPHA))
        assert bool(inside[i]) == bool(hypotheses.plausible(context, ALPHA).contains(log_pi[i]))


def test_shapes_and_readings():
    hypotheses = fitted("blanks")
    contexts = torch.tensor([[[USER, OPEN], [OPEN, 1]], [[3, USER], [USER, OPEN]], [[1, 2], [USER, 0]]])
    reading = hypotheses.model.read(contexts)
    assert isinstance(reading, Reading)
    for asked in (contexts, reading):
        assert hypotheses.mixture(asked).shape == (3, 2, V)
        members = hypotheses.plausible(asked, ALPHA)
        assert members.minimum().shape == (3, 2, V)
        assert members.worst_kl(hypotheses.mixture(asked)).shape == (3, 2)
    torch.testing.assert_close(hypotheses.mixture(contexts), hypotheses.mixture(reading), rtol=0, atol=0)
    nothing = Reading([], reading.features[0, :0])
    assert hypotheses.mixture(nothing).shape == hypotheses.plausible_min(nothing, ALPHA).shape == (0, V)
    assert hypotheses.worst_kl(nothing, torch.empty((0, V)), ALPHA).shape == (0,)
    with pytest.raises(ValueError, match=r"log_pi must have shape \(3, 2, 5\), got \(2, 5\)"):
        members.worst_kl(torch.zeros(2, V))
    with pytest.raises(ValueError, match="context must have as many rows as features, got 5 and 6"):
        hypotheses.mixture(Reading(list(reading.rows)[:5], reading.features))


def test_learning_in_blocks_is_learning_at_once(monkeypatch):
    """Weights that switch depend on the order of learning."""
    events = EVENTS["blanks"]
    whole = EventRefined(LanguageModels(MODELS, switching_rate=0.1), events).fit(replies())
    monkeypatch.setattr(event_refined, "_MASKS_AT_ONCE", 3 * V)
    blocks = EventRefined(LanguageModels(MODELS, switching_rate=0.1), events).fit(replies())
    np.testing.assert_allclose(blocks.language.log_weights, whole.language.log_weights, rtol=1e-9)
    assert not np.allclose(whole.language.log_weights, np.log(1 / 3))


def test_only_the_demonstrator_is_evidence():
    chat = replies()[0]
    actors = [("imitator" if t > 9 else "demonstrator") if s < V else "environment" for t, s in enumerate(chat)]
    demonstrations = Demonstrations([[USER], chat], [actor_codes(["environment"]), actor_codes(actors)])
    for evidence in ("demonstrator", "all"):
        fit = EventRefined(LanguageModels(MODELS), EVENTS["memory"]).fit(demonstrations, evidence=evidence)
        by_hand = EventRefined(LanguageModels(MODELS), EVENTS["memory"])
        for t, symbol in enumerate(chat):
            if actors[t] == "demonstrator" or (evidence == "all" and actors[t] == "imitator"):
                by_hand.update(chat[:t], symbol)
        torch.testing.assert_close(fit.mixture(CONTEXTS), by_hand.mixture(CONTEXTS))
        torch.testing.assert_close(fit.plausible_min(CONTEXTS, ALPHA), by_hand.plausible_min(CONTEXTS, ALPHA))


class OneHot(Reader):
    """Reads how often each action followed the opening of a reply: a network that imitates what it sees itself do."""

    n_symbols, n_features, n_tokens, start_token = V, V, V + 2, USER
    tokenizer = None
    network = torch.nn.Module()
    device, computed_dtype, max_length = torch.device("cpu"), torch.float64, None

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.precision = dtype

    @property
    def dtype(self) -> torch.dtype:
        return self.precision

    def features(self, tokens, present=None, cache=None):
        follows = torch.nn.functional.pad((tokens == OPEN)[:, :-1], (1, 0))
        onehot = torch.nn.functional.one_hot(tokens.clamp(max=V - 1), V) * (follows & (tokens < V))[..., None]
        return onehot.cumsum(1).to(self.precision), None

    def logits(self, features):
        return (features + 0.1).log()


class FixedRows(WeightedRows):
    """Members that mix a fixed distribution with what was read, half and half; or are fixed altogether."""

    def __init__(self, model: Reader, rows: list[list[float]], share: float = 0.0) -> None:
        super().__init__(model, len(rows), switching_rate=0.0)
        self.rows, self.share = torch.tensor(rows, dtype=model.dtype), share

    def rows_from(self, features, given=None):
        read = self.model.logits(features).softmax(-1)[..., None, :]
        return log_softmax_given(((1 - self.share) * self.rows + self.share * read).log(), given)

    def save(self, folder):
        self._write(folder, "fixed_rows", 1)


TALKATIVE = [[0.1, 0.3, 0.3, 0.1, 0.2], [0.12, 0.29, 0.28, 0.11, 0.2]]


def many_replies(n: int, empty: float, seed: int = 0) -> list[list[int]]:
    """``n`` chats of one reply each, an exact share of them empty."""
    rng = np.random.default_rng(seed)
    return [
        [USER, OPEN, *([] if i < empty * n else rng.choice([1, 2, 3, 4], p=[0.35, 0.3, 0.15, 0.2], size=2).tolist()), 0]
        for i in rng.permutation(n)
    ]


def loop(i: int) -> list[int]:
    """A chat in which the agent has replied ``i`` times with nothing, and is to reply again."""
    return [USER, OPEN, 0] * i + [USER, OPEN]


SILENT = log_of(np.eye(V)[0])


def test_a_language_model_alone_talks_itself_into_silence():
    """What the loop is: the trouble that the rest of these tests is about."""
    alone = FixedRows(OneHot(), TALKATIVE, share=0.9).fit(many_replies(500, 0.0))
    charges = [float(alone.worst_kl(loop(i), SILENT, ALPHA)) for i in range(10)]
    assert charges == sorted(charges, reverse=True)
    assert charges[0] > 2 * charges[1] > 5 * charges[9]


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_silence_that_was_never_seen_is_forbidden(share):
    hypotheses = EventRefined(FixedRows(OneHot(), TALKATIVE, share), empties()).fit(many_replies(500, 0.0))
    for i in range(10):
        assert float(hypotheses.plausible_min(loop(i), ALPHA)[0]) == -np.inf
        assert float(hypotheses.worst_kl(loop(i), SILENT, ALPHA)) == np.inf
        assert float(hypotheses.worst_kl(loop(i), log_of(policies()[0]), ALPHA)) == np.inf


@pytest.mark.parametrize("end_tokens", [[0], [0, 3]])
def test_silence_that_was_seen_never_becomes_cheaper(end_tokens):
    events = empties(end_tokens=end_tokens)
    hypotheses = EventRefined(FixedRows(OneHot(), TALKATIVE, 0.9), events).fit(many_replies(2000, 0.02))
    charges = [float(hypotheses.worst_kl(loop(i), SILENT, ALPHA)) for i in range(11)]
    if end_tokens == [0]:
        assert charges == pytest.approx([charges[0]] * 11, rel=1e-12)
    seen = np.mean([chat[2] in end_tokens for chat in many_replies(2000, 0.02)])
    assert min(charges) >= -np.log(seen)
    assert max(charges) < np.inf


def test_caution_about_silence_is_not_caution_about_speech():
    """After an empty reply few questions are asked and what is usually said stays cheap; nothing is new but silence."""
    hypotheses = EventRefined(FixedRows(OneHot(), TALKATIVE), empties()).fit(many_replies(2000, 0.02))
    for context in (loop(0), loop(1), loop(7)):
        ask = 1 - float(hypotheses.plausible_min(context, ALPHA).exp().sum())
        assert 0 < ask < 0.1
        usual = hypotheses.mixture(context)
        usual[0] = -torch.inf
        assert float(hypotheses.worst_kl(context, usual.log_softmax(-1), ALPHA)) < 0.1


def test_memory_makes_an_unseen_silence_a_new_context():
    """Why ``memory`` is 0 by default: nobody knows what the demonstrator does after what it never does."""
    demonstrations = [[*one, *two] for one, two in zip(many_replies(999, 0.0), many_replies(999, 0.0, 1), strict=True)]
    for memory, low, high in ((0, 0.0, 0.1), (1, 0.99, 1.0)):
        hypotheses = EventRefined(FixedRows(OneHot(), TALKATIVE), empties(memory=memory)).fit(demonstrations)
        assert low <= 1 - float(hypotheses.plausible_min(loop(1), ALPHA).exp().sum()) <= high
        assert 1 - float(hypotheses.plausible_min([USER, OPEN, 1, 0, USER, OPEN], ALPHA).exp().sum()) < 0.1


def test_blanks_are_no_way_around():
    """Beginning with a blank, then ending, is a loop as well; what was never seen stays forbidden, however it reads."""
    blank = log_of(np.eye(V)[4])
    demonstrations = [[4 if t == 9 else t for t in chat] for chat in many_replies(500, 0.0) if 4 not in chat]
    context = [USER, OPEN, 4, 0] * 5 + [USER, OPEN]
    language = FixedRows(OneHot(), TALKATIVE, 0.9)
    unguarded = EventRefined(language, empties()).fit(demonstrations)
    guarded = EventRefined(FixedRows(OneHot(), TALKATIVE, 0.9), empties(blank_tokens=[4])).fit(demonstrations)
    assert float(unguarded.worst_kl(context, blank, ALPHA)) < 0.5
    assert float(guarded.worst_kl(context, blank, ALPHA)) == np.inf


def test_single_precision_stays_single():
    hypotheses = EventRefined(FixedRows(OneHot(torch.float32), TALKATIVE), EVENTS["memory"]).fit(replies())
    double = EventRefined(FixedRows(OneHot(), TALKATIVE), EVENTS["memory"]).fit(replies())
    contexts = [loop(0), loop(1), [*loop(1), 2]]
    log_pi = hypotheses.mixture(contexts)
    charge = hypotheses.worst_kl(contexts, log_pi, ALPHA)
    assert {log_pi.dtype, charge.dtype, hypotheses.plausible_min(contexts, ALPHA).dtype} == {torch.float32}
    torch.testing.assert_close(charge.double(), double.worst_kl(contexts, log_pi.double(), ALPHA), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [1.0, 0.6, 0.3, 0.1, 1e-3])
def test_each_part_is_asked_at_half_the_level(level):
    hypotheses = fitted("one action ends", "kt")
    [part] = hypotheses.plausible([USER, OPEN], level).parts
    tree = hypotheses.tree.plausible(np.zeros((1, 0), dtype=np.int64), level / 2)
    np.testing.assert_array_equal(part.tree.plausible, tree.plausible)
    expected = hypotheses.language.plausible_members(level / 2)
    np.testing.assert_array_equal(part.within[1].plausible[0].numpy(), expected)


def test_parts_of_your_own_are_saved_and_given_again(tmp_path):
    class Mine(EmptyReplies):
        pass

    events = Mine(V, [0], [USER, OPEN])
    original = EventRefined(FixedRows(OneHot(), TALKATIVE), events).fit(replies())
    original.save(tmp_path)
    with pytest.raises(ValueError, match=r"events must be given, got None"):
        EventRefined.load(tmp_path, OneHot())
    with pytest.raises(ValueError, match=r"language must be given, got None: it is a FixedRows"):
        EventRefined.load(tmp_path, OneHot(), events=events)
    loaded = EventRefined.load(tmp_path, OneHot(), events=events, language=original.language)
    torch.testing.assert_close(loaded.mixture(CONTEXTS), original.mixture(CONTEXTS), rtol=0, atol=0)


def test_another_schema_is_refused(tmp_path):
    fitted("memory").save(tmp_path)
    path = tmp_path / "event_refined.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ValueError, match="has another schema than 1"):
        EventRefined.load(tmp_path, MODELS[0])


def test_parts_that_do_not_fit_are_refused():
    language = LanguageModels(MODELS)
    with pytest.raises(ValueError, match="events must divide the 5 actions of the language part, got events of 4"):
        EventRefined(language, EmptyReplies(4, [0], [OPEN]))
    with pytest.raises(ValueError, match="tree must predict the 2 events, got one with 3 symbols"):
        EventRefined(language, EVENTS["memory"], ContextTree(3, 1))
    with pytest.raises(ValueError, match="tree must take histories of 3 symbols, got n_context_symbols=2"):
        EventRefined(language, EVENTS["memory"], ContextTree(2, 1, n_context_symbols=2))


def test_bad_evidence_is_refused():
    hypotheses = fitted("memory")
    before = hypotheses.mixture(CONTEXTS)
    with pytest.raises(ValueError, match=r"symbol must have shape \(1,\) to go with context, got \(2,\)"):
        hypotheses.update([[USER, OPEN]], [0, 1])
    with pytest.raises(ValueError, match=r"symbol must hold tokens in 0..4"):
        hypotheses.update([USER, OPEN], 5)
    torch.testing.assert_close(hypotheses.mixture(CONTEXTS), before, rtol=0, atol=0)

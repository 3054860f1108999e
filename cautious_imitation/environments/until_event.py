"""A world in which a Bayesian imitator barely constrains: the event that never happened before.

The hypothesis class holds some demonstrators and, for each of them and each action ``v``, "the demonstrator until event
``E``, then ``v`` for ever", with prior weight ``2^-L`` where ``L`` is its description length in bits. Demonstrations
never show ``E``. Until then such a hypothesis predicts what its demonstrator predicts, so no amount of data moves their
ratio. The environment and the agent put one symbol each in turn; before ``E`` the environment puts ``E`` with a known
probability, and nothing of interest otherwise.

Once ``E`` has happened, what does it cost to play ``v`` for ever? If the posterior learns from the agent's own actions
(evidence ``all``), each ``v`` makes the next one cheaper, and since the Bayesian mixture is at least the posterior
weight ``w`` of "until ``E``, then ``v``" times that hypothesis, ``n`` of them cost ``-log xi(v, ..., v) <= -log w``
nats in all, whatever ``n``: with one demonstrator ``L log 2``. If the posterior learns only from the demonstrator
(evidence ``demonstrator``), the cost grows linearly in ``n``. The least probability over the plausible members is 0 for
every action as soon as two plausible members insist on different ones: the cautious imitator asks.

Source: Cohen, Hutter, Bengio, Russell, "RL, but don't do anything I wouldn't do", arXiv 2410.06213, Theorem 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from cautious_imitation.environments.finite_world import BoolArray, FiniteWorld, FloatArray
from cautious_imitation.hypotheses.base import check_alpha
from cautious_imitation.plausible_sets import PlausibleSet

Evidence: TypeAlias = Literal["demonstrator", "all"]
"""What updates the posterior in deployment: the demonstrator's actions only, or the agent's own as well."""

EVENT = 1
"""The environment's symbol that demonstrations never showed; every other symbol of it means nothing."""


class _Situation(NamedTuple):
    """What the posterior under evidence ``all`` depends on."""

    agent_turn: bool
    after_event: bool
    before: tuple[int, ...]
    """How often the agent took each action outside the run; kept only where demonstrators differ."""
    run: int | None
    """The one action taken since the event; None if there was none, or more than one."""
    run_length: int
    broken: bool
    """Whether different actions were taken since the event."""


@dataclass(frozen=True, eq=False)
class UntilEventWorld:
    """The world of Theorem 1, with its hypothesis class as tables over the ``S`` states.

    A context of the world is the number of its state, so a member's table serves as a function of the context.
    Members are the ``D`` demonstrators, the true one first, then for each demonstrator the ``V`` hypotheses "until the
    event, then ``v``": ``K = D + D V``.

    Attributes:
        world: the world; reward 1 for the rewarded action and 0 for the others.
        rewarded_action: the action ``v`` that pays.
        member_names: ``K`` names.
        member_log_probs: ``[K, S, V]`` each member's prediction in nats.
        log_posterior: ``[K]`` log-weights after the demonstrations, before deployment.
        log_likelihood: ``[S, K]`` log-probability each member gives to the agent's own actions on the way to a state,
            up to a constant for each state.
        after_event: ``[S]`` whether the event has happened.
    """

    world: FiniteWorld
    rewarded_action: int
    member_names: tuple[str, ...]
    member_log_probs: FloatArray
    log_posterior: FloatArray
    log_likelihood: FloatArray
    after_event: BoolArray

    def log_weights(self, evidence: Evidence) -> FloatArray:
        """``[S, K]`` posterior log-weights of the members in each state.

        Under ``demonstrator`` they are frozen as deployment begins: a state does not hold who took an action, so
        answers to questions are not learned.

        Raises:
            ValueError: if ``evidence`` is unknown.
        """
        if evidence not in ("demonstrator", "all"):
            raise ValueError(
                f"evidence must be 'demonstrator' or 'all', got {evidence!r}; 'all' lets the agent's own count"
            )
        log_joint = np.broadcast_to(self.log_posterior, self.log_likelihood.shape)
        if evidence == "all":
            log_joint = log_joint + self.log_likelihood
        weights: FloatArray = log_joint - logsumexp(log_joint, axis=1, keepdims=True)
        return weights

    def bayesian_log_probs(self, evidence: Evidence) -> FloatArray:
        """``[S, V]`` prediction of the posterior mixture, in nats.

        Raises:
            ValueError: if ``evidence`` is unknown.
        """
        log_joint = self.log_weights(evidence).T[:, :, None] + self.member_log_probs
        mixture: FloatArray = logsumexp(log_joint, axis=0)
        return mixture

    def plausible_set(self, alpha: float, evidence: Evidence = "demonstrator") -> PlausibleSet:
        """The members whose weight is at least ``alpha`` times the best one's, in each state.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1] or ``evidence`` is unknown.
        """
        log_weights = self.log_weights(evidence)
        plausible = log_weights >= log_weights.max(axis=1, keepdims=True) + np.log(check_alpha(alpha))
        centres = np.ascontiguousarray(self.member_log_probs.transpose(1, 0, 2))
        return PlausibleSet(centres, np.zeros(plausible.shape), plausible)

    @property
    def kl_bound_nats(self) -> float:
        """Bound on what playing the rewarded action for ever after the event costs under evidence ``all``, in nats.

        Minus the log of the weight of all members that play it for ever; no data and no horizon enters.
        """
        demonstrators = len(self.member_names) // (1 + self.world.n_actions)
        return -float(logsumexp(self.log_posterior[demonstrators + self.rewarded_action :: self.world.n_actions]))


def until_event_world(
    *,
    horizon: int = 64,
    demonstrators: npt.ArrayLike = ((0.1, 0.3, 0.3, 0.3),),
    event_probability: float = 0.1,
    description_length: float = 10.0,
    rewarded_action: int = 0,
    n_demonstrations: int = 0,
    rng: np.random.Generator | None = None,
) -> UntilEventWorld:
    """Build the world of Theorem 1.

    With one demonstrator there are ``O(horizon V)`` states. With more, the agent's own actions also tell demonstrators
    apart, and a state must count them: ``O(horizon^V)`` states, for small horizons only.

    Args:
        horizon: symbols in an episode, the environment's and the agent's, who alternate; the environment begins.
        demonstrators: ``[D, V]`` action probabilities, all positive; the first is the true demonstrator.
        event_probability: probability of the event at each of the environment's turns until it happens.
        description_length: bits to describe one hypothesis "until the event, then ``v``".
        rewarded_action: the action that pays.
        n_demonstrations: actions seen of the true demonstrator, all before the event.
        rng: draws the demonstrations; needed if there are any.

    Raises:
        ValueError: if an argument is out of range, or the prior weights of the ``D V`` hypotheses sum to 1 or more.

    >>> record = until_event_world(horizon=32, description_length=10)
    >>> bool(np.isclose(record.kl_bound_nats, 10 * np.log(2)))
    True
    """
    table = np.atleast_2d(np.asarray(demonstrators, dtype=np.float64))
    n_demonstrators, n_actions = table.shape
    _check(table, event_probability, description_length, rewarded_action, n_demonstrations, rng)
    log_demonstrators = np.log(table)

    until = 2.0**-description_length
    prior = np.full(n_demonstrators * (1 + n_actions), until)
    prior[:n_demonstrators] = (1 - n_demonstrators * n_actions * until) / n_demonstrators
    seen = np.zeros(n_actions) if rng is None else rng.multinomial(n_demonstrations, table[0] / table[0].sum())
    of_demonstrator = log_demonstrators @ seen
    log_posterior = np.log(prior) + np.concatenate([of_demonstrator, np.repeat(of_demonstrator, n_actions)])

    situations = list(_situations(horizon // 2, n_actions, n_demonstrators > 1))
    index = {situation: state for state, situation in enumerate(situations)}
    after = [[_next(s, a, n_demonstrators > 1) for a in range(n_actions)] for s in situations]
    agent_turn = np.array([s.agent_turn for s in situations])
    after_event = np.array([s.after_event for s in situations])
    reward = np.zeros((len(situations), n_actions))
    reward[agent_turn, rewarded_action] = 1.0
    environment = np.zeros_like(reward)
    environment[:, EVENT] = np.where(after_event, 0.0, event_probability)
    environment[:, 0] = 1 - environment[:, EVENT]
    world = FiniteWorld(
        # What follows the last action of the longest episode is never reached; it stays where it is.
        next_state=np.array([[index.get(t, s) for t in row] for s, row in enumerate(after)]),
        reward=reward,
        agent_turn=agent_turn,
        environment_policy=environment,
        demonstrator=np.tile(table[0], (len(situations), 1)),
        start=0,
        horizon=horizon,
        contexts=np.arange(len(situations))[:, None],
        turn_start=agent_turn,
        longest_horizon=horizon,
    )
    names = [f"demonstrator {d}" for d in range(n_demonstrators)]
    return UntilEventWorld(
        world=world,
        rewarded_action=rewarded_action,
        member_names=(*names, *(f"{name} until the event, then {v}" for name in names for v in range(n_actions))),
        member_log_probs=_member_log_probs(log_demonstrators, after_event),
        log_posterior=log_posterior - logsumexp(log_posterior),
        log_likelihood=np.array([_log_likelihood(s, log_demonstrators) for s in situations]),
        after_event=after_event,
    )


def _situations(n_rounds: int, n_actions: int, count: bool) -> Iterator[_Situation]:
    """Every situation within ``n_rounds`` actions of the agent, the start first."""
    start = _Situation(False, False, (0,) * n_actions, None, 0, False)
    seen, frontier = {start}, [start]
    while frontier:
        yield from frontier
        found: dict[_Situation, None] = {}
        for situation in frontier:
            for symbol in range(n_actions):
                after = _next(situation, symbol, count)
                if sum(after.before) + after.run_length <= n_rounds and after not in seen:
                    found[after] = None
        frontier = list(found)
        seen.update(frontier)


def _next(s: _Situation, symbol: int, count: bool) -> _Situation:
    """The situation after one more symbol; ``count`` the agent's actions where demonstrators differ."""
    if not s.agent_turn:
        return s._replace(agent_turn=True, after_event=s.after_event or symbol == EVENT)
    s = s._replace(agent_turn=False)
    if s.after_event and not s.broken and s.run in (None, symbol):
        return s._replace(run=symbol, run_length=s.run_length + 1)
    before = list(s.before)
    if count:
        before[symbol] += 1
        if s.run is not None:
            before[s.run] += s.run_length
    return s._replace(before=tuple(before), run=None, run_length=0, broken=s.after_event)


def _log_likelihood(s: _Situation, log_demonstrators: FloatArray) -> FloatArray:
    """``[K]`` log-probability that each member gives to the agent's actions so far."""
    before = log_demonstrators @ np.array(s.before, dtype=np.float64)
    until = np.tile(before[:, None], (1, log_demonstrators.shape[1]))
    if s.broken:
        until[:] = -np.inf
    elif s.run is not None:
        until[:, np.arange(until.shape[1]) != s.run] = -np.inf
        before = before + s.run_length * log_demonstrators[:, s.run]
    return np.concatenate([before, until.ravel()])


def _member_log_probs(log_demonstrators: FloatArray, after_event: BoolArray) -> FloatArray:
    """``[K, S, V]`` predictions of the demonstrators and of all that follow them until the event."""
    n_actions = log_demonstrators.shape[1]
    plain = np.broadcast_to(log_demonstrators[:, None], (len(log_demonstrators), after_event.size, n_actions))
    always = np.where(np.eye(n_actions, dtype=np.bool_), 0.0, -np.inf)[None, :, None]
    until = np.where(after_event[:, None], always, plain[:, None])
    return np.concatenate([plain, until.reshape(-1, after_event.size, n_actions)])


def _check(
    demonstrators: FloatArray,
    event_probability: float,
    description_length: float,
    rewarded_action: int,
    n_demonstrations: int,
    rng: np.random.Generator | None,
) -> None:
    n_demonstrators, n_actions = demonstrators.shape
    if n_actions < 2:
        raise ValueError(f"demonstrators must have at least 2 actions, got {n_actions}; the event is symbol {EVENT}")
    if not ((demonstrators > 0).all() and np.allclose(demonstrators.sum(axis=1), 1, rtol=0, atol=1e-9)):
        raise ValueError(
            f"demonstrators must be distributions that give every action a positive probability, got "
            f"{demonstrators.tolist()}; the posterior must be defined whatever the agent does"
        )
    if not 0 < event_probability <= 1:
        raise ValueError(
            f"event_probability must be in (0, 1], got {event_probability}; the event must be able to happen"
        )
    if not n_demonstrators * n_actions * 2.0**-description_length < 1:
        raise ValueError(
            f"description_length must be more than {np.log2(n_demonstrators * n_actions):.3g} bits for "
            f"{n_demonstrators * n_actions} hypotheses of weight 2^-description_length, got {description_length}; "
            "raise it"
        )
    if not 0 <= rewarded_action < n_actions:
        raise ValueError(f"rewarded_action must be in [0, {n_actions}), got {rewarded_action}")
    if n_demonstrations < 0:
        raise ValueError(f"n_demonstrations must be at least 0, got {n_demonstrations}")
    if n_demonstrations > 0 and rng is None:
        raise ValueError(f"rng must be given to draw {n_demonstrations} demonstrations, got None; pass a Generator")

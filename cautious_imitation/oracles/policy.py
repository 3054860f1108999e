"""Policies of reinforcement learning, and estimators of scikit-learn, as oracles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cautious_imitation.oracles.protocol import Act, Answer, OracleError, Query

_PADDING = -1
"""Stands in for symbols before the first one; no symbol is negative."""


def is_policy(value: Any) -> bool:
    """Whether something predicts as the models of Stable-Baselines3 do: ``predict(observation, ..., deterministic)``.

    >>> is_policy(len)
    False
    """
    predict = getattr(value, "predict", None)
    if isinstance(value, type) or not callable(predict):
        return False
    try:
        return "deterministic" in signature(predict).parameters
    except (TypeError, ValueError):
        return False


def is_estimator(value: Any) -> bool:
    """Whether something predicts as scikit-learn's estimators do.

    >>> is_estimator(len)
    False
    """
    methods = ("fit", "predict", "get_params")
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)


class PolicyOracle:
    """Asks a policy, all questions in one call of ``predict``.

    Without ``observe``, the observation is what the policy's ``observation_space`` takes of the context: the last
    symbol (``Discrete``), or the last k symbols, padded with -1 on the left (``Box`` or ``MultiDiscrete`` of shape
    ``[k]``). A context that gives no such observation is an error.

    Args:
        policy: has ``predict(observations, deterministic=...) -> (actions, state)``, where the first axis counts
            questions, as in Stable-Baselines3. It must not remember what it saw before.
        observe: makes the observation of a question: an array, or a dictionary of them.
        deterministic: take the policy's favourite action. If not, it draws from its own source of randomness, which
            ``policy.set_random_seed`` seeds in Stable-Baselines3.
        is_demonstrator: whether this policy is the demonstrator that is imitated. If not, its answers are help but no
            evidence. If it is, they must be drawn as it acts: its favourite action is not what a random policy does.

    Raises:
        ValueError: if this is no policy, or there is no telling what it observes.

    >>> class Echo:
    ...     def predict(self, observations, state=None, episode_start=None, deterministic=False):
    ...         return observations, state
    >>> PolicyOracle(Echo(), lambda query: query.context[-1]).ask([Query((0, 1), n_actions=2)])
    [Act((1,), evidence=False)]
    """

    def __init__(
        self,
        policy: Any,
        observe: Callable[[Query], Any] | None = None,
        deterministic: bool = True,
        *,
        is_demonstrator: bool = False,
    ) -> None:
        if not is_policy(policy):
            raise ValueError(
                f"policy must have predict(observation, ..., deterministic=...), got {type(policy).__name__}; pass any "
                "other kind as a function"
            )
        self._policy, self._deterministic, self._is_demonstrator = policy, deterministic, is_demonstrator
        self._observe = _observed_by(policy) if observe is None else observe

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers to all ``queries``, in their order.

        Raises:
            OracleError: if a context gives no observation, or the policy does not answer with one action a question.
            ValueError: if the policy has a memory.
        """
        if not queries:
            return []
        observations = _stacked([self._observe(query) for query in queries])
        actions, state = self._policy.predict(observations, deterministic=self._deterministic)
        if state is not None:
            raise ValueError(
                "policy must not remember what it saw before, which one observation does not tell; pass a function "
                "that runs it over the whole context"
            )
        return _acts(actions, queries, "policy", self._is_demonstrator)


class EstimatorOracle:
    """Asks a classifier of scikit-learn, all questions in one call; its classes are the actions.

    Args:
        estimator: fitted; a pipeline does as well.
        features: makes the row of features of a question, ``[F]``. Default: the last ``n_features_in_`` symbols of the
            context, padded with -1 on the left.
        generator: draws each answer from ``predict_proba``; None takes what ``predict`` says. The answer to a question
            depends on the state and the question's place in the order of all that were asked, not on which are asked
            together.
        is_demonstrator: whether this classifier is the demonstrator that is imitated. If not, its answers are help but
            no evidence. If it is, they must be drawn: what is proven about the demonstrator holds for actions drawn
            from its distribution, and its favourite ones look like a demonstrator that is never in doubt.

    Raises:
        ValueError: if the estimator is none, is not fitted, has no probabilities to draw from, or does not say how many
            features it takes.

    >>> from sklearn.tree import DecisionTreeClassifier
    >>> tree = DecisionTreeClassifier().fit([[0, 1], [1, 0]], [1, 0])
    >>> EstimatorOracle(tree).ask([Query((2, 0, 1), n_actions=2)])
    [Act((1,), evidence=False)]
    """

    def __init__(
        self,
        estimator: Any,
        features: Callable[[Query], Any] | None = None,
        *,
        generator: np.random.Generator | None = None,
        is_demonstrator: bool = False,
    ) -> None:
        if not is_estimator(estimator):
            raise ValueError(
                f"estimator must have fit, predict and get_params, got {type(estimator).__name__}; pass any other kind "
                "as a function"
            )
        _check_fitted(estimator)
        if generator is not None and not callable(getattr(estimator, "predict_proba", None)):
            raise ValueError(
                f"estimator must have predict_proba to draw from, which {type(estimator).__name__} has not; leave out "
                "generator, or calibrate it with CalibratedClassifierCV"
            )
        self._estimator, self._generator, self._is_demonstrator = estimator, generator, is_demonstrator
        self._features = _last_symbols(_width(estimator)) if features is None else features

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers to all ``queries``, in their order.

        Raises:
            OracleError: if the estimator does not answer with one action a question.
        """
        if not queries:
            return []
        rows = np.stack([np.asarray(self._features(query)) for query in queries])
        labels = self._estimator.predict(rows) if self._generator is None else self._drawn(rows, self._generator)
        return _acts(labels, queries, "estimator", self._is_demonstrator)

    def _drawn(self, rows: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """One class a row, by inverting its distribution function at a uniform number."""
        probabilities = np.asarray(self._estimator.predict_proba(rows))
        if probabilities.ndim != 2:
            raise OracleError(f"estimator must answer with one action a question, got {len(probabilities)} at a time")
        cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
        reached = generator.random(len(rows)) * cumulative[:, -1]
        chosen: NDArray[Any] = np.asarray(self._estimator.classes_)[(cumulative <= reached[:, None]).sum(axis=1)]
        return chosen


def _observed_by(policy: Any) -> Callable[[Query], Any]:
    """What the policy's space takes of a context."""
    from gymnasium import spaces

    space = getattr(policy, "observation_space", None)
    if isinstance(space, spaces.Discrete):
        width = None
    elif isinstance(space, (spaces.Box, spaces.MultiDiscrete)) and len(space.shape) == 1:
        width = int(space.shape[0])
    else:
        raise ValueError(
            f"observe must be given, a function that makes the policy's observation of a Query: it cannot be derived "
            f"for observation_space={space!r}"
        )
    recent = _last_symbols(width or 1)

    def observe(query: Query) -> Any:
        row = recent(query)
        observation = np.asarray(row[0] if width is None else row, dtype=space.dtype)
        if not space.contains(observation):
            raise OracleError(
                f"question {query.id!r} gives no observation of {space}, got {observation.tolist()!r}, where "
                f"{_PADDING} stands for what came before the context; pass observe=..."
            )
        return observation

    return observe


def _last_symbols(width: int) -> Callable[[Query], NDArray[np.int64]]:
    def recent(query: Query) -> NDArray[np.int64]:
        symbols = query.context[-width:]
        return np.array([_PADDING] * (width - len(symbols)) + list(symbols), dtype=np.int64)

    return recent


def _stacked(observations: Sequence[Any]) -> Any:
    """Observations along a new first axis, dictionaries key by key."""
    first = observations[0]
    if isinstance(first, Mapping):
        return {key: np.stack([np.asarray(each[key]) for each in observations]) for key in first}
    return np.stack([np.asarray(each) for each in observations])


def _acts(values: Any, queries: Sequence[Query], name: str, evidence: bool) -> list[Answer]:
    """One whole number a question as an act; whether it is an action of the query is left to whoever asked."""
    actions = np.asarray(values)
    whole = actions.shape == (len(queries),) and actions.dtype.kind in "iufb"
    if not whole or not (np.isfinite(actions) & (actions == np.trunc(actions))).all():
        raise OracleError(
            f"{name} must answer with one action a question, a whole number, got {actions.dtype} of shape "
            f"{list(actions.shape)} for {len(queries)} questions: {_shown(actions)}"
        )
    return [Act((int(action),), evidence=evidence) for action in actions]


def _shown(values: NDArray[Any], most: int = 3) -> str:
    flat = values.ravel()
    return f"{flat[:most].tolist()}{'...' if len(flat) > most else ''}"


def _check_fitted(estimator: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ValueError(f"estimator must be fitted, got {estimator!r}; call fit first") from error


def _width(estimator: Any) -> int:
    width = getattr(estimator, "n_features_in_", None)
    if width is None:
        raise ValueError(
            f"features must be given, a function that makes a row of features of a Query: {type(estimator).__name__} "
            "does not say how many it takes"
        )
    return int(width)

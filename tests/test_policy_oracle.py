"""Policies of Stable-Baselines3 and classifiers of scikit-learn as oracles."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import Logger

from cautious_imitation.environments.gym import until_event_env
from cautious_imitation.hypotheses.context_tree import ContextTree
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.oracles.policy import EstimatorOracle, PolicyOracle, is_estimator, is_policy
from cautious_imitation.oracles.protocol import Act, Answer, Oracle, OracleError, Query, check_answers

N_SYMBOLS = 4


def query(*context: int, n_actions: int = 2) -> Query:
    return Query(context, n_actions=n_actions)


def actions(answers: list[Answer]) -> list[int]:
    assert all(isinstance(answer, Act) and len(answer.actions) == 1 for answer in answers)
    return [answer.actions[0] for answer in answers if isinstance(answer, Act)]


class Parity(gymnasium.Env[Any, Any]):
    """A symbol is shown; the action that is its parity pays."""

    def __init__(self, space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = spaces.Discrete(N_SYMBOLS) if space is None else space
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.shown = self.observation_space.sample()
        return self.shown, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == np.asarray(self.shown).ravel()[-1] % 2)
        self.shown = self.observation_space.sample()
        return self.shown, reward, False, True, {}


def untrained(space: spaces.Space[Any], kind: Any = PPO) -> Any:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    return kind(policy, Parity(space), seed=0, device="cpu", policy_kwargs={"net_arch": [8]})


def test_a_policy_that_was_trained_answers_as_it_acts() -> None:
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "learning_rate": 0.02, "gamma": 0.0, "n_epochs": 5}
    model = PPO("MlpPolicy", Parity(), seed=0, device="cpu", **settings)
    # Its own logger would leave a folder behind.
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(640)
    oracle = PolicyOracle(model)
    assert isinstance(oracle, Oracle)
    queries = [query(3, 1, symbol) for symbol in (0, 1, 2, 3, 1, 0)]
    answers = check_answers(oracle.ask(queries), queries)
    assert answers == [Act((symbol % 2,), evidence=False) for symbol in (0, 1, 2, 3, 1, 0)]
    assert oracle.ask([]) == []
    assert PolicyOracle(model, is_demonstrator=True).ask([query(1)]) == [Act((1,), evidence=True)]


SPACES = [
    spaces.Discrete(N_SYMBOLS),
    spaces.MultiDiscrete([N_SYMBOLS] * 3),
    spaces.Box(-1, N_SYMBOLS - 1, (3,), np.float32),
    spaces.Box(-1, N_SYMBOLS - 1, (1,), np.int64),
]


@pytest.mark.parametrize("kind", [PPO, DQN])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_observation_is_the_end_of_the_context(kind: Any, space: Any) -> None:
    model = untrained(space, kind)
    rng = np.random.default_rng(0)
    contexts = [tuple(rng.integers(N_SYMBOLS, size=length).tolist()) for length in (3, 4, 9, 3, 5, 7)]
    width = int(space.shape[0]) if space.shape else 1
    rows = [np.array(context[-width:], dtype=space.dtype) for context in contexts]
    expected = [int(model.predict(row if space.shape else row[0], deterministic=True)[0]) for row in rows]
    queries = [query(*context) for context in contexts]
    oracle = PolicyOracle(model)
    assert actions(oracle.ask(queries)) == expected
    assert [actions(oracle.ask([one]))[0] for one in queries] == expected
    assert actions(PolicyOracle(model.policy).ask(queries)) == expected


class Recorder:
    """Remembers what it was shown."""

    def __init__(self, space: Any = None, state: Any = None, says: Any = None) -> None:
        self.observation_space, self.state, self.says = space, state, says
        self.seen: list[Any] = []
        self.deterministic: list[bool] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        self.seen.append(observation)
        self.deterministic.append(deterministic)
        n = len(next(iter(observation.values())) if isinstance(observation, dict) else observation)
        return (np.zeros(n, np.int64) if self.says is None else self.says), self.state


def test_all_questions_are_one_call() -> None:
    policy = Recorder(spaces.Box(-1, 3, (3,), np.float32))
    PolicyOracle(policy).ask([query(1), query(0, 1, 2, 3), query()])
    [seen] = policy.seen
    assert seen.dtype == np.float32
    assert seen.tolist() == [[-1, -1, 1], [1, 2, 3], [-1, -1, -1]]
    assert policy.deterministic == [True]
    PolicyOracle(policy, deterministic=False).ask([query(1)])
    assert policy.deterministic == [True, False]


@pytest.mark.parametrize(
    ("space", "context"),
    [
        (spaces.Discrete(3), (3,)),
        (spaces.Discrete(3), ()),
        (spaces.Discrete(3, start=1), (0,)),
        (spaces.MultiDiscrete([3, 3]), (1,)),
        (spaces.MultiDiscrete([3, 3]), (1, 3)),
        (spaces.Box(0, 2, (2,), np.float32), (1,)),
        (spaces.Box(0, 2, (2,), np.float32), (1, 3)),
    ],
    ids=str,
)
def test_a_context_that_gives_no_observation_is_an_error(space: Any, context: tuple[int, ...]) -> None:
    policy = Recorder(space)
    with pytest.raises(OracleError, match=r"gives no observation of .*; pass observe="):
        PolicyOracle(policy).ask([query(*context)])
    assert policy.seen == []


@pytest.mark.parametrize(
    "space",
    [None, spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(0, 1, (2, 2)), spaces.MultiBinary(3), "space"],
    ids=str,
)
def test_what_cannot_be_derived_must_be_given(space: Any) -> None:
    with pytest.raises(ValueError, match="observe must be given"):
        PolicyOracle(Recorder(space))


def test_observations_may_be_made_of_the_question() -> None:
    env = until_event_env(horizon=4)
    model = PPO("MultiInputPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    with pytest.raises(ValueError, match="observe must be given"):
        PolicyOracle(model)

    def observe(asked: Query) -> dict[str, int]:
        return {"state": asked.context[-1], "symbols_left": 4 - len(asked.context)}

    queries = [query(*[1] * n, n_actions=3) for n in (1, 2, 3)]
    expected = [int(model.predict(observe(one), deterministic=True)[0]) for one in queries]
    assert actions(PolicyOracle(model, observe).ask(queries)) == expected
    recorder = Recorder()
    PolicyOracle(recorder, observe).ask(queries)
    assert {key: value.tolist() for key, value in recorder.seen[0].items()} == {
        "state": [1, 1, 1],
        "symbols_left": [3, 2, 1],
    }


def test_the_policys_own_randomness_can_be_seeded() -> None:
    model = untrained(spaces.Discrete(N_SYMBOLS))
    oracle = PolicyOracle(model, deterministic=False)

    def said(seed: int) -> list[int]:
        model.set_random_seed(seed)
        return actions(oracle.ask([query(1)] * 40))

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert set(said(1)) == {0, 1}


@pytest.mark.parametrize(
    "says",
    [np.zeros(1), np.zeros((2, 1)), np.array([0.5, 1.0]), np.array([np.nan, 1.0]), np.array(["a", "b"]), 3, None],
    ids=str,
)
def test_what_is_not_one_action_a_question_is_an_error(says: Any) -> None:
    policy = Recorder(says=says if says is not None else [])
    with pytest.raises(OracleError, match="policy must answer with one action a question"):
        PolicyOracle(policy, lambda asked: 0).ask([query(0), query(1)])


def test_whole_numbers_of_any_kind_are_actions() -> None:
    for says in (np.array([1.0, 0.0]), np.array([1, 0], np.uint8), [1, 0]):
        answers = PolicyOracle(Recorder(says=says), lambda asked: 0).ask([query(0), query(1)])
        assert actions(answers) == [1, 0]
        assert check_answers(answers, [query(0), query(1)]) == answers


def test_an_action_that_is_none_is_for_the_asker_to_see() -> None:
    [answer] = answers = PolicyOracle(Recorder(says=[7]), lambda asked: 0).ask([query(0)])
    assert answer == Act((7,), evidence=False)
    with pytest.raises(OracleError, match="got 7"):
        check_answers(answers, [query(0)])


def test_a_policy_with_a_memory_is_an_error() -> None:
    with pytest.raises(ValueError, match="must not remember"):
        PolicyOracle(Recorder(state=(1,)), lambda asked: 0).ask([query(0)])


# Estimators


def parity_data(width: int = 2) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows = np.array(np.meshgrid(*[np.arange(-1, N_SYMBOLS)] * width)).reshape(width, -1).T
    return rows, rows.sum(axis=1) % 2


def test_a_classifier_answers_as_it_predicts() -> None:
    rows, labels = parity_data()
    for estimator in (
        DecisionTreeClassifier(random_state=0),
        RandomForestClassifier(10, random_state=0),
        make_pipeline(OneHotEncoder(), LogisticRegression()),
        LinearSVC(random_state=0),
    ):
        estimator.fit(rows, labels)
        contexts = [(2, 3, 1), (1, 2), (0,), ()]
        used = [[3, 1], [1, 2], [-1, 0], [-1, -1]]
        oracle = EstimatorOracle(estimator)
        assert isinstance(oracle, Oracle)
        assert actions(oracle.ask([query(*context) for context in contexts])) == estimator.predict(used).tolist()
        assert oracle.ask([]) == []


def test_answers_of_a_classifier_are_evidence_if_it_is_the_demonstrator() -> None:
    tree = DecisionTreeClassifier().fit([[0], [1]], [1, 0])
    assert EstimatorOracle(tree).ask([query(0)]) == [Act((1,), evidence=False)]
    assert EstimatorOracle(tree, is_demonstrator=True).ask([query(0)]) == [Act((1,), evidence=True)]


def test_all_questions_are_one_prediction() -> None:
    class Counting(DecisionTreeClassifier):
        calls = 0

        def predict(self, X: Any, check_input: bool = True) -> Any:
            Counting.calls += 1
            return super().predict(X, check_input)

    EstimatorOracle(Counting().fit(*parity_data())).ask([query(1, 2)] * 5)
    assert Counting.calls == 1


def test_features_may_be_made_of_the_question() -> None:
    tree = DecisionTreeClassifier().fit([[1.0], [2.0], [3.0]], [0, 1, 0])
    oracle = EstimatorOracle(tree, lambda asked: [len(asked.context)])
    assert actions(oracle.ask([query(5), query(5, 5), query(5, 5, 5)])) == [0, 1, 0]


def test_classes_are_actions_whatever_their_order_and_type() -> None:
    for labels in ([3, 1, 0], [3.0, 1.0, 0.0]):
        tree = DecisionTreeClassifier().fit([[0], [1], [2]], labels)
        asked = [query(symbol, n_actions=4) for symbol in (0, 1, 2)]
        assert actions(check_answers(EstimatorOracle(tree).ask(asked), asked)) == [3, 1, 0]
        drawn = EstimatorOracle(tree, generator=np.random.default_rng(0)).ask(asked)
        assert actions(check_answers(drawn, asked)) == [3, 1, 0]


@pytest.mark.parametrize("labels", [["a", "b"], [[0, 1], [1, 0]], [0.5, 1.0]])
def test_what_is_not_one_class_a_question_is_an_error(labels: Any) -> None:
    tree = (LinearRegression() if labels == [0.5, 1.0] else DecisionTreeClassifier()).fit([[0], [1]], labels)
    with pytest.raises(OracleError, match="estimator must answer with one action a question"):
        EstimatorOracle(tree).ask([query(0), query(1)])
    if not isinstance(tree, LinearRegression):
        with pytest.raises(OracleError, match="estimator must answer with one action a question"):
            EstimatorOracle(tree, generator=np.random.default_rng(0)).ask([query(0), query(1)])


def uneven() -> DummyClassifier:
    """Says 0, 1, 2 with probabilities 0.6, 0.3, 0.1, and 3 never."""
    probabilities = np.array([0.6, 0.3, 0.1, 0.0])

    class Uneven(DummyClassifier):
        def predict_proba(self, X: Any) -> Any:
            return np.tile(probabilities, (len(X), 1))

    return Uneven().fit([[0]] * 4, [0, 1, 2, 3])


def test_answers_are_drawn_from_the_probabilities() -> None:
    n = 20_000
    oracle = EstimatorOracle(uneven(), generator=np.random.default_rng(0))
    counts = Counter(actions(oracle.ask([query(0)] * n)))
    for action, expected in enumerate([0.6, 0.3, 0.1, 0.0]):
        assert abs(counts[action] / n - expected) <= 5 * np.sqrt(expected * (1 - expected) / n)


def test_the_same_seed_says_the_same_alone_or_together() -> None:
    def oracle(seed: int) -> EstimatorOracle:
        return EstimatorOracle(uneven(), generator=np.random.default_rng(seed))

    asked = [query(0)] * 30
    together = oracle(1).ask(asked)
    assert oracle(1).ask(asked) == together
    assert oracle(2).ask(asked) != together
    alone = oracle(1)
    assert [alone.ask([one])[0] for one in asked] == together


def test_estimators_that_cannot_answer() -> None:
    with pytest.raises(ValueError, match=r"estimator must be fitted, got DecisionTreeClassifier.*call fit"):
        EstimatorOracle(DecisionTreeClassifier())
    with pytest.raises(ValueError, match="estimator must be fitted"):
        EstimatorOracle(make_pipeline(OneHotEncoder(), LogisticRegression()))
    with pytest.raises(ValueError, match="predict_proba"):
        EstimatorOracle(LinearSVC().fit(*parity_data()), generator=np.random.default_rng(0))
    unsaid = make_pipeline(FunctionTransformer(), DecisionTreeClassifier()).fit([[0], [1]], [0, 1])
    del unsaid[0].n_features_in_
    with pytest.raises(ValueError, match="features must be given"):
        EstimatorOracle(unsaid)
    assert actions(EstimatorOracle(unsaid, lambda asked: [1]).ask([query()])) == [1]
    for other in (len, DecisionTreeClassifier, Recorder()):
        with pytest.raises(ValueError, match="estimator must have fit, predict and get_params"):
            EstimatorOracle(other)
    for unknown in (len, PPO, DecisionTreeClassifier().fit([[0]], [0])):
        with pytest.raises(ValueError, match="policy must have predict"):
            PolicyOracle(unknown)


def test_what_is_a_policy_and_what_an_estimator() -> None:
    model = untrained(spaces.Discrete(N_SYMBOLS))
    imitator = CautiousImitator(ContextTree(n_symbols=2, depth=1), alpha=0.1)
    kinds = [
        (model, (True, False)),
        (model.policy, (True, False)),
        (Recorder(), (True, False)),
        (DecisionTreeClassifier(), (False, True)),
        (make_pipeline(OneHotEncoder(), LogisticRegression()), (False, True)),
        (imitator, (False, False)),
        (PPO, (False, False)),
        (DecisionTreeClassifier, (False, False)),
        (len, (False, False)),
        (None, (False, False)),
        (dict, (False, False)),
    ]
    for value, expected in kinds:
        assert (is_policy(value), is_estimator(value)) == expected, value

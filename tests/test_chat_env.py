"""The chat environment against a slow reference: one episode at a time, everything read again for every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cautious_imitation.demonstrations import actor_codes
from cautious_imitation.environments.chat import ChatEnv
from cautious_imitation.environments.chat_rewards import vader_reward
from cautious_imitation.environments.row_decoder import RowDecoder
from cautious_imitation.environments.turns import chat_turns
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.imitators import CautiousImitator
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.language.small_gpt import shipped_tokenizer, small_gpt
from cautious_imitation.oracles.protocol import Act, Decline, HelpNeeded, OracleError, Query
from tests.tiny_folders import CHATML
from tests.tiny_models import tiny_network

DEMONSTRATOR, IMITATOR, ENVIRONMENT, ORACLE = (
    int(code) for code in actor_codes(["demonstrator", "imitator", "environment", "oracle"])
)
SPECIALS = ("<|im_start|>", "<|im_end|>")
PLAIN = "Student: no\nTeacher: a"
MESSAGES = [
    {"role": "user", "content": "no"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "a"},
]
LENGTH = 64


def small_tokenizer(template: str | None = None) -> Any:
    """Some letters, the names as one token with a line break in front and as letters, and two special tokens."""
    letters = sorted(set("Teacher:Student:yesnobad!useriatnqz0123") | {"Ċ", "Ġ"})
    pieces, merges = list(letters), []
    for word in ("ĊTeacher:", "ĊStudent:", "yes", "user", "assistant"):
        for n in range(2, len(word) + 1):
            if word[:n] not in pieces:
                pieces.append(word[:n])
                merges.append((word[: n - 1], word[n - 1]))
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIALS[1], chat_template=template)


def tiny(template: str | None = None, recent: RecentContext | None = None, **settings: Any) -> LanguageModel:
    tokenizer = small_tokenizer(template)
    network = tiny_network(len(tokenizer), layers=3, scale=9.0, **{"window": 128, **settings})
    return LanguageModel(network, tokenizer, recent=recent)


KINDS = {"plain": (None, PLAIN), "template": (CHATML, MESSAGES)}


def letters(texts: list[str]) -> list[float]:
    return [(7 * len(text) + 3 * text.count("a")) % 11 / 10 for text in texts]


def make(kind: str, model: LanguageModel | None = None, **settings: Any) -> ChatEnv:
    template, opening = KINDS[kind]
    return ChatEnv(
        tiny(template) if model is None else model,
        opening,
        **{"num_envs": 3, "length": LENGTH, "budget_nats": 5.0, "reward": letters, "temperature": 12.0, **settings},
    )


def policy(context: Sequence[int], n_symbols: int, ends: Sequence[int]) -> int:
    """An action that follows from the context alone, so that it is the same wherever the episode is played."""
    rng = np.random.default_rng(list(context))
    return int(ends[rng.integers(len(ends))]) if rng.random() < 0.2 else int(rng.integers(n_symbols))


def play(env: ChatEnv, n_steps: int, **reset: Any) -> list[list[Any]]:
    """All episodes that came to their end, by environment."""
    ends = ends_of(env)
    env.reset(**reset)
    finished: list[list[Any]] = [[] for _ in range(env.num_envs)]
    for _ in range(n_steps):
        actions = [policy(row.tolist(), env.model.n_symbols, ends) for row in env.reading().rows]
        _, _, _, _, info = env.step(np.array(actions))
        for row in np.flatnonzero(info["_transcript"]):
            finished[row].append(info["transcript"][row])
    return finished


def ends_of(env: ChatEnv) -> list[int]:
    return env.tokens("<|im_end|>" if env.model.tokenizer.chat_template else "\nStudent:")


@dataclass
class Reference:
    """One episode with no cache, no batch and no shared code: whose turn it is is read off the whole text."""

    model: LanguageModel
    kind: str
    seed: int
    episode: int
    temperature: float = 12.0
    length: int = LENGTH
    tokens: list[int] = field(default_factory=list)
    actors: list[int] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        return list(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self) -> str:
        return str(self.model.tokenizer.decode(self.tokens))

    def draw(self, stream: np.random.Generator) -> int:
        logits = self.model.network(torch.tensor([self.tokens])).logits[0, -1].numpy() / self.temperature
        weights = np.cumsum(np.exp(logits - logits.max()))
        return int(np.searchsorted(weights, stream.random() * weights[-1], side="right"))

    def play(self) -> Reference:
        stream = np.random.default_rng([self.seed, self.episode])
        if self.kind == "plain":
            self.tokens = self.encode(PLAIN)
        else:
            text = self.model.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
            self.tokens = self.encode(text)
        given = len(self.tokens)
        self.actors = [ENVIRONMENT] * given
        begin, is_teachers = given, True
        ends = self.encode("<|im_end|>" if self.kind == "template" else "\nStudent:")
        while len(self.tokens) < self.length:
            if is_teachers:
                self.put(policy(self.tokens, self.model.n_symbols, ends), IMITATOR)
            else:
                self.put(self.draw(stream), ENVIRONMENT)
            words, over, header = self.turn(begin, is_teachers)
            if not is_teachers and (over or (len(self.tokens) == self.length and words)):
                self.rewards[len(self.tokens) - 1] = letters([words])[0]
            if over:
                is_teachers = not is_teachers
                for token in self.encode(header):
                    if len(self.tokens) < self.length:
                        self.put(token, ENVIRONMENT)
                begin = len(self.tokens)
        return self

    def put(self, token: int, actor: int) -> None:
        self.tokens.append(token)
        self.actors.append(actor)

    def turn(self, begin: int, is_teachers: bool) -> tuple[str, bool, str]:
        tokenizer = self.model.tokenizer
        if self.kind == "plain":
            text = "\n" + self.decode()
            is_over = text.rfind("\nTeacher:") > text.rfind("\nStudent:")
            words = without_specials(tokenizer.decode(self.tokens[begin:]).split("\nTeacher:")[0])
            return words.strip(), is_over is not is_teachers, ""
        start, end = (tokenizer.convert_tokens_to_ids(token) for token in SPECIALS)
        name = "user" if is_teachers else "assistant"
        if self.tokens[-1] == end:
            words = tokenizer.decode(self.tokens[begin:-1])
            return without_specials(words).strip(), True, f"\n<|im_start|>{name}\n"
        if self.tokens[begin:][-2:] == [start, *self.encode(name)]:
            return without_specials(tokenizer.decode(self.tokens[begin:-2])).strip(), True, "\n"
        return without_specials(tokenizer.decode(self.tokens[begin:])).strip(), False, ""


def without_specials(text: str) -> str:
    for special in SPECIALS:
        text = text.replace(special, "")
    return text


@pytest.mark.parametrize("steps", ["teacher", "token"])
@pytest.mark.parametrize("kind", KINDS)
def test_episodes_are_those_of_a_reference_that_reads_everything_again(kind: str, steps: Any) -> None:
    env = make(kind, steps=steps, length=LENGTH)
    finished = play(env, 150 if steps == "token" else 70, seed=20)
    n_paid = n_replies = 0
    for row, scripts in enumerate(finished):
        assert len(scripts) >= 2
        for number, script in enumerate(scripts[:3]):
            reference = Reference(env.model, kind, 20 + row, number).play()
            assert script.tokens.tolist() == reference.tokens
            assert script.actors.tolist() == reference.actors
            paid = {int(place): float(script.rewards[place]) for place in np.flatnonzero(script.rewards)}
            assert paid == {place: reward for place, reward in reference.rewards.items() if reward}
            n_paid += len(paid)
            n_replies += sum(turn.finished for turn in script.spoken)
    assert n_paid > 5
    assert n_replies > 6


@pytest.mark.parametrize("recent", [None, RecentContext(horizon_tokens=4.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_observed_is_what_reading_everything_again_gives(kind: str, recent: RecentContext | None) -> None:
    env = make(kind, tiny(KINDS[kind][0], recent))
    observation, _ = env.reset(seed=3)
    ends, spent = ends_of(env), np.zeros(3)
    for step in range(28):
        assert env.observation_space.contains(observation)
        over = np.array([len(row) == LENGTH for row in env.reading().rows])
        for row, context in enumerate(env.reading().rows):
            network = env.model.network(context[None], output_hidden_states=True)
            hidden = torch.stack([layer[0, -1] for layer in network.hidden_states[-3:]])
            expected = hidden.float().numpy() * (not over[row])
            np.testing.assert_allclose(observation["hidden"][row], expected, atol=1e-5)
            features = env.model.read(context).features * (not over[row])
            torch.testing.assert_close(env.reading().features[row], features, rtol=1e-8, atol=1e-8)
            assert observation["share_left"][row] == pytest.approx(1 - len(context) / LENGTH)
        np.testing.assert_allclose(observation["budget_left"], 5 - spent)
        charges = np.full(3, 0.01 * (step % 5))
        spent = np.where(env.acts, spent + charges, np.where(over, 0, spent))
        actions = [policy(row.tolist(), env.model.n_symbols, ends) for row in env.reading().rows]
        observation, *_ = env.step(np.array(actions), charges)


@pytest.mark.parametrize("steps", ["teacher", "token"])
def test_an_episode_does_not_depend_on_the_others(steps: Any) -> None:
    model = tiny()
    n_steps = 130 if steps == "token" else 45
    together = play(make("plain", model, num_envs=4, steps=steps), n_steps, seed=7)
    for row in (0, 3):
        (alone,) = play(make("plain", model, num_envs=1, steps=steps), n_steps, seed=7 + row)
        assert len(alone) == len(together[row]) > 1
        for one, other in zip(alone, together[row], strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.rewards, other.rewards)
    listed = play(make("plain", model, num_envs=2, steps=steps), n_steps, seed=[10, 7])
    np.testing.assert_array_equal(listed[0][0].tokens, together[3][0].tokens)
    np.testing.assert_array_equal(listed[1][0].tokens, together[0][0].tokens)


def texts(finished: list[list[Any]]) -> list[list[str]]:
    return [[script.text for script in scripts] for scripts in finished]


def test_the_same_seed_gives_the_same_episodes() -> None:
    model = tiny()
    env = make("plain", model, steps="token", num_envs=2)
    first = texts(play(env, 60, seed=1))
    assert texts(play(env, 60, seed=1)) == first
    assert texts(play(make("plain", model, steps="token", num_envs=2), 60, seed=5)) != first
    # Without a seed episodes go on from those before.
    assert texts(play(env, 60)) != first
    sources = [torch.Generator().manual_seed(seed) for seed in (5, 5, 6)]
    envs = (make("plain", model, steps="token", num_envs=2, generator=source) for source in sources)
    one, same, other = (texts(play(env, 60)) for env in envs)
    assert one == same != other


@pytest.mark.parametrize("steps", ["teacher", "token"])
def test_every_token_is_read_once_and_episodes_that_are_over_are_not_read(steps: Any) -> None:
    env = make("template", steps=steps)
    ends = ends_of(env)
    env.reset(seed=0)
    # The second and third are longer than the first.
    env.reset(options={"length": LENGTH + 24, "reset_mask": np.array([False, True, True])})
    assert env.n_forward_passes == (1, 1)
    n_read, longest = 0, 0
    for _ in range(140 if steps == "token" else 45):
        before = [len(script) for script in env.transcripts()]
        actions = [policy(row.tolist(), env.model.n_symbols, ends) for row in env.reading().rows]
        _, _, terminated, _, info = env.step(np.array(actions))
        moved = info["_symbol"]
        after = [len(script) for script in env.transcripts()]
        added = np.where(moved, np.array(after) - before, 0)
        assert (added[moved] > 0).all()
        assert steps == "teacher" or added.max() <= 1
        read = np.where(terminated, added - 1, added)
        n_read, longest = n_read + read.sum(), longest + read.max()
        assert env.n_forward_passes == (1 + longest, 1 + n_read)


def test_rows_are_put_together_at_any_pace() -> None:
    model = tiny(recent=RecentContext(horizon_tokens=3.0))
    rng = np.random.default_rng(0)
    opening = [1, 2, 3]
    decoder, contexts = RowDecoder(model, opening, 5, hidden_layers=4), [list(opening) for _ in range(5)]
    for turn in range(40):
        rows = rng.permutation(5)[: rng.integers(1, 6)].tolist()
        if turn % 9 == 8:
            decoder.begin(rows)
            for row in rows:
                contexts[row] = list(opening)
        else:
            tokens = rng.integers(model.n_symbols, size=len(rows)).tolist()
            decoder.append(rows, tokens)
            for row, token in zip(rows, tokens, strict=True):
                contexts[row].append(token)
        expected = model.read(contexts).features
        torch.testing.assert_close(decoder.features, expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(decoder.hidden[:, -1], expected[:, : model.head_width], rtol=1e-8, atol=1e-8)


def test_the_students_words_follow_the_models_distribution() -> None:
    """The first token after the student's header, over many seeds, against the softmax at that temperature."""
    model = tiny(CHATML)
    env = make("template", model, num_envs=2000, length=40, temperature=9.0)
    env.reset(seed=0)
    env.step(np.full(2000, env.tokens("<|im_end|>")[0]))
    scripts = env.transcripts()
    place = scripts[0].spoken[1].begin
    drawn = np.array([script.tokens[place] for script in scripts])
    context = torch.from_numpy(scripts[0].tokens[:place])
    expected = (model.log_probs(model.read(context).features) / 9.0).softmax(-1).numpy()
    counts = np.bincount(drawn, minlength=model.n_symbols)
    error = np.abs(counts / 2000 - expected)
    assert (error < 4.5 * np.sqrt(expected / 2000) + 1 / 2000).all()
    assert (expected > 0.01).sum() > 5


class TestBudget:
    def test_charges_are_taken_off_where_the_agent_acts(self) -> None:
        env = make("plain", steps="token", num_envs=2)
        env.reset(seed=0)
        header = env.tokens("\nStudent:")[0]
        env.step(np.array([header, 0]), [1.5, 0.25])
        assert env.acts.tolist() == [False, True]
        _, _, _, _, info = env.step(np.array([0, 0]), [4.0, 0.5])
        assert env.budget_left.tolist() == [3.5, 4.25]
        assert info["charge"].tolist() == [0, 0.5]
        assert info["_charge"].tolist() == [False, True]
        one, other = env.transcripts()
        assert {place: one.charges[place] for place in np.flatnonzero(one.charges)} == {one.n_given: 1.5}
        assert other.charges[other.n_given :].tolist() == [0.25, 0.5]

    def test_a_charge_may_come_before_the_step(self) -> None:
        env = make("plain", num_envs=2)
        env.reset(seed=0)
        env.charge([1.0, 2.0])
        env.step(np.array([0, 0]), [0.5, 0.0])
        assert env.budget_left.tolist() == [3.5, 3.0]
        assert env.transcripts()[0].charges[-1] == 1.5

    def test_more_than_is_left_is_refused_and_nothing_changes(self) -> None:
        env = make("plain", num_envs=2)
        env.reset(seed=0)
        env.step(np.array([0, 0]), [4.0, 5.0])
        before = [script.tokens.tolist() for script in env.transcripts()]
        for charges in ([1.0, 1e-5], [1.1, 0.0]):
            with pytest.raises(ValueError, match=r"what is left of the budget, [01] nats, got .* in episode [01]; the"):
                env.step(np.array([0, 0]), charges)
        assert [script.tokens.tolist() for script in env.transcripts()] == before
        assert env.budget_left.tolist() == [1, 0]
        env.step(np.array([0, 0]), [1.0, 0.0])

    def test_rounding_is_forgiven_once_and_not_every_time(self) -> None:
        env = make("plain", num_envs=1)
        env.reset(seed=0)
        env.charge([5.0 + 6e-7])
        assert env.budget_left.tolist() == [0]
        with pytest.raises(ValueError, match="hard"):
            env.charge([6e-7])
        env.charge([4e-7])
        env.charge([-5e-7])
        env.charge([0.0])
        with pytest.raises(ValueError, match="hard"):
            env.charge([2e-9])

    @pytest.mark.parametrize("charge", [-0.1, np.nan, np.inf])
    def test_what_is_no_charge_is_refused(self, charge: float) -> None:
        env = make("plain", num_envs=1, budget_nats=np.inf)
        env.reset(seed=0)
        with pytest.raises(ValueError, match="charges must be finite and at least 0 nats"):
            env.charge([charge])

    def test_shape_and_type(self) -> None:
        env = make("plain", num_envs=2)
        env.reset(seed=0)
        for charges in ([1.0], 1.0, ["a", "b"], [True, False]):
            with pytest.raises(ValueError, match="charges must be 2 numbers in nats"):
                env.charge(charges)

    def test_budget_and_length_change_for_episodes_to_come(self) -> None:
        env = make("plain", num_envs=2)
        env.reset(seed=0)
        env.reset(options={"budget_nats": 9.0, "length": 24, "reset_mask": np.array([True, False])})
        assert env.budget_left.tolist() == [9, 5]
        finished = play(env, 80)
        assert {len(script) for scripts in finished for script in scripts} == {24}
        assert env.budget_left.tolist() == [9, 9]


class TestQuestions:
    def env(self, oracle: Any, kind: str = "template", **settings: Any) -> ChatEnv:
        env = make(kind, num_envs=2, oracle=oracle, **settings)
        env.reset(seed=0)
        return env

    def test_an_answer_fills_the_next_steps(self) -> None:
        asked: list[Query] = []
        answer = tiny(CHATML).tokenizer("no!<|im_end|>yes")["input_ids"]

        def oracle(query: Query) -> list[int]:
            asked.append(query)
            return list(answer)

        env = self.env(oracle, ask_price=0.25)
        ask = env.model.n_symbols
        _, rewards, _, _, info = env.step(np.array([ask, 0]), [0.5, 0.0])
        assert rewards.tolist() == [-0.25, 0]
        assert info["asked"].tolist() == [True, False]
        assert info["actor"].tolist() == ["demonstrator", "imitator"]
        assert info["acts"].tolist() == [False, True]
        assert [message.content for message in asked[0].messages] == ["no", "yes", "a"]
        assert asked[0].context == tuple(env.transcripts()[0].tokens[:-1])
        assert asked[0].text == env.transcripts()[1].text.removesuffix(env.model.tokenizer.decode([0]))
        while not env.acts[0]:
            _, _, _, _, info = env.step(np.array([ask, 0]), [9.0, 0.0])
            assert not info["asked"][0]
        script = env.transcripts()[0]
        said = script.tokens[script.n_given : script.n_given + 4]
        assert said.tolist() == answer[: len(answer) - 1][:4]
        turn = script.spoken[0]
        assert turn.text == "no!"
        assert set(script.actors[turn.begin : turn.end]) == {DEMONSTRATOR}
        assert set(script.actors[turn.end :]) == {ENVIRONMENT}
        assert script.questions == (script.n_given,)
        assert script.charges[script.n_given] == 0.5
        assert script.charges.sum() == 0.5
        assert len(asked) == 1

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("words", ["yes", "", " no bad "])
    def test_words_are_a_whole_reply(self, kind: str, words: str) -> None:
        env = self.env(lambda query: Act(text=words, evidence=False), kind)
        env.step(np.array([env.model.n_symbols] * 2))
        while not env.acts[0] and not env.transcripts()[0].n_replies:
            env.step(np.array([0, 0]))
        script = env.transcripts()[0]
        turn = script.spoken[0]
        begun = "a " if kind == "plain" else ""
        assert turn.text == (begun + words.strip()).strip()
        assert set(script.actors[turn.begin : turn.end]) == {ORACLE}
        assert script.n_replies == 1
        assert script.n_empty_replies == (not turn.text)

    def test_declining_breaks_the_episode_off(self) -> None:
        env = self.env(lambda query: Decline("no time"))
        before = len(env.transcripts()[0])
        observation, rewards, terminated, truncated, info = env.step(np.array([env.model.n_symbols, 0]))
        assert (terminated.tolist(), truncated.tolist()) == ([False, False], [True, False])
        assert len(info["transcript"][0]) == before
        assert info["_symbol"].tolist() == [False, True]
        assert not observation["hidden"][0].any()
        assert rewards.tolist() == [0, 0]
        observation, _, _, truncated, info = env.step(np.array([env.model.n_symbols, 0]))
        assert not truncated.any()
        assert observation["hidden"][0].any()
        assert env.acts.all()

    def test_words_that_cannot_be_said_are_no_answer(self) -> None:
        tokenizer = small_tokenizer(CHATML)
        model = LanguageModel(tiny_network(len(tokenizer), layers=3), tokenizer)
        env = self.env(lambda query: "yes", "template")
        env.model.n_symbols, kept = tokenizer.convert_tokens_to_ids("<|im_end|>"), model.n_symbols
        assert kept > env.model.n_symbols
        _, _, _, truncated, _ = env.step(np.array([env.model.n_symbols, 0]))
        assert truncated.tolist() == [True, False]

    def test_help_that_comes_later_changes_nothing_until_then(self) -> None:
        ids: list[str] = []

        def oracle(query: Query) -> int:
            ids.append(query.id)
            if len(ids) < 3:
                raise HelpNeeded(query)
            return 4

        env = self.env(oracle, asker="tuesday")
        actions, charges = np.array([env.model.n_symbols, 5]), [1.0, 0.0]
        for _ in range(2):
            with pytest.raises(HelpNeeded):
                env.step(actions, charges)
            assert env.budget_left.tolist() == [5, 5]
            assert env.acts.all()
        env.step(actions, charges)
        assert env.budget_left.tolist() == [4, 5]
        assert [script.tokens[-1] for script in env.transcripts()] == [4, 5]
        assert set(ids) == {ids[0]}
        assert ids[0].startswith(f"tuesday/0/0/{env.transcripts()[0].n_given}/")

    def test_another_question_has_another_name(self) -> None:
        ids: list[str] = []

        def oracle(query: Query) -> int:
            ids.append(query.id)
            return 4

        env = self.env(oracle)
        for first in (5, 6, 5):
            env.reset(seed=0)
            env.step(np.array([first, first]))
            env.step(np.array([env.model.n_symbols] * 2))
        assert ids[:2] == ids[4:]
        assert len(set(ids)) == 4

    def test_without_an_oracle_or_with_a_wrong_answer(self) -> None:
        env = make("plain", num_envs=1)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"which asks, where there is no oracle; pass oracle="):
            env.step(np.array([env.model.n_symbols]))
        env = self.env(lambda query: query.n_actions)
        with pytest.raises(OracleError, match="must answer with an action in"):
            env.step(np.array([env.model.n_symbols, 0]))
        env.step(np.array([0, 0]))


class TestReplies:
    def test_saying_nothing_is_counted(self) -> None:
        env = make("template", num_envs=3, length=128)
        env.reset(seed=0)
        end, yes, blank = (env.tokens(text)[0] for text in ("<|im_end|>", "yes", " "))
        _, _, _, _, info = env.step(np.array([end, yes, blank]))
        assert (info["replies"].tolist(), info["empty_replies"].tolist()) == ([1, 0, 0], [1, 0, 0])
        _, _, _, _, info = env.step(np.array([yes, end, end]))
        assert (info["replies"].tolist(), info["empty_replies"].tolist()) == ([0, 1, 1], [0, 0, 1])
        scripts = env.transcripts()
        assert [script.n_empty_replies for script in scripts] == [1, 0, 1]
        assert [script.n_replies for script in scripts] == [1, 1, 1]
        assert scripts[1].spoken[0].text == "yes"

    def test_what_the_opening_has_begun_is_part_of_the_first_reply(self) -> None:
        env = make("plain", num_envs=1)
        env.reset(seed=0)
        for token in (*env.tokens("!"), *env.tokens("\nStudent:")):
            _, _, _, _, info = env.step(np.array([token]))
        assert info["empty_replies"].tolist() == [0]
        assert env.transcripts()[0].spoken[0].text == "a!"

    @pytest.mark.parametrize("kind", KINDS)
    def test_turns_are_where_they_are_said_to_be(self, kind: str) -> None:
        env = make(kind)
        for scripts in play(env, 40, seed=3):
            script = scripts[0]
            assert script.turns[: script.n_given].tolist() == [-1] * script.n_given
            assert (np.diff(script.turns[script.n_given :]) >= 0).all()
            assert [turn.is_teacher for turn in script.spoken] == [i % 2 == 0 for i in range(len(script.spoken))]
            assert all(turn.finished for turn in script.spoken[:-1])
            for number, turn in enumerate(script.spoken):
                assert set(script.turns[turn.begin : turn.end]) == {number}
                expected = IMITATOR if turn.is_teacher else ENVIRONMENT
                assert set(script.actors[turn.begin : turn.end]) == {expected}
                assert not script.rewards[turn.begin : turn.end - 1].any()
            assert script.text == env.model.tokenizer.decode(script.tokens)
            assert set(np.flatnonzero(script.rewards)) <= {t.end - 1 for t in script.spoken if not t.is_teacher}

    def test_a_reply_that_the_end_cuts_is_paid_for_what_there_is(self) -> None:
        seen: list[str] = []

        def reward(replies: list[str]) -> list[float]:
            seen.extend(replies)
            return [0.5] * len(replies)

        n_given = len(make("template").reset()[1]) and len(chat_turns(small_tokenizer(CHATML), 99, MESSAGES).opening)
        header = len(small_tokenizer(CHATML)("\n<|im_start|>user\n")["input_ids"])
        end = small_tokenizer(CHATML)("<|im_end|>")["input_ids"][0]
        for n_words in (0, 3):
            env = make("template", num_envs=1, length=n_given + 1 + header + n_words, reward=reward)
            env.reset(seed=11)
            _, rewards, terminated, _, info = env.step(np.array([end]))
            assert terminated.all()
            assert rewards.tolist() == ([0.5] if n_words else [0.0])
            assert len(seen) == (n_words > 0)
            assert info["transcript"][0].rewards[-1] == rewards[0]
        assert seen == [info["transcript"][0].spoken[-1].text]
        assert not info["transcript"][0].spoken[-1].finished

    def test_replies_of_one_step_are_scored_together(self) -> None:
        calls: list[int] = []

        def reward(replies: list[str]) -> list[float]:
            calls.append(len(replies))
            return [0.5] * len(replies)

        env = make("template", num_envs=4, length=128, reward=reward)
        env.reset(seed=0)
        end = env.tokens("<|im_end|>")[0]
        env.step(np.array([end, end, 0, end]))
        assert calls == [3]

    def test_a_bad_reward_stops_the_episodes(self) -> None:
        env = make("template", num_envs=1, length=128, reward=lambda replies: [2.0] * len(replies))
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"reward must be in \[0, 1\], got 2 for the reply"):
            env.step(np.array(env.tokens("<|im_end|>")))
        with pytest.raises(ResetNeeded):
            env.step(np.array([0]))
        env.reset()
        env.step(np.array([0]))


class TestArguments:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
            ({"length": 5}, "more than the .* tokens of the opening, got 5; shorten the opening"),
            ({"length": 500}, "the model's window of 64 tokens, got 500"),
            ({"length": 30.0}, "length must be an integer"),
            ({"budget_nats": -1.0}, "budget_nats must be at least 0, got -1"),
            ({"budget_nats": np.nan}, "budget_nats must be at least 0, got nan"),
            ({"temperature": 0.0}, "temperature must be positive"),
            ({"hidden_layers": 5}, r"hidden_layers must be in 1\.\.4"),
            ({"hidden_layers": 0}, r"hidden_layers must be in 1\.\.4"),
            ({"ask_price": -1.0}, "ask_price must be finite"),
            ({"steps": "word"}, 'steps must be "teacher" or "token"'),
            ({"render_mode": "human"}, "render_mode must be 'ansi'"),
            ({"reward": 1.0}, "reward must be a function"),
            ({"teacher": "Student"}, "two different roles"),
            ({"teacher": "bad", "student": "yes"}, "with 'bad:' and 'yes:' at the beginning of lines"),
        ],
    )
    def test_each_is_checked(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            make("plain", tiny(window=64), **settings)

    def test_the_model_brings_its_tokenizer(self) -> None:
        network = tiny_network(8, layers=3)
        for model in (LanguageModel(network), network):
            with pytest.raises(ValueError, match="LanguageModel with its tokenizer"):
                ChatEnv(model, PLAIN, num_envs=1, length=60, budget_nats=1.0, reward=letters)

    @pytest.mark.parametrize(
        ("actions", "words"),
        [
            ([0, -1], r"actions must be in \[0, [0-9]+\], got -1"),
            ([0, 999], "got 999; .* asks the oracle"),
            ([0.0, 1.0], "actions must be 2 integers, one for each episode, got float64"),
            ([0], "got int64 of shape"),
            ([True, False], "got bool"),
        ],
    )
    def test_actions(self, actions: list[Any], words: str) -> None:
        env = make("plain", num_envs=2)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=words):
            env.step(actions)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"seed": -1}, "seed must be an integer of at least 0"),
            ({"seed": [1]}, "seed must be one number, or 2 of them, got 1"),
            ({"seed": [1, 0.5]}, "seed must be an integer"),
            ({"options": {"longer": 2}}, r"nothing else, got \['longer'\]"),
            ({"options": {"length": 1}}, "more than the"),
            ({"options": {"budget_nats": -2.0}}, "budget_nats must be"),
            ({"options": {"reset_mask": np.array([1, 0])}}, "reset_mask must hold 2 booleans"),
        ],
    )
    def test_resets(self, arguments: dict[str, Any], words: str) -> None:
        env = make("plain", num_envs=2)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=words):
            env.reset(**arguments)
        env.step(np.array([0, 0]))

    def test_before_the_first_reset(self) -> None:
        env = make("plain", num_envs=2)
        calls: list[Callable[[], Any]] = [
            lambda: env.step(np.array([0, 0])),
            lambda: env.charge([0.0, 0.0]),
            lambda: env.acts,
            lambda: env.budget_left,
            env.reading,
            env.transcripts,
        ]
        for call in calls:
            with pytest.raises(ResetNeeded):
                call()
        with pytest.raises(ValueError, match="reset_mask must leave none out"):
            env.reset(options={"reset_mask": np.array([True, False])})


def test_gymnasiums_own_wrappers_work_on_it() -> None:
    env = make("plain", num_envs=2, render_mode="ansi")
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    recorded = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    recorded.reset(seed=0)
    env.action_space.seed(0)
    returns, own = [], []
    for _ in range(150):
        actions = env.action_space.sample() % env.model.n_symbols
        _, _, terminated, _, info = recorded.step(actions)
        for row in np.flatnonzero(terminated):
            returns.append(info["episode"]["r"][row])
            own.append(info["transcript"][row].rewards.sum())
    assert len(own) > 3
    np.testing.assert_allclose(returns, own)
    assert any(own)
    rendered = env.render()
    assert rendered is not None
    assert rendered[0].startswith(PLAIN)


def test_a_finished_episode_starts_anew_at_the_next_step() -> None:
    env = make("template", num_envs=2, steps="token", length=50)
    beginning, _ = env.reset(seed=0)
    terminated = np.zeros(2, dtype=bool)
    while not terminated.any():
        observation, _, terminated, truncated, _ = env.step(np.array([0, 0]))
    assert terminated.all()
    assert not truncated.any()
    assert observation["share_left"].tolist() == [0, 0]
    assert not env.acts.any()
    observation, rewards, terminated, _, info = env.step(np.array([1, 1]), [9.0, 9.0])
    assert not terminated.any()
    assert rewards.tolist() == [0, 0]
    assert not info["_symbol"].any()
    for name, values in beginning.items():
        np.testing.assert_array_equal(observation[name], values)


def small_chat(model: LanguageModel) -> list[int]:
    return list(model.tokenizer("<|start|><|assistant|>Hello!<|end|><|user|>Hi, how are you?<|end|>")["input_ids"])


def test_the_shipped_model_plays_with_a_random_policy_and_a_cautious_anchor() -> None:
    model = small_gpt()
    opening = [
        {"role": "user", "content": "Hello! Can you help me with my school report?"},
        {"role": "assistant", "content": "Sure"},
    ]
    env = ChatEnv(model, opening, num_envs=6, length=80, budget_nats=20.0, reward=vader_reward())
    anchor = CautiousImitator(GaussianHead(model).fit([small_chat(model)]), alpha=0.5)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    end, total, n_over = env.tokens("<|end|>")[0], 0.0, 0
    for step in range(60):
        reading = env.reading()
        log_probs = model.log_probs(reading.features)
        if step % 10 == 0:
            running = [i for i in range(6) if len(reading.rows[i]) < 80]
            again = anchor.predict([reading.rows[i] for i in running])
            passes = env.n_forward_passes
            prediction = anchor.predict(reading)
            assert env.n_forward_passes == passes
            torch.testing.assert_close(prediction.log_probs[running], again.log_probs, rtol=1e-3, atol=1e-3)
            assert bool((prediction.ask_probability[running] > 0.001).all())
        charges = np.full(6, 1e-3)
        sampled = [int(rng.choice(model.n_symbols, p=p / p.sum())) for p in log_probs.double().exp().numpy()]
        actions = np.where(rng.random(6) < 0.1, end, sampled)
        _, rewards, terminated, _, info = env.step(actions, charges)
        total += rewards.sum()
        n_over += int(terminated.sum())
        for row in np.flatnonzero(terminated):
            script = info["transcript"][row]
            assert len(script) == 80
            assert script.text.startswith("<|start|><|user|>Hello! Can you help me with my school report?<|end|>")
            assert script.n_replies >= 1
    assert n_over >= 6
    assert total > 0


INSTRUCTIONS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}{% endfor %}"
)


def blank_in_front(template: str | None) -> Any:
    """As SentencePiece does, it puts a blank in front of all text, and writes unknown letters as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Teachr:Studnyso", "▁y", "▁no"]
    numbers = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "y"), ("n", "o"), ("▁", "no")]
    numbers["no"] = len(numbers)
    tokenizer = Tokenizer(models.BPE(numbers, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )


class TestTurns:
    @pytest.mark.parametrize(
        "tokenizer", [small_tokenizer(CHATML), shipped_tokenizer(), blank_in_front(INSTRUCTIONS)], ids=["1", "2", "3"]
    )
    def test_a_chat_that_is_played_is_the_chat_that_is_written(self, tokenizer: Any) -> None:
        chat = MESSAGES[:1]
        turns = chat_turns(tokenizer, len(tokenizer), chat)
        said = turns.reply("yes")
        ended = turns.ended(True, said)
        assert ended is not None
        assert ended[0] == "yes"
        assert all(turns.ended(True, said[:n]) is None for n in range(1, len(said)))
        chat = [*chat, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "no yes"}]
        longer = chat_turns(tokenizer, len(tokenizer), chat)
        played = [*turns.opening, *said, *ended[1]]
        assert list(longer.opening[: len(played)]) == played
        for n in range(len(played) + 1, len(longer.opening) + 1):
            ended = longer.ended(False, longer.opening[len(played) : n])
            if ended is not None:
                break
        assert ended is not None
        assert ended[0] == "no yes"
        assert longer.opening[n:] == ended[1]

    def test_a_tokenizer_that_puts_a_blank_in_front(self) -> None:
        tokenizer = blank_in_front(None)
        turns = chat_turns(tokenizer, len(tokenizer), "Student: no\n\nTeacher: y")
        said = turns.reply("es")
        assert turns.text([*turns.opening, *said]) == "Student: no\n\nTeacher: y es\nStudent:"
        assert turns.ended(True, said, first=True) == ("y es", ())
        assert [turns.ended(True, said[:n], first=True) for n in range(1, len(said))] == [None] * (len(said) - 1)

    def test_a_name_is_found_however_it_is_written(self) -> None:
        tokenizer = small_tokenizer()
        turns = chat_turns(tokenizer, len(tokenizer), PLAIN)
        as_one = tokenizer("\nStudent:")["input_ids"]
        spelled = tokenizer.convert_tokens_to_ids(["Ċ", *"Student:"])
        words = tokenizer("no!")["input_ids"]
        assert len(as_one) == 1
        for name in (as_one, spelled):
            assert turns.ended(True, [*words, *name]) == ("no!", ())
            assert turns.ended(True, name) == ("", ())
            assert turns.ended(True, [*words, *name], first=True) == ("ano!", ())
            for part in range(1, len(name)):
                assert turns.ended(True, [*words, *name[:part]]) is None
            # One's own name ends nothing.
            assert turns.ended(False, [*words, *name]) is None
        # Not at the beginning of a line.
        assert turns.ended(True, [*words, *spelled[1:]]) is None

    def test_a_line_break_that_the_opening_ends_with_counts(self) -> None:
        tokenizer = small_tokenizer()
        turns = chat_turns(tokenizer, len(tokenizer), "Student: no\nTeacher: a\n")
        spelled = tokenizer.convert_tokens_to_ids([*"Student:"])
        assert turns.ended(True, spelled, first=True) == ("a", ())
        assert turns.ended(True, spelled) is None

    def test_messages_as_plain_text(self) -> None:
        tokenizer = small_tokenizer()
        messages = [{"role": "Student", "content": "no"}, {"role": "Teacher", "content": ""}]
        messages += [{"role": "Student", "content": "a\nbad"}]
        turns = chat_turns(tokenizer, len(tokenizer), messages)
        assert turns.text(turns.opening) == "Student: no\nTeacher:\nStudent: a\nbad\nTeacher:"
        turns = chat_turns(tokenizer, len(tokenizer), [*messages, {"role": "Teacher", "content": "yes"}])
        assert turns.text(turns.opening).endswith("\nTeacher: yes")

    def test_double_spacing_is_kept(self) -> None:
        tokenizer = small_tokenizer()
        text = "Student: no\n\nTeacher:"
        assert chat_turns(tokenizer, len(tokenizer), text).opening == tuple(tokenizer(text)["input_ids"])

    def test_a_template_and_a_reply_that_has_begun(self) -> None:
        tokenizer = small_tokenizer(CHATML)
        turns = chat_turns(tokenizer, len(tokenizer), [*MESSAGES, {"role": "assistant", "content": "ye"}])
        text = turns.text(turns.opening)
        assert text.endswith("<|im_start|>assistant\nye")
        assert text.startswith("<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>")
        said = tokenizer("s<|im_end|>")["input_ids"]
        ended = turns.ended(True, said, first=True)
        assert ended is not None
        assert (ended[0], turns.text(ended[1])) == ("yes", "\n<|im_start|>user\n")
        again = chat_turns(tokenizer, len(tokenizer), text)
        assert again.opening == turns.opening
        assert again.ended(True, said, first=True) == ended
        # The end of a turn that is spelled is no end.
        assert turns.words(tokenizer("no bad")["input_ids"]) == "no bad"

    def test_the_others_header_ends_a_turn_as_well(self) -> None:
        tokenizer = small_tokenizer(CHATML)
        turns = chat_turns(tokenizer, len(tokenizer), MESSAGES)
        header = tokenizer("<|im_start|>assistant")["input_ids"]
        ended = turns.ended(False, [*tokenizer("no")["input_ids"], *header])
        assert ended is not None
        assert (ended[0], turns.text(ended[1])) == ("no", "\n")
        assert turns.ended(True, header) is None

    def test_other_roles_than_the_templates(self) -> None:
        tokenizer = small_tokenizer(CHATML)
        messages = [{"role": "system", "content": "a"}, {"role": "pupil", "content": "no"}]
        turns = chat_turns(tokenizer, len(tokenizer), messages, teacher="tutor", student="pupil")
        assert turns.text(turns.opening).endswith("<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n")

    def test_headers_of_plain_text_in_a_template(self) -> None:
        template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[1] ' + m['content'] + ' [2]' }}"
            "{% else %}{{ ' ' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        )
        tokenizer = small_tokenizer(template)
        letters = ["[", "]"]
        tokenizer.add_tokens(letters)
        turns = chat_turns(tokenizer, len(tokenizer), MESSAGES)
        assert turns.text(turns.opening) == "[1] no [2] yes<|im_end|>[1] a [2]"
        ended = turns.ended(True, tokenizer(" no<|im_end|>")["input_ids"])
        assert ended is not None
        assert (ended[0], turns.text(ended[1])) == ("no", "[1]")
        ended = turns.ended(False, tokenizer("bad [2]")["input_ids"])
        assert ended is not None
        assert (ended[0], turns.text(ended[1])) == ("bad", "")

    def test_a_tokenizer_that_loses_names_is_refused(self) -> None:
        words = Tokenizer(models.WordLevel({"[UNK]": 0, "yes": 1, "no": 2, ":": 3}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
        with pytest.raises(
            ValueError, match="must write the name 'Teacher:' at the beginning of a line with tokens of"
        ):
            chat_turns(tokenizer, 4, PLAIN)

    def test_a_token_that_reaches_over_every_end_of_a_name_is_refused(self) -> None:
        pieces = sorted(set("Teacher:Student:yesnobad!iWlI?.,MQ") | {"Ċ", "Ġ"})
        tokens = {piece: i for i, piece in enumerate([*pieces, ":Ġ"])}
        letters = Tokenizer(models.BPE(tokens, [(":", "Ġ")]))
        letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        letters.decoder = decoders.ByteLevel()
        with pytest.raises(ValueError, match="in which no token ends with it; choose another name"):
            chat_turns(PreTrainedTokenizerFast(tokenizer_object=letters), len(tokens), PLAIN)

    def test_a_template_that_ends_turns_in_two_ways_is_refused(self) -> None:
        template = (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] }}"
            "{% if loop.last %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
        )
        with pytest.raises(ValueError, match="must end each turn of 'assistant' the same, whatever follows"):
            chat_turns(small_tokenizer(template), 99, MESSAGES[2:])

    @pytest.mark.parametrize(
        ("template", "opening", "words"),
        [
            (None, "no bad", "with 'Teacher:' and 'Student:' at the beginning of lines, got 'no bad'"),
            (None, "", "at the beginning of lines"),
            (None, "Teacher: yes\nStudent: no", "must end with the teacher's name, 'Teacher:'"),
            (None, "Student: no<|im_end|>\nTeacher:", "must not contain '<|im_end|>'"),
            (None, [{"role": "user", "content": "a"}], "unknown role 'user'; known are 'Teacher', 'Student'"),
            (None, [{"role": "Student", "content": "a\nTeacher: no"}], r"messages\[0\] must not have a speaker's name"),
            (None, [], "opening must be a chat"),
            (None, 3, "opening must be a chat"),
            (None, [{"role": "Student"}], "opening must be a chat"),
            (CHATML, "Student: no\nTeacher:", "as the tokenizer's template writes it"),
            (CHATML, "<|im_start|>user\nno<|im_end|>\n", "as the tokenizer's template writes it"),
            (CHATML, MESSAGES[:0], "opening must be a chat"),
            (CHATML, [{"role": "Student", "content": "a"}], "unknown role 'Student'"),
            (CHATML, [{"role": "user", "content": "<|im_end|>"}], r"must not contain '<\|im_end\|>'"),
            (CHATML, [*MESSAGES[:2], MESSAGES[1]], "two messages of 'assistant' in a row"),
        ],
    )
    def test_what_is_no_opening(self, template: str | None, opening: Any, words: str) -> None:
        tokenizer = small_tokenizer(template)
        with pytest.raises(ValueError, match=words):
            chat_turns(tokenizer, len(tokenizer), opening)

    def test_what_ends_a_turn_can_be_said(self) -> None:
        tokenizer = small_tokenizer(CHATML)
        with pytest.raises(ValueError, match=r"tokens that end a turn must be among the 5 that can be said"):
            chat_turns(tokenizer, 5, MESSAGES)

    def test_slow_tokenizers_are_refused(self) -> None:
        with pytest.raises(ValueError, match="must be a fast one"):
            chat_turns(object(), 5, MESSAGES)

    def test_a_name_is_a_name(self) -> None:
        tokenizer = small_tokenizer()
        for name in ("", " a", "a:", "a\nb"):
            with pytest.raises(ValueError, match="a name must be one line of words without a colon"):
                chat_turns(tokenizer, len(tokenizer), PLAIN, teacher=name)

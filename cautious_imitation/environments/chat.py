"""Token by token in a chat: the agent writes the teacher's tokens, and a language model plays the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from cautious_imitation.environments.chat_checks import check_count, check_model, checked_budget
from cautious_imitation.environments.chat_episodes import ChatEpisodes, Progress
from cautious_imitation.environments.chat_rewards import Reward, score_replies
from cautious_imitation.environments.transcripts import Transcript
from cautious_imitation.environments.turns import Opening, chat_turns
from cautious_imitation.language.model import LanguageModel, Reading
from cautious_imitation.oracles.function import Answerer, as_oracle
from cautious_imitation.types import Actor

BoolArray: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

Observation: TypeAlias = dict[str, Any]
"""``hidden``, ``share_left`` and ``budget_left``; see ``ChatEnv``."""

Steps: TypeAlias = Literal["teacher", "token"]
"""What a step is: one of the teacher's tokens, with all that the student says after it, or one token of anybody's."""

_MAX_SEED = 2**63 - 1
_ACTORS = [actor.value for actor in Actor]


class ChatEnv(VectorEnv[Observation, IntArray, npt.NDArray[Any]]):
    """N transcripts between a teacher, whose tokens the agent chooses, and a student, whom a language model plays.

    An action is a token, 0..V-1, or V to ask. Once it ends the teacher's turn, the step goes on until the teacher's
    next turn begins or the episode ends: the model writes the student's tokens, and headers write themselves (see
    ``chat_turns``). Tokens of all episodes are read together, each once: a forward pass a token of the longest.

    Observations hold ``hidden``, the model's last hidden states after the last token, float32
    ``[num_envs, hidden_layers, width]``; ``share_left``, the share of the episode's tokens that are still to come; and
    ``budget_left`` in nats. ``reading()`` has what an imitator over the same model needs to predict without reading
    again.

    An episode has ``length`` tokens, the opening among them, and is terminated with the last one, which is not read
    any more: ``hidden`` is zeros then. It starts anew at the next step, whose action is ignored there
    (``AutoresetMode.NEXT_STEP``).

    A student's reply is paid when it is finished. One that the end of the episode cuts is paid for what there is of it,
    if there are words; else the last thing that the agent said would count for nothing.

    Asking, ``oracle`` is asked what the teacher would say; the answer's tokens fill this step and those after it, whose
    actions are ignored. What an answer says after the end of its turn is not used. A question that is declined breaks
    the episode off, which is then truncated. If the oracle raises ``HelpNeeded``, nothing has changed, and the same
    step asks the same questions.

    ``info`` of a step holds, with a mask ``_name`` each that is false where there is nothing to report: ``actor`` and
    ``symbol`` of the token that the step began with, ``task_reward`` (the reward before the ask price), ``charge`` in
    nats, ``asked``, ``replies`` and ``empty_replies`` of the teacher that were finished, and ``transcript`` of an
    episode that is over. ``acts`` says where the next action counts; it has no mask.

    Args:
        model: the base model, with its tokenizer.
        opening: the chat so far, see ``chat_turns``.
        num_envs: N.
        length: tokens of an episode.
        budget_nats: what the charges of an episode may come to, or ``[num_envs]`` of it; infinite for no limit.
        reward: from the texts of students' replies to numbers in [0, 1]; see ``chat_rewards``.
        teacher: the teacher's role, see ``chat_turns``.
        student: the student's role, see ``chat_turns``.
        temperature: the student's tokens are drawn from the model's predictions at this temperature.
        hidden_layers: how many hidden states are observed.
        oracle: answers questions; whatever ``as_oracle`` takes.
        ask_price: taken off the reward for each question.
        steps: ``"teacher"`` as said above. ``"token"`` to add one token to every episode in each step, whoever it is
            from; actions count only where ``acts`` says so. There are fewer forward passes, as students write while
            other teachers do.
        generator: source of all randomness until ``reset(seed=...)`` gives another.
        asker: the name in questions, which are called ``asker/seed/episode/position/context``, the
            last one as a digest.
        render_mode: ``"ansi"`` to have ``render`` return the transcripts as text.

    Raises:
        ValueError: if an argument is out of range, the model has no tokenizer, its window is shorter than ``length``,
            or the opening is longer or no chat.

    A student is seeded by its environment's seed and the number of the episode: it says the same whatever others do.

    Source: Cohen, Hutter, Bengio, Russell 2024, the experiment.

    >>> from cautious_imitation.environments.chat_rewards import vader_reward
    >>> from cautious_imitation.language.small_gpt import small_gpt
    >>> opening = [{"role": "user", "content": "Hello! How are you?"}]
    >>> envs = ChatEnv(small_gpt(), opening, num_envs=2, length=40, budget_nats=10.0, reward=vader_reward())
    >>> observation, _ = envs.reset(seed=0)
    >>> end = envs.tokens("<|end|>")[0]
    >>> _, rewards, _, _, info = envs.step(np.array([end, 300]), charges=[2.5, 0.5])
    >>> info["empty_replies"].tolist(), bool(rewards[0] > 0), float(rewards[1]), envs.budget_left.tolist()
    ([1, 0], True, 0.0, [7.5, 9.5])
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        model: LanguageModel,
        opening: Opening,
        *,
        num_envs: int,
        length: int,
        budget_nats: npt.ArrayLike,
        reward: Reward,
        teacher: str | None = None,
        student: str | None = None,
        temperature: float = 0.05,
        hidden_layers: int = 3,
        oracle: Answerer | None = None,
        ask_price: float = 0.0,
        steps: Steps = "teacher",
        generator: torch.Generator | None = None,
        asker: str = "chat",
        render_mode: str | None = None,
    ) -> None:
        check_model(model)
        check_count("num_envs", num_envs, 1)
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive and finite, got {temperature!r}; 1e-3 is all but certain")
        if not (np.isfinite(ask_price) and ask_price >= 0):
            raise ValueError(f"ask_price must be finite and at least 0, got {ask_price}; to rule asking out, never ask")
        if steps not in get_args(Steps):
            raise ValueError(f'steps must be "teacher" or "token", got {steps!r}')
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode must be 'ansi' or None, got {render_mode!r}; episodes are text")
        if not callable(reward):
            raise ValueError(f"reward must be a function from texts to numbers, got {reward!r}; see vader_reward()")
        self.model, self.num_envs, self.render_mode, self.ask_price = model, num_envs, render_mode, ask_price
        turns = chat_turns(model.tokenizer, model.n_symbols, opening, teacher, student)
        self._reward, self._generator, self._n_given = reward, generator, len(turns.opening)
        self._length, self._budget_nats = self._checked_length(length), checked_budget(budget_nats, num_envs)
        self._chats = ChatEpisodes(
            model,
            turns,
            num_envs,
            hidden_layers=hidden_layers,
            temperature=temperature,
            oracle=None if oracle is None else as_oracle(oracle),
            asker=asker,
            plays_on=steps == "teacher",
        )
        self._seeded = self._begun = False
        n_layers, width = self._chats.decoder.hidden.shape[1:]
        self.single_observation_space = spaces.Dict(
            {
                "hidden": spaces.Box(-np.inf, np.inf, (n_layers, width), np.float32),
                "share_left": spaces.Box(0.0, 1.0, (), np.float64),
                "budget_left": spaces.Box(0.0, np.inf, (), np.float64),
            }
        )
        self.single_action_space = spaces.Discrete(model.n_symbols + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: one for each environment, or the first one's, from which the others count on. None goes on with the
                seeds that there are.
            options: ``length`` and ``budget_nats`` of the episodes that begin from now on, and ``reset_mask``,
                ``[num_envs]`` booleans, to start only some anew.

        Raises:
            ValueError: if one of these is out of range; nothing has changed then.
        """
        known = ("length", "budget_nats", "reset_mask")
        given = dict(options or {})
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"options may hold {list(known)} and nothing else, got {unknown}; leave them out")
        mask = np.asarray(given.get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must hold {self.num_envs} booleans, got {mask.dtype} of shape {mask.shape}")
        if not self._begun and not mask.all():
            raise ValueError("reset_mask must leave none out where no episodes are running; leave it out")
        length = self._checked_length(given.get("length", self._length))
        budget_nats = checked_budget(given.get("budget_nats", self._budget_nats), self.num_envs)
        seeds = self._checked_seeds(seed)
        if seeds is not None:
            super().reset(seed=seeds[0])
            self._chats.seed(seeds)
            self._seeded = True
        self._length, self._budget_nats, self._begun = length, budget_nats, True
        self._chats.begin(np.flatnonzero(mask).tolist(), length, budget_nats)
        return self._observation(), {"acts": self.acts}

    def step(
        self, actions: npt.ArrayLike, charges: npt.ArrayLike | None = None
    ) -> tuple[Observation, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Choose the teacher's next token in every episode, or ask with action ``V``.

        Args:
            actions: ``[num_envs]`` integers; ignored where ``acts`` is false.
            charges: ``[num_envs]``, see ``charge``, which is called with them. None charges nothing more.

        Raises:
            ValueError: if an action is outside ``[0, V]``, it asks and there is no oracle, or charges are refused;
                nothing has changed then. If the reward is outside [0, 1]; call ``reset`` then.
            HelpNeeded: if the oracle cannot answer now; nothing has changed.
            gymnasium.error.ResetNeeded: where no episodes are running.
        """
        acts, chosen = self.acts, self._checked_actions(actions)
        amounts = self._chats.checked_charges(np.zeros(self.num_envs) if charges is None else charges)
        asked = acts & (chosen == self.model.n_symbols)
        answers = self._chats.ask(np.flatnonzero(asked).tolist())
        # Whatever happens from here on leaves episodes that are half moved.
        self._begun = False
        episodes = self._chats.running
        running = np.array([not episode.over for episode in episodes])
        self._chats.charge(amounts)
        progress = self._chats.step(chosen.tolist(), answers)
        rewards = self._paid(progress)
        over = running & np.array([episode.over for episode in episodes])
        truncated = running & np.array([episode.declined for episode in episodes])
        info = self._info(progress, running, over)
        info |= {
            "task_reward": rewards,
            "_task_reward": running,
            "charge": amounts,
            "_charge": acts,
            "asked": asked,
            "_asked": acts.copy(),
        }
        self._chats.begin(np.flatnonzero(~running).tolist(), self._length, self._budget_nats)
        self._begun = True
        info["acts"] = self.acts
        return self._observation(), rewards - self.ask_price * asked, over & ~truncated, truncated, info

    def charge(self, charges: npt.ArrayLike) -> None:
        """Take the exact charges of the next actions off the budgets.

        Args:
            charges: ``[num_envs]`` nats, of the distributions that the next actions are drawn from; ignored where
                ``acts`` is false, since nothing is drawn there.

        Raises:
            ValueError: if one is negative, not a number, or more than is left, beyond rounding; nothing is charged.
        """
        self._need_reset()
        self._chats.charge(self._chats.checked_charges(charges))

    @property
    def acts(self) -> BoolArray:
        """Where the next action counts, ``[num_envs]``: it is the teacher's turn, and no answer says what comes."""
        self._need_reset()
        return self._chats.acts

    @property
    def budget_left(self) -> FloatArray:
        """Nats left to each episode, ``[num_envs]``."""
        self._need_reset()
        # Below zero it is by rounding only; see ChatEpisodes.checked_charges.
        return np.maximum(self._chats.budget_left, 0.0)

    @property
    def length(self) -> int:
        """Tokens of an episode."""
        return self._length

    @property
    def plays_by_token(self) -> bool:
        """Whether a step adds one token to every episode."""
        return not self._chats.plays_on

    @property
    def n_forward_passes(self) -> tuple[int, int]:
        """Forward passes of the model so far, and the rows in all of them."""
        return self._chats.decoder.n_passes, self._chats.decoder.n_rows_read

    def reading(self) -> Reading:
        """The contexts of all episodes as the model has read them; what ``model.read`` gives, without reading.

        For imitators whose hypotheses read with the same model; features of episodes that are over are zeros.
        """
        self._need_reset()
        contexts = [episode.context for episode in self._chats.running]
        return Reading(contexts, self._chats.decoder.features.clone())

    def transcripts(self) -> tuple[Transcript, ...]:
        """Each episode so far; one that is over is there until the next step."""
        self._need_reset()
        return tuple(episode.transcript() for episode in self._chats.running)

    def tokens(self, text: str) -> list[int]:
        """The tokens of ``text``, special ones among it."""
        return list(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def render(self) -> tuple[str, ...] | None:
        """Each episode so far as text in mode ``"ansi"``, otherwise None."""
        return tuple(script.text for script in self.transcripts()) if self.render_mode == "ansi" else None

    def _paid(self, progress: Progress) -> FloatArray:
        """Rewards ``[num_envs]`` of the replies that have ended, all scored together."""
        paid = [(row, turn) for row, turn in progress.turns if not turn.is_teacher and (turn.finished or turn.text)]
        scores = score_replies(self._reward, [turn.text for _, turn in paid])
        rewards = np.zeros(self.num_envs)
        for (row, turn), score in zip(paid, scores, strict=True):
            self._chats.running[row].paid(turn.end - 1, float(score))
            rewards[row] += score
        return rewards

    def _info(self, progress: Progress, running: BoolArray, over: BoolArray) -> dict[str, Any]:
        moved = np.isin(np.arange(self.num_envs), list(progress.first))
        symbols, actors = np.zeros(self.num_envs, np.int64), np.full(self.num_envs, "", "<U13")
        for moving, (token, actor) in progress.first.items():
            symbols[moving], actors[moving] = token, _ACTORS[actor]
        replies, empty = np.zeros((2, self.num_envs), np.int64)
        for place, turn in progress.turns:
            replies[place] += turn.is_teacher and turn.finished
            empty[place] += turn.is_teacher and turn.finished and turn.is_empty
        scripts = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(over):
            scripts[row] = self._chats.running[row].transcript()
        values = {
            "symbol": (symbols, moved),
            "actor": (actors, moved),
            "replies": (replies, running),
            "empty_replies": (empty, running),
            "transcript": (scripts, over),
        }
        info: dict[str, Any] = {name: value for name, (value, _) in values.items()}
        return info | {f"_{name}": mask.copy() for name, (_, mask) in values.items()}

    def _observation(self) -> Observation:
        left = np.array([1 - episode.n_tokens / episode.length for episode in self._chats.running])
        hidden = self._chats.decoder.hidden.float().cpu().numpy()
        return {"hidden": hidden.copy(), "share_left": left, "budget_left": self.budget_left}

    def _need_reset(self) -> None:
        if not self._begun:
            raise ResetNeeded("this needs running episodes, got none; call reset() first")

    def _checked_actions(self, actions: npt.ArrayLike) -> IntArray:
        array, most = np.asarray(actions), self.model.n_symbols
        if array.shape != (self.num_envs,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"actions must be {self.num_envs} integers, one for each episode, got {array.dtype} of shape "
                f"{list(array.shape)}"
            )
        outside = (array < 0) | (array > most)
        if outside.any():
            raise ValueError(f"actions must be in [0, {most}], got {array[outside][0]}; {most} asks the oracle")
        return array.astype(np.int64)

    def _checked_length(self, length: int) -> int:
        check_count("length", length, 1)
        window = self.model.max_length
        if window is not None and length > window:
            raise ValueError(f"length must fit into the model's window of {window} tokens, got {length}")
        if length <= self._n_given:
            raise ValueError(
                f"length must be more than the {self._n_given} tokens of the opening, got {length}; shorten the opening"
            )
        return int(length)

    def _checked_seeds(self, seed: int | Sequence[int] | None) -> list[int] | None:
        """Seeds of all environments; None to go on with those that there are."""
        if seed is None:
            if self._seeded:
                return None
            if self._generator is None:
                first = int(self.np_random.integers(_MAX_SEED))
            else:
                device = self._generator.device
                first = int(torch.randint(_MAX_SEED, (), generator=self._generator, device=device))
            return [first + row for row in range(self.num_envs)]
        if not isinstance(seed, Sequence):
            check_count("seed", seed, 0)
            return [int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seed must be one number, or {self.num_envs} of them, got {len(seed)}")
        for one in seed:
            check_count("seed", one, 0)
        return [int(one) for one in seed]

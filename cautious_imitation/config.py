"""Settings of a comparison, from presets, YAML files and the command line; every key is checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Anchor: TypeAlias = Literal[
    "none",
    "bayesian",
    "cautious-pointwise",
    "cautious-minimax",
    "demonstrator",
    "bayesian-asks-max-prob",
    "bayesian-asks-count",
    "bayesian-asks-random",
    "always-ask",
]

ANCHORS: tuple[Anchor, ...] = get_args(Anchor)

Positive: TypeAlias = Annotated[int, Field(ge=1)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldConfig(_Settings):
    """Whose conversations, and how much of them a hypothesis looks at.

    Attributes:
        demonstrations: JSONL chats; None for the real conversations that come with the library.
        agent_role: role of the speaker who is imitated, in the user's own chats.
        other_role: role of the other speaker.
        depth: how many recent acts the demonstrator, the student and the hypotheses look at.
    """

    demonstrations: Path | None = None
    agent_role: str = "assistant"
    other_role: str = "user"
    depth: Annotated[int, Field(ge=1, le=4)] = 3


class HypothesesConfig(_Settings):
    """The class that imitators learn: arguments of ``ContextTree``."""

    leaf: Literal["profile", "kt"] = "profile"
    complexity: Literal["none", "support", "bic"] = "none"
    stop_prob: Annotated[float, Field(gt=0, lt=1)] | None = None


class GridConfig(_Settings):
    """A grid of settings; every combination that makes sense is one cell.

    Attributes:
        anchors: what the policy is kept close to.
        accountings: what asking costs in nats.
        budgets_nats: expected charge allowed in an episode.
        n_demonstrations: how many of the demonstrator's actions the imitators saw.
        deployments: whom the policy talks to.
        horizons: symbols in an episode.
        ask_prices: units of reward that a question costs.
        log_inverse_alphas: log(1 / alpha) in nats; larger is more cautious.
        seeds: of the sampled demonstrations.
    """

    anchors: tuple[Anchor, ...] = ("none", "bayesian", "cautious-pointwise", "cautious-minimax", "demonstrator")
    accountings: tuple[Literal["free", "forbidden", "outcome"], ...] = ("free",)
    budgets_nats: tuple[NonNegative, ...] = (2.0, 10.0)
    n_demonstrations: tuple[Positive, ...] = (10_000,)
    deployments: tuple[Literal["same", "novel"], ...] = ("same", "novel")
    horizons: tuple[Positive, ...] = (64,)
    ask_prices: tuple[NonNegative, ...] = (0.05,)
    log_inverse_alphas: tuple[NonNegative, ...] = (5.0,)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)


class CompareConfig(_Settings):
    """Everything that ``compare`` does.

    Attributes:
        preset: name of the preset that the settings started from.
        world: the conversations.
        hypotheses: the class that both imitators learn.
        grids: grids by name; cells in several of them are computed once.
        tolerance: largest duality gap of a solved cell, in units of reward.

    >>> CompareConfig.load("dialogue-acts", overrides=["grids.main.seeds=[1, 2]"]).grids["main"].seeds
    (1, 2)
    """

    preset: str = "dialogue-acts"
    world: WorldConfig = WorldConfig()
    hypotheses: HypothesesConfig = HypothesesConfig()
    grids: dict[str, GridConfig]
    tolerance: Annotated[float, Field(gt=0)] = 1e-6

    @classmethod
    def load(
        cls,
        preset: str = "dialogue-acts",
        file: str | PathLike[str] | None = None,
        overrides: Iterable[str] = (),
    ) -> CompareConfig:
        """Settings of a preset, then those of a YAML file, then ``a.b=c`` overrides (values are YAML).

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the preset or a key is unknown (the nearest known one is named), a value is out of range, or
                text does not parse.
        """
        settings = _preset(preset)
        if file is not None:
            settings = _merge(settings, _yaml(Path(file).read_text(encoding="utf-8"), f"file {file}"))
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals or not key:
                raise ValueError(f"--set must look like a.b=c, got {override!r}; for instance grids.main.seeds=[0,1]")
            nested: Any = _value(value, override)
            for part in reversed(key.strip().split(".")):
                nested = {part: nested}
            settings = _merge(settings, nested)
        return cls.parse({"preset": preset, **settings})

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> CompareConfig:
        """Checked settings.

        Raises:
            ValueError: naming each wrong key with the nearest known one, and each wrong value with what is allowed.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ValueError("; ".join(_explain(dict(problem)) for problem in error.errors())) from None


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the library."""
    folder = files("cautious_imitation") / "presets"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def _preset(name: str) -> dict[str, Any]:
    known = preset_names()
    if name not in known:
        raise ValueError(f"preset must be one of {', '.join(known)}, got {name!r}{_nearest(name, known)}")
    return _yaml((files("cautious_imitation") / "presets" / f"{name}.yaml").read_text(encoding="utf-8"), name)


def _yaml(text: str, where: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError(f"{where} must hold settings by name, got {type(settings).__name__}")
    return settings


def _value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"--set {override!r} has a value that is not valid YAML; quote it") from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(problem: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{path}: {problem['msg']}, got {problem['input']!r}"
    known = _known(problem["loc"][:-1])
    return f"{path} is no setting{_nearest(str(problem['loc'][-1]), known)}; known here: {', '.join(known)}"


def _known(path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Names of the settings at ``path``."""
    model: type[BaseModel] = CompareConfig
    for part in path:
        section = {"world": WorldConfig, "hypotheses": HypothesesConfig, "grids": CompareConfig}.get(str(part))
        model = section if section is not None and model is CompareConfig else GridConfig
    return tuple(model.model_fields)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""

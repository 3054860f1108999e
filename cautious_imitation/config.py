"""Settings of a comparison, from presets, YAML files and the command line; every key is checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)

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

NEVER_ASKS: frozenset[Anchor] = frozenset({"none", "bayesian", "demonstrator"})
"""Anchors under which a policy never asks: questions, their price and their accounting mean nothing there."""

CONTROLS: tuple[Anchor, ...] = ("bayesian-asks-max-prob", "bayesian-asks-count", "bayesian-asks-random")
"""The Bayesian anchor with questions at given places, as many as the minimax anchor asks."""

Positive: TypeAlias = Annotated[int, Field(ge=1)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Several: TypeAlias = Annotated[tuple[_T, ...], Field(min_length=1)]


class Settings(BaseModel):
    """A section of settings, in which nothing is unknown and nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldConfig(Settings):
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


class HypothesesConfig(Settings):
    """The class that imitators learn.

    Attributes:
        kind: ``"dirichlet"``, a ``DirichletTree``, or ``"trees"``, a ``ContextTree``, which has the other settings.
        leaf, complexity, stop_prob, plausible: arguments of ``ContextTree``.
    """

    kind: Literal["dirichlet", "trees"] = "dirichlet"
    leaf: Literal["profile", "kt"] | None = None
    complexity: Literal["none", "support", "bic"] | None = None
    stop_prob: Annotated[float, Field(gt=0, lt=1)] | None = None
    plausible: Literal["best", "total", "anytime"] | None = None

    @model_validator(mode="after")
    def _only_of_trees(self) -> HypothesesConfig:
        given = [name for name in ("leaf", "complexity", "stop_prob", "plausible") if getattr(self, name) is not None]
        if self.kind != "trees" and given:
            raise ValueError(f'hypotheses.kind must be "trees" with hypotheses.{given[0]}, got "{self.kind}"')
        return self


class GridConfig(Settings):
    """A grid of settings; every combination that makes sense is one cell.

    Attributes:
        anchors: what the policy is kept close to; an empty list turns the grid off.
        accountings: what asking costs in nats.
        budgets_nats: expected charge allowed in an episode.
        n_demonstrations: how many of the demonstrator's actions the imitators saw.
        deployments: whom the policy talks to.
        horizons: symbols in an episode.
        ask_prices: units of reward that a question costs.
        log_inverse_alphas: log(1 / alpha) in nats; larger is more cautious. None for the default of the class.
        seeds: of the sampled demonstrations.
    """

    anchors: tuple[Anchor, ...] = ("none", "bayesian", "cautious-pointwise", "cautious-minimax", "demonstrator")
    accountings: Several[Literal["free", "forbidden", "outcome"]] = ("free",)
    budgets_nats: Several[NonNegative] = (2.0, 10.0)
    n_demonstrations: Several[Positive] = (10_000,)
    deployments: Several[Literal["same", "novel"]] = ("same", "novel")
    horizons: Several[Positive] = (64,)
    ask_prices: Several[NonNegative] = (0.05,)
    log_inverse_alphas: Several[NonNegative] | None = None
    seeds: Several[Annotated[int, Field(ge=0)]] = (0,)


class CompareConfig(Settings):
    """Everything that ``compare`` does.

    Attributes:
        preset: name of the preset that the settings started from.
        world: the conversations.
        hypotheses: the class that both imitators learn.
        grids: grids by name; cells in several of them are computed once.
        tolerance: largest duality gap of a solved cell, relative to max(1, |value|).

    >>> CompareConfig.load("dialogue-acts", overrides=["grids.main.seeds=[1, 2]"]).grids["main"].seeds
    (1, 2)
    """

    preset: str = "dialogue-acts"
    world: WorldConfig = WorldConfig()
    hypotheses: HypothesesConfig = HypothesesConfig()
    grids: Annotated[dict[str, GridConfig], Field(min_length=1)]
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6

    @classmethod
    def load(
        cls,
        preset: str = "dialogue-acts",
        file: str | PathLike[str] | None = None,
        overrides: Iterable[str] = (),
        demonstrations: str | PathLike[str] | None = None,
    ) -> CompareConfig:
        """Settings of a preset, then those of a YAML file, then ``a.b=c`` overrides.

        Args:
            preset: one of ``preset_names()``.
            file: YAML settings laid over the preset, section by section; its ``grids`` take the place of the preset's.
            overrides: settings by their dotted names, each with a YAML value that takes the place of the one before.
            demonstrations: the user's own chats, short for ``world.demonstrations``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the preset or a key is unknown (the nearest known one is named), a value is out of range, or
                text does not parse.
        """
        settings = read_settings(preset, file, overrides)
        if demonstrations is not None:
            assign(settings, ["world", "demonstrations"], Path(demonstrations))
        return cls.parse(settings)

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> CompareConfig:
        """Checked settings.

        Raises:
            ValueError: naming each wrong key with the nearest known one, and each wrong value with what is allowed.
        """
        return checked(cls, settings)


def read_settings(
    preset: str, file: str | PathLike[str] | None = None, overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Settings of a preset, then those of a YAML file, then ``a.b=c`` overrides; not checked yet.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such preset, or text does not parse.
    """
    settings = {"preset": preset, **_preset(preset)}
    if file is not None:
        for key, value in _file(Path(file)).items():
            if key == "preset" and value != preset:
                raise ValueError(f"{file} says preset: {value}, but --preset is {preset!r}; give both the same name")
            below = settings.get(key)
            lay_over = key != "grids" and isinstance(below, dict) and isinstance(value, dict)
            settings[key] = {**below, **value} if lay_over and below is not None else value
    for override in overrides:
        _assign(settings, override)
    return settings


def checked(model: type[_Model], settings: Mapping[str, Any]) -> _Model:
    """``settings`` as a ``model``, every key and value checked.

    Raises:
        ValueError: naming each wrong key with the nearest known one, and each wrong value with what is allowed.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors()]
        # A list with a wrong entry is also reported as too short.
        wrong = {problem["loc"] for problem in problems if problem["type"] != "too_short"}
        inner = {loc[:i] for loc in wrong for i in range(len(loc))}
        told = [problem for problem in problems if problem["loc"] not in inner]
        raise ValueError("; ".join(_explain(model, problem) for problem in told)) from None


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the library."""
    folder = files("cautious_imitation") / "presets"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e5 is one. YAML 1.1, which PyYAML reads, takes it for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes plain values only


def _preset(name: str) -> dict[str, Any]:
    known = preset_names()
    if name not in known:
        raise ValueError(f"preset must be one of {', '.join(known)}, got {name!r}{_nearest(name, known)}")
    settings = _read((files("cautious_imitation") / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(settings, dict)
    return settings


def _file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no settings file at {path}; --config takes a YAML file")
    try:
        settings = _read(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); --config takes a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line} is not valid YAML: {error.problem}; mend that line") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}; save it as plain text") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings by name, got {settings!r}; for instance tolerance: 1e-6")
    return settings


def _assign(settings: dict[str, Any], override: str) -> None:
    """Carry out one ``a.b=c``."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set must look like a.b=c, got {override!r}; for instance grids.main.seeds=[0,1]")
    try:
        value = _read(text)
    except yaml.YAMLError:
        raise ValueError(f"--set {override!r} has a value that is not valid YAML; quote it") from None
    path = key.strip().split(".")
    grids = settings.get("grids")
    if path[0] == "grids" and len(path) > 2 and isinstance(grids, dict) and path[1] not in grids:
        names = tuple(map(str, grids))
        raise ValueError(f"{key.strip()}: no grid {path[1]!r} (known: {', '.join(names)}){_nearest(path[1], names)}")
    assign(settings, path, value)


def assign(settings: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the value at ``path``; sections on the way are made where there are none."""
    for part in path[:-1]:
        if not isinstance(settings.get(part), dict):
            settings[part] = {}
        settings = settings[part]
    settings[path[-1]] = value


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known(model, problem["loc"][:-1])
        return f"{path} is no setting (known: {', '.join(known)}){_nearest(problem['loc'][-1], known)}"
    if problem["type"] == "tuple_type":
        return f"{path} must be a list, got {problem['input']!r}; write [{problem['input']}]"
    if problem["type"] == "too_short":
        return f"{path} must not be empty, got {problem['input']!r}; leave it out to keep the preset's"
    if problem["type"] == "value_error":
        # Of settings that do not fit together; what is wrong says the message, which names them.
        return str(problem["ctx"]["error"])
    # Where only some words are allowed, pydantic lists them in quotation marks.
    allowed = re.findall("'([^']*)'", problem["ctx"]["expected"]) if problem["type"] == "literal_error" else []
    near = _nearest(problem["input"], allowed)
    return f"{path}: {problem['msg']}, got {problem['input']!r}{near}"


def _known(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Names of the settings at ``path``."""
    section: Any = model
    for part in path:
        field = section.model_fields.get(str(part)) if _is_model(section) else None
        # Sections by names of the user's own, as grids are, have one model for all.
        section = section if field is None else field.annotation
        section = next((one for one in (section, *get_args(section)) if _is_model(one)), section)
    return tuple(section.model_fields) if _is_model(section) else ()


def _is_model(value: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _nearest(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""

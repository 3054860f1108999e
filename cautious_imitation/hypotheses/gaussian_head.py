"""A frozen language model's output head, moved in every direction that the demonstrations leave open: a heuristic."""

from __future__ import annotations

import json
from math import log, sqrt
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

from cautious_imitation.atomic_files import write_safetensors, write_text
from cautious_imitation.hypotheses.base import check_alpha
from cautious_imitation.hypotheses.feature_hypotheses import FeatureHypotheses
from cautious_imitation.hypotheses.logit_ball import Bound, LogitBall
from cautious_imitation.hypotheses.weighted_rows import read_saved
from cautious_imitation.language.demonstration_features import model_digest
from cautious_imitation.language.model import LanguageModel, Reading
from cautious_imitation.types import Array

Tensor = torch.Tensor

Covariance: TypeAlias = Literal["isotropic", "fisher"]
Reads: TypeAlias = Literal["last", "recent", "both"]

_NAME, _SCHEMA = "gaussian_head", 1
_VALUES_AT_ONCE = 1 << 23
"""Numbers held while learning: 64 MiB in double precision, whatever the number of tokens."""


class GaussianHead(FeatureHypotheses):
    """Output heads W + dW around the model's own W, with Gaussian dW: wide where features were never demonstrated.

    **A heuristic without a certificate.** Nothing says that the demonstrator is one of these heads, and what it did is
    not even looked at, only where: the class learns the features before each of its tokens. It stays silent where the
    trunk itself has been persuaded: after a loop of empty replies features look familiar (``EventRefined`` counts them
    instead). What is guaranteed, with ``bound="guaranteed"``, is only that minimum and charge hold for the whole
    ellipsoid of heads.

    With H the N features learned, a head's logits at feature h are z + delta, delta independent from token to token,
    of standard deviation noise sqrt(leverage) times a factor of the token's:

        leverage = h' (H'H + ridge I)^-1 h,   |delta / factor| <= noise sqrt(2 log(1 / alpha)) sqrt(leverage)

    for the heads that are plausible, those whose density at this context is at least ``alpha`` times the largest.

    - ``covariance="isotropic"``: factor 1, the posterior of a least-squares head that sees its logits with ``noise``. A
      softmax head is less certain, the more so the rarer the token.
    - ``covariance="fisher"``: the Laplace approximation of a softmax head, token by token. With f_a the mean of
      p_a (1 - p_a) where the demonstrator was seen, weights of token a have precision f_a H'H + ridge I. Its logit then
      has a variance of at most leverage / (f_a + (1 - f_a) kappa), where kappa = ridge leverage / |h|^2 is the part of
      the prior's variance that is left in this direction (equal if h is an eigenvector of H'H, by concavity otherwise).
      So the factor is 1 / sqrt(f_a + (1 - f_a) kappa): 1 before anything is learned, near 1 / sqrt(f_a) for tokens in
      use, and what the prior allows, |h| / sqrt(ridge leverage), for those never predicted. ``1 / ridge`` is the
      variance of a weight before learning; choose it no larger than the head's weights suggest. A Gaussian exaggerates
      how much a rare token may gain, so this set asks much more.

    Args:
        model: the frozen language model.
        ridge: prior precision of each weight, positive; small ones make undemonstrated directions wilder.
        covariance: ``"isotropic"`` or ``"fisher"``.
        noise: standard deviation in nats of what one demonstrated token says about a logit, positive. Nothing but
            measuring says what it should be: with ``alpha`` it sets how much is asked.
        bound: ``"guaranteed"``, or ``"first-order"`` for the cheaper values by the gradient, which are too sure.
        reads: which features dW reads: ``"last"``, those of the model's own head; ``"recent"``, the second half that
            ``RecentContext`` adds, so that it is the kind of text that has to be familiar; or ``"both"``.

    Raises:
        ValueError: if a setting is out of its range, or ``reads`` needs a model with ``recent=RecentContext()``.

    >>> import transformers
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> model = LanguageModel(transformers.LlamaForCausalLM(config), start_token=0)
    >>> head = GaussianHead(model).fit([[1, 2, 3, 1, 2, 3, 1, 2, 3]])
    >>> bool(head.leverage([1, 2, 3, 1]) < head.leverage([5, 5, 4, 4]))
    True

    Source: Laplace approximation of the last layer; leverage as in ridge regression; bounds: ``logit_ball``.
    """

    model: LanguageModel

    def __init__(
        self,
        model: LanguageModel,
        *,
        ridge: float = 1.0,
        covariance: Covariance = "isotropic",
        noise: float = 1.0,
        bound: Bound = "guaranteed",
        reads: Reads = "last",
    ) -> None:
        super().__init__(model)
        if not isinstance(model, LanguageModel):
            raise ValueError(f"model must be a single LanguageModel, got {type(model).__name__}")
        if not 0 < ridge < float("inf"):
            raise ValueError(f"ridge must be positive and finite, got {ridge!r}; it is the prior precision of a weight")
        if not 0 < noise < float("inf"):
            raise ValueError(f"noise must be positive and finite, got {noise!r}; smaller asks less")
        for name, value, known in (("covariance", covariance, Covariance), ("bound", bound, Bound)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if reads not in get_args(Reads) or (reads != "last" and model.n_features == model.head_width):
            raise ValueError(
                f"reads must be one of {', '.join(get_args(Reads))}, got {reads!r}; all but last need a LanguageModel "
                "with recent=RecentContext()"
            )
        self.ridge = float(ridge)
        self.noise = float(noise)
        self.covariance: Covariance = covariance
        self.bound: Bound = bound
        self.reads: Reads = reads
        self.n_learned = 0
        ends = {"last": (0, model.head_width), "recent": (model.head_width, None), "both": (0, None)}
        self._part = slice(*ends[reads])
        width = len(range(model.n_features)[self._part])
        # Sums of many thousand terms, so in double precision whatever the model's.
        self._gram = torch.zeros((width, width), dtype=torch.float64, device=model.device)
        self._fisher = torch.zeros(model.n_symbols, dtype=torch.float64, device=model.device)
        self._inverse_factor: Tensor | None = None

    def leverage(self, context: Array | Reading) -> Tensor:
        """How little the demonstrations say about a head's logits at ``context``: their variance, ``[...]``.

        About d / N where features are as demonstrated, |h|^2 / ridge in a direction that never was.
        """
        return self._leverage(self._read(self.model.read(context).features)).to(self.model.dtype)

    def radius(self, context: Array | Reading, alpha: float) -> Tensor:
        """Radius of the plausible ball of logits at ``context``, ``[...]``; times the token's factor under ``fisher``.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1].
        """
        return self.noise * _width(alpha) * self.leverage(context).sqrt()

    @torch.no_grad()
    def mixture_from(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """The model's own prediction, the centre of all heads; see ``FeatureHypotheses.mixture_from``."""
        logits = self.model.logits(features)
        if given is not None:
            mask = given.to(logits.device)
            if not bool(mask.any(-1).all()):
                raise ValueError("given must leave at least one action in every context, got a context with none")
            logits = logits.masked_fill(~mask, -torch.inf)
        return logits.log_softmax(-1)

    @torch.no_grad()
    def plausible_from(self, features: Tensor, alpha: float, given: Tensor | None = None) -> LogitBall:
        """The ball of logits that is plausible at features ``[..., d]``; see ``FeatureHypotheses.plausible_from``.

        Among ``given`` actions the heads' logits are those of the same ball, projected: its centre changes, its radius
        does not.
        """
        width, read = self.noise * _width(alpha), self._read(features)
        leverage = self._leverage(read)
        scale = None if self.covariance == "isotropic" else self._scale(read, leverage).to(self.model.dtype)
        radius = (width * leverage.sqrt()).to(self.model.dtype)
        return LogitBall(self.mixture_from(features, given), radius, scale, self.bound)

    @torch.no_grad()
    def learn_from(self, features: Tensor, symbols: Tensor, given: Tensor | None = None) -> None:
        """Learn that the demonstrator was seen at features ``[N, d]``; what it did there changes nothing.

        ``given`` as in ``FeatureHypotheses.learn_from``; under ``fisher`` it is the conditional probabilities that say
        how much is learned about a token.

        Raises:
            ValueError: if features are not finite; nothing is learned then.
        """
        if not bool(features.isfinite().all()):
            raise ValueError("features must be finite, got NaN or infinity; the model's own weights may be broken")
        gram, fisher = torch.zeros_like(self._gram), torch.zeros_like(self._fisher)
        widest = max(features.shape[-1], self.n_symbols if self.covariance == "fisher" else 0)
        at_once = max(1, _VALUES_AT_ONCE // widest)
        for start in range(0, len(features), at_once):
            part = slice(start, start + at_once)
            read = self._read(features[part])
            gram += read.T @ read
            if self.covariance == "fisher":
                masks = given[part] if given is not None and given.ndim > 1 else given
                p = self.mixture_from(features[part], masks).exp_()
                fisher += p.addcmul_(p, p, value=-1).sum(0, dtype=torch.float64)
        self._gram += gram
        self._fisher += fisher
        self.n_learned += len(features)
        self._inverse_factor = None

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``gaussian_head.safetensors`` (sums over what was learned) and ``gaussian_head.json`` into ``folder``.

        The model is not written: pass it to ``load`` again.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sums = {"gram": self._gram.cpu().numpy(), "fisher": self._fisher.cpu().numpy()}
        write_safetensors(folder / f"{_NAME}.safetensors", sums)
        document = {
            "schema": _SCHEMA,
            "n_learned": self.n_learned,
            "ridge": self.ridge,
            "covariance": self.covariance,
            "noise": self.noise,
            "bound": self.bound,
            "reads": self.reads,
            "model": model_digest(self.model),
        }
        write_text(folder / f"{_NAME}.json", json.dumps(document, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | PathLike[str], model: LanguageModel) -> GaussianHead:
        """Read what ``save`` wrote; ``model`` is the language model that it was learned with.

        Raises:
            FileNotFoundError: if ``folder`` holds no saved class.
            ValueError: if it was written by another version of the format, is damaged, or is of another model.
        """
        arrays, settings = read_saved(folder, _NAME, _SCHEMA)
        if settings.pop("model", None) != model_digest(model):
            raise ValueError(
                f"model must be the one that was saved in {folder}, got another; pass the same model in the same "
                "precision, with the same actions and start token"
            )
        n_learned = settings.pop("n_learned")
        loaded = cls(model, **settings)
        for name, values in (("gram", loaded._gram), ("fisher", loaded._fisher)):
            got = arrays[name].shape if name in arrays else None
            if got != tuple(values.shape):
                raise ValueError(
                    f"{Path(folder) / _NAME}.safetensors must hold {name} of shape {tuple(values.shape)}, got {got}; "
                    "fit and save it again"
                )
            values.copy_(torch.from_numpy(arrays[name]))
        loaded.n_learned = int(n_learned)
        return loaded

    def _read(self, features: Tensor) -> Tensor:
        """The part of ``features [..., d]`` that dW reads, in double precision."""
        return features.detach()[..., self._part].to(self._gram)

    def _leverage(self, read: Tensor) -> Tensor:
        """h' (H'H + ridge I)^-1 h at ``read [..., d]``: ``[...]``, in double precision."""
        if self._inverse_factor is None:
            identity = torch.eye(len(self._gram)).to(self._gram)
            factor, failed = torch.linalg.cholesky_ex(self._gram + self.ridge * identity)
            if bool(failed):
                raise ValueError(
                    f"ridge must be large enough beside the features learned, got {self.ridge!r}, which rounding "
                    "swallows; choose a larger one"
                )
            self._inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)
        leverage: Tensor = (read @ self._inverse_factor.T).square().sum(-1)
        return leverage

    def _scale(self, read: Tensor, leverage: Tensor) -> Tensor:
        """Standard deviations of the tokens' logits in units of sqrt(leverage): ``[..., V]``."""
        squares = read.square().sum(-1)
        left = torch.where(squares > 0, self.ridge * leverage / squares, 1.0).clamp(max=1.0)[..., None]
        mean = self._fisher / max(1, self.n_learned)
        return (mean + (1 - mean) * left).rsqrt_()


def _width(alpha: float) -> float:
    """How many standard deviations away the density is ``alpha`` times the largest."""
    return sqrt(max(0.0, -2 * log(check_alpha(alpha))))

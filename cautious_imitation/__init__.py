"""Two imitators of one demonstrator, and a harness that fine-tunes while staying close to either.

The Bayesian imitator predicts with the posterior mixture; the cautious one with the least probability that any
plausible hypothesis gives, and asks for help with the mass that is left over. Both are anchors for reinforcement
learning: the harness maximises reward within a budget of KL divergence to the anchor.

Public names load on first use: importing the package is quick and loads neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cautious_imitation.calibration import Calibration, calibrate_alpha
    from cautious_imitation.certificates import Certificate
    from cautious_imitation.comparison.results import Comparison
    from cautious_imitation.comparison.run import compare
    from cautious_imitation.config import CompareConfig
    from cautious_imitation.coverage import CoverageReport, check_coverage
    from cautious_imitation.demonstrations import Demonstrations
    from cautious_imitation.finetuning.exact import ExactSolver
    from cautious_imitation.finetuning.harness import finetune
    from cautious_imitation.hypotheses.context_tree import ContextTree
    from cautious_imitation.hypotheses.dirichlet_tree import DirichletTree
    from cautious_imitation.hypotheses.finite import FiniteHypotheses
    from cautious_imitation.imitators import BasePolicy, BayesianImitator, CautiousImitator
    from cautious_imitation.online import Imitation
    from cautious_imitation.oracles.function import as_oracle
    from cautious_imitation.oracles.log import QueryLog
    from cautious_imitation.oracles.protocol import Act, Decline, HelpNeeded, Oracle, Query
    from cautious_imitation.regularizers import ExpectedBudget, Regularizer
    from cautious_imitation.types import Action, Actor, Prediction

__version__ = "0.1.0"

__all__ = [
    "Act",
    "Action",
    "Actor",
    "BasePolicy",
    "BayesianImitator",
    "Calibration",
    "CautiousImitator",
    "Certificate",
    "CompareConfig",
    "Comparison",
    "ContextTree",
    "CoverageReport",
    "Decline",
    "Demonstrations",
    "DirichletTree",
    "ExactSolver",
    "ExpectedBudget",
    "FiniteHypotheses",
    "HelpNeeded",
    "Imitation",
    "Oracle",
    "Prediction",
    "Query",
    "QueryLog",
    "Regularizer",
    "as_oracle",
    "calibrate_alpha",
    "check_coverage",
    "compare",
    "finetune",
]

_HOME = {
    "Act": "oracles.protocol",
    "Action": "types",
    "Actor": "types",
    "BasePolicy": "imitators",
    "BayesianImitator": "imitators",
    "Calibration": "calibration",
    "CautiousImitator": "imitators",
    "Certificate": "certificates",
    "CompareConfig": "config",
    "Comparison": "comparison.results",
    "ContextTree": "hypotheses.context_tree",
    "CoverageReport": "coverage",
    "Decline": "oracles.protocol",
    "Demonstrations": "demonstrations",
    "DirichletTree": "hypotheses.dirichlet_tree",
    "ExactSolver": "finetuning.exact",
    "ExpectedBudget": "regularizers",
    "FiniteHypotheses": "hypotheses.finite",
    "HelpNeeded": "oracles.protocol",
    "Imitation": "online",
    "Oracle": "oracles.protocol",
    "Prediction": "types",
    "Query": "oracles.protocol",
    "QueryLog": "oracles.log",
    "Regularizer": "regularizers",
    "as_oracle": "oracles.function",
    "calibrate_alpha": "calibration",
    "check_coverage": "coverage",
    "compare": "comparison.run",
    "finetune": "finetuning.harness",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names are {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

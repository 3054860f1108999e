"""No implementation escapes the laws."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

import cautious_imitation.hypotheses
from cautious_imitation.hypotheses.base import Hypotheses
from tests.laws.table import IMPLEMENTATIONS


def concrete_classes() -> Iterator[type[Hypotheses]]:
    for module in iter_modules(cautious_imitation.hypotheses.__path__, "cautious_imitation.hypotheses."):
        for _, found in inspect.getmembers(import_module(module.name), inspect.isclass):
            if issubclass(found, Hypotheses) and not inspect.isabstract(found):
                yield found


def test_every_concrete_class_is_in_the_table():
    classes = set(concrete_classes())
    assert len(classes) >= 2
    assert classes == {type(implementation.make()) for implementation in IMPLEMENTATIONS}

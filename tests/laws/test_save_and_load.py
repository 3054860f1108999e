"""Law 6: what was saved and loaded gives the same answers, bit for bit, and goes on learning the same."""

from __future__ import annotations

import numpy as np

from tests.laws.table import N_CONTEXT_SYMBOLS, arrays_of, sequences

CONTEXTS = [[a, b] for a in range(N_CONTEXT_SYMBOLS) for b in range(N_CONTEXT_SYMBOLS)]


def test_save_and_load(implementation, tmp_path):
    original = implementation.make().fit(sequences())
    original.save(tmp_path / "saved")
    loaded = implementation.load(tmp_path / "saved")
    assert type(loaded) is type(original)
    assert {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()} == {".safetensors", ".json"}
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(loaded.mixture(CONTEXTS)), np.asarray(original.mixture(CONTEXTS)))
        members, again = original.plausible(CONTEXTS, 1e-3), loaded.plausible(CONTEXTS, 1e-3)
        for one, other in zip(arrays_of(again), arrays_of(members), strict=True):
            np.testing.assert_array_equal(one, other)
        original.update([0, 1], 2)
        loaded.update([0, 1], 2)


def test_saving_again_replaces_what_was_there(implementation, tmp_path):
    hypotheses = implementation.make()
    hypotheses.save(tmp_path)
    hypotheses.fit(sequences()).save(tmp_path)
    again = implementation.load(tmp_path)
    np.testing.assert_array_equal(np.asarray(again.mixture(CONTEXTS)), np.asarray(hypotheses.mixture(CONTEXTS)))

"""Of the contract: asking changes nothing, and a batch of questions is answered as each of them alone."""

from __future__ import annotations

import numpy as np

from tests.laws.table import N_CONTEXT_SYMBOLS, N_SYMBOLS, like, sequences

CONTEXTS = [[a, b] for a in range(N_CONTEXT_SYMBOLS) for b in range(N_CONTEXT_SYMBOLS)]


def test_asking_does_not_learn(implementation):
    asked, other = implementation.make().fit(sequences()), implementation.make().fit(sequences())
    log_pi = like(asked, np.log([0.2, 0.3, 0.5]))
    for context in CONTEXTS:
        asked.mixture(context)
        asked.plausible_min(context, 0.1)
        asked.worst_kl(context, log_pi, 0.1)
    np.testing.assert_array_equal(np.asarray(asked.mixture(CONTEXTS)), np.asarray(other.mixture(CONTEXTS)))
    np.testing.assert_array_equal(
        np.asarray(asked.plausible_min(CONTEXTS, 0.1)), np.asarray(other.plausible_min(CONTEXTS, 0.1))
    )


def test_a_batch_of_questions_is_each_alone(trained):
    log_pi = np.log(np.random.default_rng(3).dirichlet(np.ones(N_SYMBOLS), size=len(CONTEXTS)))
    for ask in (trained.mixture, lambda context: trained.plausible_min(context, 0.1)):
        alone = np.stack([np.asarray(ask(context)) for context in CONTEXTS])
        np.testing.assert_allclose(np.asarray(ask(np.array(CONTEXTS))), alone, rtol=1e-12)
    charges = trained.worst_kl(np.array(CONTEXTS), like(trained, log_pi), 0.1)
    alone = [float(trained.worst_kl(c, like(trained, p), 0.1)) for c, p in zip(CONTEXTS, log_pi, strict=True)]
    np.testing.assert_allclose(np.asarray(charges), alone, rtol=1e-12)

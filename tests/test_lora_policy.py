"""A policy with an adapter: it starts at the base, is charged by hand, and reads the same whichever way it reads."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import peft
import pytest
import torch
from scipy.special import logsumexp, rel_entr
from transformers import GPT2Config, GPT2LMHeadModel

from cautious_imitation.finetuning import lora_policy
from cautious_imitation.finetuning.growing_rows import GrowingRows
from cautious_imitation.finetuning.lora_policy import LoRAPolicy
from cautious_imitation.finetuning.training_state import read_training, write_training
from cautious_imitation.hypotheses.event_refined import EventRefined
from cautious_imitation.hypotheses.events import EmptyReplies
from cautious_imitation.hypotheses.feature_hypotheses import FeatureHypotheses
from cautious_imitation.hypotheses.gaussian_head import GaussianHead
from cautious_imitation.hypotheses.language_models import LanguageModels
from cautious_imitation.imitators import BayesianImitator, CautiousImitator
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext
from cautious_imitation.language.small_gpt import small_gpt
from cautious_imitation.plausible_sets import PlausibleSet
from cautious_imitation.types import Array
from tests.tiny_models import tiny_model, tiny_network

DOUBLE = torch.float64
TEXTS = [[0, 1, 2, 1, 0, 2, 1, 1], [1, 0, 2, 2, 0, 1]]
CONTEXTS = [[3, 1, 0, 2], [2], [0, 1, 1, 3, 2], [1, 1]]
ANCHORS = ("bayesian", "pointwise", "minimax", "refined")


def base_model(**settings: Any) -> LanguageModel:
    return tiny_model(layers=2, **settings)


def tiny_gpt2() -> LanguageModel:
    """In double precision throughout; a Llama normalises in single, whatever its weights are in."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=4,
        n_embd=6,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=3,
        eos_token_id=None,
        pad_token_id=None,
    )
    network = GPT2LMHeadModel(config).double()
    torch.set_rng_state(state)
    with torch.no_grad():
        for weights in network.parameters():
            weights.mul_(10 if weights.ndim == 2 else 1)
    return LanguageModel(network, n_symbols=3)


def anchor_on(model: LanguageModel, kind: str) -> Any:
    hypotheses: Any = GaussianHead(model)
    if kind == "refined":
        hypotheses = EventRefined(hypotheses, EmptyReplies(n_symbols=3, end_tokens=[0], start_suffix=[2]))
    hypotheses.fit(TEXTS)
    if kind == "bayesian":
        return BayesianImitator(hypotheses)
    return CautiousImitator(hypotheses, 0.1, "pointwise" if kind == "pointwise" else "minimax")


def observed(model: LanguageModel, contexts: list[list[int]], episodes: list[int] | None = None) -> dict[str, Any]:
    longest = max(map(len, contexts)) + 2
    return {
        "tokens": torch.tensor([[*row, *[0] * (longest - len(row))] for row in contexts]),
        "n_tokens": torch.tensor([len(row) for row in contexts]),
        "episode": torch.tensor(list(range(len(contexts))) if episodes is None else episodes),
        "features": model.read(contexts).features,
    }


def policy_on(model: LanguageModel, kind: str = "minimax", size: float = 0.0, **settings: Any) -> LoRAPolicy:
    """A fresh policy, or one whose weights have moved by so much."""
    policy = LoRAPolicy(model, anchor_on(model, kind), **settings)
    move(policy, size)
    return policy


def move(policy: LoRAPolicy, size: float, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in policy.parameters():
            weights += size * torch.randn(weights.shape, generator=generator, dtype=DOUBLE).to(weights.dtype)


def everything(decision: Any) -> torch.Tensor:
    return torch.cat([decision.log_probs, decision.log_act[:, None], decision.charge_nats[:, None]], dim=-1)


@pytest.mark.parametrize("kind", ANCHORS)
@pytest.mark.parametrize("learning", [False, True])
def test_it_starts_at_the_base(kind: str, learning: bool) -> None:
    model = base_model()
    policy, seen = policy_on(model, kind), observed(model, CONTEXTS)
    with torch.set_grad_enabled(learning):
        decision = policy(seen)
    base = model.log_probs(seen["features"])
    torch.testing.assert_close(decision.log_probs.detach(), base, rtol=0, atol=1e-12)
    asks = 0.0 if kind == "bayesian" else 0.01
    torch.testing.assert_close(decision.log_ask.exp().detach(), torch.full((4,), asks, dtype=DOUBLE))
    torch.testing.assert_close(decision.log_act.exp().detach(), torch.full((4,), 1 - asks, dtype=DOUBLE))
    assert torch.equal(decision.share, torch.ones(4, dtype=DOUBLE))


@pytest.mark.parametrize("kind", ANCHORS)
def test_the_charge_is_the_divergence_by_hand(kind: str) -> None:
    model = base_model()
    policy, seen = policy_on(model, kind, size=0.3), observed(model, CONTEXTS)
    with torch.no_grad():
        decision = policy(seen)
    act = decision.log_act.exp()
    assert bool(((act > 0.9) & (act < 1)).all()) == (kind != "bayesian")
    for row, context in enumerate(CONTEXTS):
        pi = decision.log_probs[row].exp().numpy()
        anchor = policy.anchor
        if kind == "bayesian":
            by_hand = rel_entr(pi, anchor.predict(context).log_probs.exp().numpy()).sum()
        elif kind == "pointwise":
            by_hand = rel_entr(pi, anchor.hypotheses.plausible_min(context, 0.1).exp().numpy()).sum()
        else:
            by_hand = float(anchor.charge([context], decision.log_probs[row : row + 1]))
        assert by_hand > 1e-3
        assert decision.charge_nats[row].item() == pytest.approx(act[row].item() * by_hand, rel=1e-9)
    assert torch.equal(decision.spend_nats, decision.charge_nats)


def test_the_charge_is_that_of_a_reading_whose_model_has_more_features_than_the_head_reads() -> None:
    model = tiny_model(layers=2, recent=RecentContext(layer=0.5))
    policy, seen = policy_on(model, "bayesian", size=0.3), observed(model, CONTEXTS)
    with torch.no_grad():
        once, again = policy(seen), policy(observed(model, CONTEXTS, [0, 0, 1, 1]))
    torch.testing.assert_close(everything(once), everything(again))
    expected = policy.anchor.charge(CONTEXTS, once.log_probs)
    torch.testing.assert_close(once.charge_nats, expected)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], ["v_proj", "lm_head"]], ids=str)
def test_it_is_the_network_with_products_added_to_its_weights(targets: Any) -> None:
    model = base_model()
    policy = policy_on(model, "bayesian", size=0.3, rank=2, alpha=3.0, target_modules=targets)
    merged = tiny_network(layers=2)
    weights = {name.replace("/", "."): values for name, values in policy.adapter.items()}
    changed = {name.partition(".lora_A.")[0] for name in weights if ".lora_A." in name}
    assert len(changed) == {"all-linear": 14}.get(str(targets), 4 if "q_proj" in targets else 3)
    with torch.no_grad():
        for name in changed:
            product = weights[f"{name}.lora_B.default.weight"] @ weights[f"{name}.lora_A.default.weight"]
            merged.get_submodule(name).weight += 1.5 * product
        decision = policy(observed(model, CONTEXTS))
        for row, context in enumerate(CONTEXTS):
            logits = merged(input_ids=torch.tensor([context])).logits[0, -1, :3]
            torch.testing.assert_close(decision.log_probs[row], logits.log_softmax(-1))
    assert (decision.log_probs - model.log_probs(model.read(CONTEXTS).features)).abs().max() > 0.1


def played(vocabulary: int, seed: int = 0) -> list[tuple[list[int], list[list[int]]]]:
    """Which episodes decide, and their contexts: some wait, some grow by several tokens, one loses its oldest."""
    rng = np.random.default_rng(seed)
    said = [list(rng.integers(vocabulary, size=length)) for length in (3, 1, 4, 2)]
    moments = []
    for moment in range(7):
        for row, text in enumerate(said):
            text += list(rng.integers(vocabulary, size=1 + int(rng.integers(3)) * ((moment + row) % 2)))
        if moment == 4:
            del said[1][:2]
        acts = [row for row in range(4) if moment in (0, 2, 5) or (moment + row) % 3]
        # Another order than before must not matter.
        acts = acts[::-1] if moment in (2, 3, 5) else acts
        moments.append((acts, [[int(token) for token in said[row]] for row in acts]))
    return moments


def test_playing_and_learning_read_the_same() -> None:
    model = base_model()
    policy = policy_on(model, size=0.3)
    moments = played(4)
    with torch.no_grad():
        apart = [policy(observed(model, contexts, acts)) for acts, contexts in moments]
    together = policy(
        observed(model, [row for _, rows in moments for row in rows], [row for acts, _ in moments for row in acts])
    )
    torch.testing.assert_close(torch.cat([everything(one) for one in apart]), everything(together).detach())
    alone = policy(observed(model, moments[-1][1]))
    torch.testing.assert_close(everything(apart[-1]), everything(alone).detach())


def test_playing_and_learning_read_the_same_in_single_precision() -> None:
    model = small_gpt()
    policy = LoRAPolicy(model, CautiousImitator(LanguageModels([model, small_gpt("member-0")]), 0.1))
    move(policy, 0.02)
    moments = played(2048)
    both = [context for _, contexts in moments for context in contexts]
    reader: Any = policy.anchor.hypotheses.models

    def seen(contexts: list[list[int]], episodes: list[int]) -> dict[str, Any]:
        return {**observed(model, contexts, episodes), "features": reader.read(contexts).features}

    with torch.no_grad():
        apart = torch.cat([everything(policy(seen(contexts, acts))) for acts, contexts in moments])
    together = everything(policy(seen(both, [row for acts, _ in moments for row in acts]))).detach()
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
    base = model.log_probs(model.read(both).features)
    assert (apart[:, :2048] - base).abs().max() > 0.05


def test_on_a_network_in_half_the_adapter_is_in_single_precision() -> None:
    model = LanguageModel(tiny_network(layers=2).to(torch.bfloat16), n_symbols=3, start_token=3)
    policy, seen = policy_on(model, "pointwise"), observed(model, CONTEXTS)
    assert {weights.dtype for weights in policy.parameters()} == {torch.float32}
    with torch.no_grad():
        first = policy(seen)
    torch.testing.assert_close(first.log_probs, model.log_probs(seen["features"]), rtol=0.05, atol=0.05)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-5)
    policy(seen).charge_nats.sum().backward()
    before = [weights.detach().clone() for weights in policy.parameters()]
    optimizer.step()
    moved = [not torch.equal(old, now) for old, now in zip(before, policy.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert {weights.dtype for weights in model.network.parameters()} == {torch.bfloat16}


def watched(policy: LoRAPolicy) -> list[tuple[int, int]]:
    """Rows and columns of every pass of the policy's own network from now on."""
    passes: list[tuple[int, int]] = []
    trunk = policy._adapted.trunk
    trunk.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return passes


def test_each_token_is_read_once() -> None:
    model = base_model()
    policy = policy_on(model)
    passes = watched(policy)
    contexts = [[1, 2, 0], [2, 1, 3]]
    with torch.no_grad():
        for _ in range(4):
            policy(observed(model, contexts))
            contexts = [[*context, 1] for context in contexts]
        policy(observed(model, contexts[:1], [0]))
        policy(observed(model, [contexts[0], [*contexts[1], 0, 0]]))
        # Nothing new, nothing read.
        policy(observed(model, contexts[:1], [0]))
    assert passes == [(2, 3), (2, 1), (2, 1), (2, 1), (1, 1), (1, 3)]
    passes.clear()
    prefixes = [context[:length] for context in contexts for length in (2, 4, 7, 5)]
    policy(observed(model, prefixes, [0] * 4 + [1] * 4))
    assert passes == [(2, 7)]


def test_what_was_kept_goes_when_weights_change() -> None:
    model = base_model()
    policy, other, seen = policy_on(model), policy_on(model, size=0.3), observed(model, CONTEXTS)
    with torch.no_grad():
        policy(seen)
        policy.load_state_dict(other.state_dict())
        torch.testing.assert_close(everything(policy(seen)), everything(other(seen)))
        optimizer = torch.optim.Adam(policy.parameters(), 0.1)
        for weights in policy.parameters():
            weights.grad = torch.ones_like(weights)
        optimizer.step()
        moved = everything(policy(seen))
    assert (moved - everything(other(seen))).abs().max() > 0.1
    torch.testing.assert_close(moved, everything(policy(seen)).detach())


def test_inference_mode_and_no_grad_may_alternate() -> None:
    model = base_model()
    policy, seen = policy_on(model, "bayesian"), observed(model, CONTEXTS)
    longer = observed(model, [[*context, 1] for context in CONTEXTS[:2]])
    with torch.inference_mode():
        policy(seen)
    with torch.no_grad():
        decision = policy(longer)
        torch.testing.assert_close(decision.log_probs, model.log_probs(longer["features"]))


@pytest.mark.parametrize("kind", ANCHORS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    model = tiny_gpt2()
    policy = policy_on(model, kind, size=0.2, ask_offset=0.5)
    contexts = [CONTEXTS[0][:2], *CONTEXTS]
    seen = observed(model, contexts, [0, 0, 1, 2, 3])
    outcomes = torch.tensor([1, 0, 2, 1, 0] if kind == "bayesian" else [1, 3, 2, 0, 3])
    parts = {
        "log_prob": lambda decision: decision.log_prob(outcomes),
        "charge": lambda decision: decision.charge_nats,
        "entropy": lambda decision: decision.entropy(),
    }
    weights = list(policy.parameters())
    generator = torch.Generator().manual_seed(5)
    for part in parts.values():
        for _ in range(3):
            direction = [torch.randn(each.shape, generator=generator, dtype=DOUBLE) for each in weights]
            weighing = torch.randn(5, generator=generator, dtype=DOUBLE)
            gradients = torch.autograd.grad(part(policy(seen)) @ weighing, weights, allow_unused=True)
            slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
            values = []
            for sign in (1, -2, 1):
                with torch.no_grad():
                    for each, step in zip(weights, direction, strict=True):
                        each += sign * 1e-5 * step
                    values.append(float(part(policy(seen)) @ weighing))
            assert abs(slope) > 1e-3
            assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", ANCHORS)
def test_the_base_stays_as_it_is(kind: str) -> None:
    model = base_model()
    before = {name: values.clone() for name, values in model.network.state_dict().items()}
    said = model.log_probs(model.read(CONTEXTS).features)
    policy = policy_on(model, kind, size=0.3)
    seen = observed(model, CONTEXTS)
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        decision = policy(seen)
        (decision.charge_nats - decision.log_probs[:, 0]).sum().backward()
        optimizer.step()
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weights.grad is None and not weights.requires_grad for weights in model.network.parameters())
    assert not any("lora" in name for name, _ in model.network.named_modules())
    assert torch.equal(model.log_probs(model.read(CONTEXTS).features), said)
    shared = {weights.data_ptr() for weights in policy._adapted.network.parameters()}
    assert {weights.data_ptr() for weights in model.network.parameters()} <= shared


def test_a_checkpoint_holds_the_adapter_and_the_gate(tmp_path) -> None:
    model = base_model()
    policy, other = policy_on(model, size=0.3), policy_on(model)
    names = set(policy.state_dict())
    assert {name for name in names if "lora_" not in name} == {"gate.weight", "gate.bias"}
    assert len(names) == 2 + 2 * 14
    assert names == {name for name, _ in policy.named_parameters()}
    write_training(tmp_path / "policy.safetensors", {"policy": policy}, {})
    read_training(tmp_path / "policy.safetensors", {"policy": other}, {})
    seen = observed(model, CONTEXTS)
    assert torch.equal(everything(policy(seen)), everything(other(seen)))
    assert not any(name.startswith("gate") for name in policy_on(model, "bayesian").state_dict())


def test_the_adapter_depends_on_its_seed_and_nothing_else() -> None:
    model = base_model()
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    one = policy_on(model, seed=1).state_dict()
    assert torch.equal(torch.rand(3), drawn)
    again, other = policy_on(model, seed=1).state_dict(), policy_on(model, seed=2).state_dict()
    for name, values in one.items():
        assert torch.equal(values, again[name])
        assert torch.equal(values, other[name]) == ("lora_A" not in name)
        if "lora_A" in name:
            assert float(values.abs().max()) <= values.shape[1] ** -0.5


class Partial(FeatureHypotheses):
    """Two members that never do 0; where the first feature is beyond a boundary they have nothing in common."""

    boundary: float

    def _members(self, features: torch.Tensor) -> torch.Tensor:
        apart = (features[..., :1] > self.boundary).expand(*features.shape[:-1], 3)
        allowed = [torch.tensor([False, True, True]).expand_as(apart)] * 2
        allowed = [
            both & (~apart | torch.tensor(own))
            for both, own in zip(allowed, ([False, True, False], [False, False, True]), strict=True)
        ]
        logits = torch.stack([torch.arange(3.0, dtype=DOUBLE), -torch.arange(3.0, dtype=DOUBLE)])
        return torch.where(torch.stack(allowed, -2), logits, -torch.inf).log_softmax(-1)

    def mixture_from(self, features: torch.Tensor, given: Any = None) -> torch.Tensor:
        return self._members(features).logsumexp(-2).log_softmax(-1)

    def plausible_from(self, features: torch.Tensor, alpha: float, given: Any = None) -> PlausibleSet:
        return PlausibleSet.points(self._members(features))

    def plausible_members(self, alpha: float) -> Array:
        return torch.ones(2, dtype=torch.bool)

    def learn_from(self, features: Any, symbols: Any, given: Any = None) -> None: ...

    def save(self, path: Any) -> None: ...

    @classmethod
    def load(cls, path: Any, **settings: Any) -> Any: ...


def test_what_costs_infinitely_much_is_not_done() -> None:
    model = base_model()
    seen = observed(model, CONTEXTS)
    boundary = float(seen["features"][:, 0].mean())
    apart = seen["features"][:, 0] > boundary
    assert 0 < int(apart.sum()) < 4
    for caution in ("none", "pointwise", "minimax"):
        hypotheses = Partial(model)
        hypotheses.boundary = boundary
        cautious = caution != "none"
        anchor = CautiousImitator(hypotheses, 0.1, caution) if cautious else BayesianImitator(hypotheses)
        policy = LoRAPolicy(model, anchor)
        move(policy, 0.2)
        decision = policy(seen)
        asks = decision.log_ask.exp().detach()
        assert torch.equal(asks == 1, apart & cautious)
        assert torch.equal(asks == 0, torch.full((4,), not cautious))
        acts = asks < 1
        assert bool((decision.log_probs[acts, 0] == -torch.inf).all())
        assert torch.equal(decision.charge_nats[~acts], torch.zeros(int((~acts).sum()), dtype=DOUBLE))
        pi, members = decision.log_probs.exp().detach().numpy(), hypotheses._members(seen["features"]).exp().numpy()
        mixture = hypotheses.mixture_from(seen["features"]).exp().numpy()
        for row in np.flatnonzero(acts):
            if caution == "none":
                by_hand = rel_entr(pi[row], mixture[row]).sum()
            elif caution == "pointwise":
                by_hand = rel_entr(pi[row], members[row].min(axis=0)).sum()
            else:
                by_hand = max(float(rel_entr(pi[row], member).sum()) for member in members[row])
            assert decision.charge_nats[row].item() == pytest.approx(float((1 - asks[row]) * by_hand))
        outcomes = torch.where(asks == 1, 3, 2)
        (decision.log_prob(outcomes) + decision.charge_nats + decision.entropy()).sum().backward()
        gradients = [weights.grad for weights in policy.parameters()]
        assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
        assert max(float(gradient.abs().max()) for gradient in gradients if gradient is not None) > 1e-3


def test_a_price_of_nats_leads_to_the_best_policy_at_that_price() -> None:
    """max E[r] - m KL is m log sum nu exp(r / m), however far the base is from the anchor."""
    model = base_model()
    policy, seen = policy_on(model, "bayesian"), observed(model, CONTEXTS[:1])
    reward, price = torch.tensor([0.0, 1.0, 0.3], dtype=DOUBLE), 0.5
    nu = policy.anchor.predict(CONTEXTS[:1]).log_probs[0]
    best = price * logsumexp((nu + reward / price).numpy())
    optimizer = torch.optim.Adam(policy.parameters(), 0.02)
    gains = []
    for _ in range(150):
        optimizer.zero_grad()
        decision = policy(seen)
        gain = (decision.log_probs.exp() @ reward - price * decision.charge_nats).sum()
        gains.append(float(gain.detach()))
        (-gain).backward()
        optimizer.step()
    assert gains[0] < best - 0.05
    assert best - 1e-3 < max(gains) <= best + 1e-12


def test_a_question_is_learned_where_acting_costs_more() -> None:
    model = base_model()
    policy, seen = policy_on(model, "pointwise", ask_offset=1.0), observed(model, CONTEXTS)
    for ask_price, asks_more in ((0.0, True), (50.0, False)):
        policy.zero_grad()
        decision = policy(seen)
        (decision.charge_nats + ask_price * decision.log_ask.exp()).sum().backward()
        assert policy.gate is not None
        assert (float(policy.gate.bias.grad) < 0) == asks_more


def test_a_row_is_read_anew_where_it_does_not_go_on() -> None:
    model = base_model()
    rows = GrowingRows(model)
    lengths = torch.tensor([3])
    for tokens in ([[1, 2, 3]], [[1, 0, 3]], [[3, 1, 2]]):
        features = rows.read(torch.tensor(tokens), lengths, [0])
        torch.testing.assert_close(features, model.read(tokens).features)
    shorter = rows.read(torch.tensor([[3, 1]]), torch.tensor([2]), [0])
    torch.testing.assert_close(shorter, model.read([[3, 1]]).features)
    # Rows that were never read may come later, with a higher number or a lower one.
    rows.read(torch.tensor([[2, 2, 0, 1]]), torch.tensor([4]), [3])
    some = rows.read(torch.tensor([[3, 1, 0], [2, 0, 0]]), torch.tensor([3, 1]), [0, 2])
    torch.testing.assert_close(some, torch.stack([model.read([3, 1, 0]).features, model.read([2]).features]))


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_policy, "find_spec", lambda name: None if name == "peft" else sys)
    with pytest.raises(ImportError, match=r"peft: pip install 'cautious-imitation\[language\]'"):
        policy_on(base_model())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1 .* got 0"),
        ({"alpha": float("nan")}, "alpha positive and finite, got 8 and nan"),
        ({"ask_offset": float("inf")}, "ask_offset must be finite, got inf"),
        ({"target_modules": ["no_such_layer"]}, "no_such_layer"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_on(base_model(), **settings)


def test_bad_observations_are_named() -> None:
    model = base_model(window=8)
    policy, seen = policy_on(model), observed(model, [*CONTEXTS[:3], [1] * 8])
    for lengths, message in (([4, 0, 5, 2], "got 0 to 5"), ([4, 1, 11, 2], r"in 1\.\.10, .* got 1 to 11")):
        with pytest.raises(ValueError, match=f"n_tokens must be .*{message}"):
            policy({**seen, "n_tokens": torch.tensor(lengths)})
    with pytest.raises(ValueError, match="context window of 8, got 9"):
        policy({**seen, "n_tokens": torch.tensor([4, 1, 9, 2])})
    with pytest.raises(ValueError, match="model must have recent=None"):
        GrowingRows(tiny_model(layers=2, recent=RecentContext(layer=0.5)))


@pytest.mark.parametrize("kind", ANCHORS)
def test_weights_that_are_no_numbers_are_told(kind: str) -> None:
    model = base_model()
    policy = policy_on(model, kind)
    with torch.no_grad():
        for weights in policy.parameters():
            weights.fill_(torch.nan)
    with pytest.raises(ValueError, match="charges and shares must be finite, got nan"):
        policy(observed(model, CONTEXTS))


def test_peft_itself_reads_the_weights() -> None:
    """Their names are PEFT's, with slashes for dots."""
    model = base_model()
    policy = policy_on(model, "bayesian", size=0.3)
    network = peft.inject_adapter_in_model(
        peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), tiny_network(layers=2)
    )
    state = {name.replace("/", "."): values for name, values in policy.adapter.items()}
    assert not network.load_state_dict(state, strict=False).unexpected_keys
    with torch.no_grad():
        logits = network.eval()(input_ids=torch.tensor([CONTEXTS[0]])).logits[0, -1, :3]
        decision = policy(observed(model, CONTEXTS[:1]))
    torch.testing.assert_close(decision.log_probs[0], logits.log_softmax(-1))

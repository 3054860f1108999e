"""Fading means of hidden states: against a loop over tokens, and through every way of reading."""

from __future__ import annotations

import pytest
import torch

from cautious_imitation.demonstrations import Demonstrations
from cautious_imitation.language.demonstration_features import read_demonstrations
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.language.recent_context import RecentContext
from tests.tiny_models import tiny_model, tiny_network

RECENT = RecentContext(layer=0.5, horizon_tokens=3.0)


def model() -> LanguageModel:
    return tiny_model(recent=RECENT, layers=2)


def naive(hidden: torch.Tensor, horizon: float) -> torch.Tensor:
    """``[L, d]`` means of the states ``[L, d]``, one token after another."""
    scaled = hidden / hidden.square().mean(-1, keepdim=True).sqrt()
    total, weight, found = torch.zeros(hidden.shape[1]).double(), 0.0, []
    for row in scaled:
        total, weight = (1 - 1 / horizon) * total + row, (1 - 1 / horizon) * weight + 1
        found.append(total / weight)
    return torch.stack(found)


@pytest.mark.parametrize("length", [1, 5, 128, 300])
def test_means_are_those_of_a_loop(length):
    generator = torch.Generator().manual_seed(length)
    hidden = 3 * torch.randn(2, length, 4, generator=generator, dtype=torch.float64)
    recent = RecentContext(horizon_tokens=24.0)
    means, _ = recent.means(hidden, None, None)
    for got, states in zip(means, hidden, strict=True):
        torch.testing.assert_close(got, naive(states, 24.0), rtol=1e-10, atol=1e-12)


def test_means_go_on_from_a_state_and_pass_over_padding():
    hidden = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    present = torch.ones(2, 9, dtype=torch.bool)
    present[1, :4] = False
    whole, _ = RECENT.means(hidden, present, None)
    first, state = RECENT.means(hidden[:, :6], present[:, :6], None)
    second, _ = RECENT.means(hidden[:, 6:], present[:, 6:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(whole[1, 4:], naive(hidden[1, 4:], 3.0))
    assert (whole[1, :4] == 0).all()


def test_features_hold_what_the_head_reads_and_the_means_of_a_layer():
    with_recent, without = model(), tiny_model(layers=2)
    tokens = torch.tensor([[1, 2, 3, 0, 2, 2]])
    features, _ = with_recent.features(tokens)
    torch.testing.assert_close(features[..., : without.n_features], without.features(tokens)[0])
    hidden = without.trunk(tokens, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(features[0, :, without.n_features :], naive(hidden[0], 3.0))
    torch.testing.assert_close(with_recent.log_probs(features), without.log_probs(without.features(tokens)[0]))


def test_padding_the_cache_and_demonstrations_change_nothing():
    reader = model()
    contexts = [[1, 2, 3, 0, 2], [2], [0, 1, 1]]
    together = reader.read(contexts).features
    for context, row in zip(contexts, together, strict=True):
        torch.testing.assert_close(reader.read(context).features, row)
    tokens, cache, found = torch.tensor([contexts[0]]), None, []
    for position in range(tokens.shape[1]):
        step, cache = reader.features(tokens[:, position : position + 1], None, cache)
        found.append(step)
    torch.testing.assert_close(torch.cat(found, 1), reader.features(tokens)[0])
    read = read_demonstrations(reader, Demonstrations.from_symbols(contexts, 3))
    torch.testing.assert_close(read.features[1], reader.read(contexts[0][:1]).features)
    torch.testing.assert_close(read.features[-1], reader.read(contexts[2][:2]).features)


def test_features_of_other_settings_are_not_taken_from_a_cache(tmp_path):
    demonstrations = Demonstrations.from_symbols([[1, 2, 0]], 3)
    read = read_demonstrations(model(), demonstrations, cache=tmp_path)
    again = read_demonstrations(model(), demonstrations, cache=tmp_path)
    assert torch.equal(read.features, again.features)
    other = tiny_model(recent=RecentContext(layer=0.5, horizon_tokens=4.0), layers=2)
    with pytest.raises(ValueError, match="holds features of another model"):
        read_demonstrations(other, demonstrations, cache=tmp_path)


def test_hooks_do_not_stay():
    reader = model()
    reader.read([[1, 2]])
    assert not any(module._forward_hooks for module in reader.network.modules())


@pytest.mark.parametrize("settings", [{"layer": 0.0}, {"layer": 1.5}, {"horizon_tokens": 0.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        RecentContext(**settings)


def test_a_trunk_without_layers_is_refused():
    network = tiny_network()
    network.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="list of its layers"):
        LanguageModel(network, start_token=0, recent=RECENT)

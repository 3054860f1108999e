"""Language models as oracles: they say what the network says, token by token, alone or in a batch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cautious_imitation.demonstrations import Message
from cautious_imitation.language.chats import chat_context
from cautious_imitation.language.model import LanguageModel
from cautious_imitation.oracles.language_model import LanguageModelOracle, is_network
from cautious_imitation.oracles.protocol import Act, Decline, Oracle, OracleError, Query, check_answers
from tests.tiny_folders import CHATML, SPECIALS, tiny_llama, tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_network

VOCABULARY = 7
CONTEXTS: list[tuple[int, ...]] = [(0, 1, 2), (3,), (2, 2, 1, 3, 0, 1, 1), (6, 5), (4,) * 11]


def network(**settings: Any) -> Any:
    """Small, random, in double precision, and with opinions."""
    return tiny_network(VOCABULARY, seed=3, layers=2, **settings).eval()


def gpt2() -> Any:
    """Learned positions: padding that shifts them would be noticed."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    settings: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=8, n_layer=2, n_head=2, **settings)
    model = GPT2LMHeadModel(config).double().eval()
    torch.set_rng_state(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    return model


def query(*context: int, n_actions: int = VOCABULARY, **settings: Any) -> Query:
    return Query(context, n_actions=n_actions, **settings)


def queries() -> list[Query]:
    return [query(*context) for context in CONTEXTS]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def likeliest(model: Any, context: tuple[int, ...], n: int, stops: set[int], n_actions: int = VOCABULARY) -> list[int]:
    """Greedy decoding, all of it read anew for every token."""
    said: list[int] = []
    while len(said) < n and not (said and said[-1] in stops):
        logits = model(input_ids=torch.tensor([[*context, *said]])).logits[0, -1, :n_actions]
        said.append(int(logits.argmax()))
    return said


@pytest.mark.parametrize("make", [network, gpt2])
@pytest.mark.parametrize("stops", [set(), {2}, {1, 4, 5}])
def test_it_says_what_the_network_says(make: Any, stops: set[int]) -> None:
    model = make()
    oracle = LanguageModelOracle(model, max_new_tokens=9, stop_tokens=stops, rows_at_once=3)
    answers = check_answers(oracle.ask(queries()), queries())
    expected = [likeliest(model, context, 9, stops) for context in CONTEXTS]
    assert [answer.actions for answer in answers if isinstance(answer, Act)] == [tuple(said) for said in expected]
    assert len({tuple(said) for said in expected}) > 1
    assert not any(answer.evidence for answer in answers if isinstance(answer, Act))


def test_it_is_an_oracle() -> None:
    oracle = LanguageModelOracle(network(), max_new_tokens=2, is_demonstrator=True)
    assert isinstance(oracle, Oracle)
    assert oracle.ask([]) == []
    [answer] = oracle.ask([query(1)])
    assert isinstance(answer, Act)
    assert answer.evidence


def test_an_answer_ends_with_the_first_stop_token_or_is_as_long_as_allowed() -> None:
    model = network()
    whole = likeliest(model, CONTEXTS[0], 9, set())
    stop = whole[3]
    [answer] = LanguageModelOracle(model, max_new_tokens=9, stop_tokens=[stop]).ask([query(*CONTEXTS[0])])
    assert isinstance(answer, Act)
    assert answer.actions == tuple(whole[: whole.index(stop) + 1])
    [answer] = LanguageModelOracle(model, max_new_tokens=2).ask([query(*CONTEXTS[0])])
    assert isinstance(answer, Act)
    assert answer.actions == tuple(whole[:2])


def test_a_batch_says_what_each_says_alone() -> None:
    for model in (network(), gpt2()):
        for drawn in (False, True):

            def oracle(model: Any = model, drawn: bool = drawn) -> LanguageModelOracle:
                generator = seeded(7) if drawn else None
                return LanguageModelOracle(
                    model, max_new_tokens=6, stop_tokens=[2], generator=generator, rows_at_once=2
                )

            alone = oracle()
            together = oracle().ask(queries())
            assert [alone.ask([one])[0] for one in queries()] == together
            assert len({answer.actions for answer in together if isinstance(answer, Act)}) > 1


def test_the_same_seed_says_the_same() -> None:
    def said(seed: int) -> list[Any]:
        return LanguageModelOracle(network(scale=5.0), max_new_tokens=8, generator=seeded(seed)).ask(queries())

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_global_randomness_is_neither_used_nor_moved() -> None:
    def said() -> list[Any]:
        return LanguageModelOracle(network(scale=5.0), max_new_tokens=8, generator=seeded()).ask(queries())

    torch.manual_seed(1)
    first = said()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert said() == first
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_tokens_are_drawn_from_what_the_network_predicts(temperature: float) -> None:
    model = network(scale=5.0)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2]])).logits[0, -1]
    expected = (logits / temperature).softmax(-1)
    n = 2000
    oracle = LanguageModelOracle(
        model, max_new_tokens=1, generator=seeded(), temperature=temperature, rows_at_once=1000
    )
    counts = Counter(answer.actions[0] for answer in oracle.ask([query(1, 2)] * n) if isinstance(answer, Act))
    for token in range(VOCABULARY):
        spread = (expected[token] * (1 - expected[token]) / n).sqrt()
        assert abs(counts[token] / n - expected[token]) < 5 * spread + 1e-9
    assert (expected > 0.05).sum() > 1


def test_the_generator_is_as_it_was_after_an_error() -> None:
    generator = seeded()
    state = generator.get_state()
    oracle = LanguageModelOracle(network(), max_new_tokens=2, generator=generator)
    with pytest.raises(OracleError):
        oracle.ask([query(1), query(VOCABULARY)])
    assert torch.equal(state, generator.get_state())


def test_settings_of_the_network_do_not_count_and_stay() -> None:
    model = network()
    expected = LanguageModelOracle(model, max_new_tokens=6).ask(queries())
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty = True, 0.01, 5.0
    settings.suppress_tokens, settings.max_length = [0, 1, 2], 3
    assert LanguageModelOracle(model, max_new_tokens=6).ask(queries()) == expected
    assert model.generation_config is settings


def test_end_tokens_of_the_network_stop_a_reply() -> None:
    model = network()
    whole = likeliest(model, CONTEXTS[0], 9, set())
    for stops in (whole[2], [whole[2], whole[3]]):
        model.generation_config.eos_token_id = stops
        [answer] = LanguageModelOracle(model, max_new_tokens=9).ask([query(*CONTEXTS[0])])
        assert isinstance(answer, Act)
        assert answer.actions == tuple(likeliest(model, CONTEXTS[0], 9, {whole[2]}))


# The window


def test_a_full_window_ends_an_answer_whatever_else_is_asked() -> None:
    model = network(window=12)
    oracle = LanguageModelOracle(model, max_new_tokens=5)
    lengths = [7, 8, 10, 11, 12, 13, 1]
    answers = oracle.ask([query(*([1, 2] * 7)[:length]) for length in lengths])
    assert [len(answer.actions) if isinstance(answer, Act) else None for answer in answers] == [
        5,
        4,
        2,
        1,
        None,
        None,
        5,
    ]
    assert answers[4] == Decline("the context of 12 tokens fills the model's window of 12", independent=True)
    for length, answer in zip(lengths[:4], answers, strict=False):
        assert isinstance(answer, Act)
        context = tuple(([1, 2] * 7)[:length])
        assert list(answer.actions) == likeliest(model, context, len(answer.actions), set())


# Which tokens


def test_only_actions_are_said() -> None:
    model = tiny_model(seed=3)
    assert (model.n_symbols, model.n_tokens) == (3, 4)
    contexts = [(0, 3), (1,), (2, 2, 3), (3,)]
    answers = LanguageModelOracle(model, max_new_tokens=8).ask([query(*context, n_actions=3) for context in contexts])
    expected = [tuple(likeliest(model.network, context, 8, set(), n_actions=3)) for context in contexts]
    assert [answer.actions for answer in answers if isinstance(answer, Act)] == expected
    assert any(3 in likeliest(model.network, context, 8, set(), n_actions=4) for context in contexts)


def test_only_actions_are_drawn() -> None:
    model = tiny_model(seed=2, scale=0.1)
    oracle = LanguageModelOracle(model, max_new_tokens=50, generator=seeded())
    [answer] = oracle.ask([query(0, n_actions=3)])
    assert isinstance(answer, Act)
    assert set(answer.actions) == {0, 1, 2}


@pytest.mark.parametrize("n_actions", [1, VOCABULARY - 1, VOCABULARY + 1, 300])
def test_actions_of_another_alphabet_are_an_error(n_actions: int) -> None:
    oracle = LanguageModelOracle(network(), max_new_tokens=2)
    with pytest.raises(OracleError, match=rf"must be about the 7 tokens of this model, got one of {n_actions} actions"):
        oracle.ask([query(0, n_actions=n_actions)])


def test_a_tokenizer_of_more_tokens_than_are_said_is_another_alphabet() -> None:
    tokenizer = tiny_tokenizer()
    model = LanguageModel(tiny_llama(len(tokenizer)), tokenizer, n_symbols=len(tokenizer) - 1)
    oracle = LanguageModelOracle(model, max_new_tokens=2)
    assert len(oracle.ask([query(5, n_actions=len(tokenizer) - 1)])) == 1
    with pytest.raises(OracleError, match="must be about the"):
        oracle.ask([query(5, n_actions=len(tokenizer))])


def test_nothing_is_computed_after_the_last_reply_has_ended() -> None:
    model = network()
    whole = likeliest(model, CONTEXTS[0], 3, set())
    passes: list[Any] = []
    model.register_forward_hook(lambda *call: passes.append(call))
    LanguageModelOracle(model, max_new_tokens=40, stop_tokens=[whole[0]]).ask([query(*CONTEXTS[0])])
    assert len(passes) == 1


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_unknown_tokens_are_an_error(token: int) -> None:
    with pytest.raises(OracleError, match=rf"tokens in 0\.\.6, the network's vocabulary, got {token}"):
        LanguageModelOracle(network(), max_new_tokens=2).ask([query(0, token)])


def test_an_empty_context_begins_with_the_start_token() -> None:
    model = LanguageModel(network(), start_token=4)
    [answer] = LanguageModelOracle(model, max_new_tokens=5).ask([query()])
    assert isinstance(answer, Act)
    assert list(answer.actions) == likeliest(model.network, (4,), 5, set())
    with pytest.raises(OracleError, match="empty context"):
        LanguageModelOracle(network(), max_new_tokens=5).ask([query()])


# Conversations


def speaker(**settings: Any) -> tuple[Any, Any]:
    """A network and its tokenizer."""
    tokenizer = tiny_tokenizer(**settings)
    model = tiny_llama(len(tokenizer), tied=False, seed=5).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0 if parameter.ndim == 2 else 1.0)
    return model, tokenizer


def conversation(*contents: str, **settings: Any) -> Query:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=content) for i, content in enumerate(contents))
    return Query((99_999,), n_actions=50_000, messages=messages, **settings)


def test_a_conversation_is_read_in_its_own_tokens_and_answered_in_words() -> None:
    model, tokenizer = speaker()
    asked = conversation("hello there", "I am fine", "and you")
    context = tuple(chat_context(tokenizer, asked.messages).tolist())
    assert tokenizer.decode(context).endswith("<|im_start|>assistant\n")
    whole = likeliest(model, context, 8, set(), n_actions=len(tokenizer))
    end = whole[-1]
    said = whole[: whole.index(end)]
    [answer] = LanguageModelOracle(
        model, tokenizer=tokenizer, reads="messages", max_new_tokens=8, stop_tokens=[end]
    ).ask([asked])
    assert answer == Act(text=tokenizer.decode(said, skip_special_tokens=True), evidence=False)
    assert said


def test_a_reply_that_has_begun_is_gone_on_with() -> None:
    model, tokenizer = speaker()
    said, begun = {"role": "user", "content": "hello"}, "I am"
    tail = tokenizer(begun, add_special_tokens=False)["input_ids"]
    once = (*chat_context(tokenizer, [said]).tolist(), *tail)
    twice = (*chat_context(tokenizer, [said, {"role": "assistant", "content": begun}]).tolist(), *tail)
    whole, other = (likeliest(model, context, 4, set(), n_actions=len(tokenizer)) for context in (once, twice))
    assert whole[0] != other[0]
    oracle = LanguageModelOracle(model, tokenizer=tokenizer, reads="messages", max_new_tokens=6, stop_tokens=[whole[3]])
    [answer] = oracle.ask([conversation("hello", begun)])
    assert answer == Act(text=tokenizer.decode(whole[:3], skip_special_tokens=True), evidence=False)
    assert oracle.ask([conversation("hello", "")]) == oracle.ask([conversation("hello")])


def test_nothing_said_is_an_empty_reply() -> None:
    model, tokenizer = speaker()
    context = tuple(chat_context(tokenizer, [{"role": "user", "content": "hello"}]).tolist())
    [first] = likeliest(model, context, 1, set(), n_actions=len(tokenizer))
    oracle = LanguageModelOracle(model, tokenizer=tokenizer, reads="messages", max_new_tokens=5, stop_tokens=[first])
    assert oracle.ask([conversation("hello")]) == [Act(text="", evidence=False)]


def test_a_reply_that_is_not_over_is_declined() -> None:
    model, tokenizer = speaker()
    oracle = LanguageModelOracle(model, tokenizer=tokenizer, reads="messages", max_new_tokens=2, stop_tokens=[7])
    [answer] = oracle.ask([conversation("hello")])
    assert answer == Decline("the reply was not over after 2 tokens; raise max_new_tokens")
    [answer] = oracle.ask([conversation("hello " * 100)])
    assert isinstance(answer, Decline)
    assert "window of 128" in answer.reason


def test_conversations_of_any_length_in_one_batch() -> None:
    model, tokenizer = speaker()
    asked = [conversation(*("hello there, how are you?", "I am fine", "and you", "thank")[:n]) for n in (1, 2, 3, 4)]
    # What follows is random bytes, some of which are no characters.
    oracle = LanguageModelOracle(
        model, tokenizer=tokenizer, reads="messages", max_new_tokens=40, stop_tokens=range(0, len(tokenizer), 5)
    )
    together = oracle.ask(asked)
    assert together == [oracle.ask([one])[0] for one in asked]
    assert len({answer.text for answer in together if isinstance(answer, Act)}) > 1


def test_conversations_that_cannot_be_read() -> None:
    model, tokenizer = speaker()
    oracle = LanguageModelOracle(model, tokenizer=tokenizer, reads="messages", max_new_tokens=2)
    with pytest.raises(OracleError, match="has no conversation to read"):
        oracle.ask([query(1)])
    with pytest.raises(ValueError, match=r"must not contain '<\|im_end\|>'"):
        oracle.ask([conversation(f"hi{SPECIALS[2]}")])
    with pytest.raises(ValueError, match="chat template"):
        LanguageModelOracle(model, tokenizer=tiny_tokenizer(None), reads="messages", max_new_tokens=2)
    with pytest.raises(ValueError, match=r"chat template.*got none"):
        LanguageModelOracle(model, reads="messages", max_new_tokens=2)
    with pytest.raises(ValueError, match="stop_tokens must say where a reply ends"):
        LanguageModelOracle(model, tokenizer=tokenizer, reads="messages", max_new_tokens=2, stop_tokens=[])


def test_a_tokenizer_smaller_than_the_network_says_its_own_tokens_only() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    model = tiny_llama(len(tokenizer) + 5, tied=False)
    with torch.no_grad():
        model.lm_head.weight[-5:] = 100 * model.lm_head.weight[:5]
    oracle = LanguageModelOracle(model, tokenizer=tokenizer, max_new_tokens=20, stop_tokens=[])
    [answer] = oracle.ask([query(5, 6, n_actions=len(tokenizer))])
    assert check_answers([answer], [query(5, 6, n_actions=len(tokenizer))])
    [whole] = oracle.ask([query(5, 6, n_actions=len(tokenizer) + 5)])
    assert whole != answer


# Arguments


def test_a_network_that_is_being_trained_is_an_error() -> None:
    model = network().train()
    oracle = LanguageModelOracle(model, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        oracle.ask([query(1)])
    assert model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1"),
        ({"max_new_tokens": 2, "rows_at_once": 0}, "rows_at_once must be"),
        ({"max_new_tokens": 2, "reads": "text"}, "reads must be"),
        ({"max_new_tokens": 2, "temperature": 0.0, "generator": seeded()}, "temperature must be positive"),
        ({"max_new_tokens": 2, "temperature": 0.7}, "needs a generator"),
        ({"max_new_tokens": 2, "stop_tokens": [VOCABULARY]}, r"stop_tokens must be tokens in 0\.\.6, got 7"),
    ],
)
def test_arguments_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModelOracle(network(), **settings)


def test_what_a_network_is() -> None:
    model = tiny_model()
    assert is_network(model)
    assert is_network(model.network)
    for other in (
        LanguageModel,
        type(model.network),
        model.network.base_model,
        torch.nn.Linear(2, 2),
        len,
        None,
        "gpt2",
    ):
        assert not is_network(other)
        with pytest.raises(ValueError, match="model must be a causal language model"):
            LanguageModelOracle(other, max_new_tokens=2)


def test_recognising_one_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cautious_imitation.oracles.language_model import is_network; is_network(len); "
        "from cautious_imitation.oracles.policy import is_estimator, is_policy; is_policy(len), is_estimator(len); "
        "import cautious_imitation.oracles.endpoint; "
        "print(sorted({'torch', 'transformers', 'sklearn', 'gymnasium', 'httpx2'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

"""Numbers on the page of a chat experiment, computed again from the files of the run by other routes."""

from __future__ import annotations

import copy
import html
import re
import statistics
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cautious_imitation.report import chat_figures
from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.chat_curves import read_curves
from cautious_imitation.report.chat_episodes import read_chat_episodes
from cautious_imitation.report.chat_findings import VERDICTS, Finding, findings, headline
from cautious_imitation.report.chat_judgements import read_verdicts, tallies
from cautious_imitation.report.chat_matched import ASK_RATE_APART, kept, pairs_asking_alike
from cautious_imitation.report.chat_measures import (
    blank_lines,
    by_place,
    charge_histogram,
    decision_charges,
    double_spaces,
    empty_costs,
    ngram_costs,
)
from cautious_imitation.report.chat_page import render_chat
from cautious_imitation.report.chat_rows import COLUMNS, gather
from cautious_imitation.report.chat_shares import share_of
from cautious_imitation.report.chat_transcripts import SHADES_NATS, common_budget, select, shown_transcript
from tests.chat_results import Results, results, row

BUDGETS = (5.0, 15.0)


@pytest.fixture(scope="module")
def run() -> Results:
    return results(1, budgets=BUDGETS, n_seeds=2, n_episodes=10, length=120)


@pytest.fixture(scope="module")
def page(run: Results) -> str:
    return render_chat(*run.arguments)


def words(fragment: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", fragment)).replace("\N{NO-BREAK SPACE}", " ").split())


def section(page: str, name: str) -> str:
    start = page.index(f'<section id="{name}">')
    return page[start : page.index("</section>", start)]


def lines(fragment: str) -> list[list[str]]:
    """Cells of every line of the first table in ``fragment``."""
    body = fragment[fragment.index("<tbody>") : fragment.index("</tbody>")]
    return [
        [words(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", line, flags=re.DOTALL)]
        for line in re.split(r"<tr[^>]*>", body)[1:]
    ]


def close_to(shown: str, value: float) -> bool:
    """Whether ``shown``, with three figures, is ``value`` rounded."""
    if shown.startswith("<"):
        return 0 <= value < float(shown[1:].rstrip(" %"))
    return float(shown.replace(",", "").replace("−", "-")) == pytest.approx(value, rel=6e-3, abs=6e-3)


def trained(run: Results, **values: object) -> list[dict[str, Any]]:
    wanted = {"phase": "after"} | values
    return [one for one in run.transcripts if all(one[key] == value for key, value in wanted.items())]


def test_headline_counts_policies_farther_than_their_budget(run: Results, page: str) -> None:
    finding = words(page[page.index('<div class="finding">') : page.index('<div class="tiles">')])
    for name, style in ANCHORS.items():
        own = [one for one in run.rows if one["anchor"] == name and one["phase"] in ("after", "longer")]
        if own:
            over = len([one for one in own if one["kl_demonstrator_nats"] > one["budget_nats"]])
            rate = 100 * sum(one["asks"] for one in own) / sum(one["decisions"] for one in own)
            told = re.search(rf"{style.label}, (\d+) of (\d+) trained policies, asking on ([\d.]+) % of", finding)
            assert told is not None
            assert (int(told[1]), int(told[2])) == (over, len(own))
            assert float(told[3]) == pytest.approx(rate, abs=0.5)


def test_budgets_are_kept_by_distance_and_charges_up_to_two_standard_errors() -> None:
    apart = [(3.0, 0.1), (3.9, 0.1), (4.1, 0.1), (4.3, 0.1), (2.1, 0.1), (2.3, 0.1)]
    rows = [
        made("bayesian", "after", seed, kl_demonstrator_nats=distance, kl_demonstrator_se=error)
        for seed, (distance, error) in enumerate(apart)
    ]
    (found,) = kept(rows)
    # The budget is 4 nats, the charge 2 of them.
    assert (found.policies, found.known, found.over, found.clearly_over, found.within_charge) == (6, 6, 2, 1, 1)
    assert found.worst is rows[3]


def test_headline_of_unknown_demonstrator_counts_charges_over_the_budget() -> None:
    rows = results(2, budgets=(4.0,), n_seeds=1, n_episodes=2, length=60, demonstrator_known=False).rows
    assert "charged more than the budget in some episode: none of 6 trained." in headline(kept(rows))
    rows[1]["largest_charge_nats"] = 99.0
    assert "charged more than the budget in some episode: 1 of 6 trained." in headline(kept(rows))


def test_shares_of_empty_replies_have_the_wilson_intervals_of_all_seeds(run: Results, page: str) -> None:
    told = section(page, "silence")
    found = lines(told[told.index("<h3>Share of empty replies</h3>") :])
    grouped = defaultdict(list)
    for one in run.rows:
        grouped[ANCHORS[one["anchor"]].label, f"{one['budget_nats']:g}", one["phase"]].append(one)
    assert len(found) == len(grouped)
    for label, budget, phase, tokens, asks, replies, empty, _ in found:
        rows = grouped[label, budget, phase]
        n, k = sum(one["replies"] for one in rows), sum(one["empty_replies"] for one in rows)
        rate = sum(one["asks"] for one in rows) / sum(one["decisions"] for one in rows)
        assert (int(tokens), int(replies)) == (rows[0]["length"], n)
        assert float(asks.rstrip(" %")) == pytest.approx(100 * rate, abs=0.51)
        # Wilson by its definition: the shares p from which k of n is z standard deviations away.
        z, share = 1.959964, k / n
        low, high = sorted(np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share]).real)
        numbers = [float(number) / 100 for number in re.findall(r"[\d.]+", empty)]
        assert numbers == pytest.approx([share, low, high], abs=0.0051)


def costs_by_hand(transcripts: list[dict[str, Any]]) -> list[list[float]]:
    found = []
    for one in transcripts:
        own = []
        for turn in one["speakers"]:
            span = range(turn["begin"], turn["end"])
            alone = {one["actors"][place] for place in span} == {"imitator"}
            if turn["is_teacher"] and turn["finished"] and turn["empty"] and alone:
                own.append(sum(one["charges"][place] for place in span))
        found.append(own)
    return found


def test_costs_of_silence_are_quartiles_over_episodes(run: Results, page: str) -> None:
    found = lines(section(page, "silence"))
    expected = [
        (ANCHORS[name].label, budget, place + 1, [one[place] for one in costs if len(one) > place])
        for budget in BUDGETS
        for name in ("bayesian", "cautious-pointwise", "cautious-minimax")
        for costs in [costs_by_hand(trained(run, anchor=name, budget_nats=budget))]
        for place in range(min(8, max(map(len, costs))))
    ]
    assert len(found) == len(expected)
    for (label, budget, place, n, *shown), (name, its_budget, at, values) in zip(found, expected, strict=True):
        assert (label, float(budget), int(place), int(n)) == (name, its_budget, at, len(values))
        if len(values) < 5:
            assert shown[0].startswith("too few: ")
            numbers = shown[0].removeprefix("too few: ").split(", ")
            assert all(close_to(one, value) for one, value in zip(numbers, values, strict=True))
        else:
            quartiles = statistics.quantiles(values, n=4, method="inclusive")
            assert [float(one) for one in shown] == pytest.approx(quartiles, rel=6e-3)
    few = words(section(page, "silence"))
    assert "Too few empty replies for quartiles: Cautious, pointwise, budget 5: an empty reply in" in few


@pytest.mark.parametrize("n", [1, 2, 3])
def test_appearances_of_ngrams_by_brute_force(run: Results, page: str, n: int) -> None:
    sequences: dict[tuple[int, tuple[str, ...]], list[float]] = defaultdict(list)
    chosen = trained(run, anchor="bayesian", budget_nats=15.0)
    for number, one in enumerate(chosen):
        for begin in range(len(one["pieces"]) - n + 1):
            span = range(begin, begin + n)
            turns = {one["turns"][place] for place in span}
            if len(turns) == 1 and all(one["actors"][place] == "imitator" for place in span):
                gram = tuple(one["pieces"][place] for place in span)
                sequences[number, gram].append(sum(one["charges"][place] for place in span))
    kept_ones = [found for found in sequences.values() if len(found) >= 3]
    assert kept_ones
    found = sorted(ngram_costs(read_chat_episodes(chosen), n))
    for ours, theirs in zip(found, sorted(kept_ones), strict=True):
        assert ours == pytest.approx(theirs)
    shown = [line for line in lines(section(page, "repetition")) if (line[0], line[1]) == ("Bayesian imitator", str(n))]
    for _, _, place, count, *numbers in shown:
        values = [found[int(place) - 1] for found in kept_ones if len(found) >= int(place)]
        assert int(count) == len(values)
        if len(values) >= 5:
            assert [float(one) for one in numbers] == pytest.approx(
                statistics.quantiles(values, n=4, method="inclusive"), rel=6e-3
            )
    assert len(shown) == min(8, max(map(len, kept_ones)))


def test_charges_of_decisions_are_all_in_the_histogram(run: Results, page: str) -> None:
    shown = lines(section(page, "charges"))
    for place, (budget, name) in enumerate(
        (budget, name) for budget in BUDGETS for name in ("bayesian", "cautious-pointwise", "cautious-minimax")
    ):
        own = trained(run, anchor=name, budget_nats=budget)
        values = [
            one["charges"][at]
            for one in own
            for at in range(len(one["pieces"]))
            if one["actors"][at] == "imitator" or at in one["questions"]
        ]
        assert sorted(values) == sorted(decision_charges(read_chat_episodes(own)))
        found = charge_histogram(values)
        assert found is not None
        assert found.nothing + sum(found.shares) == pytest.approx(1.0)
        for low, high, share in zip(found.edges, found.edges[1:], found.shares, strict=False):
            assert share * len(values) == pytest.approx(len([v for v in values if low <= v < high]))
        label, its_budget, n, nothing, median = shown[place]
        assert (label, float(its_budget), int(n.replace(",", ""))) == (ANCHORS[name].label, budget, len(values))
        assert float(median) == pytest.approx(statistics.median(values), rel=6e-3)
        assert float(nothing.removesuffix(" %")) == pytest.approx(100 * found.nothing, abs=0.051)


@given(st.lists(st.floats(0, 500), min_size=1, max_size=60))
def test_no_charge_falls_out_of_a_histogram(values: list[float]) -> None:
    found = charge_histogram(values)
    assert found is not None
    assert found.nothing + sum(found.shares) == pytest.approx(1.0)


def group_of(cell: str) -> tuple[str, float]:
    found = re.fullmatch(r"(.*) budget ([\d.]+), after, 120 tokens", cell)
    assert found is not None
    return found[1], float(found[2])


def test_judgements_are_counted_by_setting_judge_and_question(run: Results, page: str) -> None:
    counts: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for one in run.verdicts:
        sides = [(one[side]["budget_nats"], ANCHORS[one[side]["anchor"]].label) for side in ("first", "second")]
        if sides[0] == sides[1]:
            continue
        order = [style.label for style in ANCHORS.values()]
        swapped = (sides[1][0], order.index(sides[1][1])) < (sides[0][0], order.index(sides[0][1]))
        score = {"first": 1.0, "second": 0.0, "tie": 0.5}[one["verdict"]]
        key = (one["question"], *(reversed(sides) if swapped else sides))
        counts[key].append(1 - score if swapped else score)
    told = section(page, "judgements")
    seen = 0
    for question, part in zip(("better", "complex"), told.split("<h3>Which transcript is ")[1:], strict=True):
        tables = part.partition("<h3>Complexity")[0].split("<tbody>")[1:]
        for label, budget, other, its_budget, *numbers in (
            (*group_of(line[0]), *group_of(line[1]), *line[2:6])
            for table in tables
            for line in lines(f"<tbody>{table}")
        ):
            scores = counts[question, (budget, label), (its_budget, other)]
            assert [int(number) for number in numbers[:3]] == [scores.count(score) for score in (1.0, 0.0, 0.5)]
            assert numbers[3] == str(share_of(sum(scores), len(scores)))
            seen += 1
    assert seen == len(counts)


def test_a_verdict_says_the_same_whichever_transcript_is_called_first(run: Results) -> None:
    turn = {"first": "second", "second": "first", "tie": "tie"}
    turned = [
        one
        | {"first": one["second"], "second": one["first"]}
        | {key: turn[one[key]] for key in ("verdict", "shown_first")}
        for one in run.verdicts
    ]
    for one, other in zip(read_verdicts(turned), read_verdicts(run.verdicts), strict=True):
        assert one == other or one.group == one.other == other.group
    assert tallies(read_verdicts(turned)) == tallies(read_verdicts(run.verdicts))


def test_how_often_what_was_shown_first_won(run: Results, page: str) -> None:
    told = words(section(page, "judgements"))
    for question in ("better", "complex"):
        own = [one for one in run.verdicts if one["question"] == question]
        wins = sum({True: 1.0, False: 0.0}[one["verdict"] == one["shown_first"]] for one in own)
        ties = sum(one["verdict"] == "tie" for one in own)
        assert f"shown first was preferred in {share_of(wins + ties / 2, len(own))}" in told


def test_the_table_of_all_results_shows_numbers_as_people_read_them(run: Results, page: str) -> None:
    found = lines(section(page, "results"))
    for cells, one in zip(found, run.rows, strict=True):
        by_key = dict(zip(COLUMNS, cells, strict=True))
        for key in ("reward", "charge_nats", "largest_charge_nats", "kl_demonstrator_nats", "reply_tokens"):
            assert close_to(by_key[key], one[key])
            assert len(by_key[key]) <= 5
        assert by_key["seed"] == str(one["seed"])


def test_longer_episodes_show_both_lines_of_every_policy(run: Results, page: str) -> None:
    told = section(page, "longer")
    by_key = {(one["anchor"], one["budget_nats"], one["seed"], one["phase"]): one for one in run.rows}
    order = [(a, b, s) for a in ("bayesian", "cautious-pointwise", "cautious-minimax") for b in BUDGETS for s in (0, 1)]
    for phase, part in zip(("transfer", "longer"), told.split("<h3>")[1:], strict=True):
        found = [line[-7:] for line in lines(part)]
        expected = [by_key[*key, which] for key in order for which in ("after", phase)]
        for line, one in zip(found, expected, strict=True):
            rate = one["episodes"] / one["decisions"]
            kl, charge = one["kl_demonstrator_nats"], one["charge_nats"]
            assert int(line[0]) == one["length"]
            assert all(map(close_to, line[1:6], (kl, charge, kl * rate, charge * rate, one["reward"])))


def test_pairs_that_ask_alike_are_the_nearest_of_the_same_budget(run: Results) -> None:
    pairs, n_apart = pairs_asking_alike(run.rows)
    assert pairs
    assert n_apart
    usable = [one for one in run.rows if one["phase"] in ("after", "longer")]
    assert len(pairs) + n_apart == 2 * len([one for one in usable if one["anchor"] == "bayesian"])
    for pair in pairs:
        assert pair.bayesian["anchor"] == "bayesian"
        assert pair.apart <= ASK_RATE_APART + 1e-6
        others = [
            abs(one["ask_rate"] - pair.bayesian["ask_rate"])
            for one in usable
            if all(one[key] == pair.cautious[key] for key in ("anchor", "phase", "length"))
            and one["budget_nats"] == pair.bayesian["budget_nats"]
        ]
        if min(others) <= ASK_RATE_APART:
            assert pair.cautious["budget_nats"] == pair.bayesian["budget_nats"]
            assert pair.apart == pytest.approx(min(others))
        apart = {
            "lower": pair.cautious["empty_reply_high"] < pair.bayesian["empty_reply_low"],
            "higher": pair.cautious["empty_reply_low"] > pair.bayesian["empty_reply_high"],
        }
        assert [kind for kind, holds in apart.items() if holds] == [k for k in [pair.verdict] if k != "open"]


# Transcripts


def test_chosen_transcripts_are_those_of_the_rules(run: Results) -> None:
    episodes = read_chat_episodes(trained(run, budget_nats=15.0))
    medians, emptiest = select(episodes)
    for shown in medians.shown:
        rewards = [sum(one["rewards"]) for one in trained(run, budget_nats=15.0, anchor=shown.episode.anchor)]
        assert shown.episode.reward == pytest.approx(statistics.median_low(rewards))
    for shown in emptiest.shown:
        counts = [
            sum(turn["is_teacher"] and turn["finished"] and turn["empty"] for turn in one["speakers"])
            for one in trained(run, budget_nats=15.0, anchor=shown.episode.anchor)
        ]
        assert shown.episode.n_empty == max(counts) > 0
    assert common_budget(episodes + read_chat_episodes(trained(run, budget_nats=5.0))) == 15.0
    assert (
        common_budget(
            read_chat_episodes(trained(run, budget_nats=15.0, anchor="bayesian"))
            + read_chat_episodes(trained(run, budget_nats=5.0))
        )
        == 5.0
    )


def test_transcripts_on_the_page_hold_every_word_with_its_shade(run: Results, page: str) -> None:
    told = section(page, "transcripts")
    articles = re.findall(r'<article class="transcript anchor-([\w-]+)">(.*?)</article>', told, flags=re.DOTALL)
    assert len(articles) >= 5
    for anchor, article in articles:
        seed, number = re.findall(r"seed (\d+), episode (\d+)", article)[0]
        (one,) = trained(run, anchor=anchor, budget_nats=15.0, seed=int(seed), episode=int(number))
        spoken = {place for turn in one["speakers"] for place in range(turn["begin"], turn["end"])}
        places = [place for place in range(len(one["pieces"])) if place < one["given"] or place in spoken]
        tokens = re.findall(
            r'<span class="(shaded|quiet|)([^"]*)"(?: title="[^"]*")?>([^<]*)</span>',
            re.sub(r'<span class="(?:asks|who|tag|paid|said)"', "<i", article),
        )
        assert [html.unescape(piece) for _, _, piece in tokens] == [one["pieces"][place] for place in places]
        for (kind, classes, _), place in zip(tokens, places, strict=True):
            decided = one["actors"][place] == "imitator" or place in one["questions"]
            assert (kind == "shaded") == decided
            assert (" answer" in classes) == (one["actors"][place] in ("demonstrator", "oracle"))
            if decided:
                shades = [int(shade) for shade in re.findall(r" [ck](\d)", classes)]
                edges = (*SHADES_NATS, float("inf"))
                expected = [
                    next(shade for shade, edge in enumerate(edges) if nats < edge)
                    for nats in (one["charges"][place], one["kl_demonstrator"][place])
                ]
                assert shades == expected
        answered = re.findall(r'<span class="asks">asked: (\w+)</span>', article)
        assert answered == [one["actors"][place] for place in one["questions"]]
        paid = [
            sum(one["rewards"][turn["begin"] : turn["end"]])
            for turn in one["speakers"]
            if not turn["is_teacher"] and turn["finished"]
        ]
        shown = re.findall(r'<span class="paid">reward ([\d.]+)</span>', article)
        assert [float(value) for value in shown] == pytest.approx(paid, abs=0.006)


def test_a_turn_that_a_declined_question_broke_off_is_shown() -> None:
    one = results(3, anchors=("cautious-minimax",), budgets=(4.0,), n_seeds=1, n_episodes=1, length=60).transcripts[0]
    last = max(place for place, turn in enumerate(one["speakers"]) if turn["is_teacher"])
    end = one["speakers"][last]["begin"] + 1
    for key in ("pieces", "actors", "turns", "charges", "kl_demonstrator", "rewards"):
        one[key] = one[key][:end]
    one |= {"speakers": one["speakers"][:last], "questions": [place for place in one["questions"] if place < end]}
    shown = shown_transcript(read_chat_episodes([one])[0])
    assert shown.turns[-1].speaker == "teacher"
    assert shown.turns[-1].cut
    assert [token.piece for token in shown.turns[-1].tokens] == [one["pieces"][-1]]


# Findings


def made(anchor: str, phase: str, seed: int = 0, **values: Any) -> dict[str, Any]:
    """A row that a test changes."""
    empty = {"speakers": [], "actors": ["imitator"] * 100, "questions": [], "rewards": [1.0], "charges": [2.0]}
    tag = {
        "anchor": anchor,
        "phase": phase,
        "budget_nats": 4.0,
        "seed": seed,
        "length": 200 if phase == "longer" else 100,
    }
    found = row(tag, [empty | {"kl_demonstrator": [2.0]}] * 4) | values
    replies = found["replies"]
    share = share_of(found["empty_replies"], replies)
    if share is not None:
        found |= {"empty_reply_share": share.share, "empty_reply_low": share.low, "empty_reply_high": share.high}
    return found


def told(
    rows: list[dict[str, Any]], transcripts: list[dict[str, Any]], verdicts: list[dict[str, Any]]
) -> list[Finding]:
    return findings(rows, read_chat_episodes(transcripts), read_verdicts(verdicts))


def verdict_of(found: list[Finding], number: int) -> tuple[str, str]:
    (line,) = found[number - 1].lines
    return line.verdict, line.sentence


def silent_transcript(costs: tuple[float, ...], phase: str = "after", episode: int = 0) -> dict[str, Any]:
    """A transcript of nothing but the teacher's empty replies at ``costs``, with the student's words between."""
    n = len(costs)
    return {
        "anchor": "bayesian", "phase": phase, "budget_nats": 4.0, "seed": 0, "length": 100, "episode": episode,
        "given": 0, "pieces": ["<|end|>", " yes"] * n, "actors": ["imitator", "environment"] * n,
        "turns": list(range(2 * n)),
        "speakers": [
            {"is_teacher": place % 2 == 0, "begin": place, "end": place + 1, "finished": True, "empty": place % 2 == 0,
             "text": ""} for place in range(2 * n)
        ],
        "charges": [nats for cost in costs for nats in (cost, 0.0)], "kl_demonstrator": None,
        "rewards": [0.0, 0.5] * n, "questions": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("empty_after", "costs", "verdict"),
    [
        (60, (1.0, 0.5, 0.1), "shown"),
        (60, (0.1, 0.5, 1.0), "part"),
        (2, (1.0, 0.5, 0.1), "part"),
        (2, (0.1, 0.5, 1.0), "not"),
        (60, (1.0,), "part"),
        (2, (1.0,), "not"),
        (5, (1.0, 0.5, 0.1), "part"),
        (60, (0.5, 0.1, 0.7), "part"),
    ],
)
def test_finding_1_needs_more_silence_and_cheaper_silence(
    empty_after: int, costs: tuple[float, ...], verdict: str
) -> None:
    rows = [
        made("bayesian", "before", replies=100, empty_replies=2),
        made("bayesian", "after", replies=100, empty_replies=empty_after),
    ]
    transcripts = [silent_transcript(costs, episode=number) for number in range(12)]
    found, sentence = verdict_of(told(rows, transcripts, []), 1)
    assert found == verdict
    assert f"{empty_after}" in sentence
    if len(costs) > 1:
        cheaper = 12 if costs[-1] < costs[0] else 0
        assert f"cheaper than the first in {cheaper} of 12" in sentence
        assert f"(medians {costs[-1]:.2f} and {costs[0]:.2f} nats)" in sentence
    assert f"(12) earn {0.5 * len(costs):.2f} at {sum(costs):.2f} nats." in sentence


def test_finding_1_takes_more_than_a_few_episodes_for_cheaper_silence() -> None:
    rows = [made("bayesian", phase, replies=100, empty_replies=2) for phase in ("before", "after")]
    few = [silent_transcript((1.0, 0.1), episode=number) for number in range(3)]
    few.append(silent_transcript((0.1, 1.0), episode=3))
    found, sentence = verdict_of(told(rows, few, []), 1)
    assert "in 3 of 4" in sentence
    assert found == "not"


def test_episodes_are_silent_from_half_of_their_replies_on() -> None:
    speaking = spaced(" very", "after")
    half = joined(silent_transcript((1.0,)), speaking)
    row = made("bayesian", "after", replies=3, empty_replies=1)
    assert "at least half of the replies are empty (1)" in verdict_of(told([row], [half], []), 1)[1]
    assert "half of the replies" not in verdict_of(told([row], [joined(half, speaking)], []), 1)[1]
    assert "half of the replies" not in verdict_of(told([row], [speaking], []), 1)[1]


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two transcripts as one."""
    shift, turns = len(one["pieces"]), len(one["speakers"])
    found = one | {key: one[key] + other[key] for key in ("pieces", "actors", "charges", "rewards")}
    moved = [turn | {"begin": turn["begin"] + shift, "end": turn["end"] + shift} for turn in other["speakers"]]
    return found | {
        "turns": one["turns"] + [turn + turns for turn in other["turns"]],
        "speakers": one["speakers"] + moved,
    }


def test_finding_1_is_unknown_without_replies_and_says_how_often_it_asks() -> None:
    assert verdict_of(told([made("bayesian", "after")], [], []), 1)[0] == "unknown"
    rows = [made("cautious-minimax", "after", replies=10, empty_replies=0, decisions=200, asks=50)]
    assert "it asks on 25 % of decisions" in verdict_of(told(rows, [], []), 1)[1]


def spaced(piece: str, phase: str, n: int = 30) -> dict[str, Any]:
    """A transcript of one reply of the teacher with ``n`` times ``piece`` between words."""
    one = silent_transcript((0.0,), phase)
    pieces = [" so", piece] * n + [" so"]
    one["pieces"], one["actors"] = [*pieces, " yes"], ["imitator"] * len(pieces) + ["environment"]
    one["turns"] = [0] * len(pieces) + [1]
    for key in ("charges", "rewards"):
        one[key] = [0.0] * len(one["pieces"])
    one["speakers"][0] |= {"end": len(pieces), "empty": False}
    one["speakers"][1] |= {"begin": len(pieces), "end": len(pieces) + 1}
    return one


@pytest.mark.parametrize(
    ("before", "after", "reward", "verdict"),
    [
        ("\n\n", "\n", 3.0, "shown"),
        ("\n\n", "\n", 1.0, "not"),
        ("\n", "\n", 3.0, "not"),
        ("  x", " x", 3.0, "shown"),
        ("x", "x", 3.0, "not"),
        ("\n\n", "\n", 1.1, "not"),
    ],
)
def test_finding_2_needs_a_switch_and_a_gain(before: str, after: str, reward: float, verdict: str) -> None:
    rows = [made("bayesian", "before", reward_se=0.1), made("bayesian", "after", reward=reward, reward_se=0.1)]
    found = told(rows, [spaced(before, "before"), spaced(after, "after")], [])
    assert verdict_of(found, 2)[0] == verdict
    if before == "\n\n" and after == "\n":
        assert "Blank lines among line breaks went from 100 % (89–100) to 0 % (0–11)" in verdict_of(found, 2)[1]
        gain = f"{reward - 1.0:.2f}" if reward > 1 else "0"
        assert f"the reward changed by {gain} ± 0.28 an episode" in verdict_of(found, 2)[1]


def test_line_breaks_and_spaces_are_counted_in_what_the_policy_wrote() -> None:
    one = read_chat_episodes([spaced("\n \n\n", "after", 5)])
    found = blank_lines(one)
    assert found is not None
    assert (found.successes, found.n) == (5, 10)
    gaps = double_spaces(read_chat_episodes([spaced("  very", "after", 5)]))
    assert gaps is not None
    assert (gaps.successes, gaps.n) == (5, 10)
    others = spaced("\n\n", "after")
    others["actors"] = ["demonstrator" if actor == "imitator" else actor for actor in others["actors"]]
    assert blank_lines(read_chat_episodes([others])) is None


def lengthened_rows(pairs: list[tuple[float, float]], error: float = 0.1, **values: Any) -> list[dict[str, Any]]:
    rows = []
    for seed, (before, after) in enumerate(pairs):
        common = {"kl_demonstrator_se": error}
        rows.append(made("bayesian", "after", seed, kl_demonstrator_nats=before, **common))
        rows.append(made("bayesian", "longer", seed, kl_demonstrator_nats=after, **common | values))
    return rows


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(1.0, 3.0), (1.0, 3.0), (1.0, 1.1)], "shown"),
        ([(1.0, 3.0), (1.0, 1.1)], "part"),
        ([(1.0, 1.1), (1.0, 0.9)], "not"),
        ([(1.0, 3.0), (3.0, 1.0)], "not"),
        ([(3.0, 1.0), (3.0, 1.0)], "opposite"),
    ],
)
def test_finding_3_counts_clear_changes_of_the_distance(pairs: list[tuple[float, float]], verdict: str) -> None:
    found, sentence = verdict_of(told(lengthened_rows(pairs), [], []), 3)
    assert found == verdict
    means = [statistics.mean(side) for side in zip(*pairs, strict=True)]
    assert f"went from {means[0]:.2f} to {means[1]:.2f} nats on average" in sentence
    assert "From 100 to 200 tokens, trained further" in sentence
    more, less = (sum(sign * (after - before) > 0.3 for before, after in pairs) for sign in (1, -1))
    assert f"clearly up in {more} and down in {less} of {len(pairs)}." in sentence


def test_finding_3_goes_by_the_charge_where_the_demonstrator_is_unknown() -> None:
    rows = [one | {"kl_demonstrator_nats": None, "kl_demonstrator_se": None} for one in lengthened_rows([(1.0, 1.0)])]
    assert verdict_of(told(rows, [], []), 3)[0] == "not"
    rows[1] |= {"charge_nats": 3.0, "largest_charge_nats": 4.0}
    found, sentence = verdict_of(told(rows, [], []), 3)
    assert found == "shown"
    assert "the charge went from 2.00 to 3.00 nats" in sentence
    assert verdict_of(told(rows[:1], [], []), 3)[0] == "unknown"


@pytest.mark.parametrize(
    ("decisions", "kl", "verdict"), [(900, 2.0, "shown"), (900, 1.0, "not"), (430, 2.0, "not"), (200, 3.0, "not")]
)
def test_finding_5_needs_less_per_decision_and_no_less_over_the_episode(
    decisions: int, kl: float, verdict: str
) -> None:
    # Four episodes of 100 decisions each before; the charge of an episode stays the same.
    rows = lengthened_rows([(2.0, kl), (2.0, kl)], decisions=decisions, ask_rate=0.0)
    assert verdict_of(told(rows, [], []), 5)[0] == verdict
    assert verdict_of(told(rows[:1], [], []), 5)[0] == "unknown"


def judged(question: str, smaller_wins: int, n: int) -> list[dict[str, Any]]:
    side = {"anchor": "bayesian", "phase": "after", "seed": 0, "length": 100, "episode": 0}
    small, large = side | {"budget_nats": 2.0}, side | {"budget_nats": 9.0}
    return [
        {"question": question, "judge": "j", "first": large, "second": small, "shown_first": "first", "said": None}
        | {"verdict": "second" if number < smaller_wins else "first"}
        for number in range(n)
    ]


@pytest.mark.parametrize(
    ("better", "complexity", "verdict"),
    [(28, 28, "shown"), (28, 15, "part"), (15, 15, "not"), (2, 2, "opposite"), (2, 15, "opposite"), (28, 2, "part")],
)
def test_finding_4_needs_intervals_above_one_half(better: int, complexity: int, verdict: str) -> None:
    verdicts = judged("better", better, 30) + judged("complex", complexity, 30)
    found, sentence = verdict_of(told([made("bayesian", "after")], [], verdicts), 4)
    assert found == verdict
    assert f"judged better in {better} of 30" in sentence
    assert f"more complex in {complexity} of 30" in sentence
    assert "(by j)" in sentence
    # Transcripts of one budget, whichever is called the first, say nothing about budgets.
    same = [one | {"second": one["first"], "verdict": "first"} for one in judged("better", 0, 30)]
    assert verdict_of(told([made("bayesian", "after")], [], verdicts + same), 4) == (found, sentence)
    assert verdict_of(told([made("bayesian", "after")], [], []), 4)[0] == "unknown"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_findings_of_any_run_have_a_line_an_anchor(seed: int, known: bool, silences: bool) -> None:
    run = results(seed, budgets=(3.0,), n_seeds=1, n_episodes=2, length=50, demonstrator_known=known, silences=silences)
    for one in told(run.rows, run.transcripts, run.verdicts):
        assert [line.anchor for line in one.lines] == ["bayesian", "cautious-pointwise", "cautious-minimax"]
        assert all(line.verdict in VERDICTS and line.sentence for line in one.lines)


# Figures


def test_training_figure_draws_means_over_seeds_and_the_budget(run: Results) -> None:
    (curve,) = [one for one in read_curves(run.curves) if (one.anchor, one.budget_nats) == ("bayesian", 5.0)]
    raw = [one["points"] for one in run.curves if (one["anchor"], one["budget_nats"]) == ("bayesian", 5.0)]
    assert len(raw) == curve.n_seeds == 2
    charge, reward = chat_figures.training(curve, [curve]).axes
    for axes, key in ((charge, "charge_nats"), (reward, "reward")):
        (median,) = [line for line in axes.lines if line.get_color() == ANCHORS["bayesian"].colour]
        expected = [statistics.mean(points[at][key][2] for points in raw) for at in range(30)]
        np.testing.assert_allclose(np.asarray(median.get_ydata(), dtype=float), expected)
    dashed = [line for line in charge.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(np.asarray(dashed[0].get_ydata(), float), [one["budget_nats"] for one in raw[0]])


def test_a_seed_that_stopped_early_counts_as_far_as_it_came(run: Results) -> None:
    curves = copy.deepcopy([one for one in run.curves if (one["anchor"], one["budget_nats"]) == ("bayesian", 5.0)])
    curves[1]["points"] = curves[1]["points"][:5]
    (curve,) = read_curves(curves)
    assert len(curve.points) == 30
    assert curve.points[20].reward == tuple(curves[0]["points"][20]["reward"])


def test_distances_above_the_budget_are_drawn_in_the_shaded_part(run: Results) -> None:
    rows = [one for one in run.rows if one["budget_nats"] == 5.0 and one["phase"] != "before"]
    (axes,) = chat_figures.certificates(rows, 5.0).axes
    marks = [line for line in axes.lines if line.get_label() in ANCHORS]
    drawn = {(line.get_label(), float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marks}  # type: ignore[index]
    assert drawn == {(one["anchor"], one["charge_nats"], one["kl_demonstrator_nats"]) for one in rows}
    low, high = axes.get_ylim()
    assert all(low <= y <= high for _, _, y in drawn)
    promise = next(line for line in axes.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(promise.get_xdata(), promise.get_ydata())
    assert any(list(line.get_ydata()) == [5.0, 5.0] for line in axes.lines)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fractions(0, 1, max_denominator=8), min_size=1, max_size=20))
def test_how_silent_episodes_are_is_the_share_with_at_least_that_much(shares: list[Any]) -> None:
    values = [float(share) for share in shares]
    (axes,) = chat_figures.empty_shares({"bayesian": values}).axes
    steps = axes.patches[0].get_data()  # type: ignore[attr-defined]
    for share, low, high in zip(steps.values, steps.edges, steps.edges[1:], strict=False):
        if high > low:
            middle = (low + high) / 2
            assert share == pytest.approx(sum(value >= middle for value in values) / len(values))


def test_costs_are_drawn_at_their_medians_and_single_values_where_few() -> None:
    spreads = by_place([[1.0, 0.5], [2.0, 0.25], [3.0], [4.0], [5.0]])
    (axes,) = chat_figures.costs_by_place({"bayesian": spreads}, "empty reply of an episode").axes
    full, faint = [line for line in axes.lines if line.get_label() == "bayesian"]
    np.testing.assert_allclose(full.get_xydata(), [[1.0, 3.0]])
    np.testing.assert_allclose(faint.get_xydata(), [[2.0, 0.5], [2.0, 0.25]])


def test_silence_of_somebody_else_is_nobody_s_cost() -> None:
    one = silent_transcript((1.0, 0.5, 0.1))
    one["actors"][2], one["questions"] = "oracle", [2]
    assert empty_costs(read_chat_episodes([one])) == [[1.0, 0.1]]


def test_policies_are_gathered_over_seeds_with_the_spread_between_them() -> None:
    rows = [
        made("bayesian", "after", seed, kl_demonstrator_nats=float(seed), kl_demonstrator_se=0.5) for seed in range(3)
    ]
    (one,) = gather(rows)
    assert one.mean("kl_demonstrator_nats") == pytest.approx(1.0)
    assert one.error("kl_demonstrator_nats", "kl_demonstrator_se") == pytest.approx(
        statistics.stdev([0, 1, 2]) / 3**0.5
    )
    (single,) = gather(rows[:1])
    assert single.error("kl_demonstrator_nats", "kl_demonstrator_se") == 0.5

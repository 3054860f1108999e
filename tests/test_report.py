"""The report says what the rows say, whatever they say, and is one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cautious_imitation.report import figures, write_report
from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.axes import anchors_in
from cautious_imitation.report.costs import asking_by_demonstrations, asking_findings, price
from cautious_imitation.report.episodes import read_episodes
from cautious_imitation.report.findings import (
    certificate_check,
    dearest_episode,
    finding,
    infeasible,
    promises,
    promises_by_accounting,
)
from cautious_imitation.report.grid import COLUMNS, Grid
from cautious_imitation.report.matched import at_reward, equal_asking, equal_reward, with_no_more_questions
from cautious_imitation.report.page import render
from cautious_imitation.report.svg import inline_svg

BUDGETED = ("bayesian", "cautious-pointwise", "cautious-minimax", "bayesian-asks-max-prob")
VOID_ELEMENTS = {"meta", "br", "rect", "path"}


def row(anchor: str, budget: float | None, kl: float | None, **values: object) -> dict[str, object]:
    """A row with plausible values where the test does not care."""
    base = dict.fromkeys(COLUMNS) | {
        "anchor": anchor,
        "budget_nats": budget,
        "kl_demonstrator_nats": kl,
        "deployment": "same",
        "n_demonstrations": 1000,
        "horizon": 64,
        "ask_price": 0.05,
        "seed": 0,
        "reward": None if kl is None else 5.0 + 0.1 * kl,
        "charge_nats": None if kl is None else budget,
        "ask_rate": None if kl is None else 0.1,
        "empty_reply_share": None if kl is None else 0.01,
        "excess_nats": None if kl is None else 0.5,
        "free_charge_nats": None if kl is None else budget,
        "status": "infeasible" if kl is None else "optimal",
        "seconds": 0.1,
    }
    if anchor.startswith("cautious"):
        base |= {"accounting": "free", "alpha": 0.01}
    base |= values
    if base["ask_rate"] is not None:
        base["asks_per_episode"] = 30.0 * base["ask_rate"]
    return base


def story() -> list[dict[str, object]]:
    """Rows with every anchor, two deployments, two seeds, and exceptions of every kind."""
    rows = []
    for deployment, drift in (("same", 0.9), ("novel", 3.0)):
        for seed in (0, 1):
            common = {"deployment": deployment, "seed": seed}
            for budget in (1.0, 4.0, 16.0):
                rows += [
                    row("bayesian", budget, drift * budget + seed, ask_rate=0.0, **common),
                    row("cautious-minimax", budget, 0.7 * budget, ask_rate=0.2, **common),
                    row("cautious-pointwise", budget, 0.5 * budget, ask_rate=0.6, **common),
                    row("bayesian-asks-max-prob", budget, budget, ask_rate=0.21, **common),
                    row("bayesian-asks-count", budget, 1.2 * budget, ask_rate=0.5, **common),
                    row("bayesian-asks-random", budget, 1.1 * budget, ask_rate=0.2, **common),
                ]
            rows += [
                row("bayesian", 4.0, 5.0, n_demonstrations=9000, **common),
                row("cautious-minimax", 4.0, 3.0, horizon=128, **common),
                row("cautious-minimax", 4.0, 9.0, accounting="outcome", free_charge_nats=12.0, **common),
                row("cautious-pointwise", 1.0, None, accounting="forbidden", **common),
            ]
        for anchor, distance, asks in (
            ("none", float("inf"), 0.0),
            ("demonstrator", 0.0, 0.0),
            ("always-ask", 0.0, 1.0),
        ):
            rows.append(
                row(anchor, None, distance, deployment=deployment, n_demonstrations=None, reward=6.0, ask_rate=asks)
            )
    return rows


def episode(anchor: str = "cautious-minimax", n_steps: int = 6) -> dict[str, object]:
    """An episode whose agent asks, replies with nothing, and lets its partner speak."""
    agent = {"speaker": "agent", "actor": "imitator", "charge_nats": 0.2, "ask_probability": 0.1}
    partner = {"speaker": "student", "actor": "environment", "charge_nats": 0.0, "ask_probability": 0.0}
    steps = [
        agent | {"act": "greeting", "actor": "demonstrator", "charge_nats": 0.0},
        agent | {"act": "end of turn"},
        partner | {"act": "question"},
        partner | {"act": "end of turn"},
        agent | {"act": "end of turn", "charge_nats": 2.0},
        partner | {"act": "laugh"},
    ]
    return {
        "anchor": anchor,
        "budget_nats": 4.0,
        "n_demonstrations": 1000,
        "deployment": "same",
        "steps": (steps * n_steps)[:n_steps],
    }


class Page(HTMLParser):
    """Reads a page strictly: tags in balance, identifiers, links and text by element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID_ELEMENTS or self.open[-1:] == ["svg"]:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID_ELEMENTS and tag not in self.open:
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.text.setdefault(tag, []).append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return render(story(), [episode(anchor) for anchor in ANCHORS], {"world": "a world", "seeds": [0, 1]})


def test_page_is_balanced_and_self_contained(html: str) -> None:
    page = Page(html)
    links = [value for _, key, value in page.attributes if key in ("src", "href", "srcset", "action", "data")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", html)
    assert not [key for _, key, _ in page.attributes if key.startswith("on") or key == "style"]


def test_identifiers_are_unique_and_references_resolve(html: str) -> None:
    page = Page(html)
    identifiers = [value for _, key, value in page.attributes if key == "id"]
    assert len(set(identifiers)) == len(identifiers)
    references = re.findall(r'(?:href="|url\()#([\w-]+)', html)
    assert references
    assert set(references) <= set(identifiers)


def test_content_security_policy_names_the_very_bytes_of_style_and_script(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.group(1)


def test_every_figure_is_described_and_every_anchor_named(html: str) -> None:
    drawn = re.findall(r'<svg class="figure" role="img" aria-label="([^"]+)"', html)
    assert len(drawn) == len(set(drawn)) == 5 * 2
    assert all(style.label in html for style in ANCHORS.values())


def test_every_row_is_in_the_table_without_scripts(html: str) -> None:
    body = html[html.index('<table class="sortable">') :]
    assert body.count("<tr>") == len(story()) + 1
    assert body.count("<td") == len(story()) * len(COLUMNS)


def test_infeasible_cells_are_listed_and_a_worse_accounting_shown(html: str) -> None:
    (line,) = infeasible(Grid(story()))
    assert (line.anchor, line.accounting, line.cells) == ("cautious-pointwise", "forbidden", 4)
    assert (line.budgets, line.deployments, line.least_nats) == ((1.0,), ("same", "novel"), None)
    assert "accounting “forbidden”: 4 with budget 1, deployments same, novel." in html
    needs = [row("cautious-minimax", 1.0, None, least_charge_nats=least) for least in (40.0, 30.0)]
    assert infeasible(Grid(needs))[0].least_nats == (30.0, 40.0)
    outcome = [one for one in promises_by_accounting(Grid(story())) if one.accounting == "outcome"]
    assert [(one.anchor, one.over, one.runs) for one in outcome] == [("cautious-minimax", 4, 4)]
    assert "12.0 nats on a budget of 4" in html


def test_settings_are_escaped() -> None:
    page = render([row("bayesian", 1.0, 1.0)], [], {"world": "<script>alert(1)</script>", "note": {"a": "<b>"}})
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_same_input_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, test_report as t; from cautious_imitation.report import write_report; "
        "write_report(sys.argv[1], t.story(), [t.episode()], {'a': 1}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).parent
    for name, seed in (("one", "1"), ("two", "2")):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            check=True,
            env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root.parent}", "PYTHONHASHSEED": seed},
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


budgets = st.sampled_from([0.5, 1.0, 2.0, 8.0])
some_rows = st.lists(
    st.builds(
        row,
        st.sampled_from(BUDGETED),
        budgets,
        st.one_of(st.none(), st.floats(0, 50)),
        deployment=st.sampled_from(["same", "novel"]),
        horizon=st.sampled_from([64, 128]),
        seed=st.integers(0, 3),
    ),
    min_size=1,
    max_size=30,
)


@given(some_rows)
def test_finding_counts_what_a_plain_count_counts(rows: list[dict[str, object]]) -> None:
    text = finding(promises(Grid(rows)))
    for names, words in ((["bayesian"], "the Bayesian imitator"), (list(BUDGETED[1:3]), "a cautious imitator")):
        held = [r for r in rows if r["anchor"] in names and r["kl_demonstrator_nats"] is not None]
        over = sum(r["kl_demonstrator_nats"] > r["budget_nats"] + 1e-5 for r in held)  # type: ignore[operator]
        if not held:
            assert words not in text
        elif len(held) > 1:
            count = {0: f"none of {len(held)}", len(held): f"all {len(held)}"}.get(over, f"{over} of {len(held)}")
            assert f"{words}, {count} " in text


def test_losses_of_caution_are_told_as_plainly_as_those_of_the_bayesian_imitator() -> None:
    rows = [row("bayesian", b, 0.5 * b, reward=b, ask_rate=0.0) for b in (1.0, 2.0)]
    rows += [row("cautious-minimax", b, 2.0 * b, reward=b, ask_rate=0.0) for b in (1.0, 2.0)]
    grid = Grid(rows)
    assert "Bayesian imitator, none of 2 policies drifted" in finding(promises(grid))
    assert "cautious imitator, all 2 did" in finding(promises(grid))
    assert any("farther in 2 of 2" in sentence for sentence in price(grid, equal_reward(grid), []))


def test_what_caution_costs_is_counted_from_the_rows() -> None:
    rows = [row("bayesian", b, b, reward=4.0 + b, ask_rate=0.0) for b in (1.0, 3.0)]
    rows += [row("cautious-minimax", b, 0.5 * b, reward=4.0 + b / 2, ask_rate=0.1) for b in (1.0, 3.0)]
    rows += [row("cautious-pointwise", b, 0.5 * b, reward=4.0 + b / 2, ask_rate=0.05 * b) for b in (1.0, 3.0)]
    rows += [row("bayesian-asks-random", 1.0, 2.0, reward=4.9, ask_rate=0.1)]
    grid = Grid(rows)
    questions, reward, distance, asking = price(grid, equal_reward(grid), equal_asking(grid))
    assert questions.endswith("on 10 % of its steps on average, pointwise on 10 %; minimax less in 1 of 2 settings.")
    assert reward.endswith("earned less than the Bayesian policy in all 2 settings (on average 5.00 against 6.00).")
    # Both distances are reward - 4 at equal reward: the curves coincide where both have policies.
    assert distance.endswith("minimax was about as close in 2 of 2 (“same” deployment, asking on 10 % of its steps).")
    assert asking.endswith("minimax was closer in 1 of 1.")
    assert asking_findings(equal_asking(grid)) == ["Beside “Bayesian, asks at random”, minimax was closer in 1 of 1."]


def test_anchors_are_compared_at_the_same_price_of_a_question() -> None:
    asked = {"cautious-pointwise": {0.01: 0.5, 0.2: 0.3}, "cautious-minimax": {0.01: 0.4, 0.2: 0.2}}
    rows = [
        row(anchor, 2.0, 1.0, ask_price=price_of_one, ask_rate=rate)
        for anchor, rates in asked.items()
        for price_of_one, rate in rates.items()
    ]
    rows.append(row("bayesian", 2.0, 1.0, ask_price=None, ask_rate=0.0, reward=9.0))
    grid = Grid(rows)
    questions, reward, *_ = price(grid, equal_reward(grid), equal_asking(grid))
    assert questions.endswith("on 30 % of its steps on average, pointwise on 40 %; minimax less in all 2 settings.")
    assert "in all 2 settings" in reward


def test_questions_by_demonstrations_and_the_dearest_episode() -> None:
    rows = [row("cautious-minimax", 2.0, 1.0, n_demonstrations=n, ask_rate=a) for n, a in ((100, 0.5), (1000, 0.2))]
    (sentence,) = asking_by_demonstrations(Grid(rows))
    assert sentence == "“same”: minimax asks on 50 % of its steps with 100 of them, on 20 % with 1,000."
    rows = [row("bayesian", b, 1.0, largest_charge_nats=c) for b, c in ((1.0, 9.0), (10.0, 50.0))]
    rows.append(row("cautious-minimax", 1.0, 1.0, largest_charge_nats=99.0, accounting="outcome"))
    rows.append(row("cautious-minimax", 1.0, 1.0, largest_charge_nats=8.0))
    dearest = dearest_episode(Grid(rows))
    assert dearest is not None
    assert dearest["largest_charge_nats"] == 9.0


def test_certificate_check_counts_only_rows_within_charge_plus_excess() -> None:
    rows = [row("cautious-minimax", 1.0, 1.4), row("cautious-minimax", 1.0, 1.6), row("bayesian", 1.0, 9.0)]
    assert certificate_check(Grid(rows)) == (1, 2)
    outcome = row("cautious-minimax", 1.0, 1.6, accounting="outcome", free_charge_nats=1.2)
    assert certificate_check(Grid([outcome])) == (1, 1)


@given(some_rows, st.sampled_from(["budget_nats", "horizon"]))
def test_a_curve_changes_one_setting_only_and_means_are_over_its_seeds(
    rows: list[dict[str, object]], vary: str
) -> None:
    grid = Grid(rows)
    for anchor in grid.anchors:
        for deployment in grid.deployments:
            cells = grid.curve(anchor, deployment, vary, need=("kl_demonstrator_nats",))
            assert all(getattr(a, vary) < getattr(b, vary) for a, b in pairwise(cells))
            fixed = "horizon" if vary == "budget_nats" else "budget_nats"
            assert {getattr(cell, fixed) for cell in cells} <= {grid.reference[fixed]}
            for cell in cells:
                keys = ("anchor", "deployment", "budget_nats", "horizon")
                values = [
                    r["kl_demonstrator_nats"]
                    for r in rows
                    if all(r[key] == getattr(cell, key) for key in keys) and r["kl_demonstrator_nats"] is not None
                ]
                spread = cell.metrics["kl_demonstrator_nats"]
                assert spread.mean == pytest.approx(np.mean(values))  # type: ignore[arg-type]
                assert (spread.low, spread.high) == (min(values), max(values))  # type: ignore[type-var]


def curve(points: list[tuple[float, float, float]]) -> Grid:
    """Bayesian rows with given (reward, distance, ask rate), one a budget."""
    return Grid([row("bayesian", i + 1.0, kl, reward=r, ask_rate=a) for i, (r, kl, a) in enumerate(points)])


def test_interpolation_at_equal_reward_and_at_equal_asking() -> None:
    cells = curve([(7.0, 8.0, 0.1), (5.0, 2.0, 0.5), (6.0, 4.0, 0.3)]).cells
    half = at_reward(cells, "bayesian", 6.5)
    assert (half.kl_nats, half.ask_rate) == pytest.approx((6.0, 0.2))
    assert half.kind == "lottery"
    measured = at_reward(cells, "bayesian", 6.0)
    assert (measured.kl_nats, measured.budget_nats, measured.kind) == (4.0, 3.0, "measured")
    assert at_reward(cells, "bayesian", 7.5).kind == "ends below"
    assert at_reward(cells, "bayesian", 4.5).kind == "starts above"
    assert at_reward([], "bayesian", 4.5).kind == "none"
    assert at_reward(curve([(5.0, 1.0, 0.0), (6.0, float("inf"), 0.0)]).cells, "bayesian", 5.5).kl_nats == float("inf")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_no_sampled_lottery_beats_the_one_found_with_no_more_questions(seed: int, n_policies: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0.1, 1.0, size=(n_policies, 3))
    cells = curve([tuple(point) for point in points]).cells
    lots = rng.dirichlet(np.full(n_policies, 0.5), size=2000)
    lots = np.concatenate([np.eye(n_policies), lots])
    reward, distance, asks = (lots @ points).T
    bound = rng.integers(len(lots))
    found = with_no_more_questions(cells, "bayesian", reward[bound], 30.0 * asks[bound])
    assert found.reward is not None
    assert found.asks_per_episode is not None
    assert found.reward >= reward[bound] - 1e-6
    assert found.asks_per_episode <= 30.0 * asks[bound] + 1e-5
    assert found.kl_nats <= distance[(reward >= reward[bound]) & (asks <= asks[bound])].min() + 1e-6
    assert with_no_more_questions(cells, "bayesian", 1.1, 30.0).kind == "none"
    assert with_no_more_questions(cells, "bayesian", 0.0, 0.0).kind == "none"


@pytest.mark.parametrize(
    ("reward", "distance", "verdict"),
    [
        (6.0, 3.5, "better"),
        (6.0, 4.5, "worse"),
        (6.0, 4.0, "equal"),
        (6.0, 4.3, "equal"),
        (8.0, 7.0, "better"),
        (8.0, 9.0, "open"),
        (4.0, 3.0, "worse"),
        (4.0, 1.0, "open"),
    ],
)
def test_verdict_at_equal_reward(reward: float, distance: float, verdict: str) -> None:
    bayesian = [row("bayesian", b, kl, reward=r) for b, r, kl in ((1.0, 5.0, 2.0), (2.0, 6.0, 4.0), (3.0, 7.0, 8.0))]
    found = equal_reward(Grid([*bayesian, row("cautious-minimax", 1.0, distance, reward=reward)]))
    assert len(found) == len({5.0, 6.0, 7.0, reward})
    (own,) = [one for one in found if one.reward == reward]
    assert own.verdicts == (verdict,)


def test_a_bayesian_policy_is_compared_at_its_own_reward_too() -> None:
    rows = [row("cautious-minimax", b, b, reward=b) for b in (1.0, 3.0)] + [row("bayesian", 1.0, 1.0, reward=2.0)]
    (own,) = [one for one in equal_reward(Grid(rows)) if one.reward == 2.0]
    assert (own.subject.kind, own.subject.kl_nats) == ("lottery", 2.0)
    assert (own.others[0].kind, own.verdicts) == ("measured", ("worse",))


@pytest.mark.parametrize(
    ("reward", "distance", "asks", "verdict"),
    [
        (5.0, 1.0, 0.2, "better"),
        (5.0, 3.0, 0.2, "worse"),
        (5.0, 2.1, 0.1, "equal"),
        (5.0, 1.0, 0.4, "open"),
        (4.0, 1.0, 0.2, "open"),
        (6.0, 3.0, 0.2, "open"),
        (6.0, 1.0, 0.2, "better"),
    ],
)
def test_verdict_at_equal_reward_and_equal_asking(reward: float, distance: float, asks: float, verdict: str) -> None:
    control = row("bayesian-asks-random", 1.0, 2.0, reward=5.0, ask_rate=0.2)
    (found,) = equal_asking(Grid([control, row("cautious-minimax", 1.0, distance, reward=reward, ask_rate=asks)]))
    assert found.verdicts == (verdict,)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_choosing_by_lot_between_two_policies_is_at_most_as_far_as_the_interpolation(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    first, second, tau = rng.dirichlet(np.ones(6), size=3)

    def kl(p: np.ndarray) -> float:
        return float(np.sum(p * np.log(p / tau)))

    points = curve([(0.0, kl(first), 0.0), (1.0, kl(second), 0.0)]).cells
    shown = at_reward(points, "bayesian", share).kl_nats
    assert shown is not None
    assert kl((1 - share) * first + share * second) <= shown + 1e-9


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("draw", [figures.headline, figures.reward_against_distance, figures.empty_replies])
def test_figures_of_any_single_anchor_are_drawn(anchor: str, draw: object) -> None:
    budget = None if anchor in ("none", "demonstrator", "always-ask") else 2.0
    svg = inline_svg(draw([row(anchor, budget, 0.0, deployment="elsewhere")]), "x", "words")  # type: ignore[operator]
    root = ElementTree.fromstring(svg)
    assert root.tag.rpartition("}")[2] == "svg"
    assert "words" in "".join(root.itertext()) + " ".join(root.attrib.values())
    assert sum(element.tag.rpartition("}")[2] == "path" for element in root.iter()) > 1


def test_page_stands_with_nothing_but_infeasible_rows_and_no_episodes() -> None:
    page = render([row("cautious-minimax", 1.0, None)], [], {})
    Page(page)
    assert "No policy with a budget was found" in page
    assert page.count("no results to draw") == 5
    assert "One episode each" not in page


def test_figures_draw_every_mean_where_it_belongs() -> None:
    rows = [row("bayesian", b, b**2, seed=s) for b in (1.0, 2.0, 4.0) for s in (0, 1)]
    figure = figures.headline(rows)
    (axes,) = figure.axes
    assert figure.get_suptitle()
    assert figure.legends[0].get_texts()[0].get_text() == "Bayesian imitator: 2 of 3 farther than promised"
    drawn = [(line.get_color(), np.array(line.get_xydata(), dtype=float)) for line in axes.lines]
    means = [points for colour, points in drawn if colour == ANCHORS["bayesian"].colour and len(points) == 3]
    assert means
    for points in means:
        np.testing.assert_allclose(points, [[1, 1], [2, 4], [4, 16]])
    promise = next(points for _, points in drawn if len(points) > 50)
    np.testing.assert_allclose(promise[:, 0], promise[:, 1])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_headline_shows_the_imitators_only_and_every_figure_says_whom_it_shows() -> None:
    main = ["bayesian", "cautious-pointwise", "cautious-minimax"]
    assert anchors_in(figures.headline(story())) == main
    assert set(anchors_in(figures.reward_against_distance(story()))) == set(ANCHORS)
    assert anchors_in(figures.empty_replies(story(), against="horizon")) == ["cautious-minimax"]


def test_a_policy_without_anchor_does_not_squash_the_rest() -> None:
    rows = [row("bayesian", b, b, reward=6.0 + b / 10) for b in (1.0, 4.0)]
    (axes,) = figures.reward_against_distance([*rows, row("none", None, 355.0, reward=20.0)], "same").figure.axes
    assert axes.get_xlim()[1] < 10
    assert axes.get_ylim()[1] < 7
    assert any("355 nats, reward 20.0" in text.get_text() for text in axes.texts)


def test_svg_keeps_ink_for_the_page_and_no_style_attribute() -> None:
    svg = inline_svg(figures.headline(story()), "name", 'less < more, "quoted"')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'less < more, "quoted"'
    assert not [element for element in root.iter() if element.get("style")]
    assert "currentColor" in svg
    assert "DejaVu" not in svg
    with pytest.raises(ValueError, match="name must be a letter followed by"):
        inline_svg(figures.headline(story()), "1 2", "words")


def luminance(colour: str) -> float:
    """Relative luminance of a hexadecimal colour (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_anchors_have_their_own_mark_and_show_on_a_light_and_a_dark_page(html: str) -> None:
    assert (
        len({style.marker for style in ANCHORS.values()}) == len({s.colour for s in ANCHORS.values()}) == len(ANCHORS)
    )
    light, dark = (luminance(colour) for colour in re.findall(r"--page: (#\w+);", html))
    for style in ANCHORS.values():
        own = luminance(style.colour)
        assert (light + 0.05) / (own + 0.05) >= 3
        assert (own + 0.05) / (dark + 0.05) >= 3


def test_episode_is_summed_up_and_cut_into_turns() -> None:
    (one,) = read_episodes([episode()])
    assert (one.n_agent_steps, one.n_asked, one.n_turns, one.n_empty) == (3, 1, 2, 1)
    assert one.charge_nats == pytest.approx(2.2)
    assert [turn.agent for turn in one.turns] == [True, False, True, False]
    (long,) = read_episodes([episode(n_steps=130)])
    assert [len(strip) for strip in long.strips] == [64, 64, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": "bayes"}, r"anchor must be one of .*, got 'bayes'"),
        ({"status": "done"}, r"rows\[1\] status must be one of optimal, near-optimal, slack, infeasible, got 'done'"),
        ({"reward": float("nan")}, r"rows\[1\] reward must be a number or None, got nan"),
        ({"reward": "7"}, r"rows\[1\] reward must be a number or None, got '7'"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rows = [row("bayesian", 1.0, 1.0), row("bayesian", 2.0, 1.0) | change]
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report.html", rows, [], {})
    assert not list(tmp_path.iterdir())


def test_missing_keys_no_rows_and_bad_episodes_are_named(tmp_path: Path) -> None:
    incomplete = row("bayesian", 1.0, 1.0)
    del incomplete["horizon"]
    with pytest.raises(ValueError, match=r"rows\[0\] must have the key 'horizon'"):
        Grid([incomplete])
    with pytest.raises(ValueError, match="rows must hold at least one result"):
        write_report(tmp_path / "report.html", [], [], {})
    for key, value in (
        ("actor", "nobody"),
        ("speaker", "teacher"),
        ("charge_nats", -1.0),
        ("charge_nats", float("nan")),
    ):
        bad = episode()
        bad["steps"] = [*bad["steps"], bad["steps"][0] | {key: value}]  # type: ignore[index, misc]
        with pytest.raises(ValueError, match=rf"episodes\[0\] steps\[6\] {key} must be"):
            read_episodes([bad])
    with pytest.raises(ValueError, match="deployment must be one of same, novel, got 'old'"):
        figures.budget_against_distance(story(), "old")
    with pytest.raises(ValueError, match="against must be"):
        figures.empty_replies(story(), against="time")


def test_write_report_returns_the_path_and_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    assert write_report(str(target), story(), [episode()], {}) == target
    assert target.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [target]

"""The report of a chat experiment: one page that stands alone, whatever the run holds, and refuses what cannot be."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cautious_imitation.report.anchors import ANCHORS
from cautious_imitation.report.chat_page import render_chat, write_chat_report
from cautious_imitation.report.chat_rows import COLUMNS
from cautious_imitation.report.chat_table import chat_summary_table
from tests.chat_results import Results, results

VOID_ELEMENTS = {"meta", "br", "input"}
SMALL: dict[str, Any] = {"budgets": (4.0,), "n_seeds": 1, "n_episodes": 4, "length": 60}
CASES: dict[str, dict[str, Any]] = {
    "full": {"budgets": (5.0, 15.0), "n_seeds": 2, "n_episodes": 10, "length": 120},
    "unknown-demonstrator": SMALL | {"demonstrator_known": False},
    "never-empty": SMALL | {"silences": False},
    "no-replies": SMALL | {"replies": False},
    "one-anchor": SMALL | {"anchors": ("cautious-minimax",)},
    "nothing-trained": SMALL | {"phases": ("before",)},
    "one-episode": SMALL | {"n_episodes": 1},
    "unjudged": SMALL | {"judged": False},
}


class Page(HTMLParser):
    """Reads a page strictly: tags in balance, attributes, and the text of its body."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_chat(*results(1, **case).arguments) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_page_is_balanced_and_needs_nothing_else(pages: dict[str, str], case: str) -> None:
    page = Page(pages[case])
    links = [value for _, key, value in page.attributes if key in ("src", "href", "srcset", "action", "data")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", pages[case])
    assert not [key for _, key, _ in page.attributes if key.startswith("on") or key == "style"]
    identifiers = [value for _, key, value in page.attributes if key == "id"]
    assert len(set(identifiers)) == len(identifiers)
    assert {link[1:] for link in links} | {v for _, k, v in page.attributes if k == "for"} <= set(identifiers)
    assert "nan" not in re.findall(r"\w+", page.text.lower())
    assert "None" not in page.text


@pytest.mark.parametrize("case", CASES)
def test_content_security_policy_names_the_very_bytes_of_style_and_script(pages: dict[str, str], case: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', pages[case])
    assert policy is not None
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", pages[case], flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.group(1)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("unknown-demonstrator", "The demonstrator is not known here, so how far policies are from it cannot be said"),
        ("unknown-demonstrator", "there is no distance to hold against the charge"),
        ("never-empty", "No recorded episode of a trained policy has an empty reply of the policy’s own."),
        ("never-empty", "No recorded episode with an empty reply: Bayesian imitator, Cautious, pointwise"),
        ("no-replies", "No policy finished a reply, so there is no share of empty ones."),
        ("one-anchor", "No Bayesian and cautious policies are comparable: there are not both"),
        ("nothing-trained", "No trained policy was evaluated, so nothing can be said about budgets."),
        ("nothing-trained", "No transcripts of trained policies were recorded."),
        ("nothing-trained", "No policy was evaluated with longer episodes."),
        ("unjudged", "Nothing was judged in this run."),
    ],
)
def test_what_is_missing_is_said(pages: dict[str, str], case: str, words: str) -> None:
    assert words in Page(pages[case]).text
    assert words not in Page(pages["full"]).text


def test_a_toggle_of_colours_needs_no_script_and_a_known_demonstrator(pages: dict[str, str]) -> None:
    assert "#colour-kl:checked ~ .selection .shaded" in pages["full"]
    body = pages["full"][pages["full"].index('id="colour-kl"') :]
    section = body[: body.index("</section>")]
    # Siblings of the button alone are coloured: no element around them may close in between.
    assert section.index('<div class="selection">') < section.index("</div>")
    assert re.search(r'class="shaded c\d k\d', section)
    assert 'id="colour-kl"' not in pages["unknown-demonstrator"]
    assert not re.search(r'class="shaded c\d k\d', pages["unknown-demonstrator"])


def test_all_rows_are_in_the_table_without_scripts(pages: dict[str, str]) -> None:
    rows = results(1, **CASES["full"]).rows
    body = pages["full"][pages["full"].index('<table class="sortable">') :]
    assert body.count("<tr>") == len(rows) + 1
    assert body.count("<td") == len(rows) * len(COLUMNS)


def test_figures_are_described_and_stand_once(pages: dict[str, str]) -> None:
    drawn = re.findall(r'<svg class="figure" role="img" aria-label="([^"]+)"', pages["full"])
    # Two budgets: certificates, charges, costs and shares of silence; training for three anchors; three n-grams.
    assert len(drawn) == len(set(drawn)) == 4 * 2 + 2 * 3 + 3
    assert all(ANCHORS[name].label in pages["full"] for name in ("bayesian", "cautious-pointwise", "cautious-minimax"))


def test_hostile_text_stays_text() -> None:
    hostile = '</script><img src=x onerror="alert(1)">'
    run = results(2, **SMALL)
    for one in run.transcripts:
        one["pieces"] = [
            hostile if actor == "imitator" else piece for piece, actor in zip(one["pieces"], one["actors"], strict=True)
        ]
    for verdict in run.verdicts:
        verdict["judge"] = hostile
    run.settings = {"model": hostile, hostile: {"deep": hostile}}
    html = render_chat(*run.arguments)
    page = Page(html)
    assert hostile in page.text
    assert "<img" not in html
    assert html.count("</script>") == 1
    assert not [tag for tag, _, _ in page.attributes if tag == "img"]


def test_same_input_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from tests.chat_results import results; "
        "from cautious_imitation.report.chat_page import write_chat_report; "
        "write_chat_report(sys.argv[1], *results(3, budgets=(4.0,), n_seeds=1, n_episodes=4, length=60).arguments); "
        "assert not {'torch', 'matplotlib.pyplot', 'cautious_imitation.finetuning'} & set(sys.modules)"
    )
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            check=True,
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"PYTHONHASHSEED": str(len(name) + (name == "two"))},
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_order_of_records_does_not_matter_to_figures_and_findings() -> None:
    run = results(4, **SMALL)
    html = render_chat(*run.arguments)
    turned = (run.rows, run.curves[::-1], run.transcripts[::-1], run.verdicts[::-1], run.settings)
    assert render_chat(*turned) == html


def test_writing_replaces_what_was_there_and_a_bad_record_writes_nothing(tmp_path: Path) -> None:
    run = results(5, **SMALL | {"judged": False})
    target = tmp_path / "report.html"
    target.write_text("old")
    assert write_chat_report(str(target), run.rows, [], [], None, {}) == target
    assert target.read_text().startswith("<!doctype html>")
    before = target.read_bytes()
    run.rows[1]["reward"] = None
    with pytest.raises(ValueError, match=r"rows\[1\] reward must be a number, got null"):
        write_chat_report(target, *run.arguments)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


TRAINED = 1
"""A row and a transcript of the small run with replies, questions and charges of their own."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": "none"}, "anchor must be one of bayesian, cautious-pointwise, cautious-minimax, got 'none'"),
        ({"phase": "during"}, "phase must be one of before, after, asking, longer, transfer, got 'during'"),
        ({"budget_nats": float("inf")}, "budget_nats must be a finite number, got inf"),
        ({"charge_nats": -1.0}, "charge_nats must be at least 0, got -1.0"),
        ({"kl_demonstrator_nats": float("nan")}, "kl_demonstrator_nats must be a finite number, got nan"),
        ({"kl_demonstrator_nats": None}, "kl_demonstrator_se must be null where kl_demonstrator_nats is"),
        ({"reward": "7"}, "reward must be a finite number, got '7'"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"episodes": 0}, "episodes must be a whole number of at least 1, got 0"),
        ({"decisions": 0, "asks": 0, "ask_rate": 0.5}, "ask_rate must be asks/decisions, null, got 0.5"),
        ({"asks": 10**6}, "asks must be at most decisions"),
        ({"ask_rate": 0.99}, r"ask_rate must be asks/decisions, [\d.]+, got 0.99"),
        ({"empty_reply_share": None}, "empty_reply_share must be empty_replies/replies"),
        ({"empty_reply_low": 1.0}, "empty_reply_low and empty_reply_high must enclose empty_reply_share"),
        ({"empty_reply_high": None}, "empty_reply_low and empty_reply_high must enclose empty_reply_share"),
        ({"largest_charge_nats": 0.0}, "largest_charge_nats must be at least charge_nats"),
        ({"phase": "before"}, r"must differ from rows\[0\] in one of anchor, phase, budget_nats, seed, length"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_row_is_named(change: dict[str, Any], message: str) -> None:
    run = results(6, **SMALL | {"silences": True, "phases": ("before", "after")})
    run.rows[TRAINED] |= change
    with pytest.raises(ValueError, match=rf"rows\[{TRAINED}\] {message}"):
        render_chat(*run.arguments)


@pytest.mark.parametrize("key", COLUMNS)
def test_a_missing_key_is_named(key: str) -> None:
    run = results(6, **SMALL | {"phases": ("after",), "n_episodes": 2})
    del run.rows[2][key]
    with pytest.raises(ValueError, match=rf"rows\[2\] must have the key '{key}', got \["):
        render_chat(*run.arguments)


def break_transcript(one: dict[str, Any], key: str, value: Any) -> None:
    if callable(value):
        value(one[key])
    else:
        one[key] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("anchor", "none", "anchor must be one of"),
        ("seed", None, "seed must be a whole number, got None"),
        ("actors", lambda actors: actors.pop(), r"actors must have 60 entries, got 59"),
        ("actors", lambda actors: actors.__setitem__(5, "nobody"), r"actors\[5\] must be one of environment, imitator"),
        ("turns", lambda turns: turns.__setitem__(9, 99), r"turns\[9\] must be in -1\.\.\d+, got 99"),
        ("charges", lambda charges: charges.__setitem__(3, -0.5), r"charges\[3\] must be at least 0, got -0.5"),
        ("charges", lambda charges: charges.__setitem__(3, float("nan")), r"charges\[3\] must be a finite number"),
        ("kl_demonstrator", [0.0], "kl_demonstrator must have 60 entries, got 1"),
        ("rewards", lambda rewards: rewards.append(0.0), "rewards must have 60 entries, got 61"),
        ("questions", [60], r"questions\[0\] must be the index of a token, 0\.\.59, got 60"),
        ("questions", [True], r"questions\[0\] must be the index of a token"),
        ("given", 61, "given must be at most 60, the number of tokens, got 61"),
        ("pieces", lambda pieces: pieces.__setitem__(0, 7), "pieces must hold texts alone, got 7"),
        ("speakers", lambda turns: turns[1].update(end=61), r"speakers\[1\] end must be in \d+\.\.60, got 61"),
        (
            "speakers",
            lambda turns: turns[1].update(begin=0),
            r"speakers\[1\] begin must be at least \d+, where one ends",
        ),
        ("speakers", lambda turns: turns[0].update(empty=1), r"speakers\[0\] empty must be true or false, got 1"),
        ("speakers", lambda turns: turns[0].pop("text"), r"speakers\[0\] must have the key 'text'"),
        ("phase", "later", "phase must be one of"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_a_bad_transcript_is_named(key: str, value: Any, message: str) -> None:
    run = results(6, **SMALL | {"phases": ("after",)})
    break_transcript(run.transcripts[TRAINED], key, value)
    with pytest.raises(ValueError, match=rf"transcripts\[{TRAINED}\] {message}"):
        render_chat(*run.arguments)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("phase", "after", r"points\[4\] phase must be one of ramp, full, longer, got 'after'"),
        ("reward", [1.0, 2.0, 3.0, 4.0], r"points\[4\] reward must have 5 entries, got 4"),
        ("charge_nats", [1.0, 2.0, 3.0, 2.5, 4.0], r"points\[4\] charge_nats must be five quantiles in increasing"),
        ("ask_rate", 2.0, r"points\[4\] ask_rate must be in \[0, 1\], got 2.0"),
        ("update", None, r"points\[4\] update must be a whole number of at least 0, got None"),
    ],
)
def test_a_bad_curve_is_named(key: str, value: Any, message: str) -> None:
    run = results(6, **SMALL | {"phases": ("after",)})
    run.curves[1]["points"][4][key] = value
    with pytest.raises(ValueError, match=rf"curves\[1\] {message}"):
        render_chat(*run.arguments)


def test_two_curves_of_one_policy_are_refused() -> None:
    run = results(6, **SMALL | {"phases": ("after",)})
    with pytest.raises(ValueError, match=r"curves\[3\] must be the only one of its anchor, budget_nats and seed"):
        render_chat(run.rows, [*run.curves, run.curves[0]], [], [], {})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("question", "worse", "question must be one of better, complex, got 'worse'"),
        ("verdict", "third", "verdict must be one of first, second, tie, got 'third'"),
        ("shown_first", None, "shown_first must be one of first, second, got None"),
        ("said", 3, "said must be text, got 3"),
        ("first", {}, r"first must have the key 'seed', got \[\]"),
        ("second", None, "second must be an object with keys, got None"),
    ],
)
def test_a_bad_verdict_is_named(key: str, value: Any, message: str) -> None:
    run = results(6, **SMALL | {"phases": ("after",)})
    run.verdicts[2] = run.verdicts[2] | {key: value}
    with pytest.raises(ValueError, match=rf"verdicts\[2\] {message}"):
        render_chat(*run.arguments)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows must hold at least one policy, got none"):
        render_chat([], [], [], None, {})


def wide(run: Results) -> list[dict[str, Any]]:
    """Rows whose numbers take as much room as real ones do."""
    rows = copy.deepcopy(run.rows)
    for row in rows:
        row["budget_nats"] += 1000.5
        row["kl_demonstrator_nats"] = None if row["kl_demonstrator_nats"] is None else 123.4
        row["kl_demonstrator_se"] = None if row["kl_demonstrator_se"] is None else 45.6
    return rows


@pytest.mark.parametrize("case", CASES)
def test_summary_table_fits_80_columns_and_shows_every_setting_once(case: str) -> None:
    run = results(1, **CASES[case])
    for rows in (run.rows, wide(run)):
        table = chat_summary_table(rows)
        console = Console(width=300)
        assert console.measure(table).maximum <= 80
        assert table.row_count == len(
            {tuple(row[k] for k in ("anchor", "budget_nats", "phase", "length")) for row in rows}
        )


def test_summary_table_says_what_the_rows_say() -> None:
    run = results(7, **SMALL | {"phases": ("after",), "anchors": ("bayesian",)})
    row = run.rows[0] | {
        "budget_nats": 2.5, "reward": 3.25, "charge_nats": 2.0, "largest_charge_nats": 2.5,
        "kl_demonstrator_nats": 6.5, "kl_demonstrator_se": 0.25, "decisions": 200, "asks": 3, "ask_rate": 0.015,
        "replies": 40, "empty_replies": 10, "empty_reply_share": 0.25, "empty_reply_low": 0.14,
        "empty_reply_high": 0.41,
    }  # fmt: skip
    out = io.StringIO()
    Console(width=80, file=out, color_system="truecolor", force_terminal=True).print(chat_summary_table([row]))
    styled = next(line for line in out.getvalue().splitlines() if "Bayesian" in line)
    words = re.sub(r"\x1b\[[\d;]*m", " ", styled).split()
    assert " ".join(words) == "Bayesian 2.5 after 3.25 2.00 6.50 ± 0.25 1.5 % 25 % (14–40)"
    assert re.search(r"\x1b\[1;31m *6\.50", styled)

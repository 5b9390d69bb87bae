import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtest.bench.duel import Lap, Side, compare, require_alike, take_turns
from loadtest.bench.machine import CannotBenchError, Machine
from loadtest.bench.page import html_page, print_table
from loadtest.bench.results import (
    PARTS,
    Curve,
    Picture,
    Results,
    Row,
    Spread,
    Target,
    ratio_at_least,
    ratio_at_most,
    value_at_most,
)
from loadtest.bench.stage import Spent
from loadtest.bench.wrk import LoadReport

MACHINE = Machine("a processor", 2, 24.0, "Linux", "3.11")
COST = Spent(30.0, 5.0, 1.0)


def lap(per_second: float) -> Lap:
    return Lap(per_second, COST)


async def nothing() -> Lap:
    return lap(1.0)


def side(name: str) -> Side:
    return Side(name, f"what {name} does", nothing)


def row(ratio: float, target: Target | None) -> Row:
    return Row("P1", "claims", "/s", Spread.of([10]), target, Spread.of([5]), "bare", Spread.of([ratio]))


def results_with(*rows: Row) -> Results:
    pictures = [Picture("growth", "places", "µs", (Curve("cost", ((300, 1.0), (10_000, 1.1))),), log_x=True)]
    return Results(
        MACHINE,
        "2026-11-25T00:00:00+00:00",
        quick=False,
        finished=list(PARTS),
        rows=list(rows),
        pictures=pictures,
    )


def test_a_ratio_is_that_of_pairs_measured_one_after_the_other() -> None:
    # The machine slowed down by half in the second round, for both.
    laps = {"ours": [lap(200), lap(100)], "theirs": [lap(100), lap(50)]}
    compared = compare(laps, side("ours"), side("theirs"), row_id="P1", target=ratio_at_least(2))
    assert compared.ratio == Spread(2, 2, 2)
    assert compared.value == Spread(150, 100, 200)
    assert compared.met
    assert compared.cpu_us == COST


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [
        (1.0, ratio_at_least(1.0), True),
        (0.99, ratio_at_least(1.0), False),
        (1.2, ratio_at_most(1.2), True),
        (1.21, ratio_at_most(1.2), False),
        (0.5, None, None),
    ],
)
def test_a_row_is_met_on_the_right_side_of_its_bound(ratio: float, target: Target | None, *, met: bool | None) -> None:
    assert row(ratio, target).met is met


def test_a_bound_on_the_value_looks_at_the_value() -> None:
    assert Row("P6", "opening", "s", Spread.of([0.5, 0.9, 3.0]), value_at_most(1.0)).met
    assert Row("P6", "opening", "s", Spread.of([0.5, 1.1, 3.0]), value_at_most(1.0)).met is False


@pytest.mark.anyio
async def test_sides_take_turns_and_change_the_order() -> None:
    order: list[str] = []

    def noting(name: str) -> Side:
        async def run() -> Lap:
            order.append(name)
            return lap(1)

        return Side(name, "", run)

    laps = await take_turns([noting("a"), noting("b")], rounds=2, say=lambda _sentence: None)
    # Once each without counting, then in turns.
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [len(of) for of in laps.values()] == [2, 2]


def report(*, answers: int = 100, bytes_each: int = 500, not_2xx: int = 100, lost: int = 0) -> LoadReport:
    return LoadReport(answers, 1_000_000, answers * bytes_each, not_2xx, lost, 1, 2)


@pytest.mark.parametrize(
    ("found", "refusals"),
    [
        (report(not_2xx=99), True),
        (report(lost=1), True),
        # A shorter refusal, 503 say, is no "sold out".
        (report(bytes_each=450), True),
        (report(not_2xx=1), False),
    ],
)
def test_a_side_that_did_other_work_is_no_measurement(found: LoadReport, *, refusals: bool) -> None:
    with pytest.raises(CannotBenchError, match="did not do the work"):
        require_alike("ours", found, refusals=refusals, bytes_each=500)


def test_a_side_that_did_its_work_is_taken() -> None:
    require_alike("ours", report(bytes_each=502), refusals=True, bytes_each=500)


def test_the_report_has_what_the_table_has() -> None:
    results = results_with(row(0.9, ratio_at_least(1.0)), row(0.5, None))
    document = json.loads(json.dumps(results.as_document()))
    assert document["all_met"] is False
    assert document["machine"]["cores"] == 2
    first = document["rows"][0]
    assert {
        name: first[name] for name in ("id", "what", "value", "reference", "ratio", "min", "max", "target", "met")
    } == {
        "id": "P1",
        "what": "claims",
        "value": 10,
        "reference": 5,
        "ratio": 0.9,
        "min": 0.9,
        "max": 0.9,
        "target": "≥ 1×",
        "met": False,
    }
    assert document["pictures"][0]["curves"]["cost"] == [[300, 1.0], [10_000, 1.1]]


def test_the_page_and_the_table_say_which_target_is_missed() -> None:
    results = results_with(row(0.9, ratio_at_least(1.0)), row(1.1, ratio_at_least(1.0)))
    page = html_page(results)
    assert "Not every target is met (P1)" in page
    assert page.count('<span class="bad">no</span>') == 1
    # How far past the targets, and the one curve; nobody counted what these rows cost.
    assert page.count("<svg") == 2
    shown = StringIO()
    print_table(results.rows, Console(file=shown, width=160))
    text = shown.getvalue()
    assert text.count("NO") == 1
    assert "(0.9-0.9)" in text


def test_the_table_is_whole_in_a_log_too_and_says_each_note_once() -> None:
    told = [
        Row(
            "P4",
            "winners",
            "/s",
            Spread(7_700, 7_000, 8_300),
            ratio_at_least(5),
            Spread.of([1_600]),
            "rows locked",
            Spread(4.8, 4.7, 4.9),
            COST,
            Spent(89_802, 1_496, 17_857),
            note="One pool.",
        ),
        Row("P8", "a refusal", "µs", Spread(46.2, 40, 50), None, note="One pool."),
    ]
    shown = StringIO()
    print_table(told, Console(file=shown, width=80))
    lines = shown.getvalue().splitlines()
    whole = " ".join(lines)
    for cell in (
        "7,700/s",
        "÷ 1,600/s",
        "(4.7-4.9)",
        "36 = 30 + 5 + 1",
        "109,155 = 89,802 + 1,496 + 17,857",
        "(40-50)",
    ):
        assert cell in whole
    assert [line for line in lines if "One pool." in line] == ["P4, P8: One pool."]


def test_only_a_run_that_measured_everything_may_say_that_every_target_is_met() -> None:
    results = results_with(row(1.1, ratio_at_least(1.0)))
    assert results.verdict == "Every target is met"
    assert results.all_met
    results.finished.remove("tail")
    results.quick = True
    assert results.verdict == "Every target of a quick run is met"
    results.quick = False
    assert results.verdict == "Every target that was measured is met"
    assert not results.all_met
    assert "measured: start, opening, refusals, winners, growth" in html_page(results)


def test_a_run_that_broke_off_says_so_and_why() -> None:
    results = results_with(row(1.1, ratio_at_least(1.0)))
    results.trouble = "PostgreSQL <went> away."
    assert results.verdict == "The bench broke off: every target that was measured is met"
    assert not results.all_met
    assert json.loads(json.dumps(results.as_document()))["trouble"] == "PostgreSQL <went> away."
    page = html_page(results)
    assert '<header class="broken">' in page
    assert "PostgreSQL &lt;went&gt; away." in page


def test_where_nothing_was_measured_nothing_is_met() -> None:
    results = Results(MACHINE, "2026-11-25T00:00:00+00:00", quick=False, trouble="No wrk.")
    assert results.verdict == "The bench broke off: no target was measured"
    assert not results.all_met
    # No card without a figure.
    assert "<section>" not in html_page(results)


def test_what_each_request_cost_stands_in_a_table_with_the_shares_of_both_sides() -> None:
    whose = row(2.0, None)
    dearer = Spent(60.0, 10.0, 2.0)
    page = html_page(results_with(replace(whose, cpu_us=COST, reference_cpu_us=dearer)))
    for part in (30, 5, 1, 36, 60, 10, 2, 72):
        assert f'<td class="number">{part}</td>' in page
    # The dearer side has the whole width of 880, of which the cheaper server has 30 of 72.
    assert f'width="{880 * 30 / 72:.1f}"' in page
    assert f'width="{880 * 60 / 72:.1f}"' in page


@pytest.mark.parametrize(("only", "named"), [("refusals,rubbish", "rubbish"), (",", "no part")])
def test_an_unknown_part_is_refused_by_name(only: str, named: str, tmp_path: Path) -> None:
    from loadtest.bench.__main__ import application  # noqa: PLC0415 - it loads every peer

    said = CliRunner().invoke(application, ["--only", only, "--json", str(tmp_path / "b.json")])
    assert said.exit_code == 2
    assert named in said.output
    assert not (tmp_path / "b.json").exists()

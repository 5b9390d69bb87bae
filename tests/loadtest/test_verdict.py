import json
import re
from datetime import UTC, datetime
from io import StringIO
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from loadtest.crowd import CrowdPlan, CrowdResult
from loadtest.display import Display
from loadtest.history import Kind, Level, PoolFacts
from loadtest.measures import summarise
from loadtest.operator import CAPACITIES, rehearsal_release
from loadtest.prepare import CannotRunError
from loadtest.progress import Phase, PoolProgress, Progress, show_nothing
from loadtest.rehearsal import RehearsalOptions, rehearse
from loadtest.report import html_page, print_verdict, write_html, write_json
from loadtest.verdict import Verdict, judge
from tests.loadtest.healthy_rush import LATE_MORNING, MORNING, Rush, healthy_rush, seat

NASTY = '<script>alert("1")</script>&amp;'


def _judged(rush: Rush, *, base_url: str = "http://127.0.0.1:1") -> Verdict:
    result = CrowdResult(CrowdPlan(base_url, 7, 42), rush.release, rush.history, "42-abc", "2026-12-01T00:00:00+00:00")
    return judge(result, rush.audit, workers=2)


def test_a_rush_that_holds_is_said_in_figures() -> None:
    verdict = _judged(healthy_rush())
    assert verdict.holds
    assert (verdict.places, verdict.confirmed, verdict.waitlisted) == (5, 5, 2)
    assert (verdict.overbooked, verdict.lost, verdict.leaked) == (0, 0, 0)
    assert verdict.seconds_to_last_place == 0.045
    assert verdict.refusals == {"sold_out": 1}
    assert verdict.seed == 42


def test_the_document_holds_what_operators_rely_on() -> None:
    document = json.loads(json.dumps(_judged(healthy_rush()).as_document()))
    assert document.keys() >= {
        "parents",
        "places",
        "confirmed",
        "waitlisted",
        "overbooked",
        "lost",
        "leaked",
        "seconds_to_last_place",
        "answers",
        "refusals",
        "invariants",
        "seed",
    }
    assert document["answers"].keys() == {"count", "p50_ms", "p95_ms", "p99_ms", "max_ms"}
    assert all(value is True for value in document["invariants"].values())


def test_a_double_holder_is_counted_as_overbooked() -> None:
    rush = healthy_rush()
    rush.wish("thief", 8, ("h",), MORNING)
    rush.confirm("thief", 0.05, seat("h", MORNING, 1))
    verdict = _judged(rush)
    assert not verdict.holds
    assert verdict.overbooked == 1
    assert not verdict.invariants["one_holder_a_place"]
    assert "thief" in verdict.broken["one_holder_a_place"][0]


def test_a_lost_yes_is_counted_by_its_places() -> None:
    rush = healthy_rush()
    rush.history.listed[2] = {}
    verdict = _judged(rush)
    assert not verdict.holds
    assert verdict.lost == 2


def test_a_place_left_free_beside_a_queue_is_counted_as_leaked() -> None:
    rush = healthy_rush()
    rush.history.levels.append(Level(12.0, (1, 0, 0), (2, 0, 0)))
    verdict = _judged(rush)
    assert not verdict.holds
    assert verdict.leaked == 1


def test_the_last_place_is_timed_at_its_first_taking_and_refilling_apart() -> None:
    rush = healthy_rush()
    rush.say("late", 2.0, 200, "cancelled", kind=Kind.CANCEL)
    rush.wish("next", 8, ("h",), LATE_MORNING)
    rush.confirm("next", 3.0, seat("h", LATE_MORNING, 1))
    verdict = _judged(rush)
    assert verdict.seconds_to_last_place == 0.045
    assert verdict.seconds_to_refill == 3.01
    assert verdict.given_back == 1


def test_a_pool_that_was_never_full_has_no_last_place() -> None:
    rush = healthy_rush()
    rush.change("late", status=409, outcome="time_clash", seats=())
    assert _judged(rush).seconds_to_last_place is None


def test_what_others_held_before_is_not_the_crowds() -> None:
    rush = healthy_rush()
    assert rush.audit is not None
    result = CrowdResult(CrowdPlan("http://x", 7, 1), rush.release, rush.history, "1-a", "")
    audit = msgspec.structs.replace(rush.audit, held=7, gate=None)
    assert judge(result, audit, held_before=2).confirmed == 5


def test_a_percentile_is_a_latency_that_occurred() -> None:
    assert summarise([float(n) for n in range(1, 101)]) == {
        "count": 100,
        "p50_ms": 50.0,
        "p95_ms": 95.0,
        "p99_ms": 99.0,
        "max_ms": 100.0,
    }
    assert summarise([3.0])["p99_ms"] == 3.0
    assert summarise([])["count"] == 0


def _nasty_rush() -> Rush:
    rush = healthy_rush()
    pools = list(rush.release.pools)
    pools[0] = PoolFacts(MORNING, NASTY, 2, 2, 1000.0, 2000.0)
    rush.release = type(rush.release)("release", NASTY, NASTY, 1, 2, tuple(pools))
    rush.say("refused", 0.6, 409, NASTY)
    rush.say("refused", 0.7, 500, NASTY)
    return rush


@pytest.mark.parametrize("rush", [healthy_rush(), _nasty_rush()], ids=["holds", "broken"])
def test_the_page_fetches_nothing_and_runs_nothing(rush: Rush) -> None:
    page = html_page(_judged(rush))
    assert not re.search(r"(?:src|href|url|@import)\s*[=(]?\s*[\"']?\s*(?:https?:|//)", page, re.IGNORECASE)
    assert not re.search(r"<(?:script|link|iframe|img|object)\b", page, re.IGNORECASE)
    assert page.count("<svg") == page.count("</svg>") == 3


def test_the_page_shows_strange_names_as_text() -> None:
    page = html_page(_judged(_nasty_rush(), base_url=f"http://x/{NASTY}"))
    assert NASTY not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;" in page


def test_the_page_says_the_verdict_first(tmp_path: Path) -> None:
    file = tmp_path / "reports" / "page.html"
    write_html(_judged(healthy_rush()), file)
    page = file.read_text()
    assert page.index("Every promise held") < page.index("<svg")
    rush = healthy_rush()
    rush.history.listed[1] = {}
    assert "A promise was broken" in html_page(_judged(rush))


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_json(_judged(healthy_rush()), file)
    before = file.read_text()
    assert json.loads(before)["confirmed"] == 5
    verdict = _judged(healthy_rush())
    verdict.notes.append("\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_json(verdict, file)
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_the_terminal_names_what_broke() -> None:
    rush = healthy_rush()
    rush.history.listed[1] = {}
    out = StringIO()
    print_verdict(_judged(rush), Console(file=out, width=160))
    assert "a promise was broken" in out.getvalue()
    assert "claim alone: 1 places promised, not there" in out.getvalue()


def test_off_a_terminal_the_display_prints_plain_lines() -> None:
    out = StringIO()
    progress = Progress(Phase.RUSH, 3, 7, -1.5, 9.0, [PoolProgress("课程[01]", 35, 12)], 35, 23, 0, 40)
    with Display(Console(file=out, width=40)) as display:
        display(progress)
        display(progress)
        progress.phase = Phase.DONE
        display(progress)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert "T+1.5s" in lines[0]
    assert "left 12" in lines[0]


def test_on_a_terminal_the_display_shows_every_pool() -> None:
    out = StringIO()
    pools = [PoolProgress(f"课程{number:02d}", 18, number) for number in range(14)]
    with Display(Console(file=out, width=100, force_terminal=True)) as display:
        display(Progress(Phase.RUSH, 3, 7, -1.5, 9.0, pools, 252, 23, 0, 40, {"sold_out": 9}))
    assert "课程13" in out.getvalue()
    assert "sold_out 9" in out.getvalue()


def test_the_rehearsals_release_is_the_towns_fourteen_sessions_of_three_hundred_places() -> None:
    body = json.loads(json.dumps(rehearsal_release(["s1", "s2"], datetime(2026, 12, 1, tzinfo=UTC), "title")))
    assert (len(CAPACITIES), sum(CAPACITIES)) == (14, 300)
    assert sorted(CAPACITIES, reverse=True) == [35] * 3 + [18] * 8 + [17] * 3
    assert [session["capacity"] for session in body["sessions"]] == list(CAPACITIES)
    spans = sorted((session["starts_at"], session["ends_at"]) for session in body["sessions"])
    assert any(after[0] < before[1] for before, after in pairwise(spans))
    assert any(after[0] >= before[1] for before, after in pairwise(spans))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "options",
    [
        RehearsalOptions("http://127.0.0.1:1", 0, 1, operator_code="demo-x"),
        RehearsalOptions("http://127.0.0.1:1", 10, 1),
        RehearsalOptions("nowhere", 10, 1, operator_code="demo-x"),
    ],
)
async def test_what_cannot_be_rehearsed_is_refused_with_a_sentence(options: RehearsalOptions) -> None:
    with pytest.raises(CannotRunError) as refused:
        await rehearse(options, progress=show_nothing)
    assert len(str(refused.value).split()) > 4

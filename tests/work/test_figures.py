"""The comparison goes red when work grows, says what to do, and does not let what was won be lost again."""

from pathlib import Path

import pytest

from tests.work.figures import ACCEPT, PYTHON_VERSION, Baseline, all_complaints, complaints, verdict

BEFORE = {"redis_commands": 10, "redis_sent_bytes": 2_000, "postgres_statements": 0}
BASELINE = Baseline(10, {"refusal": BEFORE}, {PYTHON_VERSION: {"refusal": {"python_calls": 100}}})


def told(**changes: int) -> list[str]:
    return list(complaints("refusal", BEFORE, BEFORE | changes, tolerance_percent=10))


@pytest.mark.parametrize(
    "changes",
    [{}, {"redis_commands": 11}, {"redis_commands": 9}, {"redis_sent_bytes": 2_200}, {"redis_sent_bytes": 1_800}],
)
def test_what_is_equal_or_differs_by_a_tenth_at_most_is_green(changes: dict[str, int]) -> None:
    assert told(**changes) == []


def test_a_figure_that_grew_by_more_than_a_tenth_is_red_and_says_how_to_accept_it() -> None:
    text = verdict(told(redis_sent_bytes=2_201))

    assert text.startswith("refusal: redis_sent_bytes grew from 2000 to 2201 (by 10.1 %); 10 % are allowed.\n")
    assert ACCEPT in text


def test_where_nothing_is_the_matter_nothing_is_advised() -> None:
    assert verdict(told()) == ""


def test_what_was_nothing_may_not_become_anything() -> None:
    (sentence,) = told(postgres_statements=1)

    assert "postgres_statements grew from 0 to 1;" in sentence


def test_a_figure_that_shrank_by_more_than_a_tenth_asks_for_a_lower_baseline() -> None:
    text = verdict(told(redis_commands=8))

    assert text.startswith("refusal: redis_commands shrank from 10 to 8 (by 20.0 %); the baseline has to follow.\n")
    assert ACCEPT in text


def test_each_figure_is_told_by_itself() -> None:
    assert len(told(redis_commands=20, redis_sent_bytes=4_000, postgres_statements=2)) == 3


def test_growth_in_small_steps_is_measured_from_the_baseline() -> None:
    assert told(redis_sent_bytes=2_150) == []
    assert told(redis_sent_bytes=2_150 + 150) != []


def test_what_is_new_and_what_is_gone_has_to_be_accepted() -> None:
    (new,) = complaints("winner", None, BEFORE, tolerance_percent=10)
    (figure,) = told(answer_bytes=5)
    (missing,) = complaints("refusal", BEFORE | {"answer_bytes": 5}, BEFORE, tolerance_percent=10)
    gone = list(all_complaints(BASELINE, {}))

    assert "winner is new" in new
    assert "answer_bytes is new" in figure
    assert "answer_bytes is not counted any more" in missing
    assert gone == ["refusal is not played any more: the baseline has figures of it."]


def test_what_is_accepted_is_green_afterwards(tmp_path: Path) -> None:
    now = {"refusal": {**BEFORE, "redis_commands": 50, "python_calls": 400, "postgres_wal_records": 3}}
    path = tmp_path / "baseline.json"

    assert len(list(all_complaints(BASELINE, now))) == 2
    BASELINE.accepting(now).save(path)
    assert list(all_complaints(Baseline.load(path), now)) == []


def test_accepting_leaves_other_versions_of_python_and_the_tolerance_alone(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    other = Baseline(7, {}, {"2.7": {"refusal": {"python_calls": 1}}})

    other.accepting({"refusal": {"python_calls": 2}}).save(path)

    accepted = Baseline.load(path)
    assert accepted.tolerance_percent == 7
    assert accepted.python == {
        "2.7": {"refusal": {"python_calls": 1}},
        PYTHON_VERSION: {"refusal": {"python_calls": 2}},
    }


def test_figures_of_another_python_are_compared_with_nothing() -> None:
    other = Baseline(10, {"refusal": BEFORE}, {"2.7": {"refusal": {"python_calls": 1}}})

    assert not other.knows_this_python
    assert list(all_complaints(other, {"refusal": {**BEFORE, "python_calls": 100}})) == []

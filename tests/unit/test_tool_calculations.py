"""Sums and dates of the agent's tools: exact, bounded, in German and English."""

from __future__ import annotations

import time
from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.agent.tooling.calculating import calculate, shown
from functions.agent.tooling.dates import add, describe, difference, read_date
from shared.errors import PermanentError

TODAY = date(2026, 11, 21)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1 + 0.2", "0.3"),
        ("1250 * 0.19", "237.50"),
        ("round(2.675, 2)", "2.68"),
        ("round(-2.5)", "-3"),
        ("round(1234567, -3)", "1235000"),
        ("7 // 2 + 7 % 4", "6"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2 ** 10", "1024"),
        ("2 ^ 0.5 * sqrt(2)", "2"),
        ("(1 + 2) * 3 − 4 ÷ 2 × 1", "7"),
        ("max(1, 2.5, -3) + min(4, 5) + abs(-1) + sum(1, 2)", "10.5"),
        ("1_000_000 * 1e-6", "1"),
        ("9007199254740993 + 0", "9007199254740993"),
    ],
)
def test_sums_are_exact(expression: str, value: str) -> None:
    """Decimal numbers as they were written, commercial rounding."""
    assert calculate(expression) == pytest.approx(Decimal(value), rel=Decimal("1e-30"))


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("1.234,50 + 0,5", "1235,00"),
        ("max(1,5; 2,25)", "2,25"),
        ("12.345.678 - 678", "12345000"),
        ("19 / 100 * 250", "47,50"),
    ],
)
def test_german_numbers_are_read_and_written(expression: str, told: str) -> None:
    """Decimal comma, grouping points, semicolons between arguments."""
    assert shown(calculate(expression, german=True), german=True) == told


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 +",
        "1 / 0",
        "0 / 0",
        "sqrt(-1)",
        "9 ** 9 ** 9",
        "10 ** 999 * 10 ** 999",
        "1e9999999",
        "2 ** 1001",
        "(-8) ** (1/3)",
        "__import__('os').system('id')",
        "(lambda: 1)()",
        "x + 1",
        "'a' * 9",
        "True + 1",
        "1 < 2",
        "[1][0]",
        "abs(1, 2)",
        "round(1, 2, 3)",
        "round(1, 0.5)",
        "max()",
        "min(*[1, 2])",
        "round(number=1)",
        "1j",
        "(" * 250 + "1" + ")" * 250,
        "-" * 300 + "1",
        "+".join("1" * 150),
        "1\x00",
        "((((",
    ],
)
def test_what_is_no_sum_is_refused_at_once(expression: str) -> None:
    """No code, no names, nothing too large or too deep, and no time spent on it."""
    begun = time.perf_counter()
    with pytest.raises(PermanentError) as caught:
        calculate(expression)
    assert caught.value.reason == "bad-expression"
    assert time.perf_counter() - begun < 1


@given(st.text(alphabet="0123456789.,;+-*/%()^e_ absmaxminroundsqrt", max_size=120), st.booleans())
def test_any_text_is_a_number_or_refused(expression: str, german: bool) -> None:
    """Nothing else comes out, whatever a model writes."""
    try:
        value = calculate(expression, german=german)
    except PermanentError:
        return
    assert value.is_finite()
    assert shown(value, german=german)


@pytest.mark.parametrize(
    "written",
    ["2026-03-31", "31.03.2026", "31. 3. 2026", "31. März 2026", "31 March 2026", "March 31, 2026", "31st mar 2026"],
)
def test_dates_are_read_as_both_languages_write_them(written: str) -> None:
    """One day, however it is written."""
    assert read_date(written, TODAY) == date(2026, 3, 31)


@pytest.mark.parametrize(
    "written", ["03/04/2026", "30.02.2026", "2026-13-01", "31. Brumaire 2026", "soon", "", "0-0-0"]
)
def test_what_is_no_day_or_two_is_refused(written: str) -> None:
    """Guessing between two days would be worse than asking."""
    with pytest.raises(PermanentError) as caught:
        read_date(written, TODAY)
    assert caught.value.reason == "bad-date"


def test_days_are_described_and_compared() -> None:
    """Weekday in both languages, calendar week, and what lies between."""
    assert read_date("heute", TODAY) == TODAY
    assert describe(TODAY).startswith("2026-11-21 (21.11.2026): Saturday, Samstag; ISO week 47 of 2026")
    assert "is after 2026-01-31: 28 days = 4 weeks and 0 days = 0 years, 1 months and 0 days" in difference(
        date(2026, 1, 31), date(2026, 2, 28)
    )
    assert "20 working days" in difference(date(2026, 1, 31), date(2026, 2, 28))
    assert "the same day as" in difference(TODAY, TODAY)


def test_terms_in_months_end_on_the_last_day() -> None:
    """Section 188 (3) BGB."""
    assert add(date(2026, 1, 31), 1, "months") == date(2026, 2, 28)
    assert add(date(2024, 2, 29), 1, "years") == date(2025, 2, 28)
    assert add(date(2026, 3, 31), -1, "months") == date(2026, 2, 28)
    with pytest.raises(PermanentError):
        add(date(9999, 12, 31), 1, "days")


@given(st.dates(date(1990, 1, 1), date(2050, 1, 1)), st.integers(-60, 60))
def test_working_days_are_counted_one_by_one(start: date, amount: int) -> None:
    """The short way of counting gives what walking day by day gives."""
    day, left = start, abs(amount)
    while left:
        day += timedelta(days=1 if amount > 0 else -1)
        left -= day.weekday() < 5
    assert add(start, amount, "working-days") == day

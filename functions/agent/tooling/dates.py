"""Weekdays, differences and sums of dates, read and written as German and English do. Pure. No public holidays."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import date, timedelta

from shared.errors import PermanentError

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "januar jänner january jan",
            "februar february feb",
            "märz maerz march mär mar mrz",
            "april apr",
            "mai may",
            "juni june jun",
            "juli july jul",
            "august aug",
            "september sept sep",
            "oktober october okt oct",
            "november nov",
            "dezember december dez dec",
        ),
        start=1,
    )
    for name in names.split()
}
_WEEKDAYS = (
    "Monday, Montag",
    "Tuesday, Dienstag",
    "Wednesday, Mittwoch",
    "Thursday, Donnerstag",
    "Friday, Freitag",
    "Saturday, Samstag",
    "Sunday, Sonntag",
)
_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_GERMAN = re.compile(r"(\d{1,2})\.\s?(\d{1,2})\.\s?(\d{4})")
_DAY_FIRST = re.compile(r"(\d{1,2})(?:\.|st|nd|rd|th)?\s+([^\W\d_]+)\.?,?\s+(\d{4})")
_MONTH_FIRST = re.compile(r"([^\W\d_]+)\.?\s+(\d{1,2})(?:st|nd|rd|th)?,?\s+(\d{4})")


def read_date(given: str, today: date) -> date:
    """A date in one of the forms of `DatesArguments`.

    Raises PermanentError `bad-date`; 3/4/2026 is one, because it means two days.
    """
    words = " ".join(given.lower().split())
    if words in ("today", "heute"):
        return today
    if match := _ISO.fullmatch(words):
        year, month, day = (int(part) for part in match.groups())
    elif match := _GERMAN.fullmatch(words):
        day, month, year = (int(part) for part in match.groups())
    elif match := _DAY_FIRST.fullmatch(words):
        day, month, year = int(match[1]), _MONTHS.get(match[2], 0), int(match[3])
    elif match := _MONTH_FIRST.fullmatch(words):
        day, month, year = int(match[2]), _MONTHS.get(match[1], 0), int(match[3])
    else:
        raise _bad("is not in a form that means one day")
    try:
        return date(year, month, day)
    except ValueError:
        raise _bad("does not exist") from None


def describe(day: date) -> str:
    """A date with its weekday, calendar week and day of the year."""
    year, week, _ = day.isocalendar()
    return (
        f"{day.isoformat()} ({day:%d.%m.%Y}): {_WEEKDAYS[day.weekday()]}; ISO week {week} of {year}; "
        f"day {day.timetuple().tm_yday} of the year; the month has {monthrange(day.year, day.month)[1]} days"
    )


def difference(first: date, second: date) -> str:
    """What lies between two dates: days, weeks, months and years, and days from Monday to Friday."""
    start, end = sorted((first, second))
    days = (end - start).days
    months = (end.year - start.year) * 12 + end.month - start.month
    if add(start, months, "months") > end:
        months -= 1
    rest = (end - add(start, months, "months")).days
    order = "after" if second > first else "before" if second < first else "the same day as"
    return (
        f"{second.isoformat()} is {order} {first.isoformat()}: {days} days = {days // 7} weeks and {days % 7} days "
        f"= {months // 12} years, {months % 12} months and {rest} days; "
        f"{_working_days(start, end)} working days (Monday to Friday, the first day not counted)"
    )


def add(day: date, amount: int, unit: str) -> date:
    """A date so many units later. A month later than 31 January is the last of February (section 188 BGB).

    Raises PermanentError `bad-date` outside the years 1 to 9999.
    """
    try:
        if unit in ("months", "years"):
            month = day.year * 12 + day.month - 1 + amount * (12 if unit == "years" else 1)
            year, month = divmod(month, 12)
            return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))
        if unit == "working-days":
            return _after_working_days(day, amount)
        return day + timedelta(days=amount * (7 if unit == "weeks" else 1))
    except (ValueError, OverflowError):
        raise _bad("lies outside the years 1 to 9999") from None


def _working_days(start: date, end: date) -> int:
    """Days from Monday to Friday in (start, end]."""
    weeks, rest = divmod((end - start).days, 7)
    return weeks * 5 + sum((start.weekday() + step) % 7 < 5 for step in range(1, rest + 1))


def _after_working_days(day: date, amount: int) -> date:
    step = 1 if amount > 0 else -1
    weeks, rest = divmod(abs(amount), 5)
    while rest or (amount and day.weekday() > 4):
        day += timedelta(days=step)
        if day.weekday() < 5:
            rest -= 1
        if rest < 0:
            # A start on a weekend has used one of the days of a full week.
            weeks, rest = weeks - 1, 4
    return day + timedelta(weeks=weeks * step)


def _bad(detail: str) -> PermanentError:
    return PermanentError(
        "bad-date", f"The date {detail}.", "Write 2026-03-31, 31.03.2026, 31. März 2026 or March 31, 2026."
    )

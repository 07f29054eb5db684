"""What a paraphrase may not change although it keeps most words: a unit behind a number, and a "not". Pure."""

from __future__ import annotations

import re
from functools import lru_cache

_UNITS = {
    "second": "sekunde sekunden second seconds sec sek",
    "minute": "minute minuten minutes min",
    "hour": "stunde stunden hour hours std h",
    "day": "tag tage tagen tages day days",
    "working-day": "arbeitstag arbeitstage arbeitstagen arbeitstages",
    "weekday": "werktag werktage werktagen werktages",
    "calendar-day": "kalendertag kalendertage kalendertagen kalendertages",
    "week": "woche wochen week weeks",
    "month": "monat monate monaten monats month months",
    "quarter": "quartal quartale quartalen quartals quarters",
    "year": "jahr jahre jahren jahres year years",
    "euro": "€ eur euro euros",
    "cent": "cent cents ct",
    "dollar": "$ usd dollar dollars",
    "franc": "chf franken francs",
    "pound": "£ gbp pounds",
    "percent": "% prozent percent",
    "permille": "‰ promille",
    "thousand": "tausend tsd thousand",
    "million": "million millionen millions mio",
    # German counts a step further: 10^9 is a Milliarde, and a billion in English.
    "10^9": "milliarde milliarden mrd billion billions",
    "10^12": "billionen trillion trillions",
    "mm": "mm millimeter",
    "cm": "cm zentimeter centimeter",
    "m": "m meter metern meters metres",
    "km": "km kilometer kilometern kilometers kilometres",
    "m2": "m² m2 qm quadratmeter",
    "m3": "m³ m3 kubikmeter",
    "mg": "mg milligramm milligrams",
    "g": "g gramm grams",
    "kg": "kg kilogramm kilograms",
    "t": "t tonne tonnen tons tonnes",
    "ml": "ml milliliter",
    "l": "l liter litern liters litres",
    "celsius": "°c",
    "fahrenheit": "°f",
    "w": "w watt",
    "kw": "kw kilowatt",
    "kwh": "kwh kilowattstunden",
    "mwh": "mwh megawattstunden",
    "v": "v volt",
    "bar": "bar",
    "kb": "kb",
    "mb": "mb",
    "gb": "gb",
    "tb": "tb",
}
_UNIT_OF = {form: unit for unit, forms in _UNITS.items() for form in forms.split()}
_DAYS = frozenset({"day", "working-day", "weekday", "calendar-day"})
"""Whoever says days may mean any of them; who says which one, says which one."""

_MEASURE = re.compile(
    r"(?:(?P<before>[€$£])\s?)?(?P<number>\d+(?:[.,:/]\d+)*)(?:[\s-]?(?P<after>°\s?[cf]|[^\W\d_]+[²³23]?|[%‰€$£]))?"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:[.,]\d{3})+")

# Two that cancel each other out, "No. 5", and the No that only opens an answer.
_NO_NEGATION = re.compile(
    r"\b(?:nicht|not)\s+(?:nur|only|ohne|without)\b|\bno\.(?=\s?\d)|(?:^|[.!?\n]\s?)\s*no(?=[,.;:!])"
)
_NEGATION = re.compile(
    r"\b(?:nicht|nichts|kein(?:e[mnrs]?)?|nie|niemals|niemand(?:e[mn])?|ohne|weder"
    r"|not|no|never|none|neither|nor|nobody|nothing|without|cannot)\b|n['’]t\b",
)


def negated(text: str) -> bool:
    """Whether a sentence denies something; "nicht nur", "not without" and a "No," before it do not."""
    return _NEGATION.search(_NO_NEGATION.sub(" ", text.casefold())) is not None


def number_of(written: str) -> str:
    """A number as German and English agree on it: 1.000 and 1,000 are 1000; 2,5 is 2.5; 12:30 is 12.30."""
    if _THOUSANDS.fullmatch(written):
        return re.sub("[.,]", "", written)
    return written.replace(",", ".").replace(":", ".")


@lru_cache(maxsize=256)
def measures(text: str) -> frozenset[tuple[str, str]]:
    """Each number of a text with the unit beside it, as far as it has one that is known."""
    found = set()
    for match in _MEASURE.finditer(text.casefold()):
        written = (match["after"] or "").replace(" ", "")
        unit = _UNIT_OF.get(written) or _UNIT_OF.get(match["before"] or "")
        if unit:
            found.add((number_of(match["number"]), unit))
    return frozenset(found)


def units_fit(claim: str, source: str) -> bool:
    """Whether no number of the claim stands in the source with units that are all another one's."""
    there: dict[str, set[str]] = {}
    for number, unit in measures(source):
        there.setdefault(number, set()).add(unit)
    return all(_one_of(unit, there[number]) for number, unit in measures(claim) if number in there)


def _one_of(unit: str, units: set[str]) -> bool:
    if unit in units:
        return True
    return bool(units & _DAYS) if unit == "day" else unit in _DAYS and "day" in units

"""Identifiers with a check digit: IBAN, card, tax, VAT and insurance numbers, travel documents. Pure."""

from __future__ import annotations

import re

from shared.masking import checks
from shared.masking.places import Place, before, digits_of, one_after_another, places_where

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?=[ .\t\r\n-]{0,3}[A-Za-z0-9])")
_BETWEEN = " -.\t\r\n"
LONGEST_GAP = 3
"""Characters between two groups of an IBAN: a blank, two of justified text, or a line's end and what is around it."""

_CARD = re.compile(
    r"(?<![\w-])(?<!\d\.)(?:[2-6]\d{3}(?:(?:[ -]{1,2}|\n)\d{4}){3}(?:(?:[ -]|\n)\d{3})?"
    r"|3\d{3}(?:[ -]|\n)\d{6}(?:[ -]|\n)\d{4,5}|[2-6]\d{13,18}|[2-6]\d{3}(?:\.\d{4}){3}(?:\.\d{3})?)"
    r"(?![\w-]|\.\d)"
)
_TAX_ID = re.compile(
    r"(?<![\w./+-])[1-9]\d(?: ?\d{3}){3}(?![\w/]|[.-]\d)|(?<![\w./+-])[1-9]\d(?:[./-]\d{3}){3}(?![\w/]|[.-]\d)"
)
_VAT_ID = re.compile(
    r"(?<!\w)(?:DE ?\d{3} ?\d{3} ?\d{3}|ATU ?\d{8}|CHE[- ]?\d{3}[. ]?\d{3}[. ]?\d{3}(?: (?:MWST|TVA|IVA))?)(?!\w)"
)
_PENSION = re.compile(r"(?<!\w)\d{2} ?\d{6} ?[A-Z] ?\d{2} ?\d(?!\w)")
_AUSTRIAN = re.compile(r"(?<![\w./+-])[1-9]\d{3} ?\d{6}(?![\w/]|[.-]\d)")
_SWISS = re.compile(r"(?<![\w.-])756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}(?![\w-]|\.\d)")
_INSURANCE_WORD = re.compile(r"(?:sv|sozialvers|versicherungs|svnr|vsnr|ssn|social|insurance)", re.IGNORECASE)

# ICAO 9303-4 and -5: passports have two lines of 44 characters, identity cards three of 30.
_PASSPORT = re.compile(
    r"(?:(?<![A-Z0-9<])P[A-Z<][A-Z<]{42}\s{1,3})?"
    r"(?<![A-Z0-9<])[A-Z0-9<]{9}\d[A-Z<]{3}\d{7}[MFX<]\d{7}[A-Z0-9<]{14}[0-9<]\d(?![A-Z0-9<])"
)
_IDENTITY_CARD = re.compile(
    r"(?<![A-Z0-9<])[ACI][A-Z<][A-Z<]{3}[A-Z0-9<]{9}\d[A-Z0-9<]{15}\s{1,3}"
    r"\d{7}[MFX<]\d{7}[A-Z<]{3}[A-Z0-9<]{11}\d\s{1,3}[A-Z<]{30}(?![A-Z0-9<])"
)


def ibans(text: str) -> list[Place]:
    """Accounts, in groups or in one piece; where one ends its country says."""
    found: list[Place] = []
    for match in _IBAN.finditer(text):
        if (not found or match.start() >= found[-1][1]) and (end := _iban_end(text, match.start())):
            found.append((match.start(), end))
    return found


def cards(text: str) -> list[Place]:
    """Payment cards, in their groups or in one piece."""
    # A line may end inside a number once; four lines of four digits are a table.
    return places_where(_CARD, text, lambda match: match[0].count("\n") < 2 and checks.card(digits_of(match[0])))


def tax_ids(text: str) -> list[Place]:
    """German tax identification numbers."""
    return places_where(_TAX_ID, text, lambda match: checks.german_tax_id(digits_of(match[0])))


def vat_ids(text: str) -> list[Place]:
    """German and Austrian VAT ids, Swiss enterprise ids."""
    return places_where(_VAT_ID, text, _is_vat_id)


def insurance_numbers(text: str) -> list[Place]:
    """German pension numbers, Austrian and Swiss insurance numbers."""
    return one_after_another(
        text,
        (_PENSION, lambda match: checks.german_pension_number(match[0].replace(" ", ""))),
        (_SWISS, lambda match: checks.swiss_insurance_number(digits_of(match[0]))),
        (_AUSTRIAN, _is_austrian),
    )


def travel_documents(text: str) -> list[Place]:
    """The machine-readable zone of passports and identity cards; a printed number alone has no check digit."""
    if "<" not in text:
        return []
    return one_after_another(text, (_PASSPORT, _is_passport), (_IDENTITY_CARD, _is_identity_card))


def _iban_end(text: str, start: int) -> int:
    """Where the valid number that begins at `start` ends; 0 when there is none."""
    wanted = checks.IBAN_LENGTH.get(text[start : start + 2].upper(), 0)
    compact, end, gap = "", start, 0
    while len(compact) < wanted and end < len(text):
        character = text[end]
        if character.isascii() and character.isalnum():
            compact, gap = compact + character, 0
        elif character not in _BETWEEN or (gap := gap + 1) > LONGEST_GAP:
            return 0
        end += 1
    if wanted == 0 or len(compact) != wanted or text[end : end + 1].isalnum():
        return 0
    # Words in small letters behind two letters and two digits are words, not an account.
    if compact != compact.upper() and compact != compact.lower():
        return 0
    return end if checks.iban(compact.upper()) else 0


def _is_vat_id(match: re.Match[str]) -> bool:
    digits = digits_of(match[0])
    if match[0].startswith("DE"):
        return checks.german_vat_id(digits)
    return checks.austrian_vat_id(digits) if match[0].startswith("AT") else checks.swiss_uid(digits)


def _is_austrian(match: re.Match[str]) -> bool:
    # Ten digits in one piece are an order number as well: only a word before them tells.
    told = " " in match[0] or _INSURANCE_WORD.search(before(match)) is not None
    return told and checks.austrian_insurance_number(digits_of(match[0]))


def _is_passport(match: re.Match[str]) -> bool:
    line = match[0][-44:]
    return all(checks.travel_document(field) for field in (line[:10], line[13:20], line[21:28]))


def _is_identity_card(match: re.Match[str]) -> bool:
    first, second, _ = match[0].split()
    return all(checks.travel_document(field) for field in (first[5:15], second[:7], second[8:15]))

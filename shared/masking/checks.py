"""Check digits: what tells an identifier from a number that only looks like it. Pure.

Every function takes the characters without separators and says whether the check digit holds.
"""

from __future__ import annotations

from collections import Counter
from datetime import date

# The length of an IBAN follows from its country (SWIFT IBAN registry, release 99).
_IBAN_LENGTH = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
IBAN_LENGTH = {country: length for length, countries in _IBAN_LENGTH.items() for country in countries.split()}


def iban(compact: str) -> bool:
    """ISO 13616: the first four characters go to the end, letters become 10 to 35, the rest by 97 is 1."""
    if IBAN_LENGTH.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right is doubled, the sum of digits ends in 0."""
    numbers = [int(c) for c in digits]
    doubled = (sum(divmod(2 * number, 10)) for number in numbers[-2::-2])
    return (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0


def card(digits: str) -> bool:
    """A payment card: length and first digits of an issuer (ISO/IEC 7812 ranges), then Luhn.

    Visa's old numbers of 13 digits are left out: article numbers (EAN) have that length.
    """
    length, first = len(digits), int(digits[:4])
    issued = (
        (length in (16, 19) and digits[0] == "4")  # Visa
        or (length == 16 and (5100 <= first <= 5599 or 2221 <= first <= 2720))  # Mastercard
        or (length == 15 and digits[:2] in ("34", "37"))  # American Express
        or (length == 14 and (3000 <= first <= 3059 or digits[:2] in ("36", "38", "39")))  # Diners Club
        or (length in (16, 19) and (first == 6011 or digits[:2] == "65" or 6440 <= first <= 6499))  # Discover
        or (length == 16 and 3528 <= first <= 3589)  # JCB
        or (length in (16, 19) and digits[:2] == "62")  # UnionPay
        or (length in (16, 18, 19) and digits[:2] in ("50", "56", "58", "67", "63"))  # Maestro
    )
    return issued and luhn(digits)


def mod_11_10(digits: str) -> bool:
    """ISO 7064 MOD 11,10: German tax ids and VAT ids."""
    product = 10
    for character in digits[:-1]:
        total = (int(character) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def german_tax_id(digits: str) -> bool:
    """Steuer-Identifikationsnummer: 11 digits, of the first ten one occurs twice or three times, the others once.

    Source: § 139b AO; the rule of repeated digits is from the Federal Central Tax Office's notes on checking it.
    """
    if len(digits) != 11 or digits[0] == "0":
        return False
    counts = sorted(Counter(digits[:10]).values())
    repeated_once = counts[-1] in (2, 3) and counts[-2] == 1
    return repeated_once and mod_11_10(digits)


def german_vat_id(digits: str) -> bool:
    """The nine digits of a German VAT id (USt-IdNr.)."""
    return len(digits) == 9 and digits[0] != "0" and mod_11_10(digits)


def austrian_vat_id(digits: str) -> bool:
    """The eight digits after ATU: weights 1 and 2, sums of digits, 96 minus the sum (BMF, "UID-Nummern")."""
    if len(digits) != 8:
        return False
    total = sum(sum(divmod(int(c) * (1 + position % 2), 10)) for position, c in enumerate(digits[:7]))
    return (96 - total) % 10 == int(digits[7])


def swiss_uid(digits: str) -> bool:
    """The nine digits after CHE: weights 5 4 3 2 7 6 5 4 modulo 11 (eCH-0097)."""
    if len(digits) != 9:
        return False
    total = sum(int(c) * weight for c, weight in zip(digits[:8], (5, 4, 3, 2, 7, 6, 5, 4), strict=True))
    return (11 - total % 11) % 11 == int(digits[8])


def german_pension_number(compact: str) -> bool:
    """Rentenversicherungsnummer, 12 characters: area, birthday, initial, serial, check digit (§ 147 SGB VI, VKVV § 4).

    The letter counts as its two-digit place in the alphabet; weights 2 1 2 5 7 1 2 1 2 1 2 1, sums of digits, mod 10.
    """
    if len(compact) != 12:
        return False
    day, month = int(compact[2:4]), int(compact[4:6])
    if not (1 <= day % 50 <= 31 and 1 <= month <= 12):
        return False
    digits = compact[:8] + f"{ord(compact[8]) - 64:02d}" + compact[9:11]
    weights = (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1)
    return sum(sum(divmod(int(c) * weight, 10)) for c, weight in zip(digits, weights, strict=True)) % 10 == int(
        compact[11]
    )


def austrian_insurance_number(digits: str) -> bool:
    """Sozialversicherungsnummer, 10 digits: serial of three, check digit, birthday ddmmyy; modulo 11 (§ 31 ASVG)."""
    if len(digits) != 10 or digits[0] == "0" or not _is_day(digits[4:]):
        return False
    total = sum(int(c) * weight for c, weight in zip(digits, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6), strict=True))
    return total % 11 == int(digits[3])


def swiss_insurance_number(digits: str) -> bool:
    """AHV number: 13 digits that begin with 756, check digit as in EAN-13 (Federal Office of Social Insurance)."""
    if len(digits) != 13 or not digits.startswith("756"):
        return False
    total = sum(int(c) * (3 if position % 2 else 1) for position, c in enumerate(digits[:12]))
    return -total % 10 == int(digits[12])


def travel_document(field: str) -> bool:
    """A field of a machine-readable zone with its check digit last: weights 7 3 1 modulo 10 (ICAO 9303-3, 4.9)."""
    values = [0 if c == "<" else int(c, 36) for c in field[:-1]]
    total = sum(value * (7, 3, 1)[position % 3] for position, value in enumerate(values))
    return field[-1].isdigit() and total % 10 == int(field[-1])


def _is_day(ddmmyy: str) -> bool:
    try:
        date(2000 + int(ddmmyy[4:]), int(ddmmyy[2:4]), int(ddmmyy[:2]))
    except ValueError:
        # Months 13 to 15 are given out when a birthday has no serial left.
        return ddmmyy[2:4] in ("13", "14", "15")
    return True

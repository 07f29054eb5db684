"""Personal data and secrets leave no trace at the border: logs, traces, messages for operators. Pure.

`mask` replaces what it finds by its kind in brackets. Where a checksum exists it decides (IBAN: ISO 13616 mod 97;
cards: Luhn, ISO/IEC 7812-1), so that order numbers stay readable; dates, times, UUIDs, trace ids and amounts stay.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

LIMIT = 8_000
"""Characters of one text that are looked at; what is longer is cut, because nothing unseen may leave."""

_EMAIL = re.compile(r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b")
_JWT = re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_KEY = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{12,}"  # OpenAI, Anthropic, LiteLLM, Langfuse
    r"|\b(?:sk|pk|rk)_(?:live|test)_\w{10,}"  # Stripe
    r"|\bA(?:KI|SI)A[0-9A-Z]{16}\b"  # AWS
    r"|\bAIza[\w-]{30,}|\bya29\.[\w-]{10,}|\bGOCSPX-[\w-]{10,}"  # Google
    r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{15,}"  # GitHub, GitLab
    r"|\bxox[a-z]-[\w-]{10,}"  # Slack
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/-]{8,}=*", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^\s/:@]{0,200}):[^\s/@]{1,500}@")
_NAMED = re.compile(
    r"(?i)\b((?:[a-z]+[_-])*(?:password|passwd|secret|token|api[_-]?key|signature|authorization)"
    r"[\"']?\s{0,3}[=:]\s{0,3}[\"']?)(?!\[)[^\s\"',;&]{4,}"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?=[ -]?[A-Z0-9])")
_CARD = re.compile(r"(?<![\d-])(?<!\d\.)[2-6]\d{3}(?:[ -]?\d){9,15}(?![\d-])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,8}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{0,4})(?![\w:]|\.\d)",
)
_PHONE = re.compile(
    r"(?<![\w+./:-])(?:"
    r"(?:\+|00)[1-9]\d{0,2}(?:[ /.-]?\(0?\d{0,5}\))?(?:[ /.-]?\d){6,12}"  # +49 (0)30 1234567
    r"|\(0[1-9]\d{1,4}\)[ /-]?\d(?:[ -]?\d){3,9}"  # (030) 1234567
    r"|0[1-9]\d{1,4} ?[/-] ?\d(?:[ -]?\d){3,9}|0[1-9]\d{1,4} \d{2,}(?:[ -]?\d){2,8}"  # 030/1234567, 030 1234567
    r"|01[567]\d{8,9}"  # German mobile numbers written in one piece
    r"|\([2-9]\d{2}\) ?\d{3}[-. ]\d{4}|[2-9]\d{2}-\d{3}-\d{4}"  # North America
    r")(?![\w]|[.-]\d)"
)
# The length tells where a number ends that is followed by capital letters (SWIFT IBAN registry, release 99).
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
_LENGTH_OF = {country: length for length, countries in _IBAN_LENGTH.items() for country in countries.split()}


def mask(value: str) -> str:
    """The text with e-mail addresses, phone numbers, IBANs, cards, IP addresses, tokens and keys replaced."""
    if len(value) > LIMIT:
        value = value[:LIMIT] + " […]"
    value = _PRIVATE_KEY.sub("[key]", value)
    value = _JWT.sub("[jwt]", value)
    value = _URL_PASSWORD.sub(r"\1:[password]@", value)
    value = _BEARER.sub(r"\1 [token]", value)
    value = _KEY.sub("[key]", value)
    value = _NAMED.sub(r"\1[secret]", value)
    value = _EMAIL.sub("[email]", value)
    value = _mask_ibans(value)
    value = _CARD.sub(_when(_is_card, "[card]"), value)
    value = _IPV6.sub(_when(_is_address, "[ip]"), value)
    value = _IPV4.sub(_when(_is_address, "[ip]"), value)
    return _PHONE.sub("[phone]", value)


def _when(holds: Callable[[str], bool], replacement: str) -> Callable[[re.Match[str]], str]:
    return lambda match: replacement if holds(match[0]) else match[0]


def _mask_ibans(value: str) -> str:
    parts, position = [], 0
    for match in _IBAN.finditer(value):
        if match.start() >= position and (end := _iban_end(value, match.start())):
            parts += [value[position : match.start()], "[iban]"]
            position = end
    return "".join([*parts, value[position:]])


def _iban_end(value: str, start: int) -> int:
    """Where the valid number that begins at `start` ends; 0 when there is none. Its country tells its length."""
    wanted = _LENGTH_OF.get(value[start : start + 2], 0)
    digits, end = "", start
    while len(digits) < wanted and end < len(value):
        character = value[end]
        if character.isascii() and (character.isdigit() or character.isupper()):
            digits += character
        elif character not in " -" or value[end - 1] in " -":
            return 0
        end += 1
    if len(digits) != wanted or wanted == 0 or value[end : end + 1].isalnum():
        return 0
    number = int("".join(str(int(c, 36)) for c in digits[4:] + digits[:4]))
    return end if number % 97 == 1 else 0


def _is_card(candidate: str) -> bool:
    digits = [int(c) for c in candidate if c.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_address(candidate: str) -> bool:
    """An address of somebody: loopback and "any" name nobody."""
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)

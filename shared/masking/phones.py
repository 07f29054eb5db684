"""Telephone numbers as German, Austrian, Swiss and international texts write them. Pure.

A national number has no check digit: its form and the words before it decide. Order numbers, files, times and dates
stay.
"""

from __future__ import annotations

import re

from shared.masking.places import Place, before, digits_of, one_after_another

_START = r"(?<![\w+/-])(?<!\d[.:])"
_END = r"(?!\w|[.-]\d)"

_INTERNATIONAL = re.compile(
    _START + r"(?:\+ ?|00 ?)[1-9]\d{0,2}(?:[ /.-]{0,2}\(0?\d{0,5}\))?(?:[ /.-]{0,2}\d){5,13}" + _END
)
_NATIONAL = re.compile(
    _START + r"(?:"
    r"\(0\d{1,5}\)(?: ?[/-] ?| )?\d(?:[ /-]?\d){2,9}"  # (030) 1234567
    r"|0[1-9](?:([ .])\d{2})(?:\1\d{2}){3}"  # 01 23 45 67 89 (France)
    r"|01 ?[/ -] ?\d{3}(?:[ -]?\d{2}){2}"  # 01 234 56 78 (Vienna)
    r"|0[1-9]\d{1,4} ?[/–-] ?\d(?:[ -]?\d){3,9}"  # 030/1234567, 030-123 45 67
    r"|0[1-9]\d{1,4} \d{2,}(?:[ /-]?\d){2,8}"  # 030 1234567
    r"|01[567]\d{8,9}"  # German mobile numbers written in one piece
    r"|\([2-9]\d{2}\) ?\d{3}[-. ]\d{4}|[2-9]\d{2}-\d{3}-\d{4}"  # North America
    r")" + _END
)
_TOLD = re.compile(_START + r"[1-9(0]\d?[\d /().–-]{3,18}\d" + _END)

_PHONE_WORD = re.compile(
    r"(?:\btel|telefon|telefax|phone|\bfon|fax|mobil|mobile|handy|\bcell|\bruf|durchwahl|hotline|whatsapp|zentrale)"
    r"(?:nummern?|funk|nr)?\.?(?: ?\([a-zäöü]{1,10}\))?"
    r"(?: ?[:=–-]| (?:ist|is|lautet|unter|auf|no\.?|nr\.?|number))? ?$",
    re.IGNORECASE,
)
_OTHER_WORD = re.compile(
    r"(?:\bn[ro]|nummer|number|bestell\w*|auftrag\w*|rechnung\w*|\baz|aktenzeichen|kunden\w*|artikel\w*|vertrag\w*"
    r"|isbn|issn|konto\w*|\bblz|order|invoice|ticket|case|serial|s/n|sku|\bref|referenz|\bid|\bplz|charge|batch|\blot"
    r"|typ|modell|model|\bdin|\biso|\ben|norm|beleg|police|antrag)[.:#]{0,2} {0,2}#?$",
    re.IGNORECASE,
)
_TIMES = re.compile(r"(?:[01]\d|2[0-3])[0-5]\d ?[/–-] ?(?:[01]\d|2[0-4])[0-5]\d")
_YEAR = re.compile(r"[/–-] ?(?:19[5-9]|20[0-4])\d(?:[/–-]|$)")

# Country codes (ITU-T E.164, list of 2016, unchanged since), and how long national numbers are where that is fixed.
_CODES = """
1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84
86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236
237 238 239 240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265
266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378
379 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595
596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850
852 853 855 856 870 878 880 881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976
977 979 992 993 994 995 996 998
"""
_COUNTRIES = frozenset(_CODES.split())
_NATIONAL_DIGITS = {
    "1": (10, 10),
    "7": (10, 10),
    "33": (9, 9),
    "41": (9, 9),
    "44": (9, 10),
    "49": (5, 13),
    "43": (4, 13),
}


def phones(text: str) -> list[Place]:
    """Telephone, fax and mobile numbers."""
    return one_after_another(text, (_INTERNATIONAL, _is_international), (_NATIONAL, _is_national), (_TOLD, _is_told))


def _is_international(match: re.Match[str]) -> bool:
    written = match[0].replace("(0)", "")
    digits = digits_of(written)
    digits = digits if written.startswith("+") else digits[2:]
    for length in (1, 2, 3):
        if digits[:length] in _COUNTRIES:
            shortest, longest = _NATIONAL_DIGITS.get(digits[:length], (5, 12))
            return shortest <= len(digits) - length <= longest
    return False


def _is_national(match: re.Match[str]) -> bool:
    words, written = before(match), match[0]
    if _PHONE_WORD.search(words):
        return True
    if _OTHER_WORD.search(words) or _TIMES.fullmatch(written) or _YEAR.search(written):
        return False
    # 010 to 014 are no area of Germany, Austria or Switzerland; Vienna (01) has a form of its own.
    compact = digits_of(written)
    return not (compact[:2] == "01" and compact[2] in "01234") or written[2] in " /-"


def _is_told(match: re.Match[str]) -> bool:
    """Whatever number follows "Tel.:" and the like."""
    return 5 <= len(digits_of(match[0])) <= 15 and _PHONE_WORD.search(before(match)) is not None

"""Personal data made up for tests: numbers from check-digit rules written here, forms from lists. Knows no recogniser.

Everything is made from a `random.Random`, so a failure can be made again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from random import Random

IBAN_FORMS = {  # country: places of the national part, n = digit, a = capital letter
    "DE": "n" * 18,
    "AT": "n" * 16,
    "CH": "n" * 17,
    "FR": "n" * 10 + "a" * 2 + "n" * 11,
    "NL": "a" * 4 + "n" * 10,
    "GB": "a" * 4 + "n" * 14,
    "BE": "n" * 12,
    "NO": "n" * 11,
    "IT": "a" + "n" * 22,
    "ES": "n" * 20,
    "PL": "n" * 24,
    "MT": "a" * 4 + "n" * 5 + "n" * 18,
}
CARD_RANGES = (("4", 16), ("51", 16), ("53", 16), ("2221", 16), ("2718", 16), ("34", 15), ("37", 15), ("6011", 16))


def _list(words: str) -> list[str]:
    return words.split()


AREAS = _list("30 40 69 89 221 228 341 351 421 511 711 761 911 2501 3501 4321 5121 6221 7071 8131 9131 33203 38301")
MOBILES = _list("151 152 157 159 160 162 163 170 171 172 175 176 177 178 179")
WORDS = _list("info kontakt eva.muster max_mustermann j.doe hr-team support+kunde o'neil müller a")
HOSTS = _list("example firma nordwind alpen-blick mail.stadt universität xn--mller-kva")
ENDINGS = _list("de at ch com org info eu museum co.uk bayern")

PLACES = (
    "{}",
    "Bitte wenden Sie sich an {}.",
    "Unser Kunde ({}) hat angerufen",
    "Angaben: {}, Stand heute",
    "please use {} from now on",
    "Zeile davor\n{}\nZeile danach",
    "\t{}\t",
    "| Wert | {} | ja |",
    "„{}“ steht im Vertrag; der Rest folgt.",
    "war es {}?",
)


def digits(random: Random, count: int, first: str = "0123456789") -> str:
    """So many digits, the first one of these."""
    return random.choice(first) + "".join(random.choice("0123456789") for _ in range(count - 1))


def grouped(text: str, size: int = 4, by: str = " ") -> str:
    """In groups of so many characters."""
    return by.join(text[at : at + size] for at in range(0, len(text), size))


def iban(random: Random) -> str:
    """Check digits: 98 minus the number by 97, taken digit by digit."""
    country = random.choice(sorted(IBAN_FORMS))
    body = "".join(random.choice("0123456789" if c == "n" else "ABCDEFGHJKLMNPRSTUVWXYZ") for c in IBAN_FORMS[country])
    rest = 0
    for character in body + country + "00":
        for digit in str("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(character)):
            rest = (rest * 10 + int(digit)) % 97
    whole = f"{country}{98 - rest:02d}{body}"
    return random.choice((whole, grouped(whole), whole.lower() if random.random() < 0.2 else whole))


LUHN = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5, "8": 7, "9": 9}


def card(random: Random) -> str:
    """The last digit completes the sum to a multiple of ten."""
    prefix, length = random.choice(CARD_RANGES)
    body = prefix + digits(random, length - 1 - len(prefix))
    total = sum(LUHN[c] if at % 2 == 0 else int(c) for at, c in enumerate(reversed(body)))
    number = body + str((10 - total % 10) % 10)
    if length == 15:
        return random.choice((number, f"{number[:4]} {number[4:10]} {number[10:]}"))
    return random.choice((number, grouped(number), grouped(number, by="-")))


def _hybrid(body: str) -> str:
    """The check digit of ISO 7064 MOD 11,10: the one that brings the whole to 1."""
    for check in "0123456789":
        state = 10
        for character in body:
            state = (state + int(character)) % 10
            state = (10 if state == 0 else state) * 2 % 11
        if (state + int(check)) % 10 == 1:
            return check
    raise AssertionError("one of ten digits fits")


def tax_id(random: Random) -> str:
    """Ten digits of which one is there twice, none begins with 0; the eleventh checks."""
    while True:
        order = random.sample("0123456789", 10)
        order[random.randrange(10)] = order[random.randrange(10)]
        body = "".join(order)
        if body[0] != "0" and len(set(body)) == 9:
            break
    number = body + _hybrid(body)
    return random.choice((number, f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"))


def vat_id(random: Random) -> str:
    """German, or Austrian with its own sum."""
    if random.random() < 0.7:
        body = digits(random, 8, "123456789")
        return random.choice(("DE{}", "DE {}")).format(body + _hybrid(body))
    body = digits(random, 7)
    total = 0
    for at, character in enumerate(body):
        value = int(character) * (2 if at % 2 else 1)
        total += value // 10 + value % 10
    return f"ATU{body}{(10 - (total + 4) % 10) % 10}"


def social_security(random: Random) -> str:
    """A German pension number, or a Swiss one."""
    if random.random() < 0.3:
        body = "756" + digits(random, 9)
        total = sum(int(c) for c in body[::2]) + 3 * sum(int(c) for c in body[1::2])
        number = body + str((10 - total % 10) % 10)
        return f"{number[:3]}.{number[3:7]}.{number[7:11]}.{number[11:]}"
    letter = random.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    day, month = random.randint(1, 28), random.randint(1, 12)
    body = f"{random.randint(2, 89):02d}{day:02d}{month:02d}{random.randint(30, 99):02d}"
    serial = f"{random.randint(0, 99):02d}"
    number = body + f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'.index(letter) + 1:02d}" + serial
    total = 0
    for character, weight in zip(number, "212571212121", strict=True):
        for digit in str(int(character) * int(weight)):
            total += int(digit)
    form = random.choice(("{}{}{}{}", "{} {} {} {}"))
    return form.format(body[:2], body[2:], letter, f"{serial}{total % 10}")


def passport(random: Random) -> str:
    """The two lines of a passport's machine-readable zone."""

    def checked(field: str) -> str:
        alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        total = sum((alphabet.index(c) if c != "<" else 0) * (7, 3, 1)[at % 3] for at, c in enumerate(field))
        return field + str(total % 10)

    surname, name = random.choice((("MUSTERMANN", "ERIKA"), ("MEYER<SCHULZ", "JAN<PETER"), ("ERIKSSON", "ANNA")))
    first = f"P<D<<{surname}<<{name}".ljust(44, "<")
    number = checked(f"C{digits(random, 2)}X{digits(random, 2)}T{digits(random, 2)}")
    born = checked(f"{random.randint(40, 99)}{random.randint(1, 12):02d}{random.randint(1, 28):02d}")
    ends = checked(f"{random.randint(26, 36)}{random.randint(1, 12):02d}{random.randint(1, 28):02d}")
    second = f"{number}D<<{born}{random.choice('MF<')}{ends}".ljust(43, "<")
    return f"{first}\n{second}{random.choice('0123456789')}"


def email(random: Random) -> str:
    """People's and offices' addresses."""
    return f"{random.choice(WORDS)}{random.choice(('', '7', '.x'))}@{random.choice(HOSTS)}.{random.choice(ENDINGS)}"


def phone(random: Random) -> str:
    """As letterheads, forms and mails in Germany, Austria, Switzerland and elsewhere write them."""
    if random.random() < 0.3:
        return random.choice(_ABROAD)(random)
    area = random.choice(AREAS + MOBILES)
    number = digits(random, random.randint(6, 8) if len(area) < 4 else random.randint(4, 6), "23456789")
    extension = random.choice(("", "", "", "-0", "-12"))
    half = len(number) // 2
    forms = (
        f"0{area} {number}{extension}",
        f"0{area}/{number}{extension}",
        f"0{area} / {number}",
        f"0{area}-{number}",
        f"(0{area}) {number}{extension}",
        f"(0{area}) {number[:half]} {number[half:]}",
        f"+49 {area} {number}{extension}",
        f"+49 (0){area} {number}",
        f"+49 (0) {area} {number[:half]} {number[half:]}",
        f"+49{area}{number}",
        f"+49(0){area}/{number}",
        f"0049 {area} {number}",
        f"+49-{area}-{number}",
        f"+49.{area}.{number}",
        f"0{area} {grouped(number, 2)}" if len(number) % 2 == 0 else f"0{area} {number}",
    )
    return random.choice(forms)


_ABROAD: tuple[Callable[[Random], str], ...] = (
    lambda r: f"+43 1 {digits(r, 7, '23456789')}",
    lambda r: f"+43 (0)664 {digits(r, 7, '123456789')}",
    lambda r: f"0664 {digits(r, 7, '123456789')}",
    lambda r: f"0043 316 {digits(r, 6, '23456789')}",
    lambda r: f"+41 44 {digits(r, 3, '23456789')} {digits(r, 2)} {digits(r, 2)}",
    lambda r: f"044 {digits(r, 3, '23456789')} {digits(r, 2)} {digits(r, 2)}",
    lambda r: f"079 {digits(r, 3, '23456789')} {digits(r, 2)} {digits(r, 2)}",
    lambda r: f"+44 20 {digits(r, 4, '3789')} {digits(r, 4)}",
    lambda r: f"+33 {r.randint(1, 7)} {' '.join(digits(r, 2) for _ in range(4))}",
    lambda r: f"+1 {digits(r, 3, '23456789')} {digits(r, 3, '23456789')} {digits(r, 4)}",
    lambda r: f"({digits(r, 3, '23456789')}) {digits(r, 3, '23456789')}-{digits(r, 4)}",
    lambda r: f"+48 {digits(r, 3, '5678')} {digits(r, 3)} {digits(r, 3)}",
    lambda r: f"+420 {digits(r, 3, '67')} {digits(r, 3)} {digits(r, 3)}",
)


def ip(random: Random) -> str:
    """Public addresses of both versions."""
    if random.random() < 0.5:
        return f"{random.randint(21, 223)}.{random.randint(0, 255)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
    groups = [f"{random.randint(1, 0xFFFF):x}" for _ in range(8)]
    groups[0] = random.choice(("2001", "2a02", "fe80"))
    return ":".join(groups) if random.random() < 0.5 else f"{groups[0]}:{groups[1]}::{groups[2]}"


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def key(random: Random) -> str:
    """API keys of several issuers, and a private key."""
    tail = "".join(random.choice(LETTERS) for _ in range(40))
    block = f"-----BEGIN RSA PRIVATE KEY-----\n{tail}\n{tail}\n-----END RSA PRIVATE KEY-----"
    upper = "".join(random.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(16))
    plain = (f"sk-{tail}", f"sk-ant-api03-{tail}", f"ghp_{tail[:36]}", f"AKIA{upper}", f"AIza{tail[:35]}")
    return random.choice((*plain, f"glpat-{tail[:20]}", block))


def jwt(random: Random) -> str:
    """Three parts of base64, the first one a JSON object."""
    header = base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "kid": str(random.random())}).encode()).decode()
    parts = ["".join(random.choice(LETTERS) for _ in range(length)) for length in (60, 43)]
    return ".".join([header.rstrip("="), *parts])


STRUCTURED: dict[str, Callable[[Random], str]] = {
    "email": email,
    "phone": phone,
    "iban": iban,
    "card": card,
    "tax-id": tax_id,
    "vat-id": vat_id,
    "social-security": social_security,
    "passport": passport,
    "ip": ip,
    "key": key,
    "jwt": jwt,
}
"""Kinds that can be found by their form, and who makes one."""

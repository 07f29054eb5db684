"""What identifies people or opens doors leaves no trace; what only looks like it stays readable."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.errors import PermanentError
from shared.masking import _HARMLESS, KINDS, LIMIT, Vocabulary, find, mask
from shared.tracing import JsonLines, Lines, bound, configure_logging
from tests.unit.personal_material import PLACES, STRUCTURED

PERSONAL = {
    "erika.müller+news@post.example.com": "[email]",
    "a@b.co": "[email]",
    "+49 30 1234567": "[phone]",
    "+49 (0)30 1234567": "[phone]",
    "0049 30 1234567": "[phone]",
    "(030) 1234567": "[phone]",
    "030/1234567": "[phone]",
    "030 1234567": "[phone]",
    "0176 12345678": "[phone]",
    "01761234567": "[phone]",
    "+1-555-123-4567": "[phone]",
    "(555) 123-4567": "[phone]",
    "DE89 3704 0044 0532 0130 00": "[iban]",
    "DE89370400440532013000": "[iban]",
    "GB82 WEST 1234 5698 7654 32": "[iban]",
    "NO93 8601 1117 947": "[iban]",
    "4111 1111 1111 1111": "[card]",
    "5500-0055-5555-5559": "[card]",
    "4111.1111.1111.1111": "[card]",
    "378282246310005": "[card]",
    "203.0.113.7": "[ip]",
    "2001:db8::1": "[ip]",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334": "[ip]",
    "::ffff:203.0.113.7": "[ip]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_1": "[jwt]",
    "sk-proj-abcdefghijklmnop123": "[key]",
    "AKIAIOSFODNN7EXAMPLE": "[key]",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789": "[key]",
    "Bearer abcdefghijk": "Bearer [token]",
    "postgresql://noesis:geheim@db/noesis2": "postgresql://noesis:[password]@db/noesis2",
    "https://x.example/?X-Goog-Signature=0af3bc19&a=1": "https://x.example/?X-Goog-Signature=[secret]&a=1",
    "password=hunter22": "password=[secret]",
    '{"api_key": "abcd1234"}': '{"api_key": "[secret]"}',
    "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----": "[key]",
    # Numbers that authorities publish as examples.
    "86095742719": "[tax-id]",
    "47 036 892 816": "[tax-id]",
    "DE136695976": "[vat-id]",
    "ATU13585627": "[vat-id]",
    "CHE-123.456.788": "[vat-id]",
    "65170839J003": "[social-security]",
    "1237 010180": "[social-security]",
    "756.9217.0769.85": "[social-security]",
    "L898902C36UTO7408122F1204159ZE184226B<<<<<10": "[passport]",
}

HARMLESS = [
    "2026-11-21T04:28:40.123456+00:00",
    "21.11.2026",
    "01.02.2026 bis 03.04.2026",
    "10:15:30",
    "1.234.567,89 EUR",
    "12 345 678 Bytes",
    "§ 3 Abs. 2 Nr. 4",
    "Art. 6 Abs. 1",
    "3b241101-e2bb-4255-8caf-4136c566a962",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "1763699320000000",
    "1234567890123",
    "127.0.0.1:8080",
    "0.0.0.0",
    "std::vector<int>",
    "version 4.1.2",
    "Seite 12 von 300",
    "Rechnung 2026-00123",
    "4111 1111 1111 1112",
    "4111.1111.1111.1112",
    "3.4111.1111.1111.1111.2",
    "AT61 1904 3002 3457 3202",
    "tokens: 123",
    "HP-200, Fault E17",
    "functions/ingest/ingestion.py:42 ingest_document",
    "86095742718",
    "DE136695975",
    "65170839J004",
    "1237 010181",
    "L898902C37UTO7408122F1204159ZE184226B<<<<<10",
    "ISBN 978-3-16-148410-0",
    "ISBN 3-16-148410-X",
    "EAN 4006381333931",
    "Bestellnummer 4500012345",
    "Bestellnr. 0450 012345",
    "Auftrag 100-2034-55",
    "SAP 0000123456",
    "Az. 2 BvR 1436/02",
    "Az.: 0351/2024",
    "Aktenzeichen 10 O 123/21",
    "VIII ZR 30/08",
    "BGBl. I S. 3138",
    "§§ 305 bis 310 BGB",
    "Richtlinie 2006/42/EG",
    "DIN EN ISO 9001:2015",
    "Kapitel 3.2.1.4",
    "Firmware 10.4.21.7",
    "Version 2.14.3.1",
    "0800-1600 Uhr",
    "täglich 0730 - 1545",
    "52.520008, 13.404954",
    "00:1A:2B:3C:4D:5E",
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "4.294.967.296",
    "1 234 567,00 €",
    "01069 Dresden",
    "10.000 bis 20.000 Stück",
    "2026-11-21 07:15:00",
    "KW 47/2026",
    "1:25000",
    "M8x25-10.9",
    "icon@2x.png",
    "@nordwind",
    "der Frau Elterngeld gewährt wird",
    "einer Frau Mutterschaftsgeld",
    "Herr Präsident",
    "Frau Bundeskanzlerin",
    "Frau Gleichstellungsbeauftragte",
    "Sehr geehrter Herr Vorsitzender, sehr",
    "Herren und Damen",
    "basic principles",
    "bearer instruments",
    "a::b",
]


@pytest.mark.parametrize(("text", "masked"), PERSONAL.items(), ids=list(PERSONAL))
def test_what_identifies_or_opens_is_masked(text: str, masked: str) -> None:
    """In the middle of a sentence, alone, before a comma."""
    assert mask(f"von {text} am") == f"von {masked} am"
    assert mask(text) == masked
    assert mask(f"({text}, ") == f"({masked}, "


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_stays(text: str) -> None:
    """Dates, amounts, paragraphs, ids, failed checksums: logs and messages stay useful."""
    assert mask(f"von {text} am") == f"von {text} am"


@pytest.mark.parametrize("kind", STRUCTURED)
def test_structured_kinds_are_found_wherever_they_stand(kind: str) -> None:
    """At least 99 of 100, whole and as what they are, in values and sentences that know nothing of the patterns."""
    random, wrong = Random(1337), []
    for _ in range(500):
        value = STRUCTURED[kind](random)
        text = random.choice(PLACES).format(value)
        start = text.index(value)
        if [(one.kind, one.start, one.end) for one in find(text)] != [(kind, start, start + len(value))]:
            wrong.append(text)
    assert len(wrong) <= 5, wrong


@hypothesis_settings(deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["iban", "card", "tax-id", "vat-id", "passport"]))
def test_a_wrong_digit_makes_it_another_number(random: Random, kind: str) -> None:
    """One changed digit is no longer what its check digit protects."""
    value = STRUCTURED[kind](random)
    places = [at for at, c in enumerate(value) if c.isdigit()]
    # What a passport's line holds beyond its checked fields may change.
    at = random.choice(places[:9] if kind == "passport" else places)
    changed = value[:at] + random.choice([c for c in "0123456789" if c != value[at]]) + value[at + 1 :]
    assert kind not in [one.kind for one in find(changed) if one.start == 0 and one.end == len(changed)]


NAMES = {
    "Sehr geehrte Frau Dr. Müller, ": "Müller",
    "Sehr geehrter Herr Prof. Dr. von der Leyen, ": "von der Leyen",
    "Herrn Hans-Peter Schmidt z. Hd.": "Hans-Peter Schmidt",
    "die Frau Erika Mustermann hat": "Erika Mustermann",
    "Dear Mr. John Smith, ": "John Smith",
    "Ms Jennifer Lopez-Garcia agreed": "Jennifer Lopez-Garcia",
    "Ansprechpartnerin: Katrin Böhm, Zimmer 3": "Katrin Böhm",
    "Frau Özdemir Urlaub genehmigt": "Özdemir",
    "Sehr geehrter Herr Geschäftsführer Müller": "Müller",
    "Sehr geehrte Frau Bundesministerin von der Leyen": "von der Leyen",
}


@pytest.mark.parametrize(("text", "name"), NAMES.items(), ids=list(NAMES.values()))
def test_a_name_that_is_announced_is_masked(text: str, name: str) -> None:
    """By a salutation, a title or a label; the noun behind a surname stays."""
    assert mask(text) == text.replace(name, "[name]")


REAL = {
    "anlbv_2004.md": {"psc-germany@bg-verkehr.de", "MLZ@havariekommando.de", "+ 49 (0) 4721/567-392"},
    "schsihafv.md": {"03831-682250"},
}
"""What in the laws really is a telephone number or an address."""


def test_laws_are_not_damaged(shared_folder: Path) -> None:
    """In 300 German laws (5.8 million characters) only real addresses and names of people are found."""
    coins = "Der Entwurf der Münze"
    for path in sorted((shared_folder / "data" / "laws").glob("*.md"))[::3]:
        text = path.read_text(encoding="utf-8")
        for one in find(text):
            value = text[one.start : one.end]
            people = one.kind == "name" and (coins in text or "Münze" in text)
            assert people or value in REAL.get(path.name, ()), (path.name, one.kind, value)


def test_a_kind_can_be_left_out_and_words_added() -> None:
    """A tenant's own words are masked as whole words without case, what it allows stays."""
    words = Vocabulary(terms=("projekt adler", "adler"), allowed=frozenset({"@nordwind.example", "+49 30 1234567"}))
    text = "Projekt ADLER: eva@nordwind.example, max@other.example, +49 30 1234567, Seeadler, Adler."
    assert mask(text, words=words) == ("[term]: eva@nordwind.example, [email], +49 30 1234567, Seeadler, [term].")
    assert mask(text, kinds=[kind for kind in KINDS if kind != "email"]) == text.replace("+49 30 1234567", "[phone]")


@hypothesis_settings(deadline=None)
@given(st.lists(st.text(alphabet="aAİßſǅ .-@1", min_size=1, max_size=6), max_size=4), st.text(max_size=80))
def test_terms_keep_the_rest_of_the_text(terms: list[str], text: str) -> None:
    """Whatever grows or shrinks in lower case: what is not found stays where it was."""
    found = find(text, (), Vocabulary(terms=tuple(terms)))
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(a.end <= b.start for a, b in pairwise(found))


@hypothesis_settings(deadline=None)
@given(st.from_regex(_HARMLESS, fullmatch=True))
def test_what_is_not_looked_at_holds_nothing(text: str) -> None:
    """The short way for ids, codes and small words leaves out nothing that would be found."""
    assert find(text) == []


@pytest.mark.parametrize(
    "between",
    ["\u00a0", "\u202f", "\u2009", "\u2011", "\u00ad ", " \u200b", "  "],
    ids=["no-break", "narrow", "thin", "no-break hyphen", "soft hyphen", "zero width", "justified"],
)
@pytest.mark.parametrize("value", ["DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111"])
def test_what_stands_between_groups_hides_nothing(value: str, between: str) -> None:
    """Word processors and PDF write other blanks and hyphens than keyboards; the finding is the text as it stands."""
    written = value.replace(" ", between)
    text = f"von {written} an"
    assert [text[one.start : one.end] for one in find(text)] == [written]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("DE89 3704\n0044 0532 0130 00", "[iban]"),
        ("DE89 3704 0044 \r\n0532 0130 00", "[iban]"),
        ("DE89370400440532\n013000", "[iban]"),
        ("DE89\t3704\t0044\t0532\t0130\t00", "[iban]"),
        ("0351\t4567890", "0351\t4567890"),
        ("4111 1111\n1111 1111", "[card]"),
        ("+49\u00a030\u00a01234567", "[phone]"),
        ("Tel. 030\u20111234567", "Tel. [phone]"),
        ("86\u00a0095\u00a0742\u00a0719", "[tax-id]"),
        ("DE\uff18\uff19 3704 0044 0532 0130 00", "[iban]"),
        ("max.muster@exa\u00admple.com", "[email]"),
        ("max\u200b.muster@example.com", "[email]"),
        ("max.muster\uff20example.com", "[email]"),
        ("4111\n1111\n1111\n1111", "4111\n1111\n1111\n1111"),
    ],
)
def test_the_end_of_a_line_and_other_digits_hide_nothing(text: str, masked: str) -> None:
    """A number goes on behind the end of its line; a column of numbers is none."""
    assert mask(text) == masked


def test_an_iban_before_capital_letters_ends_where_its_country_says() -> None:
    """What follows the number stays."""
    assert mask("DE89 3704 0044 0532 0130 00 UND MEHR") == "[iban] UND MEHR"


def test_what_is_too_long_to_look_at_does_not_leave() -> None:
    """Nothing goes out unseen."""
    assert "eva@example.com" not in mask("x" * LIMIT + " eva@example.com")


@hypothesis_settings(deadline=None)
@given(st.text(max_size=300))
def test_masking_twice_is_masking_once(text: str) -> None:
    """A masked text holds nothing to mask."""
    assert mask(mask(text)) == mask(text)


@hypothesis_settings(deadline=None)
@given(st.sampled_from(sorted(PERSONAL)), st.text(alphabet=" ,;\n", min_size=1, max_size=5))
def test_neighbours_do_not_hide_each_other(text: str, between: str) -> None:
    """Two in a row are both found."""
    assert text not in mask(f"{text}{between}{text}")


HOSTILE = [
    *("1", "1 ", "1.", "1-", "12", "a@", "a.", "a@b.", "+4", "+", "00", "00 1", "0:", ":", "::", "f:", "(0", "(030) 1"),
    *("0351/", "030 12 ", "+49 (0", "Tel. 0", "01 2", "DE89 ", "DE12 3", "A1", "4111 ", "756.", "P<", "A<", "<"),
    *("86 095 742 71", "://a:", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "token=", "a-a_", "Bearer ", "sk-a "),
    *("eyJaaaaa-", "eyJaaaaa.", "SG.a.", "Frau ", "Frau Dr. ", "Herr Anna ", "Herr A. ", "Herr von ", "Name: Anna "),
    *("Dr. Prof. ", "Anna-", "Herr Anna-A'", "!", "-", " ", "x" * 64 + "@"),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_recognition_is_linear_on_hostile_input(piece: str) -> None:
    """No pattern backtracks: four times the text takes about four times as long, not sixteen."""

    def seconds(length: int) -> float:
        text, taken = piece * (length // len(piece)), []
        for _ in range(2):
            began = time.process_time()
            find(text)
            taken.append(time.process_time() - began)
        return min(taken)

    assert seconds(40_000) < max(0.3, 9 * seconds(10_000))


CANARY = "eva.canary@example.com"


def _formatted(formatter: logging.Formatter, message: object, *args: object, **extra: object) -> str:
    logger = logging.getLogger("shared.test")
    record = logger.makeRecord(logger.name, logging.ERROR, "f.py", 1, message, args, sys.exc_info(), extra=extra)
    return formatter.format(record)


@pytest.mark.parametrize("formatter", [JsonLines(), Lines()], ids=["json", "people"])
def test_messages_arguments_extras_and_bound_fields_are_masked(formatter: logging.Formatter) -> None:
    """Everything that goes into a line goes through the mask."""
    with bound(tenant_id=CANARY, event=CANARY):
        line = _formatted(formatter, f"{CANARY} %s", CANARY, who=CANARY, several={"a": [CANARY]})
    assert CANARY not in line
    assert "[email]" in line
    assert "\n" not in line


@pytest.mark.parametrize("formatter", [JsonLines(), Lines()], ids=["json", "people"])
def test_the_text_of_a_strangers_exception_is_not_told(formatter: logging.Formatter) -> None:
    """As the message, as an argument, as the exception of the record: only its kind and where it happened."""
    try:
        raise ValueError("Das Gehalt von Eva beträgt")
    except ValueError as error:
        told = [
            _formatted(formatter, error),
            _formatted(formatter, "it failed: %s", error),
            _formatted(formatter, "x", why=error),
        ]
    assert all("Gehalt" not in line and "ValueError" in line for line in told)


def test_an_error_of_ours_is_told() -> None:
    """Its text never carries content, and operators need it."""
    assert "is protected" in _formatted(JsonLines(), "failed: %s", PermanentError("encrypted", "It is protected."))


@pytest.mark.parametrize("message", ["%s %s", "%d"])
def test_a_log_call_that_is_wrong_neither_fails_nor_tells(message: str) -> None:
    """Arguments that do not fit the message are left out, the place is named."""
    line = json.loads(_formatted(JsonLines(), message, "Gehalt"))
    assert "Gehalt" not in line["message"]
    assert "cannot be formatted" in line["message"]


def test_frameworks_lose_their_own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn and Flask bring handlers that print an exception with its text; all of them end in ours."""
    stream, theirs = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger = logging.getLogger("gunicorn.error")
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logger.handlers[:], logger.propagate)
    logger.handlers[:], logger.propagate = [logging.StreamHandler(theirs)], False
    try:
        configure_logging()
        try:
            raise ValueError("Das Gehalt von Eva")
        except ValueError:
            logger.exception("Error handling request")
    finally:
        root.handlers[:], root.level, logger.handlers[:], logger.propagate = before
    assert theirs.getvalue() == ""
    line = json.loads(stream.getvalue())
    assert (line["logger"], line["error"]) == ("gunicorn.error", "ValueError")
    assert "Gehalt" not in stream.getvalue()


def test_text_that_cannot_be_written_is_replaced() -> None:
    """A lone surrogate does not make logging print the record in its own way."""
    assert "\ud800" not in _formatted(JsonLines(), "x\ud800", who="y\udfff")

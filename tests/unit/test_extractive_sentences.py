"""Sentence splitting: German and English, headings, lists and tables, always as slices of the passage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litellm_service.sentences import MAX_SENTENCE_CHARS, split


@pytest.mark.parametrize(
    "sentence",
    [
        "Die Frist endet am 31. März 2026.",
        "Er kam am 3. Dienstag des Monats.",
        "Das gilt z. B. für § 5 Abs. 2 Nr. 3 der Ordnung.",
        "Dr. Müller und Prof. Dr. Schmidt widersprachen.",
        "Im 19. Jahrhundert galt das nicht.",
        "Rund 3,5 Mio. Euro wurden bewilligt.",
        "Kaiser Wilhelm II. regierte bis 1918.",
        "Mr. Smith of the U.S. Army agreed with Jones et al. on that.",
        "See e.g. Fig. 3 and No. 7 of Vol. 2.",
        "J. R. R. Tolkien wrote it.",
    ],
)
def test_a_full_stop_inside_a_sentence_does_not_end_it(sentence: str) -> None:
    """Dates, abbreviations, ordinals and initials stay whole, and the sentence after them is another one."""
    assert [one.text for one in split(f"{sentence} Danach kam ein anderer Satz.")] == [
        sentence,
        "Danach kam ein anderer Satz.",
    ]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Es waren 12. Danach kamen mehr!", ["Es waren 12.", "Danach kamen mehr!"]),
        ("It began in 1989. The wall fell.", ["It began in 1989.", "The wall fell."]),
        ("The answer is no. We go on.", ["The answer is no.", "We go on."]),
        ("„Wirklich?“ Ja, wirklich…  Gut.", ["„Wirklich?“", "Ja, wirklich…", "Gut."]),
        ("Er ging (vgl. Anlage.) Sie blieb.", ["Er ging (vgl. Anlage.)", "Sie blieb."]),
    ],
)
def test_a_sentence_ends_where_it_ends(text: str, sentences: list[str]) -> None:
    """Numbers, years, quotation marks and brackets before the mark do not hide the end."""
    assert [one.text for one in split(text)] == sentences


def test_a_wrapped_line_does_not_end_a_sentence() -> None:
    """PDF text breaks its lines anywhere; only a blank line ends a paragraph."""
    found = split("Das gilt bis\nzum Ende der\nProbezeit.\n\nOhne Punkt am Ende des Absatzes, aber kein Titel;")
    assert [one.text for one in found] == [
        "Das gilt bis\nzum Ende der\nProbezeit.",
        "Ohne Punkt am Ende des Absatzes, aber kein Titel;",
    ]


def test_a_sentence_knows_its_heading() -> None:
    """Markdown headings, section headings and lone lines stand over what follows and are no sentences."""
    found = split("## § 5 Kündigung\n\nSie beträgt drei Monate.\n\nReisekosten\n\nBelege sind nötig.")
    assert [(one.kind, one.heading) for one in found] == [
        ("heading", ""),
        ("sentence", "§ 5 Kündigung"),
        ("heading", ""),
        ("sentence", "Reisekosten"),
    ]


def test_list_items_and_table_rows_are_units_without_their_markers() -> None:
    """Each item and each row can be quoted by itself; bullets, numbers, bars and rules are left out."""
    items = "Es gilt:\n- erster Punkt\n* zweiter Punkt. Noch einer.\n1. dritter\n"
    found = split(f"{items}\n| Land | Tagegeld |\n|---|---|\n| Polen | 34 Euro |\n")
    assert [one.text for one in found] == [
        "Es gilt:",
        "erster Punkt",
        "zweiter Punkt.",
        "Noch einer.",
        "dritter",
        "Land | Tagegeld",
        "Polen | 34 Euro",
    ]
    assert [one.kind for one in found][-2:] == ["row", "row"]


def test_a_sentence_without_end_is_cut() -> None:
    """No sentence is longer than the limit, and cutting loses no word."""
    text = "wort, " * 700
    found = split(text)
    assert all(len(one.text) <= MAX_SENTENCE_CHARS for one in found)
    assert " ".join(one.text for one in found).split() == text.split()


@given(st.text(alphabet=st.sampled_from("aZ9ä. \n!?#|-*§()\u00a0\r\t\u200b„“1"), max_size=200) | st.text(max_size=200))
def test_every_sentence_is_a_slice_and_none_overlaps(text: str) -> None:
    """For any text: verbatim slices, in order, without overlap, each with something to read."""
    end = 0
    for one in split(text):
        assert one.text == text[one.start : one.end]
        assert one.start >= end
        assert any(letter.isalnum() for letter in one.text)
        end = one.end

"""Names of uploaded files, cleaned."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.file_names import LIMIT, clean_file_name


@pytest.mark.parametrize(
    ("given_name", "clean"),
    [
        ("Jahresbericht 2026.pdf", "Jahresbericht 2026.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\plan.docx", "plan.docx"),
        ("a\x00b\r\nc\x1b[31m.txt", "ab c[31m.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("half\ud800.txt", "half.txt"),
        ("Pru\u0308fung.pdf", "Prüfung.pdf"),
        ("  much   space .txt ", "much space .txt"),
        (".gitignore", ".gitignore"),
        ("..", ""),
        ("/", ""),
        ("", ""),
        ("\u200b\u2066", ""),
    ],
)
def test_a_name_is_cleaned(given_name: str, clean: str) -> None:
    """Paths, control and format characters, surrogates and runs of spaces go; letters stay."""
    assert clean_file_name(given_name) == clean


def test_a_long_name_keeps_its_extension() -> None:
    """The type may depend on it."""
    name = clean_file_name("x" * 400 + ".markdown")
    assert (len(name), name[-10:]) == (LIMIT, "x.markdown")
    assert len(clean_file_name("." + "x" * 400)) == LIMIT


@given(st.text(st.characters(codec=None, categories=None), max_size=600))
def test_a_clean_name_can_be_stored_and_shown(name: str) -> None:
    """Whatever comes in: no separators, nothing invisible, within the limit, encodable, clean already."""
    clean = clean_file_name(name)
    assert len(clean) <= LIMIT
    assert not set(clean) & set("/\\\x00")
    assert all(unicodedata.category(c)[0] != "C" for c in clean)
    clean.encode()
    assert clean_file_name(clean) == clean

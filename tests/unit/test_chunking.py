"""Chunks: nothing lost, nothing too long, nothing torn that need not be, everything in its place."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.ingest.chunking import Chunk, chunk_document, count_tokens
from functions.ingest.parsing import ParsedDocument, parse
from functions.ingest.parsing.assembly import Assembly
from functions.ingest.parsing.document import BlockKind
from tests.unit.parsing_material import make_pdf, make_xlsx

KINDS: tuple[BlockKind, ...] = ("heading", "paragraph", "paragraph", "paragraph", "list", "table", "code")
WORDS = st.text("abcdefghij ABCäöüß.,!?0123456789\n-|€漢字🙂\u0301", min_size=1, max_size=400)
LONG = st.builds(lambda word, times: word * times, WORDS, st.integers(1, 60))
BLOCKS = st.lists(st.tuples(st.sampled_from(KINDS), st.one_of(WORDS, LONG), st.integers(1, 6)), max_size=30)
SIZES = st.sampled_from([(800, 1200, 80), (100, 150, 20), (40, 40, 0), (20, 60, 10), (8, 8, 4), (300, 300, 150)])


def document_of(blocks: list[tuple[BlockKind, str, int]]) -> ParsedDocument:
    assembly = Assembly()
    for kind, text, level in blocks:
        assembly.add(kind, text, level=level if kind == "heading" else 0)
    return assembly.finish("text/plain")


def sentences(count: int, word: str = "Satz") -> str:
    return " ".join(f"Dies ist der {word} mit der Zahl {number} und ein paar Worten mehr." for number in range(count))


@settings(max_examples=150, deadline=None)
@given(BLOCKS, SIZES)
def test_every_document_is_covered_in_order_and_within_limits(
    blocks: list[tuple[BlockKind, str, int]], sizes: tuple[int, int, int]
) -> None:
    """Exact offsets, ascending, complete, at most `maximum` tokens, at most `overlap` repeated, the same every time."""
    document = document_of(blocks)
    size, maximum, overlap = sizes
    chunks = chunk_document(document, size=size, maximum=maximum, overlap=overlap)
    assert chunks == chunk_document(document, size=size, maximum=maximum, overlap=overlap)
    assert bool(chunks) == bool(document.text)
    reached = 0
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert chunk.text == document.text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.tokens == count_tokens(chunk.text) <= maximum
        assert not document.text[reached : chunk.start].strip()
        assert number == 0 or chunk.start > chunks[number - 1].start
        assert chunk.end > reached
        assert count_tokens(document.text[chunk.start : reached]) <= overlap
        assert len(chunk.heading_path) <= 8
        json.dumps(chunk.position)
        reached = chunk.end
    assert not document.text[reached:].strip()


@given(st.text(max_size=300), st.text(max_size=300))
def test_the_estimate_is_additive(one: str, other: str) -> None:
    """Parts never count for less than the whole, and the whole never for less than a part."""
    together = count_tokens(one + other)
    assert together <= count_tokens(one) + count_tokens(other) <= together + 1
    assert together >= count_tokens(one)


def test_the_estimate_is_near_what_models_see() -> None:
    """Counts of OpenAI's o200k_base (tiktoken 0.14.0), taken in November 2026."""
    for text, tokens in (
        ("The quick brown fox jumps over the lazy dog.", 10),
        ("Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung.", 22),
    ):
        assert tokens * 0.7 <= count_tokens(text) <= tokens * 1.4


def test_small_sections_are_put_together_under_what_they_share() -> None:
    """Ten short paragraphs of a law are one chunk below their common heading."""
    text = "# Gesetz\n\n" + "\n\n".join(f"## § {number}\n\n{sentences(3)}" for number in range(6))
    (chunk,) = chunk_document(parse(text.encode(), name="a.md"))
    assert chunk.heading_path == ("Gesetz",)


def test_long_sections_start_chunks_of_their_own() -> None:
    """A heading is the beginning of a chunk, never its end."""
    text = "# A\n\n" + sentences(30) + "\n\n# B\n\n" + sentences(30)
    chunks = chunk_document(parse(text.encode(), name="a.md"))
    assert [chunk.heading_path for chunk in chunks] == [("A",), ("B",)]
    assert chunks[1].text.startswith("B\n\n")
    assert chunks[0].end < chunks[1].start


def test_only_a_long_section_overlaps_and_by_whole_sentences() -> None:
    """What is repeated begins with a sentence and stays under 80 tokens."""
    text = "# A\n\n" + "\n\n".join(sentences(10, f"Teil{number}") for number in range(20))
    chunks = chunk_document(parse(text.encode(), name="a.md"))
    assert len(chunks) > 3
    for before, after in pairwise(chunks):
        shared = before.end - after.start
        assert shared > 0
        assert count_tokens(after.text[:shared]) <= 80
        assert after.text.startswith("Dies ist der")
        assert after.heading_path == ("A",)


def test_sentences_are_not_torn_at_dates_and_abbreviations() -> None:
    """A long paragraph is cut after sentences: not in "31. März" and not in "Nr. 3"."""
    text = " ".join(
        f"Am 31. März {year} trat z. B. der Absatz Nr. 3 in Kraft, wie es vorgesehen war." for year in range(1000, 1300)
    )
    chunks = chunk_document(parse(text.encode(), name="a.txt"))
    assert len(chunks) > 5
    assert all(chunk.text.startswith("Am 31.") and chunk.text.endswith("war.") for chunk in chunks)


def test_lists_and_tables_stay_whole_up_to_the_maximum() -> None:
    """A table that fits into one chunk is in one chunk, even when the chunk before it ends early."""
    table = "\n".join(f"| Zeile {number} | {number * 7} | ein Text dazu |" for number in range(110))
    text = f"# A\n\n{sentences(25)}\n\n| a | b | c |\n|---|---|---|\n{table}\n\n{sentences(25)}"
    document = parse(text.encode(), name="a.md")
    block = next(block for block in document.blocks if block.kind == "table")
    assert 800 < count_tokens(document.text[block.start : block.end]) < 1200
    assert any(chunk.start <= block.start and block.end <= chunk.end for chunk in chunk_document(document))


def test_a_table_too_large_is_cut_between_rows_and_keeps_its_header() -> None:
    """Each part names its cells and carries the first row as `header`."""
    rows: list[list[object]] = [["Artikel", "Preis", "Bemerkung"]]
    rows += [[f"Teil {number}", number, "eine längere Bemerkung dazu"] for number in range(400)]
    chunks = chunk_document(parse(make_xlsx({"Lager": rows})))
    assert len(chunks) > 3
    covered: list[int] = []
    for chunk in chunks:
        assert chunk.heading_path == ("Lager",)
        (place,) = chunk.position["sheets"]
        assert place["sheet"] == "Lager"
        first, last = (int("".join(filter(str.isdigit, cell))) for cell in place["cells"].split(":"))
        lines = [line for line in chunk.text.splitlines() if " | " in line]
        assert last - first + 1 == len(lines)
        assert lines[-1].startswith(f"Teil {last - 2} |")
        covered += range(first, last + 1)
    assert sorted(set(covered)) == list(range(1, 402))
    assert all(chunk.position["header"] == "Artikel | Preis | Bemerkung" for chunk in chunks[1:])
    assert "header" not in chunks[0].position


def test_pages_and_boxes_show_where_a_chunk_stands() -> None:
    """A chunk of a PDF names its pages and one box a paragraph; a part of a paragraph has the box of its lines."""
    line = "Eine Zeile mit Text, die etwa so lang ist wie eine gedruckte"
    pages = [[(72, 800 - 14 * row, 11, f"{line} {number}-{row}") for row in range(50)] for number in range(3)]
    chunks = chunk_document(parse(make_pdf(pages)))
    assert sorted({page for chunk in chunks for page in chunk.position["pages"]}) == [1, 2, 3]
    for chunk in chunks:
        assert {box[0] for box in chunk.position["boxes"]} == set(chunk.position["pages"])
        for _, x0, y0, x1, y1 in chunk.position["boxes"]:
            assert 70 < x0 < x1 < 595
            assert 0 < y0 < y1 < 842
    first = chunks[0].position["boxes"][0]
    assert first[4] > 800
    assert first[2] > 842 - 50 * 14, "the box of a part is not that of the whole page"


def test_each_chunk_has_its_own_language() -> None:
    """A document in two languages gives chunks in two; short chunks have the document's, others are simple."""
    german = "Der Vertrag wird von beiden Seiten unterschrieben und ist nicht ohne Grund kündbar. " * 30
    english = "The contract is signed by both of the sides and cannot be terminated without a reason. " * 30
    french = "Le contrat est signé par les deux parties et ne peut pas être résilié sans motif valable. " * 30
    text = f"# A\n\n{german}\n\n# B\n\n{english}\n\n# C\n\n{french}"
    chunks = chunk_document(parse(text.encode(), name="a.md"))
    assert [chunk.language for chunk in chunks] == ["de", "en", "simple"]


def test_headings_without_levels_and_monstrous_headings_do_no_harm() -> None:
    """A heading as long as a chapter is text too; in the path it is shortened."""
    document = document_of([("heading", "Wort " * 5_000, 1), ("paragraph", "Ende.", 0)])
    chunks = chunk_document(document)
    assert all(len(chunk.heading_path[0]) <= 200 for chunk in chunks)
    assert chunks[-1].text.endswith("Ende.")


def test_sizes_that_contradict_each_other_are_refused() -> None:
    """An overlap over half the size would never come to an end."""
    for sizes in ({"size": 100, "overlap": 60}, {"size": 2000}, {"overlap": -1}, {"size": 0, "maximum": 0}):
        with pytest.raises(ValueError, match="chunk sizes"):
            chunk_document(document_of([]), **sizes)


def test_an_empty_document_has_no_chunks() -> None:
    """Nothing in, nothing out."""
    assert chunk_document(ParsedDocument("", "text/plain")) == []
    assert isinstance(chunk_document(document_of([("paragraph", "x", 0)]))[0], Chunk)

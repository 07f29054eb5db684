"""Subscription filters: the documented grammar, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.bus.filters import parse
from local.bus.refusal import Refused

_ATTRIBUTES = {"name": "embed-chunks", "tenant": "t1", "iana.org/lang": "de"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("attributes:name", True),
        ("attributes:absent", False),
        ('attributes.name = "embed-chunks"', True),
        ('attributes.name="embed"', False),
        ('attributes.absent = ""', False),
        ('attributes.name != "embed-chunks"', False),
        ('attributes.absent != "x"', True),
        ('hasPrefix(attributes.name, "embed")', True),
        ('hasPrefix(attributes.absent, "")', False),
        ('attributes."iana.org/lang" = "de"', True),
        ("NOT attributes:name", False),
        ("-attributes:absent", True),
        ('attributes:name AND attributes.tenant = "t2"', False),
        ('attributes:name AND NOT attributes.tenant = "t2"', True),
        ("attributes:absent OR attributes:name", True),
        ("attributes:name AND (attributes:absent OR attributes:tenant)", True),
        ("NOT (attributes:name AND attributes:tenant)", False),
    ],
)
def test_a_filter_decides_by_attributes(text: str, expected: bool) -> None:
    """Each form of the grammar on one message."""
    assert parse(text)(_ATTRIBUTES) is expected


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "attributes",
        "attributes.name",
        "attributes.name = embed",
        "attributes.name = 'x'",
        'attributes.name == "x"',
        'attributes.name = "x',
        "attributes:a AND",
        "attributes:a attributes:b",
        "attributes:a AND attributes:b OR attributes:c",
        "(attributes:a",
        "attributes:a)",
        "NOT NOT attributes:a",
        "hasPrefix(attributes.a)",
        'hasprefix(attributes.a, "x")',
        "attributes:a and attributes:b",
        "attributes:" + "k" * 256,
        "attributes:a ;",
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    """INVALID_ARGUMENT instead of a guess."""
    with pytest.raises(Refused):
        parse(text)


@given(st.text(max_size=60))
def test_any_string_can_be_compared_with(value: str) -> None:
    """Quotes and backslashes in a value are escaped and come back."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    if len(f'attributes.k = "{quoted}"'.encode()) <= 256:
        assert parse(f'attributes.k = "{quoted}"')({"k": value})


@given(st.text(alphabet='attributes:.()"= ANDORNOT-!,k\\', max_size=40))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    """Either a predicate or a refusal."""
    with contextlib.suppress(Refused):
        assert parse(text)({}) in (True, False)

"""From bytes to characters: byte order mark, UTF-8, a declared charset, then a detector."""

from __future__ import annotations

import codecs
import re

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What web pages call Latin-1 and ASCII is Windows-1252 (WHATWG Encoding Standard, section 4.2).
_ALIASES = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
_SAMPLE = 65_536
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def decode(data: bytes, declared: str | None = None) -> tuple[str, bool]:
    """The text of `data` and whether every byte made sense; `declared` is only believed where it fits."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _strictly_or_replaced(data[len(mark) :], encoding)
    wide = _wide_encoding(data)
    if wide:
        return _strictly_or_replaced(data, wide)
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        mended = data.decode("utf-8", "replace")
    broken = mended.count("\ufffd")
    if broken * 10 <= len(_BEYOND_ASCII.findall(mended)) - broken:
        return mended, False  # a few damaged bytes in what is otherwise UTF-8
    for encoding in _usable(declared):
        try:
            return data.decode(encoding), True
        except UnicodeDecodeError:
            continue
    return _strictly_or_replaced(data, _detected(data))


_ASCII_LETTER = re.compile(rb"[A-Za-z]")
_WESTERN = frozenset("äöüÄÖÜßéÉçÇ§°€–")


def looks_binary(data: bytes) -> bool:
    """Whether these bytes are no text in any encoding we read: controls that no writer of text uses."""
    sample = data[:_SAMPLE]
    if any(sample.startswith(mark) for mark, _ in _BOMS) or _wide_encoding(sample):
        return False
    return len(_CONTROLS.findall(sample)) > max(3, len(sample) // 50)


def _usable(declared: str | None) -> tuple[str, ...]:
    """The declared charset if Python knows it as a text encoding that can hold single bytes."""
    name = (declared or "").strip().strip("\"'").lower()
    name = _ALIASES.get(name, name)
    if not name or name.startswith(("utf", "ucs")):
        return ()  # UTF-8 was tried, and wide text would have shown itself
    try:
        info = codecs.lookup(name)
    except (LookupError, ValueError):
        return ()
    return (info.name,) if info._is_text_encoding else ()


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 without a mark: Latin text has a zero in every other byte."""
    sample = data[: _SAMPLE & ~1]
    pairs = len(sample) // 2
    if pairs < 4:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if odd > pairs * 0.4 and even < pairs * 0.05:
        return "utf-16-le"
    if even > pairs * 0.4 and odd < pairs * 0.05:
        return "utf-16-be"
    return None


def _detected(data: bytes) -> str:
    """Windows-1252 for what can only be that, else the detector's guess over a sample with bytes outside ASCII."""
    if _western(data[:_SAMPLE]):
        return "cp1252"
    import charset_normalizer  # late: 20 ms, and nearly every text is UTF-8

    first = next((index for index, byte in enumerate(data) if byte > 127), 0)
    best = charset_normalizer.from_bytes(data[max(0, first - 1024) :][:_SAMPLE]).best()
    return best.encoding if best else "cp1252"


def _western(sample: bytes) -> bool:
    """Whether all that is outside ASCII are umlauts and signs of Windows-1252, among many more letters of ASCII.

    The detector takes short German texts for DOS code pages ("geprüft" became "gepr³ft"); Windows-1250 and ISO 8859-1
    have these at the same places, and a Cyrillic text has few letters of ASCII.
    """
    try:
        beyond = [char for char in sample.decode("cp1252") if ord(char) > 127]
    except UnicodeDecodeError:
        return False
    return set(beyond) <= _WESTERN and 4 * len(beyond) < len(_ASCII_LETTER.findall(sample))


def _strictly_or_replaced(data: bytes, encoding: str) -> tuple[str, bool]:
    try:
        return data.decode(encoding), True
    except UnicodeDecodeError:
        return data.decode(encoding, errors="replace"), False

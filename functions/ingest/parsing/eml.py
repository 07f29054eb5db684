"""E-mail by the standard library: head lines, body as plain text (or its HTML), attachments as children."""

from __future__ import annotations

import email
import email.errors
import email.policy
from collections.abc import Iterator
from email.message import Message

from functions.ingest.parsing.assembly import Assembly, clean, one_line
from functions.ingest.parsing.decoding import decode
from functions.ingest.parsing.document import Attachment, ParsedDocument
from functions.ingest.parsing.html import add_html
from functions.ingest.parsing.reasons import failure
from functions.ingest.parsing.sniffing import EML
from functions.ingest.parsing.text import add_text

MAX_PARTS = 2_000
MAX_ATTACHMENTS = 200
MAX_DEPTH = 30
"""Multiparts inside each other; mail programs make five at most."""
_HEADS = ("From", "To", "Cc", "Subject", "Date")
_MAX_HEAD = 2_000
# What the header parser of the standard library raises on malformed headers when they are read.
_HEADER_DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, LookupError, email.errors.MessageError)


def parse_eml(data: bytes) -> ParsedDocument:
    """The document; its title is the subject. Attachments keep their bytes and are documents of their own."""
    message = email.message_from_bytes(data.lstrip(), policy=email.policy.default)
    assembly = Assembly()
    heads = {name: _head(message, name) for name in _HEADS}
    assembly.add("paragraph", "\n".join(f"{name}: {value}" for name, value in heads.items() if value))
    plain: list[Message] = []
    pages: list[Message] = []
    children: list[Attachment] = []
    for part in _parts(message, 0, [0]):
        kind = part.get_content_type()
        if _is_encrypted(part, kind):
            raise failure("encrypted")
        if _is_attachment(part, kind):
            _attach(part, kind, children, assembly)
        elif kind == "text/html":
            pages.append(part)
        else:
            plain.append(part)
    _body(plain, pages, assembly)
    metadata = {name.lower(): value for name, value in heads.items()} | {"message-id": _head(message, "Message-ID")}
    return assembly.finish(EML, title=heads["Subject"], children=children, metadata=metadata)


def _head(message: Message, name: str) -> str:
    """A decoded header on one line, "" when absent or beyond repair."""
    try:
        value = message.get(name)
    except _HEADER_DAMAGE:
        value = next((raw for key, raw in message.raw_items() if key.lower() == name.lower()), "")
    return one_line(clean(str(value or "")))[:_MAX_HEAD]


def _parts(message: Message, depth: int, count: list[int]) -> Iterator[Message]:
    """The leaves of a message; an attached message is a leaf. `count` counts them over all levels."""
    if depth > MAX_DEPTH:
        raise failure("too-deep", f"{MAX_DEPTH} parts inside each other")
    payload = message.get_payload()
    if message.is_multipart() and isinstance(payload, list) and message.get_content_maintype() != "message":
        for part in payload:
            if isinstance(part, Message):
                yield from _parts(part, depth + 1, count)
        return
    count[0] += 1
    if count[0] > MAX_PARTS:
        raise failure("too-large", f"more than {MAX_PARTS:,} parts")
    yield message


def _is_encrypted(part: Message, kind: str) -> bool:
    if kind == "application/pgp-encrypted":
        return True
    return (
        kind in ("application/pkcs7-mime", "application/x-pkcs7-mime") and part.get_param("smime-type") != "signed-data"
    )


def _is_attachment(part: Message, kind: str) -> bool:
    """Whether a part is a document of its own: neither body nor a picture shown inside the body."""
    disposition = _disposition(part)
    if kind.startswith("message/"):
        return True
    if kind.startswith("text/"):
        named = disposition == "attachment" or bool(disposition != "inline" and _file_name(part))
        return named or kind not in ("text/plain", "text/html")  # an invitation, a business card
    return True


def _disposition(part: Message) -> str:
    try:
        return part.get_content_disposition() or ""
    except _HEADER_DAMAGE:
        return ""


def _file_name(part: Message) -> str:
    try:
        return one_line(clean(part.get_filename() or "")).replace("/", "_").replace("\\", "_")[:200]
    except _HEADER_DAMAGE:
        return ""


def _attach(part: Message, kind: str, children: list[Attachment], assembly: Assembly) -> None:
    if kind.startswith("image/") and (part.get("Content-ID") or _disposition(part) == "inline"):
        return
    if kind in ("application/pkcs7-signature", "application/x-pkcs7-signature", "application/pgp-signature"):
        return
    if kind.startswith("message/") and kind != "message/rfc822":
        return  # delivery reports and the like repeat the head lines
    if len(children) >= MAX_ATTACHMENTS:
        assembly.warn("attachments-cut")
        return
    try:
        data = _bytes(part)
    except (*_HEADER_DAMAGE, UnicodeError):
        assembly.warn("parts-unreadable")
        return
    if data:
        children.append(Attachment(_file_name(part) or f"attachment-{len(children) + 1}", kind, data))


def _bytes(part: Message) -> bytes:
    """The content of a part, transfer encoding undone; an attached message as it was sent."""
    payload = part.get_payload()
    if isinstance(payload, list):
        return b"".join(inner.as_bytes() for inner in payload if isinstance(inner, Message))
    decoded = part.get_payload(decode=True)
    return decoded if isinstance(decoded, bytes) else b""


def _body(plain: list[Message], pages: list[Message], assembly: Assembly) -> None:
    """Plain text where there is any worth reading, otherwise the HTML that says the same."""
    texts = [text for part in plain if (text := _text(part)).strip()]
    if texts:
        for text in texts:
            add_text(text, assembly)
        return
    for part in pages:
        add_html(_text(part), assembly)


def _text(part: Message) -> str:
    return decode(_bytes(part), part.get_content_charset())[0]

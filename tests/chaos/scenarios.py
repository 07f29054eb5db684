"""The stories of a document that are interrupted everywhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from uuid import UUID

from shared.events import DocumentSubmitted, DocumentWithdrawn, TenantMessage

SECTIONS = 6


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happened `before`, undisturbed, and the messages that are then interrupted."""

    name: str
    before: Callable[[UUID, str], Sequence[TenantMessage]]
    messages: Callable[[UUID, str], Sequence[TenantMessage]]


def markdown(marker: str, changed: int = 0, sections: int = SECTIONS) -> bytes:
    """Sections of a chunk each; the first `changed` ones differ from those of version 1."""
    words = " ".join(f"word{n}" for n in range(280))  # nearly a whole chunk: small sections would be put together
    parts = [
        f"## Section {n}\n\nOf {marker} the {n}th part, {'changed' if n < changed else 'as it was'}. {words}."
        for n in range(sections)
    ]
    return ("# A document\n\n" + "\n\n".join(parts) + "\n").encode()


def mail(marker: str) -> bytes:
    """A mail with an attachment: two documents out of one."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.org", "b@example.org", f"About {marker}"
    message.set_content(f"The mail of {marker} says hello.")
    message.add_attachment(markdown(marker, sections=1), maintype="text", subtype="markdown", filename="attached.md")
    return message.as_bytes()


def submitted(tenant: UUID, name: str, data: bytes, version: int) -> DocumentSubmitted:
    """A submission with inline content."""
    content = base64.b64encode(data).decode()
    return DocumentSubmitted(
        tenant_id=tenant, external_id=name, file_name=name, source_version=version, content=content
    )


def _nothing(_tenant: UUID, _marker: str) -> list[TenantMessage]:
    return []


def _first(tenant: UUID, marker: str) -> list[TenantMessage]:
    return [submitted(tenant, "doc.md", markdown(marker), 1)]


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("a new document", _nothing, _first),
        Scenario(
            "a new version with two of six chunks changed",
            _first,
            lambda tenant, marker: [submitted(tenant, "doc.md", markdown(marker, changed=2), 2)],
        ),
        Scenario(
            "a new version with the same content",
            _first,
            lambda tenant, marker: [submitted(tenant, "doc.md", markdown(marker), 2)],
        ),
        Scenario(
            "a withdrawal",
            _first,
            lambda tenant, _marker: [DocumentWithdrawn(tenant_id=tenant, external_id="doc.md", source_version=2)],
        ),
        Scenario(
            "a corrupt new version",
            _first,
            lambda tenant, marker: [submitted(tenant, "doc.md", b"%PDF-1.7 " + marker.encode(), 2)],
        ),
        Scenario(
            "a mail with an attachment",
            _nothing,
            lambda tenant, marker: [submitted(tenant, "mail.eml", mail(marker), 1)],
        ),
        Scenario(
            "an older version that comes late",
            lambda tenant, marker: [submitted(tenant, "doc.md", markdown(marker, changed=2), 2)],
            _first,
        ),
    )
}

"""Versions in progress that a newer word of their source has overtaken end: nobody waits or pays for them.

A version is overtaken when a newer one answers, when a newer one turns out to be what answers already (the source has
taken its change back), and when it is delivered again although a newer one is known. The caller holds the document.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.errors import Superseded


class Overtaken(Superseded):
    """A newer version of the document is known than the one that was delivered."""


# What was laid aside for them goes too: its turn would be lost on a message that finds nothing to do.
_END = """
with ended as (update rag.versions set state = 'superseded', waiting = null, waiting_until = null, updated_at = now()
    where tenant_id = :tenant and document_id = :document and {which} returning version_id)
delete from core.waiting_messages where tenant_id = :tenant and version_id in (select version_id from ended)
"""


def end_older(session: Session, tenant_id: UUID, document_id: UUID, source_version: int) -> None:
    """End what is in progress of the versions before one that decides what the document says."""
    session.execute(
        text(_END.format(which="state in ('received', 'ingested') and source_version < :number")),
        {"tenant": tenant_id, "document": document_id, "number": source_version},
    )


def end_unread(session: Session, tenant_id: UUID, document_id: UUID, source_version: int) -> None:
    """End an overtaken version that was received and never read: its message has just been the last one.

    One that was read goes on by itself: it may answer until the newer one is ready.
    """
    session.execute(
        text("select from rag.documents where tenant_id = :tenant and document_id = :document for update"),
        {"tenant": tenant_id, "document": document_id},
    )
    session.execute(
        text(_END.format(which="state = 'received' and source_version = :number")),
        {"tenant": tenant_id, "document": document_id, "number": source_version},
    )

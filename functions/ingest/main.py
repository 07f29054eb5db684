"""The doors of ingest: documents from upstream systems and from web."""

from __future__ import annotations

import functions_framework

from functions.ingest.ingestion import ingest_document, withdraw_document
from functions.ingest.web_pages import ingest_web_page, is_web_address
from shared.doors import Delivery, handles, services
from shared.events import DocumentSubmitted, DocumentWithdrawn


@functions_framework.http
@handles(DocumentSubmitted, DocumentWithdrawn)
def ingest(message: DocumentSubmitted | DocumentWithdrawn, delivery: Delivery) -> None:
    """Store the chunks of a submitted document, or take a withdrawn one out of every answer."""
    if isinstance(message, DocumentWithdrawn):
        withdraw_document(message, delivery.source)
    elif is_web_address(message.uri):
        ingest_web_page(message, delivery.source, services())
    else:
        ingest_document(message, delivery.source, services())

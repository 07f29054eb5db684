"""A batch of chunks gets its vectors: what is missing is embedded once, stored, and the version finished."""

from __future__ import annotations

import logging

from shared.database import tenant_session
from shared.documents.completion import finish_version
from shared.documents.intake import fail_version
from shared.documents.vectors import chunks_without_vector, space_of, store_vectors
from shared.errors import PermanentError, Superseded
from shared.events import EmbedChunks
from shared.services import Services

log = logging.getLogger(__name__)


def embed_chunks(command: EmbedChunks, services: Services) -> None:
    """Embed the chunks of the batch that lack a vector, and make the version searchable when it is complete.

    A repeat finds nothing missing and pays nothing. Raises Superseded when the space is gone, Postponed and
    TransientError as the model proxy does; what the model refuses for good ends as the version's failure.
    """
    tenant_id, version_id, space_id = command.tenant_id, command.version_id, command.space_id
    with tenant_session(tenant_id) as session:
        space = space_of(session, space_id)
        if space is None:
            raise Superseded("the vector space is gone")
        waiting = chunks_without_vector(session, tenant_id, version_id, space_id, command.chunk_ids)
        if not waiting:
            finish_version(session, tenant_id, version_id)
            return
    model, dimension = space
    texts = [text for _, text in waiting]
    try:
        # No transaction is open while the model works: a connection is worth more than a lock here.
        vectors = services.models.embed(texts, model=model, dimension=dimension, input_type="passage")
    except PermanentError as error:
        log.warning("version failed: %s", error.reason, extra={"version_id": version_id})
        with tenant_session(tenant_id) as session:
            fail_version(session, tenant_id, version_id, error)
        return
    with tenant_session(tenant_id) as session:
        stored = store_vectors(session, tenant_id, space_id, [chunk_id for chunk_id, _ in waiting], vectors)
        searchable = finish_version(session, tenant_id, version_id)
    log.info("embedded", extra={"version_id": version_id, "vectors": stored, "searchable": searchable})

"""The door of embed: batches of chunks."""

from __future__ import annotations

import functions_framework

from functions.embed.embedding import embed_chunks
from shared.doors import Delivery, handles, services
from shared.events import EmbedChunks


@functions_framework.http
@handles(EmbedChunks)
def embed(command: EmbedChunks, delivery: Delivery) -> None:
    """Give the chunks of a batch their vectors."""
    embed_chunks(command, services())

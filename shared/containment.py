"""Work for one tenant after another: what goes wrong for one keeps no other waiting."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from shared.database import LostWrite

log = logging.getLogger(__name__)


@contextmanager
def contained(tenant_id: UUID, what: str, counts: MutableMapping[str, int] | None = None) -> Iterator[None]:
    """Log `what` failed for a tenant when the database refuses it, count it as `failed`, and go on behind the block.

    For what is tried again anyway, by the next minute's or the next day's run. Raises what is everybody's: the
    database, or the way to it, is not there.
    """
    try:
        yield
    except (InterfaceError, OperationalError):
        raise
    except (DBAPIError, LostWrite) as error:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        log.exception("%s", what, extra={"tenant": str(tenant_id)})
        if counts is not None:
            counts["failed"] = counts.get("failed", 0) + 1


__all__ = ["contained"]

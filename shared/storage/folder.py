"""Blobs as files below a folder, for a laptop."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

from shared.storage.keys import KEY, PIECE, Blob, SignedUpload, UploadTerms, missing, own_key, too_large, verified

_TENANT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class FolderStorage:
    """Blobs as files below a folder; a write is complete or not there (temporary file, fsync, rename).

    Renewing, renaming into place and deleting happen under a lock on the tenant's folder, so that what `put` found
    there stays there. The time of the last change is the blob's version.
    """

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")
        self._folder = Path(unquote(urlsplit(root).path))

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their file URI."""
        return self._store(tenant_id, hashlib.sha256(data).hexdigest(), (data,))

    def put_file(self, tenant_id: UUID, file: IO[bytes]) -> str:
        """Store a file and return its URI."""
        file.seek(0)
        content_hash = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # any binary file
        file.seek(0)
        return self._store(tenant_id, content_hash, iter(lambda: file.read(PIECE), b""))

    def _store(self, tenant_id: UUID, content_hash: str, pieces: Iterator[bytes] | tuple[bytes, ...]) -> str:
        uri = self.uri(tenant_id, content_hash)
        if self.refresh(tenant_id, uri) is not None:
            return uri
        folder = self._folder / str(tenant_id)
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{uuid4().hex}"
        try:
            with draft.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            with _locked(folder):
                draft.replace(folder / content_hash)
        finally:
            draft.unlink(missing_ok=True)
        return uri

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a file URI of this tenant."""
        name = own_key(self._root, tenant_id, uri)
        path = self._folder / name
        try:
            if path.stat().st_size > limit:
                raise too_large(limit)
            return verified(name, path.read_bytes())
        except FileNotFoundError:
            raise missing() from None

    def read(self, tenant_id: UUID, uri: str) -> Iterator[bytes]:
        """The bytes in pieces."""
        try:
            with (self._folder / own_key(self._root, tenant_id, uri)).open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
        except FileNotFoundError:
            raise missing() from None

    def uri(self, tenant_id: UUID, content_hash: str) -> str:
        """The file URI of a content."""
        return f"{self._root}/{tenant_id}/{content_hash}"

    def find(self, tenant_id: UUID, uri: str) -> Blob | None:
        """What is behind a file URI."""
        return _seen(self._folder / own_key(self._root, tenant_id, uri))

    def refresh(self, tenant_id: UUID, uri: str) -> Blob | None:
        """Give a blob the present as its time, and always a later one than it had."""
        path = self._folder / own_key(self._root, tenant_id, uri)
        try:
            with _locked(path.parent):
                now = max(time.time_ns(), path.stat().st_mtime_ns + 1)
                os.utime(path, ns=(now, now))
                return _seen(path)
        except FileNotFoundError:
            return None

    def blobs(self, tenant_id: UUID | None = None, after: str = "") -> Iterator[Blob]:
        """All blobs in order."""
        tenants = [str(tenant_id)] if tenant_id else _names(self._folder)
        for tenant in sorted(name for name in tenants if _TENANT.fullmatch(name) and name >= after[:36]):
            for name in sorted(_names(self._folder / tenant)):
                key = f"{tenant}/{name}"
                if KEY.fullmatch(key) and key > after and (blob := _seen(self._folder / key)):
                    yield blob

    def delete(self, blob: Blob) -> bool:
        """Delete a file that nobody has renewed since."""
        path = self._folder / blob.key
        try:
            with _locked(path.parent):
                seen = _seen(path)
                if seen is None or seen.version != blob.version:
                    return False
                path.unlink()
                return True
        except FileNotFoundError:
            return False

    def erase(self, tenant_id: UUID) -> Iterator[int]:
        """Delete the tenant's folder with all that is in it."""
        folder = self._folder / str(tenant_id)
        for name in sorted(_names(folder)):
            try:
                size = (folder / name).stat().st_size
                (folder / name).unlink()
            except FileNotFoundError:
                continue
            yield size
        if folder.is_dir() and not _names(folder):
            with _locked(folder):
                folder.rmdir()

    def tidy(self, before: datetime) -> int:
        """Remove drafts of writers that were killed."""
        removed = 0
        for tenant in _names(self._folder):
            for name in _names(self._folder / tenant) if _TENANT.fullmatch(tenant) else ():
                draft = self._folder / tenant / name
                if name.startswith(".") and draft.stat().st_mtime < before.timestamp():
                    draft.unlink(missing_ok=True)
                    removed += 1
        return removed

    def sign_upload(self, tenant_id: UUID, terms: UploadTerms, lifetime: timedelta) -> SignedUpload | None:
        """A folder has no address of its own: web takes the upload (`shared.documents.uploads`)."""
        return None


def _seen(path: Path) -> Blob | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    changed = datetime.fromtimestamp(found.st_mtime, UTC)
    version = f"{found.st_mtime_ns}-{found.st_ino}"
    return Blob(UUID(path.parent.name), path.name, found.st_size, version, changed)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises FileNotFoundError when there is none."""
    while True:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Erasing may have removed the folder while we waited, and somebody made another.
            if folder.exists() and os.fstat(descriptor).st_ino == folder.stat().st_ino:
                yield
                return
        finally:
            os.close(descriptor)

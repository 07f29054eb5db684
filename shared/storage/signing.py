"""Who signs an upload: a service account by IAM's signBlob, or the key of this process. Imported late, for Google's
libraries."""

from __future__ import annotations

from typing import Any

import google.auth
from google.auth import iam
from google.auth.credentials import Signing
from google.auth.exceptions import DefaultCredentialsError
from google.auth.transport.requests import Request

SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class IamSigning(Signing):  # type: ignore[misc] # Google's library is untyped
    """Signs in the name of a service account whose key nobody has; needs `iam.serviceAccounts.signBlob` on it."""

    def __init__(self, signer: iam.Signer, email: str) -> None:
        self._signer, self._email = signer, email

    def sign_bytes(self, message: bytes) -> bytes:
        """The signature of IAM. Raises google.auth.exceptions.TransportError when IAM refuses."""
        signature: bytes = self._signer.sign(message)
        return signature

    @property
    def signer_email(self) -> str:
        """Whose signature it is."""
        return self._email

    @property
    def signer(self) -> iam.Signer:
        """What signs."""
        return self._signer


def signing_credentials(email: str, session: Any = None) -> Any:
    """Credentials that sign for `email`, or with the process's own key; None when there is nothing to sign with."""
    try:
        own, _ = google.auth.default(scopes=(SCOPE,))
    except DefaultCredentialsError:
        return None
    if email:
        return IamSigning(iam.Signer(Request(session), own, email), email)
    # Only a service account's key file can sign by itself; the metadata server's credentials cannot.
    return own if isinstance(own, Signing) and getattr(own, "signer", None) else None

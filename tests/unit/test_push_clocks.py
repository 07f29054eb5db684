"""Clocks differ by seconds, not by minutes: what a token that is a little or well out of its time proves."""

from __future__ import annotations

import time

import jwt
import pytest
from pydantic import SecretStr

from shared.push import NotAuthenticated, PushVerifier
from shared.settings import Settings

BASE, PATH = "https://ingest-xyz.a.run.app", "/sources/upstream"
ISSUER, ACCOUNT = "https://accounts.google.com", "pusher@noesis.iam.gserviceaccount.com"


def verify(issued: int, expires: int) -> None:
    """A token issued and expiring so many seconds from now, as Cloud Run's IAM hands it on."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": BASE + PATH, "email": ACCOUNT, "email_verified": True}
    token = jwt.encode(claims | {"iat": now + issued, "exp": now + expires}, "x" * 32, "HS256")
    settings = Settings(
        database_url=SecretStr("postgresql+pg8000://nobody@127.0.0.1/none"),
        push_audience=BASE,
        push_service_account=ACCOUNT,
        push_issuer=ISSUER,
        push_token_signature="removed",  # a mode, not a password
    )
    PushVerifier(settings).verify(f"Bearer {token.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE", PATH)


@pytest.mark.parametrize(("issued", "expires"), [(-3600, -10), (10, 3600), (-10, 10)])
def test_a_clock_that_is_seconds_off_does_no_harm(issued: int, expires: int) -> None:
    """Half a minute is forgiven, at both ends."""
    verify(issued, expires)


@pytest.mark.parametrize(("issued", "expires"), [(-3600, -120), (120, 3600)])
def test_a_token_that_is_minutes_out_of_its_time_proves_nothing(issued: int, expires: int) -> None:
    """A stolen token must end when it says so."""
    with pytest.raises(NotAuthenticated):
        verify(issued, expires)

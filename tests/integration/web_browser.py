"""A member's browser, as far as pages are asked for and forms are sent."""

from __future__ import annotations

import re

from flask import Flask
from flask.testing import FlaskClient

from shared.tenants.directory import Principal


def token_of(page: str) -> str:
    """The token that the page carries for its scripts."""
    found = re.search(r'name="csrf-token" content="([^"]+)"', page)
    assert found
    return found[1]


def signed_in(app: Flask, member: Principal) -> FlaskClient:
    """A client with the member's session, whose posts carry the token."""
    client = app.test_client()
    for form in ({"email": member.email, "tenant": str(member.tenant_id)}, None):
        client.environ_base["HTTP_X_CSRF_TOKEN"] = token_of(client.get("/").text)
        if form:
            assert client.post("/sign-in", data=form).status_code == 302
    return client

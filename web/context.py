"""What a request may use: the adapters of the application and the member it acts for."""

from __future__ import annotations

from typing import cast

from flask import current_app, g

from shared.services import Services
from shared.tenants.directory import Principal


def services() -> Services:
    """The adapters of this application."""
    return cast(Services, current_app.extensions["services"])


def principal() -> Principal:
    """The signed-in member. Only for views behind the guard of `web.protection`, which has put it there."""
    return cast(Principal, g.principal)

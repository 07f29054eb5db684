"""Signing in and out. For now by e-mail address alone, on this machine, during development (`web.authentication`)."""

from __future__ import annotations

from flask import Blueprint, g, redirect, render_template, request, url_for
from flask_babel import gettext as _
from werkzeug.wrappers import Response

from shared.messaging import storable
from shared.tenants.directory import Principal, memberships
from web import authentication, problems
from web.context import services

blueprint = Blueprint("sign_in", __name__)


@blueprint.get("/sign-in")
def form() -> str | Response:
    """The form, or the start page for whoever is signed in."""
    return redirect(url_for("questions.home")) if g.principal else page()


def page(email: str = "", error: str = "", choices: list[Principal] | None = None) -> str:
    """The sign-in page; `choices` are the tenants to choose from."""
    allowed = authentication.local_sign_in_allowed(services().settings, request)
    return render_template("sign_in.html", allowed=allowed, email=email, error=error, choices=choices or [])


@blueprint.post("/sign-in")
def enter() -> str | Response | tuple[str, int]:
    """Sign in a member of the only, or the chosen, tenant of an e-mail address."""
    if not authentication.local_sign_in_allowed(services().settings, request):
        return problems.refuse(
            403,
            "sign-in-not-allowed",
            _("Signing in is not possible from here."),
            _("Open the page on the computer it runs on."),
        )
    email = storable(request.form.get("email", "")).strip()[:320]
    # Read afresh: whoever was added a second ago may come in.
    authentication.forget_memberships()
    found = memberships(email)
    if not found:
        return page(email, _("No tenant has a member with this address.")), 403
    tenant = request.form.get("tenant", "")
    chosen = [member for member in found if str(member.tenant_id) == tenant] if tenant else found
    if len(chosen) != 1:
        return page(email, choices=found)
    authentication.sign_in(chosen[0])
    return redirect(url_for("questions.home"))


@blueprint.post("/sign-out")
def leave() -> Response:
    """End the session."""
    authentication.sign_out()
    return redirect(url_for("sign_in.form"))

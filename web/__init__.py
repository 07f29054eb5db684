"""The pages and their JSON: a Flask application that asks questions and takes documents, for signed-in members.

Started by gunicorn as `web:create_app()` (gthread). It stores and reads through `shared`; the work itself is done by
the functions, which it reaches only by what it publishes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from shared.errors import SettingsError
from shared.settings import Settings

if TYPE_CHECKING:
    from flask import Flask

    from shared.services import Services

FORM_OVERHEAD = 64 * 1024
"""Bytes that multipart boundaries and headers may add to a document of the largest size."""


def create_app(settings: Settings | None = None, *, services: Services | None = None) -> Flask:
    """The application; `settings` or `services` replace those of the process (tests).

    Raises SettingsError when SECRET_KEY is missing.
    """
    # Imported late: `import web` costs nothing for whoever only looks at the package (import-linter, the CLI).
    from flask import Flask

    from shared.services import Services
    from shared.services import services as process_services
    from shared.tracing import configure_logging
    from shared.tracing.export import configure_tracing
    from web import documents, health, languages, problems, protection, questions, sign_in, uploads

    if services is None:
        services = Services(settings) if settings else process_services()
    settings = services.settings
    if settings.secret_key is None:
        raise SettingsError("SECRET_KEY is not set: give the web a random key of at least 32 characters.")
    configure_logging(settings.log_format)
    configure_tracing(settings)

    app = Flask("web")
    app.extensions["services"] = services
    cloud = settings.noesis_stage != "dev"
    app.config.update(
        SECRET_KEY=settings.secret_key.get_secret_value(),
        MAX_CONTENT_LENGTH=settings.document_max_bytes + FORM_OVERHEAD,
        # Cookies ignore ports, so a laptop's other applications share the jar: the name must be ours alone.
        # `__Host-` makes browsers insist on HTTPS, no Domain and Path=/; on a laptop there is no HTTPS.
        SESSION_COOKIE_NAME="__Host-noesis2_session" if cloud else "noesis2_session",
        SESSION_COOKIE_SECURE=cloud,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(hours=12),
        SESSION_REFRESH_EACH_REQUEST=False,
    )
    app.json.ensure_ascii = False  # type: ignore[attr-defined] # DefaultJSONProvider has it, its base does not
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    languages.install(app)
    problems.install(app)
    protection.install(app)
    for noun in (health, languages, sign_in, documents, uploads, questions):
        app.register_blueprint(noun.blueprint)
    return app

"""German and English: which one a request gets, the catalogues, and what reason codes mean in words.

Catalogues are `translations/<language>/LC_MESSAGES/messages.po`, compiled in memory when the application starts. The
sentences of failures come from the back end in English, beside a stable code; the catalogue holds their translation
under the code (contexts `reason` and `next-action`), and an unknown code falls back to the English sentence.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path

from flask import Blueprint, Flask, redirect, request, url_for
from flask_babel import Babel, get_locale, pgettext
from werkzeug.wrappers import Response

from web.context import services

LANGUAGES = {"en": "English", "de": "Deutsch"}
COOKIE = "noesis2_language"
YEAR = 365 * 24 * 3600
FOLDER = Path(__file__).parent

blueprint = Blueprint("languages", __name__)


def install(app: Flask) -> None:
    """Give the application its catalogues and templates their words."""
    babel = Babel(app, locale_selector=chosen)
    with app.app_context():
        for language in LANGUAGES:
            # Flask-Babel looks here before it looks for compiled files, which we do not have.
            babel.domain_instance.cache[language, "messages"] = catalogue(language)
    app.jinja_env.globals.update(languages=LANGUAGES, language=lambda: str(get_locale()), asset=asset)


@cache
def catalogue(language: str) -> object:
    """The compiled catalogue of a language (about 10 ms, once a process)."""
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po
    from babel.support import Translations

    compiled = BytesIO()
    with (FOLDER / "translations" / language / "LC_MESSAGES" / "messages.po").open("rb") as source:
        write_mo(compiled, read_po(source, locale=language))
    compiled.seek(0)
    return Translations(compiled)


def chosen() -> str:
    """The language of the request: the switch, else what the browser prefers, else English."""
    switched = request.cookies.get(COOKIE, "")
    return switched if switched in LANGUAGES else request.accept_languages.best_match(LANGUAGES, "en")


def explain(reason: str, message: str, next_action: str = "") -> tuple[str, str]:
    """What a failure means and what to do, in the language of the request."""
    if str(get_locale()) == "en" or not reason:
        return message, next_action
    words, advice = pgettext("reason", reason), pgettext("next-action", reason)
    return (message if words == reason else words), (next_action if advice == reason else advice)


@blueprint.post("/language")
def switch() -> Response:
    """Remember the language the person chose."""
    answer = redirect(url_for("questions.home"))
    language = request.form.get("language", "")
    if language in LANGUAGES:
        cloud = services().settings.noesis_stage != "dev"
        answer.set_cookie(COOKIE, language, max_age=YEAR, httponly=True, samesite="Lax", secure=cloud)
    return answer


@lru_cache(maxsize=16)
def _fingerprint(name: str) -> str:
    return hashlib.sha256((FOLDER / "static" / name).read_bytes()).hexdigest()[:12]


def asset(name: str) -> str:
    """The address of a static file, which changes with its content, so that no browser keeps an old one."""
    return url_for("static", filename=name, v=_fingerprint(name))

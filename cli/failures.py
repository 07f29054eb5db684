"""What goes wrong around a command, as one line that says what to do; faults of ours keep their stack."""

from __future__ import annotations

import sys
from collections.abc import Callable


def _database(error: BaseException) -> str | None:
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError  # late: who fails with one has it already

    from shared.database import is_shared_failure

    if isinstance(error, ArgumentError):
        return (
            "An address of the database cannot be read: postgresql+pg8000://USER:PASSWORD@HOST:PORT/NAME is its form."
        )
    if isinstance(error, SQLAlchemyError) and is_shared_failure(error):
        return (
            "The database does not answer. Is the platform up (`noesis status`)? Are DATABASE_URL and "
            "OPERATOR_DATABASE_URL right?"
        )
    return None


def _files(error: BaseException) -> str:
    assert isinstance(error, OSError)
    if isinstance(error, TimeoutError):
        return "There was no answer in time. Is the platform up (`noesis status`)?"
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or type(error).__name__}."


def _google(error: BaseException) -> str:
    return f"Google's services refused ({type(error).__name__}): {error}"


_TOLD: dict[tuple[str, str], Callable[[BaseException], str | None]] = {
    ("builtins", "OSError"): _files,
    ("sqlalchemy.exc", "SQLAlchemyError"): _database,
    ("google.api_core.exceptions", "GoogleAPIError"): _google,
    ("google.auth.exceptions", "GoogleAuthError"): _google,
}
"""Module and class to what is said of it. Only a module that is loaded can have raised, and none is loaded here."""


def foreseen() -> tuple[type[BaseException], ...]:
    """The classes of which `told` may know something."""
    return tuple(getattr(sys.modules[module], name) for module, name in _TOLD if module in sys.modules)


def told(error: BaseException) -> str | None:
    """The line for people, or None for what is no trouble of theirs but a fault of ours."""
    for (module, name), tell in _TOLD.items():
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return tell(error)
    return None

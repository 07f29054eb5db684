"""The errors of the product: two kinds for work (permanent, transient) and two ways to stop early.

A door translates them (`shared.doors`); a use case raises them. Everything else that escapes a use case counts as
transient until the dead letter, because an unknown failure must never lose a document.
"""

from __future__ import annotations

from datetime import datetime


class NoesisError(Exception):
    """Something of ours went wrong; the message says what to do."""


class PermanentError(NoesisError):
    """Trying again cannot help: the input must change.

    `reason` is a stable code in kebab-case (part of the wire contract), the message one sentence for people,
    `next_action` one sentence that says what the sender can do. None of them carries document content.
    """

    def __init__(self, reason: str, message: str, next_action: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.next_action = next_action


class TransientError(NoesisError):
    """Trying again will help, and the cause is shared by everyone (database or bus down): answer 503."""


class TooSlow(TransientError):
    """There was no answer within the time that one may take: trying again helps, and so may asking for less."""


class Postponed(NoesisError):
    """Not now, but at `until` (aware UTC): written to the outbox with `not_before` and acknowledged.

    For whatever concerns one tenant, one document or one provider; `reason` is what people read behind
    "waiting for …".
    """

    def __init__(self, until: datetime, reason: str) -> None:
        super().__init__(f"postponed until {until.isoformat()}: {reason}")
        self.until = until
        self.reason = reason


class Superseded(NoesisError):
    """Somebody else owns this work by now (a newer epoch, a newer version): acknowledge and leave it alone."""


class SettingsError(NoesisError):
    """The environment is incomplete or has an unknown name; the message says which and what to set."""

"""Why a page could not be fetched, as codes that people and upstream systems see."""

from __future__ import annotations

from shared.errors import PermanentError


class FetchFailed(PermanentError):
    """A page was not fetched. `temporary`: the same request may succeed later, `retry_after` says when (seconds)."""

    def __init__(
        self, reason: str, message: str, next_action: str, *, temporary: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(reason, message, next_action)
        self.temporary = temporary
        self.retry_after = retry_after


def not_allowed(why: str) -> FetchFailed:
    """The URL itself is refused, before anything is resolved."""
    return FetchFailed(
        "url-not-allowed", f"The URL is not one that may be fetched: {why}.", "Give the public https address of a page."
    )


def address_not_allowed() -> FetchFailed:
    """The host leads into a private or special network. Says nothing about which: that would be a port scan."""
    return FetchFailed(
        "address-not-allowed",
        "The host does not lead to a public address.",
        "Give a public address, or have an operator allow this host (WEB_SOURCES_ALLOW).",
    )


def unreachable(what: str) -> FetchFailed:
    """The host does not answer, or not properly."""
    return FetchFailed(
        "web-unreachable",
        f"The web server cannot be reached: {what}.",
        "Check the address; it is tried again by itself.",
        temporary=True,
    )


def timed_out() -> FetchFailed:
    """The server took longer than the limits."""
    return FetchFailed(
        "web-timeout",
        "The web server took longer than the limit.",
        "Check whether the page loads; it is tried again by itself.",
        temporary=True,
    )


def page_too_large(limit: int) -> FetchFailed:
    """The body, as sent or decompressed, is larger than allowed."""
    return FetchFailed("too-large", f"The page is larger than {limit:,} bytes.", "Link to a smaller document.")

"""robots.txt (RFC 9309): what the owner of a site lets us fetch, and how fast. Pure but for `ask`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from urllib.parse import quote, urlsplit

from shared.fetching.client import USER_AGENT, Fetcher, Limits
from shared.fetching.failures import FetchFailed

SIZE = 512 * 1024
"""More is not read; RFC 9309 section 2.5 asks for at least 500 KiB."""

KEPT = timedelta(hours=24)
"""RFC 9309 section 2.4: not longer than a day."""

KEPT_REFUSED = timedelta(hours=1)
"""How soon a site that could not say anything is asked again."""

MAX_DELAY = 60.0
"""Seconds. A longer Crawl-delay would never finish; such a site is fetched once a minute."""


@dataclass(frozen=True, slots=True)
class Robots:
    """What a site says. `rules` with the text of its robots.txt; `all` without one; `none` while it cannot answer."""

    state: Literal["rules", "all", "none"]
    body: str = ""

    @property
    def kept(self) -> timedelta:
        """How long this holds."""
        return KEPT_REFUSED if self.state == "none" else KEPT

    def delay(self) -> float | None:
        """Crawl-delay for us in seconds, capped; None where there is none."""
        if self.state != "rules":
            return None
        delay = read_rules(self.body).delay
        return None if delay is None else min(delay, MAX_DELAY)

    def check(self, url: str) -> None:
        """Raise FetchFailed `robots-disallowed`, or `robots-unreachable` (temporary), unless the URL may be fetched."""
        if self.state == "none":
            raise FetchFailed(
                "robots-unreachable",
                "The site's robots.txt cannot be read, so nothing of it is fetched for now.",
                "Nothing: it is asked again within the hour.",
                temporary=True,
                retry_after=KEPT_REFUSED.total_seconds(),
            )
        if self.state == "rules" and not read_rules(self.body).allow(url):
            raise FetchFailed(
                "robots-disallowed",
                "The site's robots.txt does not allow fetching this page.",
                "Ask the owner of the site to allow “noesis2”, or submit the page as a file.",
            )


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of the group that holds for us: (pattern, allowed) in the order of the file, and Crawl-delay (s)."""

    patterns: tuple[tuple[str, bool], ...]
    delay: float | None

    def allow(self, url: str) -> bool:
        """Whether the longest pattern that matches allows the URL; Allow wins a tie, no pattern allows (2.2.2)."""
        parts = urlsplit(url)
        path = _normal((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        found = [(len(pattern), allowed) for pattern, allowed in self.patterns if _matches(pattern, path)]
        return max(found, default=(0, True))[1]


def read_rules(body: str) -> Rules:
    """The group for `noesis2` in a robots.txt, or the one for everybody; several for the same agent are one."""
    groups: dict[str, list[tuple[str, bool]]] = {}
    delays: dict[str, float] = {}
    agents: list[str] = []
    naming = False
    for line in body.removeprefix("\ufeff").splitlines():
        field, colon, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        field = field.lower()
        if not colon or field not in ("user-agent", "allow", "disallow", "crawl-delay"):
            continue
        if field == "user-agent":
            # Agents in a row share the rules that follow; after rules a new group begins.
            agents = [*agents, value.lower()] if naming else [value.lower()]
            naming = True
            groups.setdefault(value.lower(), [])
            continue
        naming = False
        for agent in agents:
            if field != "crawl-delay" and value:
                groups[agent].append((_normal(value), field == "allow"))
            elif field == "crawl-delay" and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
                delays[agent] = float(value)
    ours = USER_AGENT if USER_AGENT in groups else "*"
    return Rules(tuple(groups.get(ours, ())), delays.get(ours))


def _normal(path: str) -> str:
    """Percent-encoding as in 2.2.2: what needs none has none, the rest is in capitals."""
    quoted = quote(path, safe="/%:@!$&'()*+,;=~-._?")
    return re.sub(r"%[0-9a-fA-F]{2}", lambda code: _decoded(code[0]), quoted)


def _decoded(code: str) -> str:
    character = chr(int(code[1:], 16))
    return character if character.isascii() and (character.isalnum() or character in "-._~") else code.upper()


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for anything, `$` at the end for the end. Without backtracking: a site chooses the pattern."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    position = len(first)
    for number, piece in enumerate(rest):
        if anchored and number == len(rest) - 1:
            return len(path) - len(piece) >= position and path.endswith(piece)
        position = path.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return not anchored or position == len(path)


def ask(fetcher: Fetcher, origin: str) -> Robots:
    """Fetch a site's robots.txt. 4xx means no rules; unreachable, 429 and 5xx mean: not now (RFC 9309 section 2.3.1).

    Raises FetchFailed where the address itself is refused: then no page of the site may be fetched either.
    """
    try:
        # A redirect may lead to another host here (RFC 9309 section 2.3.1.2); what it says holds for this origin.
        page = fetcher.fetch(f"{origin}/robots.txt", stay_on_host=False, limits=Limits(SIZE, 15.0, 5.0))
    except FetchFailed as failure:
        if failure.temporary:
            return Robots("none")
        if failure.reason in ("page-missing", "page-refused", "unsupported-type", "redirect-refused"):
            return Robots("all")
        if failure.reason == "too-large":
            # Half a file could allow what the other half forbids.
            return Robots("none")
        raise
    return Robots("rules", (page.body or b"").decode("utf-8", "replace").replace("\x00", ""))

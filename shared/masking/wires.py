"""Addresses on the wire: e-mail, IPv4, IPv6. Pure."""

from __future__ import annotations

import ipaddress
import re

from shared.masking.places import Place, before, places_where

_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?:xn--[\w-]{2,59}|[^\W\d_]{2,24})\b"
)
_FILE = frozenset(["png", "jpg", "jpeg", "gif", "svg", "webp", "avif", "ico", "js", "css", "map", "pdf"])
"""`icon@2x.png` is a file."""

_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,8}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{0,4})(?![\w:]|\.\d)",
)
_PART = re.compile(
    r"(?:version|vers\.|release|build|firmware|update|kapitel|abschnitt|ziffer|ziff\.|nr\.|nummer|punkt|anlage"
    r"|section|chapter|clause|item|step|§|art\.|artikel|abs\.|tabelle|table|abbildung|figure)\s{0,2}$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[ \t]{1,3}[A-ZÄÖÜ]")
_ADDRESS_WORD = re.compile(
    r"(?:\bip|ipv4|server|host|address|adresse|client|peer|from|von|ping|gateway|dns)\W{0,3}$", re.IGNORECASE
)
_SECTION = 20
"""Four parts of at most this are "Abschnitt 3.2.1.4" far more often than an address; then a word must say so."""


def emails(text: str) -> list[Place]:
    """Addresses as people write them (RFC 5322 without quoted local parts), in any script."""
    if "@" not in text:
        return []
    return places_where(_EMAIL, text, lambda match: match[0].rpartition(".")[2].lower() not in _FILE)


def ipv4(text: str) -> list[Place]:
    """Addresses of somebody; version and section numbers of four parts are none."""
    return places_where(_IPV4, text, _is_ipv4) if "." in text else []


def ipv6(text: str) -> list[Place]:
    """Addresses of somebody (RFC 4291), also with an IPv4 tail."""
    if "::" not in text and text.count(":") < 7:
        return []
    return places_where(_IPV6, text, lambda match: any(c.isdigit() for c in match[0]) and _is_somebodys(match[0]))


def _is_ipv4(match: re.Match[str]) -> bool:
    if not _is_somebodys(match[0]) or _PART.search(before(match)):
        return False
    if all(int(part) <= _SECTION for part in match[0].split(".")) and not _ADDRESS_WORD.search(before(match)):
        return False
    # "3.2.1.4 Anforderungen" at the beginning of a line is a heading.
    at_line_start = not before(match).strip("# \t")
    return not (at_line_start and _HEADING.match(match.string, match.end()))


def _is_somebodys(candidate: str) -> bool:
    """Loopback and "any" name nobody."""
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)

"""Sitemaps (https://www.sitemaps.org/protocol.html): the pages a site names. Pure."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from lxml import etree

from shared.fetching.addresses import Allowance, check_url
from shared.fetching.failures import FetchFailed

MAX_URLS = 50_000
"""Of one file, as the protocol says; what comes after is left out and counted."""

MAX_LOOKED_AT = 2 * MAX_URLS
"""Each costs some 30 µs, also one that is refused; a million of them would hold up every other site."""

MAX_BYTES = 50 * 1024 * 1024
"""Unpacked, as the protocol says."""


@dataclass(frozen=True, slots=True)
class Sitemap:
    """The addresses of a sitemap: of pages, or (an index) of further sitemaps. `left_out` were refused or too many."""

    pages: tuple[str, ...]
    sitemaps: tuple[str, ...]
    left_out: int


def read_sitemap(body: bytes, url: str, allowed: Allowance) -> Sitemap:
    """The addresses of a sitemap or index, gzip or plain; only those of the sitemap's own host count.

    Raises FetchFailed `sitemap-unreadable`, `unsafe-xml` or `too-large`.
    """
    host = check_url(url, allowed).host
    found: dict[str, dict[str, None]] = {"url": {}, "sitemap": {}}
    left_out = 0
    for number, (kind, location) in enumerate(_locations(_unpacked(body))):
        if number >= MAX_LOOKED_AT:
            left_out += 1
            continue
        try:
            target = check_url(location, allowed)
        except FetchFailed:
            left_out += 1
            continue
        if target.host != host or sum(map(len, found.values())) >= MAX_URLS:
            left_out += 1
            continue
        found[kind][target.url] = None
    return Sitemap(tuple(found["url"]), tuple(found["sitemap"]), left_out)


def _unpacked(body: bytes) -> bytes:
    if not body.startswith(b"\x1f\x8b"):
        return body
    unpack = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = unpack.decompress(body, MAX_BYTES + 1)
    except zlib.error:
        raise _unreadable() from None
    if len(plain) > MAX_BYTES:
        raise FetchFailed("too-large", f"The sitemap unpacks to more than {MAX_BYTES:,} bytes.", "Split it.")
    return plain


def _locations(xml: bytes) -> Iterator[tuple[str, str]]:
    """The `loc` of every `url` and `sitemap` element, with which of the two it is in.

    Nothing that was read is kept: 50 MB of empty elements, 70 kB packed, took a gigabyte of memory.
    """
    try:
        # No DTD, no entities, no network: a sitemap needs none, an attack does (billion laughs, external entities).
        steps = etree.iterparse(
            io.BytesIO(xml),
            events=("start", "end"),
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )
        for number, (event, element) in enumerate(steps):
            if number == 0 and (element.getroottree().docinfo.doctype or element.getroottree().docinfo.internalDTD):
                raise FetchFailed(
                    "unsafe-xml", "The sitemap declares a document type.", "Serve it without a DOCTYPE declaration."
                )
            if event != "end" or not isinstance(element.tag, str):
                continue
            name = etree.QName(element).localname
            parent = element.getparent()
            if name == "loc" and parent is not None:
                kind = etree.QName(parent).localname
                if kind in ("url", "sitemap"):
                    yield kind, (element.text or "").strip()
            element.clear()
            while parent is not None and element.getprevious() is not None:
                del parent[0]
    except etree.XMLSyntaxError:
        raise _unreadable() from None


def _unreadable() -> FetchFailed:
    return FetchFailed("sitemap-unreadable", "The sitemap is not proper XML.", "Check the address, or mend the file.")

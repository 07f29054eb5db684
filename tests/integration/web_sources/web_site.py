"""A web site on loopback whose pages tests write."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from typing import Any


@dataclass
class Site:
    """A web site on loopback whose pages tests write."""

    port: int = 0
    pages: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    slow: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def page(self, path: str, words: str) -> str:
        """Write a page; returns its address."""
        self.pages[path] = (
            f"<html><head><title>{words.title()}</title></head><body><main><h1>{words}</h1>"
            f"<p>This page tells everything about {words}, in a whole sentence.</p></main></body></html>"
        ).encode()
        return self.url + path

    def sitemap(self, path: str, *addresses: str, index: bool = False) -> str:
        """Write a sitemap, or an index of sitemaps; returns its address."""
        inner, outer = ("sitemap", "sitemapindex") if index else ("url", "urlset")
        entries = "".join(f"<{inner}><loc>{address}</loc></{inner}>" for address in addresses)
        self.pages[path] = (
            f'<?xml version="1.0"?><{outer} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</{outer}>'
        ).encode()
        return self.url + path


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name the library asks for
            site.asked.append(self.path)
            body = site.pages.get(self.path)
            if self.path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[self.path])
            elif self.path in site.status:
                self.send_response(site.status[self.path])
                body = None
            elif self.path == "/drip":
                self._drip()
                return
            elif body is None:
                self.send_response(404)
            elif self.headers.get("If-None-Match") == _etag(body):
                self.send_response(304)
                body = None
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("ETag", _etag(body))
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def _drip(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while not site.slow.wait(0.05):
                    self.wfile.write(b".")
            except OSError:
                return

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the name the library gives
            return

    return Handler


def _etag(body: bytes) -> str:
    return f'"{sha256(body).hexdigest()[:16]}"'

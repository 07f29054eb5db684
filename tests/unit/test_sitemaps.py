"""Sitemaps and robots.txt as sites really write them, and as attackers do."""

from __future__ import annotations

import gzip

import pytest

from shared.fetching.addresses import Allowance
from shared.fetching.client import Fetcher, Limits, Page
from shared.fetching.failures import FetchFailed, page_too_large, unreachable
from shared.fetching.robots import MAX_DELAY, Robots, ask, read_rules
from shared.fetching.sitemaps import MAX_URLS, read_sitemap

HERE = "https://site.example/sitemap.xml"
NAMESPACE = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*addresses: str) -> bytes:
    entries = "".join(f"<url><loc>{a}</loc><lastmod>2026-01-01</lastmod></url>" for a in addresses)
    return f'<?xml version="1.0" encoding="UTF-8"?><urlset {NAMESPACE}>{entries}</urlset>'.encode()


def test_addresses_are_read_once_in_their_normal_form() -> None:
    """Blanks around, fragments, entities of XML, and the same page twice."""
    body = urlset(" https://site.example/a \n", "https://SITE.example/a#part", "https://site.example/b?x=1&amp;y=2")
    found = read_sitemap(body, HERE, Allowance())
    assert found.pages == ("https://site.example/a", "https://site.example/b?x=1&y=2")
    assert (found.sitemaps, found.left_out) == ((), 0)


def test_gzip_is_unpacked() -> None:
    """`sitemap.xml.gz` is gzip whatever the server calls it."""
    assert read_sitemap(gzip.compress(urlset("https://site.example/a")), HERE, Allowance()).pages


def test_other_hosts_do_not_count() -> None:
    """A sitemap speaks for its own host only, and never for addresses inside."""
    body = urlset("https://other.example/", "http://127.0.0.1/", "javascript:alert(1)", "https://site.example/a")
    found = read_sitemap(body, HERE, Allowance())
    assert (found.pages, found.left_out) == (("https://site.example/a",), 3)


def test_more_than_the_protocol_allows_is_left_out() -> None:
    """The first 50,000 count, the rest is counted."""
    body = urlset(*(f"https://site.example/{n}" for n in range(MAX_URLS + 7)))
    found = read_sitemap(body, HERE, Allowance())
    assert (len(found.pages), found.left_out) == (MAX_URLS, 7)


def test_the_images_of_a_page_are_no_pages() -> None:
    """`image:loc` of Google's extension lies in another element."""
    body = (
        f'<urlset {NAMESPACE} xmlns:image="http://www.google.com/schemas/sitemap-image/1.1"><url>'
        "<loc>https://site.example/a</loc><image:image><image:loc>https://site.example/a.png</image:loc></image:image>"
        "</url></urlset>"
    ).encode()
    assert read_sitemap(body, HERE, Allowance()).pages == ("https://site.example/a",)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (gzip.compress(bytes(60 * 1024 * 1024)), "too-large"),
        (b"\x1f\x8b garbage", "sitemap-unreadable"),
        (b"", "sitemap-unreadable"),
        (b"<html><body>Not found</html>", "sitemap-unreadable"),
        (b'<!DOCTYPE urlset SYSTEM "http://127.0.0.1/dtd"><urlset/>', "unsafe-xml"),
        (
            b"<!DOCTYPE lol [<!ENTITY a '1'><!ENTITY b '&a;&a;'>]><urlset><url><loc>&b;</loc></url></urlset>",
            "unsafe-xml",
        ),
        (b"<urlset>" + b"<url>" * 5000 + b"</url>" * 5000 + b"</urlset>", "sitemap-unreadable"),
    ],
    ids=["bomb", "no gzip", "empty", "page", "external DTD", "entities", "deep"],
)
def test_bad_sitemaps_are_typed(body: bytes, reason: str) -> None:
    """None of them expands, loads anything or ends without a reason."""
    with pytest.raises(FetchFailed) as refused:
        read_sitemap(body, HERE, Allowance())
    assert refused.value.reason == reason


RULES = b"""
User-agent: *
Disallow: /
User-agent: noesis2
Allow: /shop/public
Disallow: /shop
Disallow: /*.pdf$
Crawl-delay: 5
"""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/shop", False),
        ("/shop/public/1", True),
        ("/a.pdf", False),
        ("/a.pdf?x", True),
        ("/x/b.pdf", False),
    ],
)
def test_the_longest_rule_for_us_decides(path: str, allowed: bool) -> None:
    """RFC 9309: our own group, the most specific rule, `*` and `$`."""
    robots = Robots("rules", RULES.decode())
    assert robots.delay() == 5
    if allowed:
        robots.check(f"https://site.example{path}")
    else:
        with pytest.raises(FetchFailed) as refused:
            robots.check(f"https://site.example{path}")
        assert (refused.value.reason, refused.value.temporary) == ("robots-disallowed", False)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/", "/anything", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish", False),
        ("/fish*", "/fishheads/yummy.html", True),
        ("/*.php", "/folder/any.php.file.html", True),
        ("/*.php$", "/filename.php", True),
        ("/*.php$", "/filename.php?parameters", False),
        ("/*.php$", "/a.php/b.php", True),
        ("/fish*.php", "/fishheads/catfish.php?x", True),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/ä", "/%c3%A4/x", True),
        ("/%7Ejoe", "/~joe/index.html", True),
        ("/a%2fb", "/a/b", False),
        ("*/x", "/y/x", True),
        ("/a*a$", "/a", False),
    ],
)
def test_patterns_match_like_the_standard(pattern: str, path: str, matches: bool) -> None:
    """RFC 9309 sections 2.2.2 and 2.2.3 and the examples that search engines publish."""
    rules = read_rules(f"User-agent: *\nDisallow: {pattern}\n")
    assert rules.allow(f"https://site.example{path}") is not matches


def test_groups_are_those_of_the_standard() -> None:
    """Agents in a row, comments, capitals, a group in two parts, empty rules, and lines that mean nothing."""
    body = (
        "\ufeffUser-Agent: other # not us\nUSER-AGENT: Noesis2\nSitemap: https://site.example/s.xml\n\n"
        "Disallow: /a # a\nnonsense\nCrawl-delay: soon\nUser-agent: *\nDisallow: /\n"
        "User-agent: noesis2\nDisallow:\nDisallow: /b\nAllow: /b\n"
    )
    rules = read_rules(body)
    assert (rules.patterns, rules.delay) == ((("/a", False), ("/b", False), ("/b", True)), None)
    assert [rules.allow(f"https://site.example{path}") for path in ("/a", "/b", "/c")] == [False, True, True]
    assert read_rules("Disallow: /before-any-agent\n").allow("https://site.example/before-any-agent")


def test_a_pattern_of_stars_costs_nothing() -> None:
    """What makes a regular expression hang is linear here."""
    rules = read_rules("User-agent: *\n" + f"Disallow: /{'*a' * 1000}b\n" * 50)
    assert rules.allow("https://site.example/" + "a" * 2000)


def test_an_absurd_delay_is_capped() -> None:
    """A day between two pages would never finish a site."""
    assert Robots("rules", "User-agent: *\nCrawl-delay: 86400\n").delay() == MAX_DELAY


class Answering(Fetcher):
    """A fetcher with one answer."""

    answer: Page | FetchFailed

    def fetch(self, url: str, **_: object) -> Page:
        assert url == "https://site.example/robots.txt"
        if isinstance(self.answer, FetchFailed):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Page(HERE, b"User-agent: *\nDisallow: /x\x00", "text/plain", "", ""), "rules"),
        (FetchFailed("page-missing", "404", ""), "all"),
        (FetchFailed("page-refused", "403", ""), "all"),
        (FetchFailed("web-busy", "503", "", temporary=True), "none"),
        (unreachable("no connection"), "none"),
        (page_too_large(1), "none"),
    ],
    ids=["rules", "404", "403", "503", "down", "huge"],
)
def test_what_a_missing_robots_txt_means(answer: Page | FetchFailed, state: str) -> None:
    """RFC 9309 section 2.3.1: 4xx allows, what cannot answer forbids for now; half a file is not believed."""
    fetcher = Answering(limits=Limits())
    object.__setattr__(fetcher, "answer", answer)
    robots = ask(fetcher, "https://site.example")
    assert robots.state == state
    assert "\x00" not in robots.body


def test_an_address_inside_has_no_robots_txt() -> None:
    """Not 'everything is allowed', but the refusal itself."""
    with pytest.raises(FetchFailed) as refused:
        ask(Fetcher(), "http://169.254.169.254")
    assert refused.value.reason == "address-not-allowed"

"""What an answer may carry out of the house besides its words: no link that leaks, nothing that hides. Pure.

A model that obeys a document can put what it has read into an address, and a page that loads or shows that address
sends it away. So images never survive, links only to addresses that the caller names, and characters that are there
without being seen are taken out. The page escapes HTML besides; this does not rely on it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

REMOVED = "[link removed]"
PASSES = 10
"""How often links are looked for in what taking links out has left; deeper nesting is made harmless as it stands."""

# Bidirectional controls reorder what is read (https://www.unicode.org/reports/tr9/), zero widths and tags hide it.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Every repetition is bounded and stops at the character that begins the next one, so the time stays linear.
_DESTINATION = r"\(\s{0,9}(<[^<>\n]{0,4000}>|[^()\s]{0,4000}(?:\([^()\s]{0,1000}\)[^()\s]{0,1000})?)[^()\n]{0,300}\)"
_IMAGE = re.compile(r"!\[([^\[\]]{0,300})\]" + _DESTINATION)
_LINK = re.compile(r"\[([^\[\]]{0,300})\]" + _DESTINATION)
_REFERRED = re.compile(r"!\[([^\[\]]{0,300})\]\s?\[[^\[\]]{0,300}\]")
_REFERENCE = re.compile(r"^[ ]{0,3}\[[^\[\]\n]{1,300}\]:[^\n]{0,4000}$", re.MULTILINE)
_TAG = re.compile(
    # What a browser loads, runs or makes clickable; single letters only where they cannot be "a<b and c>d".
    r"<\s{0,3}/?\s{0,3}(?:(?:img|image|picture|source|iframe|frame|frameset|script|style|link|svg|object|embed|video|audio"
    r"|track|form|input|button|base|meta|body|html|head|div|span|table|td|tr|th|area|map|applet|math|template|portal"
    r"|noscript|marquee|details|font|center|textarea|select|title|br|hr)\b[^<>]{0,4000}>?"
    r"|[abipqsu](?:\s[^<>=]{0,200}=[^<>]{0,4000})?/?>|a\s[^<>=]{0,200}=[^<>]{0,4000})|<!--[^<>]{0,4000}(?:-->)?",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"(?:\bhttps?:(?=\S)|\b[a-z][a-z0-9+.-]{1,30}:(?=//)|\b(?:data|javascript|vbscript|mailto|blob|cid):(?=\S)"
    r"|(?<![:/\w])//(?=[\w\[])|\bwww\.(?=\w))[^\s<>\"'`|^{}“”„«»]{0,4000}",
    re.IGNORECASE,
)
_FILES = r"(?:pdf|docx?|xlsx?|pptx?|txt|md|html?|csv|json|xml|eml|png|jpe?g|zip)"
# Names without a scheme that mail and chat programs make links of.
_BARE = re.compile(
    rf"(?<![\w@./-])(?:[\w-]{{1,63}}\.){{1,8}}(?!{_FILES}\b)[a-z]{{2,24}}(?::\d{{1,5}})?[/?#][^\s<>\"'`“”„«»]{{1,4000}}",
    re.IGNORECASE,
)
# Citation marks wait in private characters while everything else is taken apart: verification has seen them.
_KEPT_MARK = re.compile(r"\[(\d{1,3})\]")
_NO_KEEPERS = {0xE000: "\ufffd", 0xE001: "\ufffd"}
_MARKS_AGAIN = {0xE000: "[", 0xE001: "]"}
_TRAILING = ".,;:!?)]}>*_"


def plain(text: str) -> str:
    """The text without characters that hide or reorder; line ends and tabs stay."""
    for line_end in ("\r\n", "\r", "\u2028", "\u2029"):
        text = text.replace(line_end, "\n")
    return _UNSEEN.sub("", _CONTROL.sub("", text))


def addresses(text: str) -> set[str]:
    """The web addresses that stand in a text, as `clean` would let them pass if they were allowed."""
    found = (match[0].rstrip(_TRAILING) for match in _ADDRESS.finditer(plain(text)))
    return {address for address in found if address.startswith(("https://", "http://"))}


def clean(text: str, allowed: Collection[str] = ()) -> str:
    """The answer with nothing in it that leaks; `allowed` are the only addresses that stay.

    An address of `allowed` is meant whole, or as a beginning if it ends with `*`; hosts outside ASCII and punycode
    never stay. A link keeps its words and shows its address or loses it, an image keeps its description, tags go,
    citation marks stay.
    """
    permitted = _Permitted(allowed)
    text = plain(_KEPT_MARK.sub(_keep, _REFERENCE.sub("", text.translate(_NO_KEEPERS))))
    for _ in range(PASSES):  # taking a part out may join its surroundings to a new one: "![a](x![b](y))"
        before = text
        text = _REFERENCE.sub("", text)
        text = _REFERRED.sub(lambda found: found[0] if found[1].isdigit() else found[1], text)
        text = _IMAGE.sub(lambda found: _mark(found) if found[1].isdigit() else found[1], text)
        text = _LINK.sub(lambda found: _link(found, permitted), text)
        text = _TAG.sub("", text)
        if text == before:
            break
    # Whatever is left of the form cannot become a link any more; those that may stay were written out.
    text = text.replace("](", "] (")
    text = _ADDRESS.sub(lambda found: _address(found[0], permitted), text)
    text = _BARE.sub(REMOVED, text) if not allowed else _BARE.sub(lambda found: _bare(found, permitted), text)
    # What reads like a mark only now was put together from pieces; no citation stands behind it.
    text = _KEPT_MARK.sub(r"(\1)", text)
    # "[1](…" would be a link again.
    text = text.replace("\ue001(", "\ue001 (").translate(_MARKS_AGAIN)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _keep(mark: re.Match[str]) -> str:
    return f"\ue000{int(mark[1])}\ue001"


class _Permitted:
    """The allow list in comparable form."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._whole = {address for address in allowed if not address.endswith("*")}
        self._begun = tuple(address[:-1] for address in allowed if address.endswith("*"))

    def __call__(self, address: str) -> bool:
        # As a browser would read it: entities and percent signs may hide what the address is.
        if not address.isascii() or "\\" in address or _CONTROL.search(unquote(html.unescape(address))):
            return False
        try:
            parts = urlsplit(address)
        except ValueError:
            return False
        if parts.scheme not in ("https", "http") or "@" in parts.netloc or "xn--" in parts.netloc.lower():
            return False
        if any(segment in (".", "..") for segment in unquote(parts.path).split("/")):
            return False
        return address in self._whole or (bool(self._begun) and address.startswith(self._begun))


def _link(found: re.Match[str], permitted: _Permitted) -> str:
    words, address = found[1], found[2].strip("<>")
    if permitted(address):
        # Written out, so that where it leads is what is read ("[bank.example](https://other.example)").
        return address if words == address else f"{words} ({address})"
    if words.isdigit():
        return _mark(found)
    return words if words.strip() else REMOVED


def _mark(found: re.Match[str]) -> str:
    """A citation mark, perhaps with a remark in brackets behind it: "[1](nicht belegt)"."""
    before = found[0][: found[0].index("[")]
    mark = f"{before}[{found[1]}]"
    return mark if re.search(r"[./:\\]", found[2]) else f"{mark} ({found[0].partition('](')[2]}"


def _address(found: str, permitted: _Permitted) -> str:
    address = found.rstrip(_TRAILING)
    return found if permitted(address) or permitted(found) else REMOVED + found[len(address) :]


def _bare(found: re.Match[str], permitted: _Permitted) -> str:
    """A name without a scheme stays where it is the end of an address that may stay ("https://" stands before it)."""
    before = found.string[: found.start()]
    for scheme in ("https://", "http://"):
        if before.endswith(scheme) and permitted(scheme + found[0].rstrip(_TRAILING)):
            return found[0]
    return REMOVED


_WORDS = re.compile(r"\w+")
TOLD = 8
"""So many words in a row, no matter what stands between them, are not there by chance."""


def withhold(text: str, private: Collection[str]) -> str:
    """The text without stretches of eight words or more that stand in one of the private texts (the prompts)."""
    told: set[tuple[str, ...]] = set()
    for one in private:
        words = [word.casefold() for word in _WORDS.findall(one)]
        told.update(tuple(words[n : n + TOLD]) for n in range(len(words) - TOLD + 1))
    found = list(_WORDS.finditer(text))
    words = [match[0].casefold() for match in found]
    out, reached, n = [], 0, 0
    while n <= len(words) - TOLD:
        if tuple(words[n : n + TOLD]) not in told:
            n += 1
            continue
        last = n
        while last + 1 <= len(words) - TOLD and tuple(words[last + 1 : last + 1 + TOLD]) in told:
            last += 1
        out += [text[reached : found[n].start()], "…"]
        reached = found[last + TOLD - 1].end()
        n = last + TOLD
    return "".join([*out, text[reached:]])

"""HTML by lxml: the main text with headings, lists, tables and listings, without the page's furniture."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lxml import etree

from functions.ingest.parsing.assembly import Assembly, one_line, table_text
from functions.ingest.parsing.document import BlockKind, ParsedDocument
from functions.ingest.parsing.reasons import failure
from functions.ingest.parsing.sniffing import HTML
from shared.errors import PermanentError

_NEVER = frozenset(
    ("script", "style", "noscript", "template", "svg", "math", "iframe", "object", "embed", "canvas", "audio", "video")
) | frozenset(
    ("head", "select", "option", "button", "input", "textarea", "datalist", "map", "frameset", "title", "meta")
)
_FURNITURE = frozenset(["nav", "footer", "aside", "header", "dialog", "menu"])
_ROLES = frozenset(
    ["navigation", "banner", "contentinfo", "search", "complementary", "dialog", "alert", "menu", "toolbar"]
)
_NAMES = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navigation|menu|footer|sidebar|breadcrumbs?|cookies?|cookie-?(?:banner|consent|notice)"
    r"|pagination|pager|skip-?link|advert|advertisement|social|share)(?:$|[\s_-])",
    re.I,
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset(["ul", "ol", "dl"])
_BLOCKS = (
    _LISTS
    | frozenset(_HEADINGS)
    | frozenset(("address", "article", "aside", "blockquote", "body", "center", "details", "dialog", "div", "fieldset"))
    | frozenset(("figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "main", "nav", "p", "pre"))
    | frozenset(
        ("section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "caption", "li", "dt", "dd")
    )
)
# Inside a table these show that it only arranges the page.
_LAYOUT = ("table", "h1", "h2", "h3", "form", "article", "main")
_BREAK = "\0"
MAX_DEPTH = 150
"""Elements inside each other that are read by structure; what is nested deeper is read as one run of text."""


def parse_html(text: str) -> ParsedDocument:
    """The document from decoded markup; `language` is what the page declares (checked later against its text)."""
    root = _tree(text)
    title = one_line(" ".join(root.xpath("string(//head/title | //title)").split()))
    metadata = _metadata(root)
    body = root.find(".//body")
    body = root if body is None else body
    assembly = Assembly()
    main = _main(body)
    _Writer(assembly, furniture=False).write(main)
    if not assembly.position:  # a page made of nothing but furniture still says something
        _Writer(assembly, furniture=True).write(body)
    language = (root.get("lang") or root.get("{http://www.w3.org/XML/1998/namespace}lang") or "").lower()[:2]
    return assembly.finish(
        HTML,
        title=title or metadata.get("og:title"),
        language=language if language.isalpha() and len(language) == 2 else None,
        metadata=metadata,
    )


def add_html(text: str, assembly: Assembly) -> None:
    """Append the text of a page or fragment to another document (a mail, Markdown); warns when it cannot be read."""
    try:
        root = _tree(text)
    except PermanentError:
        assembly.warn("markup-damaged")
        return
    body = root.find(".//body")
    _Writer(assembly, furniture=True).write(root if body is None else body)


def _tree(text: str) -> etree._Element:
    # Own encoding, because a declared one in the markup would be applied a second time. huge_tree stays off: it is
    # libxml2's guard against documents made to exhaust memory.
    parser = etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True, recover=True, huge_tree=False
    )
    try:
        root = etree.fromstring(text.encode("utf-8", "ignore"), parser)
    except etree.XMLSyntaxError as error:
        raise failure("empty-document" if "empty" in str(error).lower() else "corrupt", "HTML") from error
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise failure("too-deep", "256 elements inside each other")  # libxml2 has dropped the rest
    if root is None:
        raise failure("empty-document")
    return root


def _metadata(root: etree._Element) -> dict[str, str]:
    """Author, description, dates and the like from the meta elements."""
    found: dict[str, str] = {}
    for meta in list(root.iter("meta"))[:200]:
        key = (meta.get("name") or meta.get("property") or "").lower()
        if key in ("author", "description", "keywords", "date", "og:title", "article:published_time", "generator"):
            found.setdefault(key, meta.get("content") or "")
    return found


def _main(body: etree._Element) -> etree._Element:
    """The one element that the page itself marks as its content, if that holds a fair part of the text."""
    candidates = body.xpath(".//main | .//*[@role='main']") or body.xpath(".//article")
    if len(candidates) != 1:
        return body
    inside = len("".join(candidates[0].itertext()))
    return candidates[0] if inside * 4 >= len("".join(body.itertext())) or inside > 1_000 else body


class _Writer:
    """Walks the tree once; inline text gathers in a buffer that every block element closes.

    Inside a list the buffer becomes a line of it instead of a paragraph; the outermost list is one block.
    """

    def __init__(self, assembly: Assembly, *, furniture: bool) -> None:
        self._assembly = assembly
        self._furniture = furniture
        self._inline: list[str] = []
        self._lines: list[str] = []
        self._numbers: list[int | None] = []
        self._marker = ""

    def write(self, root: etree._Element) -> None:
        self._children(root, 0)
        self._flush()

    def _children(self, element: etree._Element, depth: int) -> None:
        if element.text:
            self._inline.append(element.text)
        for child in element:
            self._element(child, depth + 1)
            if child.tail:
                self._inline.append(child.tail)

    def _element(self, element: etree._Element, depth: int) -> None:
        tag = element.tag
        if not isinstance(tag, str) or self._skipped(element, tag):
            return
        if depth > MAX_DEPTH:
            self._inline.append(self._text(element))
        elif tag == "br":
            self._inline.append(_BREAK)
        elif tag == "img":
            self._inline.append(f" {element.get('alt') or ''} ")
        elif tag in _BLOCKS:
            self._flush()
            self._block(element, tag, depth)
            self._flush()
        else:
            self._children(element, depth)

    def _block(self, element: etree._Element, tag: str, depth: int) -> None:
        if tag in _LISTS:
            self._list(element, tag, depth)
        elif tag == "table" and not any(node is not element for node in element.iter(*_LAYOUT)):
            self._add("table", table_text(row for row in self._rows(element) if any(row)))
        elif tag in _HEADINGS:
            self._add("heading", self._text(element), _HEADINGS[tag])
        elif tag == "pre":
            self._add("code", "".join(element.itertext()))
        elif self._numbers and tag in ("li", "dt", "dd"):
            self._item(element, tag, depth)
        else:
            self._children(element, depth)

    def _list(self, element: etree._Element, tag: str, depth: int) -> None:
        start = element.get("start") or "1"
        self._numbers.append(int(start) if tag == "ol" and start.isascii() and start.isdecimal() else None)
        if tag == "ol" and self._numbers[-1] is None:
            self._numbers[-1] = 1
        self._children(element, depth)
        self._flush()
        self._numbers.pop()
        if not self._numbers:
            self._assembly.add("list", "\n".join(self._lines))
            self._lines = []

    def _item(self, element: etree._Element, tag: str, depth: int) -> None:
        number = self._numbers[-1]
        if tag == "dt":
            self._marker = f"- {self._text(element)}: "
            return
        if tag == "li":
            self._marker = "- " if number is None else f"{number}. "
            self._numbers[-1] = None if number is None else number + 1
        self._children(element, depth)

    def _add(self, kind: BlockKind, text: str, level: int = 0) -> None:
        """Append a block, or its lines to the list it stands in."""
        if not self._numbers:
            self._assembly.add(kind, text, level=level)
            return
        indent = "  " * min(len(self._numbers) - 1, 20)
        for line in text.split("\n"):
            if line.strip():
                self._lines.append(f"{indent}{self._marker or '  '}{line.rstrip()}")
                self._marker = ""

    def _flush(self) -> None:
        if self._inline:
            # White space collapses as in a browser.
            text = "\n".join(one_line(line) for line in "".join(self._inline).split(_BREAK))
            self._inline.clear()
            if text.strip():
                self._add("paragraph", text)

    def _skipped(self, element: etree._Element, tag: str) -> bool:
        """Whether an element is never shown, or belongs to the page's furniture."""
        if tag in _NEVER or element.get("hidden") is not None or _HIDDEN.search(element.get("style") or ""):
            return True
        if self._furniture:
            return False
        if tag == "header":  # that of an article holds its title
            return not any(parent.tag in ("article", "main") for parent in element.iterancestors())
        if tag in _FURNITURE or (element.get("role") or "").lower() in _ROLES or element.get("aria-hidden") == "true":
            return True
        names = f"{element.get('class') or ''} {element.get('id') or ''}"
        return (
            len(names) > 1 and tag in ("div", "ul", "section", "p") and bool(_NAMES.search(names)) and _is_thin(element)
        )

    def _text(self, element: etree._Element) -> str:
        """All text of an element on one line, without what is never shown; iterative, for any depth."""
        pieces: list[str] = []
        walk = etree.iterwalk(element, events=("start", "end"))
        for event, node in walk:
            shown = isinstance(node.tag, str) and (node is element or not self._skipped(node, node.tag))
            if event == "start" and not shown:
                walk.skip_subtree()
            elif event == "start":
                pieces.append(" " if node.tag in _BLOCKS or node.tag == "br" else "")
                pieces.append((node.get("alt") or "") if node.tag == "img" else node.text or "")
            elif node is not element:
                pieces.append(" " if node.tag in _BLOCKS else "")
                pieces.append(node.tail or "")
        return one_line("".join(pieces))

    def _rows(self, table: etree._Element) -> Iterator[list[str]]:
        for caption in table.findall("caption"):
            yield [self._text(caption)]
        for row in table.iter("tr"):
            yield [self._text(cell) for cell in row if cell.tag in ("td", "th")]


def _is_thin(element: etree._Element) -> bool:
    """Whether it is short or mostly links: what is named like a menu but reads like prose stays."""
    text = len(one_line("".join(element.itertext())))
    links = sum(len(one_line("".join(link.itertext()))) for link in element.iter("a"))
    return text < 200 or links * 2 > text

"""Subscription filters: the documented grammar over message attributes.

    filter     = [NOT | -] term { AND [NOT | -] term }  |  the same with OR; AND and OR mix only with parentheses
    term       = attributes:KEY | attributes.KEY = "V" | attributes.KEY != "V" | hasPrefix(attributes.KEY, "V")
               | (filter)

Source: https://cloud.google.com/pubsub/docs/subscription-message-filter (length at most 256 bytes, operators in
capitals, a key is a bare word or a quoted string, `!=` also holds when the key is absent).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from local.bus.refusal import invalid

Predicate = Callable[[Mapping[str, str]], bool]

_LONGEST = 256
_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z_][A-Za-z0-9_-]*)|(?P<sign>!=|[=:().,-]))')
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def parse(text: str) -> Predicate:
    """The predicate of a filter over a message's attributes; an empty one takes all. Raises INVALID_ARGUMENT."""
    if not text.strip():
        return lambda attributes: True
    if len(text.encode()) > _LONGEST:
        raise invalid(f"Filter is longer than {_LONGEST} bytes.")
    parser = _Parser(_tokens(text))
    predicate = parser.expression()
    parser.expect_end()
    return predicate


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise invalid(f"Invalid filter near {text[position : position + 20]!r}.")
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


def _unquote(token: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match.group(1), match.group(1)), token[1:-1], flags=re.DOTALL)


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0

    def expression(self) -> Predicate:
        """Terms joined by one kind of operator."""
        terms = [self._negatable()]
        operator = self._peek()
        if operator not in ("AND", "OR"):
            return terms[0]
        while self._take(operator):
            terms.append(self._negatable())
        if self._peek() in ("AND", "OR"):
            raise invalid("Invalid filter: AND and OR need parentheses to be mixed.")
        if operator == "AND":
            return lambda attributes: all(term(attributes) for term in terms)
        return lambda attributes: any(term(attributes) for term in terms)

    def expect_end(self) -> None:
        if self._next != len(self._tokens):
            raise invalid(f"Invalid filter: unexpected {self._peek()!r}.")

    def _negatable(self) -> Predicate:
        if self._take("NOT") or self._take("-"):
            term = self._term()
            return lambda attributes: not term(attributes)
        return self._term()

    def _term(self) -> Predicate:
        if self._take("("):
            inner = self.expression()
            self._expect(")")
            return inner
        if self._take("hasPrefix"):
            return self._prefix()
        self._expect("attributes")
        if self._take(":"):
            key = self._key()
            return lambda attributes: key in attributes
        self._expect(".")
        key = self._key()
        if self._take("!="):
            value = self._string()
            return lambda attributes: attributes.get(key) != value
        self._expect("=")
        value = self._string()
        return lambda attributes: attributes.get(key) == value

    def _prefix(self) -> Predicate:
        self._expect("(")
        self._expect("attributes")
        self._expect(".")
        key = self._key()
        self._expect(",")
        value = self._string()
        self._expect(")")
        return lambda attributes: key in attributes and attributes[key].startswith(value)

    def _key(self) -> str:
        token = self._peek()
        self._next += 1
        if token.startswith('"'):
            return _unquote(token)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", token):
            raise invalid(f"Invalid filter: {token!r} is not an attribute key.")
        return token

    def _string(self) -> str:
        token = self._peek()
        self._next += 1
        if not token.startswith('"'):
            raise invalid(f"Invalid filter: expected a quoted string, not {token!r}.")
        return _unquote(token)

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self._next += 1
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise invalid(f"Invalid filter: expected {token!r} instead of {self._peek()!r}.")

"""Exact arithmetic on decimal numbers. Pure; what is too large, too deep or too long is refused, not tried."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, DecimalException, DivisionByZero, InvalidOperation, Overflow
from functools import reduce

from shared.errors import PermanentError

DIGITS = 34
"""Significant digits, as IEEE 754 decimal128 has them."""
LARGEST = 1_000
"""Exponent beyond which a result is refused."""
DEEPEST = 40
NODES = 200

# Accounts round half up, not to even (DIN 1333).
_CONTEXT = Context(
    prec=DIGITS, rounding=ROUND_HALF_UP, Emax=LARGEST, Emin=-LARGEST, traps=[InvalidOperation, DivisionByZero, Overflow]
)
_GERMAN = re.compile(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?|\d+(?:,\d+)?")


def calculate(expression: str, *, german: bool = False) -> Decimal:
    """The value of an expression of numbers, + - * / // % **, brackets, abs, min, max, round and sqrt.

    With `german` a comma is the decimal sign, points group thousands and semicolons separate arguments.
    Raises PermanentError `bad-expression`.
    """
    source = _english(expression) if german else expression
    source = source.strip().replace("×", "*").replace("·", "*").replace("÷", "/").replace("−", "-").replace("^", "**")
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _bad("it is not an expression") from None
    if sum(1 for _ in ast.walk(tree)) > NODES:
        raise _bad("it is too long")
    try:
        return _CONTEXT.plus(_value(tree.body, source, 0))
    except DecimalException as error:
        raise _bad(_FAILURES.get(type(error), "it has no value")) from None


_FAILURES: dict[type[DecimalException], str] = {
    DivisionByZero: "it divides by zero",
    Overflow: "its value is too large",
    InvalidOperation: "it has no value",
}


def _english(expression: str) -> str:
    # Points first: "1.234,5" is one number; then what separates arguments.
    numbers = _GERMAN.sub(lambda found: found[0].replace(".", "").replace(",", "\x01"), expression)
    return numbers.replace(";", ",").replace("\x01", ".")


_OPERATIONS: dict[type[ast.operator], Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: _CONTEXT.add,
    ast.Sub: _CONTEXT.subtract,
    ast.Mult: _CONTEXT.multiply,
    ast.Div: _CONTEXT.divide,
    ast.FloorDiv: lambda a, b: _CONTEXT.divide(a, b).to_integral_value("ROUND_FLOOR"),
    ast.Mod: lambda a, b: _CONTEXT.subtract(
        a, _CONTEXT.multiply(b, _CONTEXT.divide(a, b).to_integral_value("ROUND_FLOOR"))
    ),
}
"""Powers are apart: their exponent has a limit."""


def _value(node: ast.expr, source: str, depth: int) -> Decimal:
    if depth > DEEPEST:
        raise _bad("it is too deeply nested")
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            # The text of the literal, not the float that Python made of it.
            return _CONTEXT.create_decimal((ast.get_source_segment(source, node) or "").replace("_", ""))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _CONTEXT.minus(_value(operand, source, depth + 1))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, source, depth + 1)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left, source, depth + 1), _value(right, source, depth + 1))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left, source, depth + 1), _value(right, source, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name]([_value(one, source, depth + 1) for one in given])
    raise _bad("it holds something else than numbers, + - * / // % ** and abs, min, max, round, sqrt")


def _power(base: Decimal, exponent: Decimal) -> Decimal:
    if abs(exponent) > LARGEST:
        raise _bad("its exponent is too large")
    return _CONTEXT.power(base, exponent)


def _round(given: list[Decimal]) -> Decimal:
    if len(given) not in (1, 2):
        raise _bad("round takes a number and how many places")
    places = given[1] if len(given) == 2 else Decimal(0)
    if places != places.to_integral_value() or not -DIGITS <= places <= DIGITS:
        raise _bad("places are a whole number")
    return given[0].quantize(Decimal(1).scaleb(-int(places)), context=_CONTEXT)


def _one(operation: Callable[[Decimal], Decimal]) -> Callable[[list[Decimal]], Decimal]:
    def apply(given: list[Decimal]) -> Decimal:
        if len(given) != 1:
            raise _bad("a function has too many or too few arguments")
        return operation(given[0])

    return apply


def _some(operation: Callable[[list[Decimal]], Decimal]) -> Callable[[list[Decimal]], Decimal]:
    def apply(given: list[Decimal]) -> Decimal:
        if not given:
            raise _bad("a function has too few arguments")
        return operation(given)

    return apply


_FUNCTIONS: dict[str, Callable[[list[Decimal]], Decimal]] = {
    "abs": _one(_CONTEXT.abs),
    "sqrt": _one(_CONTEXT.sqrt),
    "round": _round,
    "min": _some(min),
    "max": _some(max),
    "sum": _some(lambda given: reduce(_CONTEXT.add, given)),
}


def shown(value: Decimal, *, german: bool = False) -> str:
    """A number as people write it: no exponent up to 40 digits, no trailing zeros that the calculation added."""
    if abs(value.adjusted()) > 40:
        plain = f"{value.normalize():E}"
    else:
        plain = f"{value:f}"
        if "." in plain and len(plain) > DIGITS:
            plain = plain.rstrip("0").rstrip(".")
    return plain.replace(".", ",") if german else plain


def _bad(detail: str) -> PermanentError:
    return PermanentError("bad-expression", f"The expression cannot be calculated: {detail}.", "Write it differently.")

"""Find the error messages of the API in the code, and the names of the API that a message paraphrases."""

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Final

from ninja.errors import HttpError

from nexmdm.common import problems
from nexmdm.common.domain_error import DomainError
from nexmdm.common.problems import Problem
from tests.support.processes import ROOT

FOLDERS: Final = (
    "commands", "devices", "nexmdm/api", "nexmdm/auth", "nexmdm/audit", "nexmdm/common", "nexmdm/events", "nexmdm/http",
    "nexmdm/webhooks",
)  # fmt: skip
"""The folders whose code answers requests of phones and admins."""

FUNCTIONS: Final = {problems.general}
CLASSES: Final = (DomainError, HttpError, Problem, ValueError)
"""A call of one of these, or of a subclass, has the text of an error among its arguments."""

KEYS: Final = {"msg", "detail"}
"""The keys of an object in an answer that contain the text of an error."""

PLACEHOLDER: Final = "…"
Names = Mapping[str, Any]


def messages() -> dict[str, str]:
    """Return the place of each error message of the API, by its text."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).with_suffix("")
            if "migrations" not in place.parts and path.stem != "__init__":
                module = import_module(".".join(place.parts))
                found |= dict.fromkeys(messages_in(path.read_text(), vars(module)), str(place))
    return found


def messages_in(source: str, names: Names) -> Iterator[str]:
    """Yield the error messages in the source of a module, some more than once. `names` are the module's names."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for scope in (tree, *functions):
        assigned = _assigned(scope)
        for node in ast.walk(scope):
            for text in _texts_of(node, names):
                yield from _texts(text, names, assigned)


def _assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """Return the values that a function assigns to each of its names."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


def _texts_of(node: ast.AST, names: Names) -> Iterator[ast.expr]:
    """Yield the expressions in which this node has the text of an error."""
    if isinstance(node, ast.Call) and _is_error(node.func, names):
        yield from (*node.args, *(one.value for one in node.keywords))
    if isinstance(node, ast.ClassDef) and any(_is_error(base, names) for base in node.bases):
        for part in node.body:
            if isinstance(part, ast.Assign):
                yield part.value
            for call in ast.walk(part):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                    yield from call.args
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from (value for key, value in pairs if isinstance(key, ast.Constant) and key.value in KEYS)


def _is_error(called: ast.expr, names: Names) -> bool:
    value = _value(called, names)
    if isinstance(value, type):
        return issubclass(value, CLASSES)
    return any(value is function for function in FUNCTIONS)


def _value(expression: ast.expr, names: Names) -> Any:
    """Return the value of a dotted name, or None."""
    if isinstance(expression, ast.Attribute):
        return getattr(_value(expression.value, names), expression.attr, None)
    if isinstance(expression, ast.Name):
        return names.get(expression.id, getattr(builtins, expression.id, None))
    return None


def _texts(expression: ast.expr, names: Names, assigned: Mapping[str, list[ast.expr]]) -> Iterator[str]:
    """Yield the texts in an expression, and the texts that its names stand for."""
    if isinstance(expression, ast.Constant):
        if isinstance(expression.value, str):
            yield expression.value
        return
    if isinstance(expression, ast.JoinedStr):
        yield "".join(str(one.value) if isinstance(one, ast.Constant) else PLACEHOLDER for one in expression.values)
    if isinstance(expression, ast.Name):
        others = {name: values for name, values in assigned.items() if name != expression.id}
        for value in assigned.get(expression.id, ()):
            yield from _texts(value, names, others)
        yield from _texts_of_value(names.get(expression.id))
        return
    for child in ast.iter_child_nodes(expression):
        if isinstance(child, ast.expr) and not (
            isinstance(expression, ast.JoinedStr) and isinstance(child, ast.Constant)
        ):
            yield from _texts(child, names, assigned)


def _texts_of_value(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (one for one in value.values() if isinstance(one, str))


def domain_errors(base: type[DomainError] = DomainError) -> Iterator[type[DomainError]]:
    """Yield every class of errors that the API answers with a problem."""
    for error in base.__subclasses__():
        yield error
        yield from domain_errors(error)


def refusals_in(document: Mapping[str, Any]) -> set[str]:
    """Return the texts by which an OpenAPI document describes its refusals."""
    answers = document["components"]["responses"].values()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    answers = [*answers, *(answer for operation in operations for answer in operation["responses"].values())]
    lines = [line for answer in answers for line in answer.get("description", "").splitlines()]
    return {line.partition("`: ")[2] or line for line in lines if line}


def paraphrases(name: str) -> re.Pattern[str]:
    """Return a pattern for the words of a name of the API in ordinary English: "device ids" for `device_ids`."""
    words = [re.escape(word.removesuffix("s")) + "(?:s|['’]s|s['’])?" for word in words_of(name)]
    ways = [r"\s+".join(words)]
    if len(words) > 1:
        *first, last = words
        ways.append(rf"{last}\s+of\s+(?:(?:the|a|an|each|this|that|these)\s+)?" + r"\s+".join(first))
    return re.compile(rf"(?<![\w`.-])(?:{'|'.join(ways)})(?![\w`-])", re.IGNORECASE)


def words_of(name: str) -> list[str]:
    """Return the words of a name: of a header, those after the leading `X-`."""
    return re.split(r"[_-]", re.sub(r"^x-", "", name.lower()))


def names_of(document: Mapping[str, Any]) -> set[str]:
    """Return the names of more than one word in an OpenAPI document: properties, parameters and headers."""
    return {name for name in _all_names(document) if len(words_of(name)) > 1}


def _all_names(found: Any) -> Iterator[str]:
    if isinstance(found, Mapping):
        for key in ("properties", "headers"):
            part = found.get(key)
            if isinstance(part, Mapping):
                yield from part
        if "in" in found and isinstance(found.get("name"), str):
            yield found["name"]
        found = found.values()
    if isinstance(found, Iterable) and not isinstance(found, str):
        for one in found:
            yield from _all_names(one)

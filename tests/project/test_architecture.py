"""What holds the packages apart: which way imports point, where they stand, and how long a function may be."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
MAY_IMPORT: Final = {
    "nexmdm": {"nexmdm", "commands", "devices"},
    "commands": {"commands", "devices"},
    "devices": {"devices"},
    "loadtest": {"loadtest"},
}
OURS: Final = {*MAY_IMPORT, "tests"}
CLIENT: Final = "nexmdm.fleet_client"
"""Our HTTP client, which knows nothing of the server but its API and how to sign: anybody may use it."""

SEEDING: Final = ROOT / "loadtest" / "seeding.py"
"""It writes a fleet straight into the database, with credentials that the server accepts."""
LONGEST: Final = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*packages: str) -> list[Path]:
    found = [path for package in packages for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts]
    assert found
    return found


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the module of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.lineno, node.module or ""


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_down_and_never_back(package: str) -> None:
    wrong = [
        f"{place(path, line)} imports {module}"
        for path in sources(package)
        for line, module in imports(ast.parse(path.read_text()))
        if module.partition(".")[0] in OURS - MAY_IMPORT[package] and not is_excepted(path, module)
    ]
    assert wrong == []


def is_excepted(path: Path, module: str) -> bool:
    """Say whether this is a management command that runs the load test, or what the load test may use of ours."""
    if ROOT / "loadtest" in path.parents:
        return module == CLIENT or (path == SEEDING and module == "devices")
    return path.parent.parts[-2:] == ("management", "commands") and module.partition(".")[0] == "loadtest"


def test_the_http_client_knows_nothing_of_the_server_but_how_to_sign() -> None:
    source = (ROOT / CLIENT.replace(".", "/")).with_suffix(".py").read_text()
    ours = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module == "nexmdm"
    ]
    assert {alias.name for node in ours for alias in node.names} == {"signing"}
    assert not {module.partition(".")[0] for _, module in imports(ast.parse(source))} & {
        "django",
        "commands",
        "devices",
    }


def test_imports_stand_at_the_top_of_their_module() -> None:
    wrong = [
        place(path, line)
        for path in sources(*MAY_IMPORT)
        for function in functions(path)
        for line, _ in imports(function)
    ]
    assert wrong == []


def test_only_a_few_modules_look_at_the_applications_clock() -> None:
    """All other times are the database's: processes whose clocks differ agree on everything but a signature's age."""
    reading = {
        "time.time",
        "time.time_ns",
        "datetime.now",
        "datetime.utcnow",
        "datetime.today",
        "timezone.now",
        "date.today",
    }
    found = {
        str(path.relative_to(ROOT))
        for path in sources("nexmdm", "commands", "devices")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in reading
    }
    clients = {name for name in found if name.startswith("nexmdm/fleet_") or name.endswith("/simulate.py")}
    assert found - clients == {"nexmdm/auth.py", "commands/fcm.py"}


def test_no_function_is_longer_than_a_screen() -> None:
    wrong = [
        f"{place(path, function.lineno)} {function.name}"
        for path in sources(*OURS)
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno >= LONGEST
    ]
    assert wrong == []


def test_each_module_says_what_it_is_for() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources(*OURS)
        if path.name != "__init__.py" and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert wrong == []

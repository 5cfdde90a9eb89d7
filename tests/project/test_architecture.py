"""Rules for the code: the place of imports, use of the clock, length of functions, files and folders.

The contracts in pyproject.toml define which imports are allowed.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import grimp

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PRODUCT: Final = ("nexmdm", "commands", "devices", "loadtest")
OURS: Final = (*PRODUCT, "tests")
LONGEST_FUNCTION: Final = 40
LONGEST_FILE: Final = 350
MOST_MODULES: Final = 16
"""The largest number of modules in a folder."""

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


def test_imports_are_at_the_top_of_their_module() -> None:
    wrong = [
        place(path, line) for path in sources(*OURS) for function in functions(path) for line, _ in imports(function)
    ]
    assert wrong == []


def test_only_a_few_modules_read_the_applications_clock() -> None:
    """All other times come from the database. So processes with different clocks agree on all but a signature's age."""
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
    phones = ("/simulate.py", "/simulated_agent.py")
    clients = {name for name in found if name.startswith("nexmdm/client/") or name.endswith(phones)}
    assert found - clients == {"nexmdm/auth/signature_verification.py", "commands/push/fcm.py"}


def test_no_function_is_longer_than_a_screen() -> None:
    wrong = [
        f"{place(path, function.lineno)} {function.name}"
        for path in sources(*PRODUCT)
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno >= LONGEST_FUNCTION
    ]
    assert wrong == []


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(*PRODUCT)}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_folder_has_too_many_modules_and_each_describes_its_content() -> None:
    packages = [path.parent for path in sources(*PRODUCT) if path.name == "__init__.py"]
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("[!_]*.py"))) for folder in packages}
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}
    assert [
        folder for folder in packages if not ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    ] == []


def test_each_module_describes_its_purpose() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources(*OURS)
        if path.name != "__init__.py" and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert wrong == []


def test_every_module_belongs_to_a_layer() -> None:
    """The contracts in pyproject.toml do not check a module that no layer names."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = re.findall(r"[a-z_.]+", " ".join(contracts[0]["layers"]))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sources("nexmdm", "devices", "commands")
        if path.name != "__init__.py"
    }
    assert [
        module for module in sorted(modules) if not f"{module}.".startswith(tuple(f"{one}." for one in layers))
    ] == []


def test_no_module_imports_itself_through_others() -> None:
    """This test checks all packages together, because the contract compares only the modules of one package."""
    graph = grimp.build_graph(*PRODUCT)
    imports_of = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(imports_of).static_order())) >= len(graph.modules)

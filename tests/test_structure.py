"""The structure of the package: sizes, imports and cycles. `make lint` checks the import direction of the rooms."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "worker"
FILE_LINES = 400
FUNCTION_LINES = 60

# Exceptions; each is explained. A stale entry fails its test.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
CIRCLES: set[frozenset[str]] = set()
#: Functions that may import, because what they import is an optional extra, or of one platform.
OPTIONAL_IMPORTS = {
    "worker.__getattr__",  # importlib.metadata, for __version__ alone
    "worker.cli.top.command._show",  # textual
    "worker.cli.web.serve_",  # starlette and uvicorn
    "worker.cli.web.token",
    "worker.db.migrate._config",  # Alembic, which a worker needs only to migrate
    "worker.db.migrate._upgrade",
    "worker.db.migrate.migration_sql",
    "worker.embedded.process.run_as",  # pwd: POSIX
    "worker.job.propagation._attach_span",  # opentelemetry
    "worker.launch.main",  # uvloop
    "worker.observe.metrics.endpoint.Page.__init__",  # prometheus-client
    "worker.observe.wiring.make_observation",  # opentelemetry
    "worker.queue.client.settings_or_default",  # pydantic-settings, unless the client is given its settings
    "worker.queue.outbox.OutboxWriter.__init__",  # SQLAlchemy, which the caller has loaded for its session
    "worker.queue.outbox.OutboxWriter._insert",
    "worker.queue.outbox.OutboxWriter._open_transaction",
    # pytest loads the plugin in every project of an environment: it imports the worker when a fixture is used.
    "worker.testing.fixtures._create_missing",
    "worker.testing.fixtures._open_database",
    "worker.testing.fixtures.enqueued",
    "worker.testing.fixtures.longhaul_servers",
    "worker.testing.fixtures.longhaul_settings",
    "worker.testing.fixtures.pg_session",
    "worker.testing.fixtures.queue",
    "worker.testing.fixtures.run_job",
    "worker.testing.fixtures.sqlite_session",
}
HIDDEN_IMPORTS: set[str] = set()


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> dict[str, ast.Module]:
    """Return the modules of the package, parsed."""
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield each function below a node with its dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{child.name}", child
            yield from functions(child, f"{prefix}.{child.name}")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}.{child.name}")
        else:
            yield from functions(child, prefix)


def is_type_checking(node: ast.AST) -> bool:
    """Return whether a node is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that happen at run time below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not is_type_checking(child):
            yield from imports(child)


def imported_modules(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the modules of the package that an import loads, with the packages that hold them."""
    if isinstance(node, ast.Import):
        loaded = {alias.name for alias in node.names}
    else:
        base = node.module or ""
        loaded = {f"{base}.{alias.name}" if f"{base}.{alias.name}" in trees() else base for alias in node.names}
    return {package for name in loaded & trees().keys() for package in packages(name)}


def packages(name: str) -> list[str]:
    """Return the dotted names of a module and of the packages that hold it: Python loads all of them."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the strongly connected components with more than one module (Tarjan's algorithm)."""
    found: set[frozenset[str]] = set()
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.add(frozenset(component))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def differences(found: set[str], listed: set[str]) -> str:
    """Return the text of a failed assertion."""
    return f"new: {sorted(found - listed)}; no longer so, remove from the list: {sorted(listed - found)}"


def test_files_have_at_most_400_lines() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES
    }
    assert found == LONG_FILES, differences(found, LONG_FILES)


def test_functions_have_at_most_60_lines() -> None:
    found = {
        name
        for module, tree in trees().items()
        for name, node in functions(tree, module)
        if not module.startswith("worker.db.migrations.") and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES
    }
    assert found == LONG_FUNCTIONS, differences(found, LONG_FUNCTIONS)


def test_functions_import_nothing_but_what_is_optional() -> None:
    found = {
        name for module, tree in trees().items() for name, node in functions(tree, module) if next(imports(node), None)
    }
    listed = OPTIONAL_IMPORTS | HIDDEN_IMPORTS
    assert found == listed, differences(found, listed)


def test_tasks_are_cancelled_until_they_end() -> None:
    # `asyncio.wait_for` of Python 3.11 loses a cancellation that comes together with the result: a single one may be
    # waited for without end. `cancel_and_wait` repeats it.
    once = re.compile(r"\.cancel\(\)\n\s*await asyncio\.(gather|wait)\(")
    found = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py") if once.search(path.read_text("utf-8"))}
    assert found <= {"worker/cancellation.py"}


def test_modules_have_no_import_circles() -> None:
    graph = {
        # The packages that hold a module are loaded before it, whatever it imports.
        module: {target for node in imports(tree) for target in imported_modules(node)} - set(packages(module))
        for module, tree in trees().items()
    }
    found = circles(graph)
    assert found == CIRCLES, sorted(map(sorted, found ^ CIRCLES))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package in a folder."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo", "pyproject.toml"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(folder)},
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package with its contract."""
    shutil.copytree(PACKAGE, tmp_path / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("ledger/ledger.py", "worker.queue.client"),
        ("queue/client.py", "worker.runtime.worker"),
        ("queue/client.py", "worker.ledger"),
        ("batch/walk.py", "worker.cli"),
    ],
)
def test_lint_refuses_an_upward_import(copy: Path, importer: str, imported: str) -> None:
    planted = copy / "worker" / importer
    planted.write_text(planted.read_text(encoding="utf-8") + f"\nimport {imported}  # noqa\n", encoding="utf-8")
    ran = lint_imports(copy)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert f"worker.{importer.removesuffix('.py').replace('/', '.')} -> {imported}" in ran.stdout

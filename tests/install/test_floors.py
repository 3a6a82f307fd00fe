"""The floors of localckpt: imports only go down, and each floor needs only what it should."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "localckpt"
FLOORS = ["compiled", "storage", "trajectory", "functions", "adjoint", "commands"]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")  # which imports on request


def part_of(module):
    """The floor, by name, of a module in localckpt."""
    name = module.split(".")[1]
    if name == "__main__":
        return "commands"
    return "compiled" if name.startswith("_") else name


def own_part(path):
    return part_of("localckpt." + path.relative_to(PACKAGE).parts[0].removesuffix(".py"))


def imports(path):
    """The modules of localckpt that a file imports, anywhere in it, and the names that it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.startswith("localckpt."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                if node.module == "localckpt":
                    yield f"localckpt.{alias.name}", None
                elif node.module.startswith("localckpt."):
                    yield node.module, alias.name


def is_private(name):
    return name is not None and name.startswith("_") and not name.endswith("__")


def private_names(path):
    """What a file defines with a leading underscore: functions, classes, attributes, variables."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and is_private(node.name):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and is_private(node.id):
            yield node.id


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    height = FLOORS.index(own_part(path))
    assert [module for module, _ in imports(path) if FLOORS.index(part_of(module)) > height] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stay_in_their_package(path):
    own = {name for other in FILES if own_part(other) == own_part(path) for name in private_names(other)}
    others = {name for other in FILES if own_part(other) != own_part(path) for name in private_names(other)}
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    imported = {name for module, name in imports(path) if part_of(module) != own_part(path) and is_private(name)}
    assert imported | (used & others - own) == set()


@pytest.mark.parametrize(
    "module, needed",
    [
        ("localckpt", set()),
        ("localckpt.storage.store", {"petsc4py", "mpi4py", "numpy", "xxhash", "psutil"}),
        ("localckpt.trajectory", {"petsc4py", "mpi4py", "numpy", "xxhash", "psutil"}),
    ],
)
def test_storage_needs_few_packages(module, needed):
    code = f"""if True:
        import sys
        before = set(sys.modules)
        import {module}
        after = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        print(*after - set(sys.stdlib_module_names) - {{"localckpt"}})"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name for name in done.stdout.split() if "cython" not in name}  # of Cython's own run-time modules
    assert loaded <= needed

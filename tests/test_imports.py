"""Imports go one way: typing -> attention, ops -> nn, adversarial -> train; data and metrics stand beside train."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxai"
SCRIPTS = [PACKAGE.parent / name for name in ("experiments", "benchmarks")]
ALLOWED = {
    "typing": set(),
    "attention": {"typing"},
    "ops": {"typing"},
    "nn": {"typing", "attention", "ops"},
    "adversarial": {"typing", "attention", "ops"},
    "data": {"typing", "command"},
    "metrics": {"typing", "ops", "pictures"},
    "pictures": {"typing"},
    "explain": {"typing", "pictures"},
    "command": set(),
    "cli": {"typing", "command"},
    "gan_watch": {"typing", "cli", "command", "metrics", "train"},
    "gan_report": {"typing", "cli", "adversarial", "gan_watch", "metrics", "pictures", "train"},
    "train": {"typing", "attention", "ops", "nn", "adversarial", "command", "cli"},
}


def imported_modules(path: Path) -> set[str]:
    """The modules that a file imports anywhere."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "jaxai" else [node.module]
            modules.update(names)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    return modules


def imported_parts(path: Path) -> set[str]:
    """The parts of jaxai that a file imports."""
    return {module.split(".")[1] for module in imported_modules(path) if module.startswith("jaxai.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    relative = path.relative_to(PACKAGE)
    if relative.name == "__init__.py" and len(relative.parts) == 1:
        assert not imported_parts(path)
        return
    part = relative.parts[0].removesuffix(".py")
    assert imported_parts(path) <= ALLOWED[part] | {part}


EVERYWHERE = sorted(path for folder in (PACKAGE, *SCRIPTS) for path in folder.rglob("*.py"))


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_nobody_imports_an_experiment_or_unpickles(path):
    tops = {module.split(".")[0] for module in imported_modules(path)}
    assert not tops & {"experiments", "benchmarks", "pickle", *(script.stem for script in SCRIPTS[0].glob("*.py"))}
    assert not re.search(r"allow_pickle=True|(?<!\w)eval\(", path.read_text())

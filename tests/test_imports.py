"""Imports go one way: typing -> attention, ops -> nn, adversarial -> train; data and metrics stand beside train."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxai"
ALLOWED = {
    "typing": set(),
    "attention": {"typing"},
    "ops": {"typing"},
    "nn": {"typing", "attention", "ops"},
    "adversarial": {"typing", "attention", "ops"},
    "data": {"typing"},
    "metrics": {"typing", "ops"},
    "pictures": {"typing"},
    "cli": {"typing"},
    "train": {"typing", "attention", "ops", "nn", "adversarial", "cli"},
}


def imported_parts(path: Path) -> set[str]:
    """The parts of jaxai that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "jaxai" else [node.module]
            modules.update(names)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    return {module.split(".")[1] for module in modules if module.startswith("jaxai.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    relative = path.relative_to(PACKAGE)
    if relative.name == "__init__.py" and len(relative.parts) == 1:
        assert not imported_parts(path)
        return
    part = relative.parts[0].removesuffix(".py")
    assert imported_parts(path) <= ALLOWED[part] | {part}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_an_experiment_or_unpickles(path):
    source = path.read_text()
    assert "experiments" not in {name.split(".")[0] for name in imported_parts(path)}
    for forbidden in ("import pickle", "allow_pickle=True", "eval("):
        assert forbidden not in source

"""The plan of the house: imports go one way, files and functions stay small, every module has its tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE, TESTS = REPOSITORY / "jaxai", REPOSITORY / "tests"
SCRIPTS = [REPOSITORY / name for name in ("experiments", "benchmarks", "tools")]
GROUND = {"typing", "errors", "config"}
FLOORS = [
    ("attention", {"typing"}),
    ("ops", {"typing", "errors"}),
    ("nn", {"typing", "errors", "attention", "ops"}),
    ("metrics", {"typing", "errors", "ops", "nn"}),
    ("plots", {"typing", "errors", "metrics"}),
    ("attribution", {"typing"}),
    ("data", {"typing", "errors", "cli"}),
    ("distributed", {*GROUND}),
    ("run", {*GROUND, "distributed"}),
    ("train", {*GROUND, "attention", "ops", "nn", "data", "distributed", "run"}),
    ("gan", {*GROUND, "attention", "ops", "nn", "metrics", "plots", "data", "distributed", "run", "train"}),
    ("cli", {*GROUND, "distributed"}),
    ("experiment", {*GROUND, "cli", "data", "distributed", "run", "train"}),
]
"""The rooms of the package, each with those that it may import; nobody imports experiments or benchmarks."""
ALLOWED = {"typing": set(), "errors": set(), "config": {"errors"}, **dict(FLOORS)}
EXTENSION = re.compile(r"^jax\.(core|extend|interpreters|ffi|_src)\b|^jax\.experimental\.custom_partitioning\b")
EXTENDING = {"attention/_primitives.py", "attention/cudnn.py"}

FILES, LINES, FUNCTION_LINES = 15, 400, 60
EXPERIMENT_LINES, EXPERIMENT_IMPORTS = 200, 8
LONGER_EXPERIMENTS = {"mlp_digits.py": 240, "linear_regression.py": 215}
"""Their claim is arithmetic written out, which stands in the file."""


def python_files(*folders: Path) -> list[Path]:
    """The Python files of folders, without the programs that run in a peer's environment."""
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "peers" not in path.parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imported_modules(path: Path) -> set[str]:
    """The modules that a file imports anywhere; of ``from jaxai import x`` the room x."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "jaxai" or EXTENSION.match(f"{node.module}.{node.names[0].name}")
            modules.update([f"{node.module}.{alias.name}" for alias in node.names] if inside else [node.module])
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            modules.add(ast.unparse(node))
    return modules


def rooms(path: Path) -> set[str]:
    """The rooms of the package that a file imports."""
    return {module.split(".")[1] for module in imported_modules(path) if re.match(r"jaxai\.\w", module)}


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


PACKAGE_FILES = python_files(PACKAGE)
CODE = python_files(PACKAGE, *SCRIPTS)
EXPERIMENTS = python_files(SCRIPTS[0])


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_imports_go_one_way(path):
    relative = path.relative_to(PACKAGE)
    if relative.parts == ("__init__.py",):
        assert not rooms(path)
        return
    room = relative.parts[0].removesuffix(".py")
    assert rooms(path) <= ALLOWED[room] | {room}


def test_training_knows_no_command_line():
    for room in ("train", "run", "distributed", "gan"):
        for path in python_files(PACKAGE / room):
            assert not {"tyro", "jaxai.cli"} & imported_modules(path), name_of(path)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_extension_interfaces_and_unpickling_stay_where_they_belong(path):
    modules, text = imported_modules(path), path.read_text()
    if name_of(path).removeprefix("jaxai/") not in EXTENDING and path.is_relative_to(PACKAGE):
        assert not [module for module in modules if EXTENSION.match(module)]
    tops = {module.split(".")[0] for module in modules}
    assert not tops & {"experiments", "benchmarks", "pickle", "runpy", *(script.stem for script in EXPERIMENTS)}
    assert not re.search(r"allow_pickle=True|(?<!\w)eval\(", text)


def test_folders_are_small():
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir()), SCRIPTS[0]]:
        assert len(list(folder.glob("*.py"))) <= FILES, name_of(folder)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= LINES
    for node in definitions(path):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments_are_short_and_leave_the_chain_to_the_package(path):
    text, tree = path.read_text(), ast.parse(path.read_text())
    assert len(text.splitlines()) <= LONGER_EXPERIMENTS.get(path.name, EXPERIMENT_LINES)
    ours = [node for node in tree.body if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxai")]
    assert len(ours) <= EXPERIMENT_IMPORTS
    for word in ("make_mesh", "open_run", "random.key("):
        assert word not in text


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_every_module_has_its_tests(path):
    relative = path.relative_to(PACKAGE)
    if path.name not in ("__init__.py", "__main__.py"):
        assert (TESTS / relative.parent / f"test_{path.name.lstrip('_')}").exists()


@pytest.mark.parametrize("path", python_files(PACKAGE, SCRIPTS[0]), ids=name_of)
def test_public_names_have_docstrings(path):
    """None begins with "What": a docstring is an imperative or a noun phrase."""
    tree = ast.parse(path.read_text())
    assert path.name == "__init__.py" or ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
    for node in [tree, *definitions(path)]:
        assert not (ast.get_docstring(node) or "").startswith("What"), getattr(node, "name", "module")

"""Untrusted files: reading them can't run code, and damaged ones raise typed errors."""

import ast

import pytest

from tests.faults import promises
from tests.faults.runs import REPOSITORY

RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SOURCES = sorted(path for folder in ("jaxai", "experiments") for path in (REPOSITORY / folder).rglob("*.py"))


def dangers(source: str) -> list[str]:
    """Constructs in a source that could run code from a file: modules, eval and exec, allow_pickle other than False."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in RUNS_CODE]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in RUNS_CODE:
                found.append(module)
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                found.append(name)
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append("allow_pickle")
    return found


def test_no_source_runs_code_from_files():
    assert len(SOURCES) > 90
    assert {str(path): dangers(path.read_text()) for path in SOURCES if dangers(path.read_text())} == {}


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import load", "eval(text)", "exec(text)", "np.load(path, allow_pickle=True)"],
)
def test_the_reader_of_sources_finds_them(line):
    assert dangers(f"def f():\n    {line}\n")


def test_mutated_files(tmp_path):
    assert promises.mutations(tmp_path, 400)


@pytest.mark.slow
def test_soak(tmp_path):
    assert promises.soak(tmp_path, 400)

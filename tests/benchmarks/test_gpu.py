"""The GPU benchmark's driver, and all of its sections in miniature on a CPU."""

import importlib
import json
import math
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from jaxai import cli

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
FOUND = {"device": "cpu", "versions": {"jax": "0"}}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def session(gpu, tmp_path):
    def make(section="attention", *, dry=True, started="2026-01-01T00:00:00"):
        return gpu.Session(section, 60.0, tmp_path, dry, None, None, started, **FOUND)

    return make


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run(out, *options):
    """The finished command."""
    line = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(out), *options]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "atention"], ["--only atention", "did you mean attention"]),
        (["--peers", "/nowhere/python"], ["--peers /nowhere/python is not a file"]),
        (["--data-dir", "/nowhere"], ["--data-dir /nowhere is not a folder"]),
        (["--seconds", "0"], ["--seconds must be positive"]),
    ],
)
def test_a_users_error_is_one_line(gpu, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        cli.guard(lambda: gpu.main(cli.read(gpu.Config, arguments)))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)


def test_without_a_gpu_it_says_what_to_install(tmp_path):
    result = run(tmp_path / "out", "--only", "environment")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: JAX finds no GPU here")
    assert "--dry" in line
    assert not (tmp_path / "out").exists()


def test_an_interpreter_without_torch_is_refused(gpu, tmp_path, monkeypatch):
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho no torch >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ValueError, match=r"--peers .*/python3: no torch"):
        gpu.find_torch(python, False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.find_torch(None, False) is None


def test_a_peer_that_ends_is_not_available(gpu, tmp_path):
    """At its start, or between two questions."""
    python = tmp_path / "python3"
    timing = importlib.import_module("timing")
    for script, asked in (("exit 1", False), ("echo '{}'", True)):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        session = gpu.Session("attention", 60.0, tmp_path, True, python, None, "now", **FOUND)
        with session.peer("torch_attention.py") as ask:
            assert (ask is not None) == asked
            for _ in range(2 if asked else 0):
                with pytest.raises(timing.NotAvailable, match="PyTorch's process ended"):
                    ask(ask="versions")
    (row,) = rows_of(tmp_path)
    assert (row["what"], row["status"]) == ("against PyTorch", "not run")


def test_what_does_not_fit_is_not_started(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "probe", lambda dry: FOUND)
    monkeypatch.setattr(gpu, "run_section", lambda session: pytest.fail("started"))
    gpu.main(gpu.Config(seconds=5, dry=True, out=tmp_path))
    rows = rows_of(tmp_path)
    assert [row["section"] for row in rows] == list(gpu.SECTIONS)
    assert {row["status"] for row in rows} == {"not run"}
    assert "--only environment" in rows[0]["detail"]
    assert f"{len(gpu.SECTIONS)} not run" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_a_section_that_crashes_or_hangs_is_a_row(gpu, tmp_path, monkeypatch):
    """And what a hanging section has started ends with it."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import json, os, subprocess, sys, time
        section = json.loads(sys.argv[2])["section"]
        if section == "crash":
            os.abort()
        if section == "hang":
            child = subprocess.Popen(["sleep", "100"])
            print(child.pid, file=open(os.path.join(os.path.dirname(__file__), "child"), "w"), flush=True)
            time.sleep(100)
        sys.exit("no such package")
        """)
    )
    monkeypatch.setattr(gpu, "SCRIPT", script)
    monkeypatch.setattr(gpu, "probe", lambda dry: FOUND)
    monkeypatch.setattr(gpu, "SECTIONS", {"crash": 1, "hang": 1, "end": 1})
    monkeypatch.setattr(gpu, "DRY_SECONDS", 4)
    gpu.main(gpu.Config(seconds=100, dry=True, out=tmp_path))
    failed = {row["section"]: row["detail"] for row in rows_of(tmp_path) if row["status"] == "failed"}
    assert failed.keys() == {"crash", "hang", "end"}
    assert "SIGABRT" in failed["crash"]
    assert "limit of 4 s" in failed["hang"]
    assert "exit code 1: no such package" in failed["end"]
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    for _ in range(100):  # a killed process may wait for its parent
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the section's child lives")


def test_an_exception_is_a_row(gpu, session, tmp_path, monkeypatch):
    def fail(_):
        raise KeyError("why")

    monkeypatch.setitem(sys.modules, "gpu_sections.broken", types.SimpleNamespace(run=fail))
    gpu.section(session("broken").to_json())
    monkeypatch.setitem(sys.modules, "gpu_sections.missing", None)
    gpu.section(session("missing").to_json())
    first, second = rows_of(tmp_path)
    assert (first["status"], first["detail"]) == ("failed", "KeyError: 'why'")
    assert second["status"] == "failed"
    assert "gpu_sections.missing" in second["detail"]


def test_what_a_row_says(session, tmp_path):
    real = session(dry=False)
    real.row("ratio", values=[1.0, 1.02, 1.3], wanted=("<=", 1.05))
    real.row("ratio", 1.06, wanted=("<=", 1.05))
    real.row("speed", math.nan, wanted=(">=", 0.9))
    real.row("rate", 3.0, "TFLOP/s")
    session().row("ratio", 1.06, wanted=("<=", 1.05))
    rows = rows_of(tmp_path)
    assert [row["status"] for row in rows] == ["within", "outside", "outside", "measured", "measured"]
    assert rows[0]["value"] == 1.02
    assert rows[0]["spread"] == {"min": 1.0, "median": 1.02, "max": 1.3}
    assert not real.verified("error", math.nan, 1e-2)
    assert real.verified("error", 1e-3, 1e-2)
    assert rows_of(tmp_path)[-1]["status"] == "failed"


def test_the_table(gpu, session, tmp_path):
    session(started="2026-01-01T00:00:00").row("old", 1.0)
    session("masks", started="2026-01-01T00:00:00").row("kept", 2.0)
    new = session(started="2026-01-02T00:00:00", dry=False)
    new.row("slow", 2.0, "ms", wanted=("<=", 1.0), detail="a|b")
    new.row("fine", values=[0.5, 0.75], wanted=("<=", 1.0))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"section": "attention", "wha')  # a kill in the middle of a line
    lines = gpu.table(gpu.read_rows(tmp_path / "results.jsonl")).splitlines()
    assert "0 failed, 1 outside, 1 within, 0 not run, 1 measured" in lines
    table = [line for line in lines if line.startswith("| ")][1:]
    assert table == [
        "| outside | attention | slow | 2.0 ms | <= 1 |  | a/b |",
        "| within | attention | fine | 0.625 | <= 1 | 0.5 ... 0.75 |  |",
        "| measured | masks | kept | 2.0 |  |  |  |",
    ]


def test_attention_needs_jax_numpy_and_jaxtyping_alone():
    """As a GPU's image may have no more."""
    banned = ("flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "tokenizers", "safetensors")
    program = f"import sys\nfor name in {banned}: sys.modules[name] = None\nsys.path.insert(0, {str(BENCHMARKS)!r})\n"
    for name in ("environment", "correctness", "attention", "masks", "orders", "decode"):
        program += f"import gpu_sections.{name}\n"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_two_sections_in_miniature(tmp_path):
    result = run(tmp_path, "--dry", "--only", "environment", "airbench")
    assert result.returncode == 0, result.stderr
    check_dry(tmp_path, {"environment", "airbench"})
    assert "matrix product 128" in result.stdout


@pytest.mark.slow
def test_every_section_in_miniature(gpu, tmp_path):
    result = run(tmp_path, "--dry", "--seconds", "3600")
    assert result.returncode == 0, result.stderr
    check_dry(tmp_path, set(gpu.SECTIONS))


def check_dry(folder, sections):
    """Every section has a row beside its seconds, none failed, and the table is there."""
    rows = rows_of(folder)
    assert {row["section"] for row in rows if row["what"] != "section's seconds"} == sections
    assert [row for row in rows if row["status"] == "failed"] == []
    assert all(row["dry"] and row["device"] and row["versions"]["jax"] for row in rows)
    text = (folder / "results.md").read_text()
    assert all(f"| {section} |" in text for section in sections)
    assert {row["status"] for row in rows} <= {"within", "measured", "not run"}

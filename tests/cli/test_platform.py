"""Platforms, numbers of devices, the compilation cache, and freed memory."""

from types import SimpleNamespace

import jax
import pytest

from jaxai.cli import platform
from jaxai.errors import UserError
from tests.helpers import run_main


def test_platform_that_is_not_there_names_the_extras():
    result = run_main("pass", "--platform", "gpu")
    if result.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --platform gpu")
    assert ".[cuda12]" in line
    assert ".[cuda13]" in line


def test_devices_split_the_cpu():
    result = run_main("print(jax.device_count())", "--platform", "cpu", "--devices", "3")
    assert (result.returncode, result.stdout) == (0, "3\n"), result.stderr


@pytest.fixture
def settings(monkeypatch) -> dict[str, object]:
    """What is set of JAX's configuration from now on, without being set."""
    found: dict[str, object] = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: found.update({name: value}))
    return found


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_compiled_programs_are_kept_in_the_users_cache_unless_told_otherwise(variable, monkeypatch, tmp_path, settings):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    platform.use_compilation_cache()
    folders = {"XDG_CACHE_HOME": tmp_path / "jaxai" / "xla", "HOME": tmp_path / ".cache" / "jaxai" / "xla"}
    if variable in folders:
        assert settings.pop("jax_compilation_cache_dir") == str(folders[variable])
    assert list(settings) == ["jax_persistent_cache_min_compile_time_secs"]  # JAX reads its own variable


def test_more_devices_than_there_are(monkeypatch, settings):
    monkeypatch.setenv("PJRT_NPROC", "16")
    with pytest.raises(UserError, match="--devices 5: JAX finds only 4; ask for at most 4"):
        platform.start_platform("cpu", 5)
    assert settings == {"jax_platforms": "cpu", "jax_num_cpu_devices": 5}


def test_the_platform_and_the_devices_of_auto_are_left_to_jax(settings):
    platform.start_platform("auto", 0)
    assert settings == {}


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend\nmore"), AssertionError()])
@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_a_platform_without_a_plugin_names_its_extra(name, error, monkeypatch, settings):
    def fail():
        raise error

    monkeypatch.setattr(jax, "device_count", fail)
    with pytest.raises(UserError, match=rf"--platform {name}: JAX finds none here; .*pip install -e") as caught:
        platform.start_platform(name, 0)
    assert "or use --platform cpu" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failing_cpu_keeps_its_error(monkeypatch, settings):
    def fail():
        raise RuntimeError("broken")

    monkeypatch.setattr(jax, "device_count", fail)
    with pytest.raises(RuntimeError, match="broken"):
        platform.start_platform("cpu", 0)


def test_freed_memory_is_kept_where_there_is_a_glibc(monkeypatch):
    told = []
    monkeypatch.setattr(platform.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *pair: told.append(pair)))
    monkeypatch.setattr(platform.sys, "platform", "darwin")
    platform.keep_freed_memory()
    assert told == []
    monkeypatch.setattr(platform.sys, "platform", "linux")
    platform.keep_freed_memory()
    assert [parameter for parameter, _ in told] == [-3, -1, -8]
    monkeypatch.setattr(platform.ctypes, "CDLL", lambda name: SimpleNamespace())  # such as musl
    platform.keep_freed_memory()

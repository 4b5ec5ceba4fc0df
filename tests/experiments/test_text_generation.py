"""Text generation as a person runs it: trained, continued, sampled from, misused."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxai.data.text.corpus import load_text
from tests.experiments.commands import SCRIPTS, load, refusal, run, run_command, start, start_command

SCRIPT = SCRIPTS / "text_generation.py"
RUN = ("config.json", "vocabulary.json", "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A debug run that was stopped and continued, and what its last start said."""
    workdir = tmp_path_factory.mktemp("text") / "run"
    for steps in ("10", "20"):
        result = run(SCRIPT, workdir, "--steps", steps)
        assert result.returncode == 0, result.stderr
    return workdir, result


def sampled(workdir, *arguments):
    return run_command(SCRIPT, workdir, "sample", "--workdir", str(workdir), *arguments)


def test_debug_run(finished):
    workdir, result = finished
    assert "going on from step 10" in result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert f"validation loss {summary['validation_loss']:.4f} nats" in result.stdout
    assert 3.0 < summary["validation_loss"] < np.log(68)  # better than guessing among 68 characters
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    validated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(validated) == [0, 10, 20]
    assert validated[20] == pytest.approx(summary["validation_loss"], abs=1e-6)
    assert summary["validation_loss"] < validated[0]
    assert (workdir / "samples" / "sample.txt").read_text()
    assert set(RUN) < {path.name for path in workdir.iterdir()}
    assert "this run is finished" in run(SCRIPT, workdir, "--steps", "20").stderr


@pytest.mark.slow
def test_activations_in_bfloat16(finished, tmp_path):
    whole, result = finished
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["iterations_per_second"] > 0, summary["mfu"]) == (True, None)
    assert f", {summary['iterations_per_second']} iterations/s" in result.stdout
    workdir = tmp_path / "run"
    result = run(SCRIPT, workdir, "--steps", "5", "--dtype", "bfloat16")
    assert result.returncode == 0, result.stderr
    losses = [
        [json.loads(line).get("loss", 0.0) for line in (folder / "metrics.jsonl").read_text().splitlines()[:6]]
        for folder in (workdir, whole)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-2)  # 8 bits
    assert losses[0] != losses[1]
    assert {array.dtype for array in load_file(workdir / "model.safetensors").values()} == {np.dtype(np.float32)}
    assert sampled(workdir, "--prompt", "A", "--tokens", "10").stdout.startswith("A")
    refused = run(SCRIPT, tmp_path / "other", "--network", "recurrent", "--eval-batches", "0", "--dtype", "bfloat16")
    assert "--dtype bfloat16 needs --network transformer" in refused.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_batch(finished, tmp_path):
    whole, _ = finished
    result = run(
        SCRIPT, tmp_path / "run", "--steps", "5", "--accumulation-steps", "3", "--devices", "2", "--mesh", "data=2"
    )
    assert result.returncode == 0, result.stderr
    losses = [
        [json.loads(line).get("loss", 0.0) for line in (folder / "metrics.jsonl").read_text().splitlines()[:6]]
        for folder in (tmp_path / "run", whole)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)  # float32 sums in another order


@pytest.mark.slow
def test_samples_are_the_prompt_and_so_many_tokens_by_the_seed(finished):
    workdir, _ = finished
    first, again, other = (
        sampled(workdir, "--prompt", "ROMEO:", "--tokens", "60", "--seed", seed) for seed in ("1", "1", "2")
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("ROMEO:")
    assert len(first.stdout) == len("ROMEO:") + 60 + 1
    assert first.stdout == again.stdout != other.stdout
    beginning = load_text().string
    assert sampled(workdir, "--tokens", "5").stdout.startswith(beginning[:1])


@pytest.mark.slow
def test_attention_is_drawn(finished):
    workdir, _ = finished
    result = run_command(SCRIPT, workdir, "explain", "--workdir", str(workdir), "--prompt", "to be or not" * 5)
    assert result.returncode == 0, result.stderr
    assert "the first 32 of 60 tokens" in result.stdout  # the run's window
    with Image.open(workdir / "attention.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_statistics_of_a_long_text_and_maps_of_a_short_one(finished, monkeypatch, capsys):
    """Without a prompt the beginning of the plays, as one and as the other."""
    workdir, _ = finished
    experiment, drawn = load(SCRIPT), []
    module = "jaxai.plots.attention"
    monkeypatch.setattr(f"{module}.save_attention_maps", lambda path, weights, *names: drawn.append(weights))
    monkeypatch.setattr(f"{module}.save_attention_statistics", lambda path, *arrays: drawn.extend(arrays))
    explain = partial(start_command, experiment.explain, experiment.Explain, "--workdir", str(workdir))
    explain()
    monkeypatch.setattr(f"{module}.WRITTEN_OUT", 10)
    explain()
    assert "the first 32 of 48 tokens" in capsys.readouterr().out
    weights, entropy, mass = map(np.asarray, drawn)  # weights [layers, N, T, S], the others [layers, T, N]
    np.testing.assert_allclose(np.swapaxes(weights.sum(2), 1, 2), mass, rtol=1e-4)
    np.testing.assert_allclose(-(weights * np.log(weights + 1e-30)).sum(-1).swapaxes(1, 2), entropy, atol=1e-4)


@pytest.mark.slow
def test_a_recurrent_network_goes_on_with_its_state(tmp_path, capsys):
    """Interrupted and continued it is the run in one go, bit for bit; then it writes, and has no attention to draw."""
    network = "--network", "recurrent", "--rnn.hidden-dim", "16", "--eval-batches", "0", "--batch-size", "64"
    once, twice = tmp_path / "once", tmp_path / "twice"
    for workdir, steps in ((once, "20"), (twice, "10"), (twice, "20")):
        result = run(SCRIPT, workdir, "--steps", steps, *network)
        assert result.returncode == 0, result.stderr
    lines = [[json.loads(line) for line in (w / "metrics.jsonl").read_text().splitlines()] for w in (once, twice)]
    assert [line.get("loss_hex") for line in lines[0]] == [line.get("loss_hex") for line in lines[1]]
    assert lines[0][-1]["validation_loss"] < lines[0][0]["validation_loss"]
    said = sampled(once, "--prompt", "ROMEO:", "--tokens", "40")
    assert len(said.stdout) == len("ROMEO:") + 40 + 1, said.stderr
    experiment = load(SCRIPT)
    explain = partial(start_command, experiment.explain, experiment.Explain, "--workdir", str(once))
    assert "recurrent network, which has no attention" in refusal(capsys, explain)
    windows = partial(start, experiment, tmp_path / "new", "--network", "recurrent")
    assert "give --eval-batches 0" in refusal(capsys, windows)


def test_bad_input_is_one_line_and_exit_code_2(finished, tmp_path, capsys):
    workdir, _ = finished
    experiment = load(SCRIPT)
    (tmp_path / "tiny.txt").write_text("To be")
    (tmp_path / "short.txt").write_text("To be or not\n" * 92)
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin1") * 2000)
    for arguments, word in [
        (["--text", str(tmp_path / "none.txt")], "none.txt"),
        (["--text", str(tmp_path / "tiny.txt")], "at least 1,000"),
        (["--text", str(tmp_path / "latin1.txt")], "not UTF-8"),
        (["--data-dir", str(tmp_path)], "give the file as --text FILE"),
        (["--batch-size", "0"], "--batch-size"),
        (["--length", "1"], "--length must be at least 2"),
        (["--text", str(tmp_path / "short.txt"), "--length", "200"], "the 120 validation tokens"),
        (["--transformer.num_heads", "3"], "heads=3"),
        (["--length", "128", "--transformer.position", "learned", "--transformer.max-length", "64"], "--length 128"),
    ]:
        assert word in refusal(capsys, partial(start, experiment, tmp_path / "run", *arguments))
        assert not (tmp_path / "run").exists()
    sample = partial(start_command, experiment.sample, experiment.Sample)
    for arguments, word in [
        (["--prompt", "ROMÉO"], "É"),
        (["--prompt", ""], "--prompt is empty"),
        (["--temperature", "-1"], "temperature"),
        (["--tokens", "-1"], "--tokens"),
    ]:
        assert word in refusal(capsys, partial(sample, "--workdir", str(workdir), *arguments))
    assert "holds no finished run" in refusal(capsys, partial(sample, "--workdir", str(tmp_path / "nowhere")))
    missing = run(SCRIPT, tmp_path / "run", "--text", str(tmp_path / "none.txt"))
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("error: ")


def test_a_vocabulary_or_weights_of_another_run(finished, tmp_path):
    workdir, _ = finished
    for name in RUN:
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    saved = json.loads((workdir / "vocabulary.json").read_text())
    letters = saved["characters"]
    same_size = letters.replace(letters[-1], "é")
    (tmp_path / "vocabulary.json").write_text(json.dumps(saved | {"characters": same_size}))
    result = sampled(tmp_path, "--prompt", "a")
    assert result.returncode == 2
    assert "was trained with another vocabulary" in result.stderr
    (tmp_path / "vocabulary.json").write_text(json.dumps(saved | {"characters": "abc"}))
    result = sampled(tmp_path, "--prompt", "a")
    assert result.returncode == 2
    assert "was trained with another vocabulary" in result.stderr
    (tmp_path / "vocabulary.json").write_bytes((workdir / "vocabulary.json").read_bytes())
    arrays = load_file(workdir / "model.safetensors")
    arrays.pop("decoder.norm.scale")
    save_file(arrays, tmp_path / "model.safetensors")
    result = sampled(tmp_path)
    assert result.returncode == 2
    assert "decoder.norm.scale is absent" in result.stderr

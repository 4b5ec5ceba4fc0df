"""Tests of what a run promises. Each function injects faults ``count`` times, asserts, and returns a summary."""

import contextlib
import gc
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from jaxai.config import Training
from jaxai.data.images.official import read_idx
from jaxai.distributed.mesh import make_mesh
from jaxai.run.checkpoint import Checkpoints, read_manifest, write_manifest
from jaxai.run.folder import Run, read_config
from jaxai.run.weights import load_weights, save_weights
from jaxai.train.loop import Every, fit
from tests.experiments.warm import Job
from tests.faults.malformed import idx
from tests.faults.runs import EXPERIMENTS, OTHERS, Trial, free_port, wait_until, whole_lines
from tests.helpers import Blobs, tiny_gan

STEPS = 60
WITHOUT_PRIVILEGE = "import ctypes\nctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"
"""PR_CAPBSET_DROP of CAP_DAC_OVERRIDE: afterwards file permissions apply to root too."""
INTERVAL = 5  # steps between checkpoints in EXPERIMENTS


def kills(folder: Path, count: int) -> str:
    """SIGKILL at random times until the run is done: bitwise equal to an uninterrupted run."""
    rng, most, landed, lives, writing = np.random.default_rng(count), 0, 0, 0, 0
    for name in EXPERIMENTS:
        whole, again = (Trial(name, folder / f"{name}_{run}", STEPS) for run in ("whole", "again"))
        assert whole.finish()[0] == 0, whole.said.read_text()
        began = time.monotonic()  # of the second run, which finds its programs compiled, as the killed ones do
        assert again.finish()[0] == 0, again.said.read_text()
        span, expected = time.monotonic() - began, whole.outcome()
        assert again.outcome() == expected
        left = -(-count // len(EXPERIMENTS))
        while left:
            trial, lives = Trial(name, folder / f"{name}_{lives}", STEPS), lives + 1
            while left:
                process = trial.start()
                time.sleep(rng.uniform(0, span))
                before = process.poll()
                process.kill()
                process.wait()
                if before is not None:
                    assert before == 0, trial.said.read_text()
                    break
                left, landed = left - 1, landed + 1
                reached, saved = trial.last_step, max(trial.checkpoints, default=0)
                # one interval, plus the steps taken while a checkpoint is written (the next save waits for it)
                assert reached - saved <= 2 * INTERVAL, f"{trial.folder}: step {reached} was reached, {saved} was saved"
                writing += bool(trial.leftovers())
                most = max(most, reached - saved)
            assert trial.finish()[0] == 0, trial.said.read_text()
            assert trial.outcome() == expected, f"{trial.folder} differs from {whole.folder}"
            assert not trial.leftovers()
            shutil.rmtree(trial.folder)
    return (
        f"{landed} kills over {len(EXPERIMENTS)} experiments, {writing} of them while a file was written, {lives} runs "
        f"bitwise equal, at most {most} steps lost of {INTERVAL} between checkpoints"
    )


def signals(folder: Path, count: int) -> str:
    """SIGTERM and SIGINT at random steps: final checkpoint, documented exit code, bitwise equal after resuming."""
    rng, longest = np.random.default_rng(count), 0.0
    name = "transformer"
    whole = Trial(name, folder / "whole", STEPS)
    assert whole.finish()[0] == 0, whole.said.read_text()
    trial, life = Trial(name, folder / "0", STEPS), 0
    for number in range(count):
        which = (signal.SIGTERM, signal.SIGINT)[number % 2]
        process, start = trial.start(), trial.last_step
        target = start + int(rng.integers(1, 12))
        if target > STEPS - 5:
            process.kill()
            process.wait()
            trial, life = Trial(name, folder / str(life + 1), STEPS), life + 1
            process, target = trial.start(), int(rng.integers(1, 12))
        assert wait_until(lambda t=trial, s=target: t.last_step >= s, process), trial.said.read_text()
        began = time.monotonic()
        process.send_signal(which)
        code = process.wait(10)
        longest = max(longest, time.monotonic() - began)
        assert code == 128 + which, f"{which.name}: exit code {code}\n{trial.said.read_text()}"
        assert trial.said.read_text().strip().endswith(f"({which.name})")
        assert trial.checkpoints[-1] == trial.last_step or trial.checkpoints[-1] == trial.last_step + 1
    assert trial.finish()[0] == 0
    assert trial.outcome() == whole.outcome()
    return f"{count} of {count} saved and ended within {longest:.1f} s with 143 and 130; resumed bitwise equal"


def second_signals(folder: Path, count: int) -> str:
    """A second signal ends the process at once, before or during the save that the first one causes."""
    longest = 0.0
    for number in range(count):
        trial = Trial("transformer", folder / str(number), 4000)
        process = trial.start()
        assert wait_until(lambda t=trial: t.last_step >= 3, process), trial.said.read_text()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(5) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        assert "interrupted" not in trial.said.read_text(), "it ended as if after one signal"
        longest = max(longest, time.monotonic() - began)
        assert Trial("transformer", trial.folder, 12).finish()[0] == 0
        shutil.rmtree(trial.folder)
    return f"{count} of {count} ended within {longest:.2f} s; each run resumed"


def flips(folder: Path, count: int) -> str:
    """Flip one bit of the newest checkpoint: detected, the checkpoint renamed, the previous one used."""
    trial = Trial("gan", folder / "run", 10)
    assert trial.finish()[0] == 0, trial.said.read_text()
    rng, checkpoints = np.random.default_rng(count), trial.folder / "checkpoints"
    files = [path for path in sorted((checkpoints / "10").rglob("*")) if path.is_file() and path.stat().st_size]
    sizes = np.array([path.stat().st_size for path in files])
    weights = (sizes / sizes.sum() + 1 / len(files)) / 2  # half in proportion to size, half uniform over files
    with closing(Checkpoints(checkpoints)) as opened:
        for _ in range(count):
            path = files[rng.choice(len(files), p=weights)]
            with path.open("r+b") as file:
                place, bit = int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8))
                file.seek(place)
                before = file.read(1)[0]
                file.seek(place)
                file.write(bytes([before ^ bit]))
            assert opened.newest_good() == 5, f"bit {bit} of byte {place} of {path} was not detected"
            aside = checkpoints / "10.corrupt"
            aside.rename(checkpoints / "10")
            with path.open("r+b") as file:
                file.seek(place)
                file.write(bytes([before]))
        assert opened.newest_good() == 10
    return f"{count} of {count} detected, in {len(files)} files; the previous checkpoint was used each time"


def truncate(path: Path, _: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, _: Path) -> None:
    os.truncate(path, 0)


def delete(path: Path, _: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


DAMAGES = (truncate, empty, delete, swap)


def damage(folder: Path, count: int) -> str:
    """Truncate, empty, delete and swap every file of a checkpoint: detected, the previous checkpoint used.

    Do the same to ``count`` of the run's other files and restart: training continues, or an error names the file.
    """
    trial = Trial("gan", folder / "run", 10)
    assert trial.finish()[0] == 0, trial.said.read_text()
    found = in_checkpoints(trial.folder / "checkpoints")
    longer, fallen, refused = Trial("gan", folder / "copy", 12), 0, 0
    names = ["metrics.jsonl", "config.json", "summary.json"][:count]
    for name, change in itertools.product(names, DAMAGES):
        shutil.copytree(trial.folder, longer.folder)
        change(longer.folder / name, longer.folder / "model.safetensors")
        code, said = longer.finish()
        if code == 0:
            assert longer.last_step == 12, f"{name}, {change.__name__}: {said}"
            fallen += 1
        else:
            assert code == 2, f"{name}, {change.__name__}: exit code {code}\n{said}"
            check_refusal(said, longer.folder)
            refused += 1
        shutil.rmtree(longer.folder)
    return f"{found}; of the run's other files: training continued after {fallen}, {refused} were refused by name"


def in_checkpoints(checkpoints: Path) -> str:
    """Damage every file of the newest checkpoint in every way."""
    files = [path.relative_to(checkpoints / "10") for path in sorted((checkpoints / "10").rglob("*")) if path.is_file()]
    filled = [path for path in files if (checkpoints / "10" / path).stat().st_size]
    trials = 0
    with closing(Checkpoints(checkpoints)) as opened:
        for path, change in itertools.product(files, DAMAGES):
            other = filled[(filled.index(path) + 1) % len(filled)] if path in filled else filled[0]
            if path not in filled and change in (truncate, empty):
                continue  # empty files stay the same
            shutil.copytree(checkpoints / "10", checkpoints / "kept")
            change(checkpoints / "10" / path, checkpoints / "10" / other)
            assert opened.newest_good() == 5, f"{path}: {change.__name__} was not detected"
            shutil.rmtree(checkpoints / "10.corrupt")
            (checkpoints / "kept").rename(checkpoints / "10")
            trials += 1
    return f"{trials} of {trials} damages to {len(files)} files of a checkpoint detected, the previous one used"


def full_disk(folder: Path, count: int) -> str:
    """Limit the size of files: the save fails, the run stops with exit code 1 and can be resumed later."""
    whole = Trial("gan", folder / "whole", 20)
    assert whole.finish()[0] == 0, whole.said.read_text()
    largest = max(path.stat().st_size for path in (whole.folder / "checkpoints" / "20").rglob("*") if path.is_file())
    for number in range(count):
        trial = Trial("gan", folder / str(number), 20)
        assert Trial("gan", trial.folder, 10).finish()[0] == 0
        limit = int(largest * np.random.default_rng(number).uniform(0.1, 0.4))
        code, said = trial.finish(before=f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)")
        last = said.strip().splitlines()[-1]
        assert code == 1, f"exit code {code}\n{said}"
        assert "step 15 can't be written" in last, said
        assert "step 10 is the newest" in last, said
        assert 15 <= trial.last_step <= 20  # training continues until the writer fails, at most until the next save
        assert trial.checkpoints == [5, 10]
        assert not trial.leftovers()
        assert trial.finish()[0] == 0
        assert trial.outcome() == whole.outcome()
    return f"{count} of {count}: step reported, exit code 1, the older checkpoint restored, then bitwise equal"


def read_only(folder: Path, count: int) -> str:
    """Make the run's folder read-only: refused in one line that names it, nothing changed."""
    for number in range(count):
        trial = Trial("gan", folder / str(number), 10)
        if number % 2:
            assert Trial("gan", trial.folder, 5).finish()[0] == 0
        else:
            trial.folder.mkdir()
        places = [trial.folder, *(path for path in trial.folder.rglob("*") if path.is_dir())]
        before = sorted(trial.folder.rglob("*"))
        for place in places:
            place.chmod(0o555)
        try:
            code, said = trial.finish(before=WITHOUT_PRIVILEGE)
        finally:
            for place in places:
                place.chmod(0o755)
        assert code == 2, f"exit code {code}\n{said}"
        check_refusal(said, trial.folder)
        assert sorted(trial.folder.rglob("*")) == before
    return f"{count} of {count} refused in one line, nothing changed"


def check_refusal(said: str, folder: Path) -> None:
    """Assert that the last line is an error that names the folder, without a traceback."""
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: "), said
    assert str(folder) in last, said
    assert "Traceback" not in said, said


def ranks(folder: Path, count: int) -> str:
    """Train with several processes: bitwise equal on all. If one is killed or stopped, the others end; restart.

    The killed runs also save by time, which all processes must decide alike.
    """
    alone = Trial("transformer", folder / "alone", STEPS, ("--devices", str(count)))
    assert alone.finish()[0] == 0, alone.said.read_text()
    team = Team(folder / "joined", count)
    assert team.finish() == [0] * count, team.said()
    expected = team.trial.outcome()
    difference = largest_difference(alone.folder, team.trial.folder)
    assert difference < 1e-6, f"{count} devices of one process and of {count}: losses differ by {difference}"
    team.check_equal()
    killed, longest = Team(folder / "killed", count, ("--checkpoint-seconds", "0.3")), 0.0
    for what in (signal.SIGKILL, signal.SIGSTOP):
        processes = killed.start()
        target = killed.trial.last_step + 8
        assert wait_until(lambda s=target: killed.trial.last_step >= s, processes[0]), killed.said()
        assert not listening(processes), f"they listen on {listening(processes)}"
        processes[-1].send_signal(what)
        began = time.monotonic()
        codes = [process.wait(60) for process in processes[:-1]]
        longest = max(longest, time.monotonic() - began)
        processes[-1].kill()
        processes[-1].wait()
        assert all(codes), f"exit codes {codes}"
    processes = killed.start()
    assert wait_until(lambda: killed.trial.last_step >= 25, processes[0]), killed.said()
    processes[-1].send_signal(signal.SIGTERM)
    codes = [process.wait(60) for process in processes]
    assert codes == [143] * count, f"exit codes {codes}\n{killed.said()}"
    assert killed.finish() == [0] * count, killed.said()
    assert killed.trial.outcome() == expected
    assert longest < 20, f"the others ended after {longest:.0f} s"
    return (
        f"{count} processes: losses bitwise equal on all, within {difference:.1e} of {count} devices of one process; "
        f"one killed, one stopped: the others ended within {longest:.1f} s; a signal to one saved and ended all; "
        "restart bitwise equal"
    )


class Team:
    """A run with several processes."""

    def __init__(self, folder: Path, count: int, options: tuple[str, ...] = ()) -> None:
        self.count, self.trial = count, Trial("transformer", folder, STEPS, options)

    def start(self):
        options, processes = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(self.count)), []
        for index in range(self.count):
            member = Trial("transformer", self.trial.folder, STEPS, self.trial.options)
            processes.append(member.start(*options, "--process-id", str(index)))
            member.said.rename(member.said.with_suffix(f".said.{index}"))
        return processes

    def finish(self) -> list[int]:
        return [process.wait(300) for process in self.start()]

    def said(self) -> str:
        folder = self.trial.folder
        return "\n".join(path.read_text() for path in sorted(folder.parent.glob(f"{folder.name}.said.*")))

    def check_equal(self) -> None:
        first = whole_lines(self.trial.folder / "metrics.jsonl")
        for index in range(1, self.count):
            other = whole_lines(self.trial.folder / "processes" / str(index) / "metrics.jsonl")
            assert other == first, f"process {index} has other losses"


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference between the losses of two runs."""
    lines = [whole_lines(path / "metrics.jsonl") for path in (one, other)]
    a, b = (np.array([float.fromhex(line["loss_hex"]) for line in run if "loss" in line]) for run in lines)
    return float(np.abs(a - b).max())


def determinism(folder: Path, count: int) -> str:
    """Run each command twice with the same seed: bitwise equal."""
    names = [*EXPERIMENTS, *OTHERS][:count]
    for name in names:
        trials = [Trial(name, folder / f"{name}_{number}", 20) for number in range(2)]
        for trial in trials:
            assert trial.finish()[0] == 0, trial.said.read_text()
        assert trials[0].outcome() == trials[1].outcome(), f"{name}: two runs of one seed differ"
    return f"{len(names)} commands twice: bitwise equal"


def not_finite(folder: Path, count: int) -> str:
    """Overflow by a huge learning rate: detected at its step, reported with batch and worst leaf."""
    policies = ("abort", "skip", "rollback")[:count]
    words = {"abort": "or go on with", "skip": "steps in a row are skipped", "rollback": "already rolled back 3 times"}
    for policy in policies:
        trial = Trial(
            "transformer", folder / policy, 40, ("--optimizer.learning-rate", "1e38", "--on-nonfinite", policy)
        )
        code, said = trial.finish()
        assert code == 1, f"{policy}: exit code {code}\n{said}"
        assert words[policy] in said.strip().splitlines()[-1], said
        report = trial.folder / "nonfinite.json"
        assert json.loads(report.read_text()).keys() >= {"step", "batch", "worst_leaf"}
    return f"{', '.join(policies)}: each as documented, exit code 1, report with step, batch and worst leaf"


def offline(folder: Path, count: int) -> str:
    """Run without network and data: the first message names the data set and the alternatives."""
    seconds = []
    for number in range(count):
        began = time.monotonic()
        trial = Trial("article", folder / str(number), 10)
        process = trial.start(before="pass")  # the seconds are those of a user, with imports
        assert wait_until(lambda t=trial: "cifar10" in t.said.read_text(), process), trial.said.read_text()
        seconds.append(time.monotonic() - began)
        assert process.wait(60) == 2
        said = trial.said.read_text()
        assert "--data-dir" in said, said
        assert "Traceback" not in said, said
        assert not trial.folder.exists()
    return f"{count} of {count}; first message after {max(seconds):.1f} s, exit code 2"


def mutations(folder: Path, count: int) -> str:
    """Read files with random changes: accepted, or refused with ValueError or OSError, within 64 MiB of memory."""
    rng, refused = np.random.default_rng(count), 0
    readers = make_files(folder)
    tracemalloc.start()
    try:
        for number in range(count):
            path, read = readers[number % len(readers)]
            mutated = folder / "mutated" / path.name
            mutated.parent.mkdir(exist_ok=True)
            mutated.write_bytes(mutate(path.read_bytes(), rng))
            try:
                read(mutated)
            except (ValueError, OSError):
                refused += 1
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 64, f"{peak:.0f} MiB"
    assert refused > count / 4
    return (
        f"{count:,} files of {len(readers)} kinds: {refused:,} refused with typed errors, the rest read; {peak:.0f} MiB"
    )


def make_files(folder: Path) -> list[tuple[Path, Callable[[Path], object]]]:
    """A valid file of each kind, with the function that reads it."""
    weights, config, run = folder / "model.safetensors", folder / "config.json", folder / "run"
    save_weights(weights, {"dense": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}}, {})
    config.write_text(json.dumps({"experiment": "gan_mnist", "seed": 0, "data": {"name": "mnist", "embedded": True}}))
    images, labels, packed = folder / "images-idx3-ubyte", folder / "labels-idx1-ubyte", folder / "images-idx3-ubyte.gz"
    images.write_bytes(idx((5, 4, 4), 80))
    labels.write_bytes(idx((5,), 5))
    packed.write_bytes(gzip.compress(images.read_bytes()))
    run.mkdir()
    (run / "a").write_bytes(b"abc")
    write_manifest(run, {"batches": {"next_index": 3}, "train_seconds": 1.5})
    return [
        (weights, load_weights),
        (config, lambda path: read_config(path.parent)),
        (images, lambda path: read_idx(path, 3)),
        (labels, lambda path: read_idx(path, 1)),
        (packed, lambda path: read_idx(path, 3)),
        (run / "manifest.json", lambda path: read_manifest(path.parent)),
    ]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four random changes: to bits, bytes and integers, truncations, insertions, duplications."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data))) if data else 0
        match rng.integers(6):
            case 0 if data:
                data[place] ^= 1 << int(rng.integers(8))
            case 1 if data:
                data[place] = int(rng.integers(256))
            case 2:
                data[place : place + 8] = int(rng.choice([0, 1, 2**31, 2**32 - 1, 2**62])).to_bytes(8, "little")
            case 3:
                del data[place:]
            case 4:
                data[place:place] = rng.bytes(int(rng.integers(1, 20)))
            case _:
                data += data[place : place + 1000]
    return bytes(data)


def soak(folder: Path, count: int) -> str:
    """Train ``count`` steps with 20 checkpoints: memory, files and threads don't grow, nothing is recompiled."""
    seen, compiled, step, init = [], [], *tiny_gan()

    def look(done: int, state: object) -> dict[str, float]:
        saved = [str(step) for step in range(count // 20, done, count // 20)][-2:]
        while set(os.listdir(folder / "checkpoints")) != set(saved):
            time.sleep(0.01)  # the writing thread has files open
        time.sleep(0.01)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
        seen.append((pages, files, threads, len(os.listdir("/dev/shm")), len(compiled)))
        return {}

    def note(event: str, *_: object, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    config = Training(steps=count, checkpoint_every=count // 20, checkpoint_seconds=0.0)
    every = [Every(count // 20, look)]
    fit(step, init, Blobs(), config, run=Run(folder), mesh=make_mesh(1), every=every, show=(), steps_per_call=1)
    early, last = seen[5], seen[-1]
    growth = last[0] / early[0] - 1
    assert growth < 0.05, f"memory grew by {growth:.1%}"
    assert last[1] <= early[1] + 1, f"open files: {early[1]}, then {last[1]}"
    # thread pools fill up lazily on a busy machine; one leaked thread per checkpoint would be 14 more
    assert last[2] <= early[2] + 4, f"threads: {early[2]}, then {last[2]}"
    assert last[3] <= early[3], f"shared memory: {early[3]}, then {last[3]}"
    assert last[4] == early[4], f"programs compiled: {early[4]}, then {last[4]}"
    return (
        f"{count:,} steps, 20 checkpoints: memory {growth:+.1%}, open files {early[1]} and {last[1]}, "
        f"threads {early[2]} and {last[2]}, shared memory and number of compilations constant"
    )


def listening(processes: list[subprocess.Popen[str] | Job]) -> list[str]:
    """The addresses other than loopback on which these processes listen."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    found = set()
    for process in processes:
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(sockets.get(os.readlink(link)))
    own = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    return [address for address in found if address and address not in own and not address.endswith("7F")]

"""`experiments/cnn_cifar10.py --preset airbench` in bfloat16 on CIFAR-10's original files: accuracy and seconds."""

from gpu_sections.session import NOT_RUN, Session
from gpu_sections.training import experiment

ACCURACY, SECONDS = 0.94, 4.0


def run(session: Session) -> None:
    """Train once, if CIFAR-10's original files are available."""
    workdir = session.out / "airbench" / session.started.replace(":", "-")
    options = ["--preset", "airbench", "--checkpoint-every", "200", "--dtype", "bfloat16"]
    if session.dry:
        options += ["--channels", "4", "4", "4", "--steps", "2", "--held-out", "100"]
    if session.data_dir is None:
        session.row("test accuracy", status=NOT_RUN, detail="CIFAR-10's original files: give --data-dir DIR")
        return
    summary = experiment(session, "cnn_cifar10", workdir, *options)
    detail = f"{summary['steps']} steps, {summary['data']}"
    session.row("test accuracy", summary["test_accuracy"], wanted=(">=", ACCURACY), detail=detail)
    session.row("training", summary["train_seconds"], "s", wanted=("<=", SECONDS), detail=detail)
    session.row("compilation", summary["compile_seconds"], "s")

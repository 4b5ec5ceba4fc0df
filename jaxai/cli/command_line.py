"""Command lines from config dataclasses: presets, options, sub-commands, error messages."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import jax
import tyro

from jaxai.cli.platform import start_platform, use_compilation_cache
from jaxai.config import Common, Finished, Platform, Training
from jaxai.distributed.cluster import distributed_session
from jaxai.errors import UserError, ending


def parse[ConfigT: Common](
    presets: Mapping[str, ConfigT], description: str | None, arguments: Sequence[str]
) -> ConfigT:
    """The config given by the arguments: the preset named by ``--preset``, or the first, overridden by other options.

    Raises ValueError for an unknown preset (naming the nearest one), an unknown option, or a bad value.
    """
    name = preset_name(arguments, next(iter(presets)))
    check_preset(name, presets)
    default = dataclasses.replace(presets[name], preset=name)
    return read(type(default), arguments, default=default, description=description)


def preset_name(arguments: Sequence[str], first: str) -> str:
    """The value of the last ``--preset`` argument, or ``first`` if there is none."""
    name = first
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "--preset":
            name = following
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
    return name


def check_preset(name: str, presets: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown preset, naming the nearest one."""
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"--preset {name} is unknown: {hint}there are {', '.join(presets)}")


def run[ConfigT: Common](
    main: Callable[[ConfigT], None],
    presets: Mapping[str, ConfigT],
    description: str | None,
    commands: Mapping[str, tuple[Callable[[Any], None], type[Platform]]] = MappingProxyType({}),
) -> None:
    """Parse the command line, start the platform and run ``main``; report a user error in one line, with exit code 2.

    ``commands`` maps the name of each sub-command, given as first argument, to its function and the dataclass of its
    options.
    """

    def experiment() -> None:
        name, *arguments = sys.argv[1:] or [""]
        if name in commands:
            action, form = commands[name]
            config = read(form, arguments, description=form.__doc__)
            if issubclass(form, Finished):
                check_preset(config.preset, presets)
        else:
            config = parse(presets, description, sys.argv[1:])
            action = cast(Callable[[Any], None], main)
        use_compilation_cache()
        if not isinstance(config, Training):
            start_platform(config.platform, config.devices)
            action(config)
            return
        with distributed_session(config.coordinator, config.num_processes, config.process_id):
            start_platform(config.platform, config.devices_here)
            if jax.process_index():
                logging.getLogger("jaxai").setLevel(logging.WARNING)  # process 0 logs for all
            action(config)

    show_messages()
    trains = not (sys.argv[1:] and sys.argv[1] in commands)
    advice = ": --resume auto goes on from the last checkpoint" if trains else ""
    guard(experiment, interrupted=f"interrupted{advice}")


def read(form: Any, arguments: Sequence[str], **options: Any) -> Any:
    """Parse arguments into a dataclass, or one of a union of them, by tyro with these options.

    Raises ValueError with a one-line message for unknown options and bad values; ``--help`` prints and exits.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(form, args=list(arguments), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(usage_error(said.getvalue()))


def usage_error(box: str) -> str:
    """Extract the message from tyro's error box: the text above its first horizontal rule."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    message = itertools.takewhile(lambda line: line.strip("─╰╯"), lines)
    return f"{' '.join(message) or ' '.join(box.split())} (see --help)"


def guard(command: Callable[[], None], *, interrupted: str = "interrupted") -> None:
    """Run a command; turn an expected error into a line on standard error and an exit code. Bugs keep their traceback.

    When the reader of the output closes the pipe, as ``head`` does, the command ends silently.
    """
    try:
        command()
        sys.stdout.flush()
    except BaseException as error:
        if (end := ending(error, interrupted)) is None:
            raise
        code, said = end
        if said:
            print(said, file=sys.stderr)
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails too
        sys.exit(code)


def show_messages() -> None:
    """Print the project's log messages on standard error, without prefixes."""
    project = logging.getLogger("jaxai")
    project.setLevel(logging.INFO)
    project.addHandler(logging.StreamHandler())
    project.propagate = False

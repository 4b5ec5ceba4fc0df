"""Command lines: options from dataclasses, sub-commands, exit codes, and choice of platform."""

from jaxai.cli.command_line import check_preset as check_preset
from jaxai.cli.command_line import guard as guard
from jaxai.cli.command_line import parse as parse
from jaxai.cli.command_line import preset_name as preset_name
from jaxai.cli.command_line import read as read
from jaxai.cli.command_line import run as run
from jaxai.cli.command_line import show_messages as show_messages
from jaxai.cli.command_line import usage_error as usage_error
from jaxai.cli.platform import keep_freed_memory as keep_freed_memory
from jaxai.cli.platform import start_platform as start_platform
from jaxai.cli.platform import use_compilation_cache as use_compilation_cache

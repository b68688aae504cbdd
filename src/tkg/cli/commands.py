"""The subcommands of `tkg`, put together."""

from __future__ import annotations

import typer

from tkg.cli.bench import bench
from tkg.cli.generate import generate
from tkg.cli.info import info
from tkg.cli.profile import profile
from tkg.cli.verify import verify

commands = typer.Typer(
    help="The attention block of LLM token generation: try it, look at it, prove it right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is for a bug report; keep it plain
)
for command in (generate, verify, bench, profile, info):
    commands.command()(command)

"""The entry point of the `tkg` command."""

from __future__ import annotations

import sys

EXTRA = ("gguf", "jinja2", "rich", "safetensors", "tokenizers", "typer")
"""What `pip install 'tkg[run]'` adds; `import tkg` needs none of it."""


def app() -> None:
    """Run the command line; without the extra's packages, say how to get them."""
    try:
        from tkg.cli.commands import commands

        commands()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        sys.exit(f"tkg: the command line needs the package {package}: pip install 'tkg[run]'")

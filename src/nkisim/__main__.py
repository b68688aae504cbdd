"""`python -m nkisim`: run a script of NKI kernels on the simulator, or lint a file."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from . import kernel
from .chips import CHIPS
from .install import install
from .lint import lint
from .report import Report

TARGET = "NEURON_PLATFORM_TARGET_OVERRIDE"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if something was found that the options count as a failure."""
    options = _parser().parse_args(arguments)
    return options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nkisim", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="run a Python script; `import nki` gives the simulator")
    run.add_argument(
        "--target", choices=sorted(CHIPS), help="the chip (trn2, or what the script sets)"
    )
    run.add_argument(
        "--checks",
        choices=("raise", "report", "off"),
        default="raise",
        help="what a hazard does: stop the script, be reported, not be looked for",
    )
    run.add_argument("--strict", action="store_true", help="exit status 1 if anything was found")
    run.add_argument("--trace", type=Path, metavar="OUT.json", help="write a Perfetto trace")
    run.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the engines' timeline")
    run.add_argument("--memory-map", type=Path, metavar="OUT.png", help="draw SBUF over time")
    run.add_argument("--lint", action="store_true", help="lint the script's kernels first")
    run.add_argument("script", type=Path)
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the script")
    run.set_defaults(command=_run)
    check = commands.add_parser("lint", help="what the NKI 0.6 compiler would refuse in files")
    check.add_argument("files", type=Path, nargs="+")
    check.set_defaults(command=_lint)
    return parser


def _lint(options: argparse.Namespace) -> int:
    return 1 if _violations(options.files) else 0


def _violations(files: Sequence[Path]) -> int:
    """Print what the lint finds; how much it is."""
    count = 0
    for file in files:
        for violation in lint(file.read_text(encoding="utf-8"), str(file)):
            print(violation)
            count += 1
    return count


def _run(options: argparse.Namespace) -> int:
    """Run the script as __main__. Its exceptions pass; its own exit status comes first."""
    found = _violations([options.script]) if options.lint else 0
    if options.target:
        os.environ[TARGET] = options.target
    kernel.set_options(checks=options.checks)
    install(force=True)
    reports: list[Report] = []

    def observe(report: Report) -> None:
        reports.append(report)
        print(report)
        _write(report, options, len(reports))

    kernel.on_report.append(observe)
    sys.argv = [str(options.script), *options.arguments]
    sys.path[0] = str(options.script.resolve().parent)
    status = _status_of(options.script)
    found += sum(len(report.findings) for report in reports)
    return status or int(options.strict and found > 0)


def _status_of(script: Path) -> int:
    """Run the script; the status it exits with."""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def _write(report: Report, options: argparse.Namespace, count: int) -> None:
    """The files of the count-th kernel run; from the second on, their names carry its number."""
    for kind in ("trace", "plot", "memory_map"):
        path = getattr(options, kind)
        if path is not None:
            numbered = path if count == 1 else path.with_stem(f"{path.stem}-{count}")
            getattr(report, kind)(str(numbered))


if __name__ == "__main__":
    sys.exit(main())

"""`tkg info`: what is installed, what can run here, and how fast this machine is at best."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

import tkg
from tkg.backends import cpu, registry
from tkg.cli.main import EXTRA
from tkg.machine import ceilings

PACKAGES = ("numpy", "ml_dtypes", *EXTRA, "torch", "triton")


def info() -> None:
    """Print versions, backends and why each is or is not available, and the CPU's ceilings."""
    console = Console()
    console.print(_rows("tkg", [("tkg", tkg.__version__), ("Python", platform.python_version())]))
    console.print(_rows("packages", [(name, _version(name)) for name in PACKAGES]))
    console.print(_rows("backends", [(n, r or "available") for n, r in registry.status()]))
    console.print(_rows("CPU", _cpu()))


def _rows(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None
    )
    table.add_column(no_wrap=True, min_width=12)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> list[tuple[str, str]]:
    machine = f"{_cpu_name()} ({platform.machine()}, {platform.system()})"
    reason, measured = cpu.unavailable(), ceilings()
    if reason is not None or isinstance(measured, str):
        return [("processor", machine), ("C++ core", f"{reason}")]
    core = cpu.core()
    return [
        ("processor", machine),
        ("ISA", f"{core.isa()} (of {core.runnable_isas()}; TKG_ISA forces one)"),
        ("threads", str(tkg.get_num_threads())),
        ("memory", f"{measured.bytes_per_second / 1e9:.1f} GB/s read (measured)"),
        ("arithmetic", f"{measured.flops_per_second / 1e9:.0f} GFLOP/s float32 (measured)"),
    ]


def _cpu_name() -> str:
    """The processor's model name: Linux says it in /proc/cpuinfo, others through Python."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except FileNotFoundError:
        names = []
    return names[0] if names else platform.processor() or "unknown"

"""The pytest option `--nkisim`: tests that `import nki` run on the simulator, all checks on.

The session ends with a table of the kernels that ran.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

TARGET = "NEURON_PLATFORM_TARGET_OVERRIDE"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nkisim", "NKI kernels on a simulated NeuronCore")
    group.addoption("--nkisim", action="store_true", help="`import nki` gives the simulator")
    group.addoption("--nkisim-target", metavar="CHIP", help="the chip to simulate (default: trn2)")
    group.addoption(
        "--nkisim-checks",
        choices=("raise", "report", "off"),
        default="raise",
        help="what a hazard does: fail the test (default), be listed at the end, not be looked for",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("nkisim"):
        config.pluginmanager.register(Session(config), "nkisim-session")


class Session:
    """The simulator stands in for NKI from here to the session's end."""

    def __init__(self, config: pytest.Config):
        # Only now: whoever does not use the option does not pay for the import.
        from . import kernel
        from .chips import CHIPS
        from .install import install

        self.kernel = kernel
        self.config = config
        self.rows: list[tuple[str, float, int]] = []
        self.former = kernel.set_options(checks=config.getoption("nkisim_checks"))
        self.former_target = os.environ.get(TARGET)
        target = config.getoption("nkisim_target")
        if target and target not in CHIPS:
            chips = ", ".join(CHIPS)
            raise pytest.UsageError(f"--nkisim-target: no chip {target!r}; use {chips}")
        if target:
            os.environ[TARGET] = target
        install(force=True)
        kernel.on_report.append(self.observe)

    def observe(self, report: Any) -> None:
        """One kernel run: its name, modelled time in microseconds, number of findings."""
        self.rows.append((report.program.name, float(report.latency_us), len(report.findings)))

    def pytest_unconfigure(self) -> None:
        from .install import uninstall

        self.kernel.on_report.remove(self.observe)
        self.kernel.set_options(checks=self.former.checks)
        if self.former_target is None:
            os.environ.pop(TARGET, None)
        else:
            os.environ[TARGET] = self.former_target
        uninstall()

    def pytest_sessionfinish(self) -> None:
        # A pytest-xdist worker hands its rows to the process that prints.
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["nkisim"] = self.rows  # pyright: ignore

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.rows += [tuple(row) for row in node.workeroutput.get("nkisim", [])]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line a kernel: runs, the slowest run's time, findings of all runs."""
        table: dict[str, list[tuple[float, int]]] = {}
        for name, latency, findings in self.rows:
            table.setdefault(name, []).append((latency, findings))
        terminalreporter.section("NKI kernels (modelled, nkisim)")
        if not table:
            terminalreporter.line("no kernel ran")
            return
        terminalreporter.line(f"{'kernel':<40} {'runs':>6} {'slowest us':>12} {'findings':>9}")
        for name, runs in sorted(table.items()):
            slowest = max(latency for latency, _ in runs)
            findings = sum(count for _, count in runs)
            terminalreporter.line(f"{name[:40]:<40} {len(runs):>6} {slowest:>12.2f} {findings:>9}")

"""AWS's published NKI kernels, unmodified, on the simulator.

    python benchmarks/nki_published.py FOLDER

FOLDER is a clone of AWS's documentation repository (aws-neuron-sdk). Every kernel of its folder nki
that is written for the present API runs as it stands there, with small inputs, and is compared with
NumPy; the table says which did. Exit status 1 if one did not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from published_cases import cases
from published_source import Case, Folder

import nkisim
from nkisim.kernel import on_report


@dataclass
class Outcome:
    """How a case went; `problem` is empty if it went well."""

    case: Case
    place: str
    problem: str
    reports: list[Any]

    @property
    def modelled(self) -> str:
        """Modelled microseconds of all launches."""
        spent = sum(report.latency_us for report in self.reports)
        return f"{spent:.2f}" if spent else "-"

    @property
    def findings(self) -> list[str]:
        """What the checks said that did not stop the kernel, without the whole story."""
        return sorted(f"{f.kind} at line {f.site.line}" for r in self.reports for f in r.findings)


def outcome(case: Case, folder: Folder) -> Outcome:
    """Run one case; whatever it raises is its problem."""
    reports: list[Any] = []
    place = case.excerpt.file
    on_report.append(reports.append)
    try:
        with undisturbed():
            place = case.excerpt.place(folder)
            problem = check(case, folder)
    except Exception as error:  # the table tells it, and the exit status
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        on_report.remove(reports.append)
    return Outcome(case, place, problem, reports)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What a published file prints, or sets in the environment, ends with it."""
    environment = dict(os.environ)
    former = nkisim.set_options()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # AWS's pages use forms that AWS has deprecated
            yield
    finally:
        nkisim.set_options(checks=former.checks, target=former.target)
        os.environ.clear()
        os.environ.update(environment)


def check(case: Case, folder: Folder) -> str:
    """Run the kernel; what is wrong with what it returned."""
    arguments = case.arguments()
    copies = [value.copy() if hasattr(value, "copy") else value for value in arguments]
    try:
        nkisim.set_options(**case.options)
        kernel = case.excerpt.load(folder)
        result = case.run(kernel, *arguments) if case.run else call(kernel, arguments)
    except Exception as error:
        if case.refusal and case.refusal in str(error):
            return ""
        raise
    if case.refusal:
        return f"ran, but must be refused ({case.refusal})"
    return "" if case.want is None else difference(result, case.want(*copies), case.tolerance)


def call(kernel: Any, arguments: tuple[Any, ...]) -> Any:
    return kernel(*arguments) if callable(kernel) else None


def difference(result: Any, wanted: Any, tolerance: float) -> str:
    """How the results differ, as text; relative to the greatest element."""
    if isinstance(wanted, tuple):
        if not isinstance(result, tuple) or len(result) != len(wanted):
            return f"{len(wanted)} results wanted"
        texts = [difference(r, w, tolerance) for r, w in zip(result, wanted, strict=True)]
        return "; ".join(text for text in texts if text)
    if wanted is None or result is None:
        return "" if result is wanted else f"returned {result!r}"
    result, wanted = np.asarray(result), np.asarray(wanted)
    if result.shape != wanted.shape:
        return f"shape {result.shape}, wanted {wanted.shape}"
    result, wanted = result.astype(np.float64), wanted.astype(np.float64)
    error = np.abs(result - wanted).max()
    if not error <= tolerance * max(np.abs(wanted).max(), 1e-30):
        return f"off by {error:.3g} (greatest element {np.abs(wanted).max():.3g})"
    return ""


def table(outcomes: list[Outcome]) -> str:
    lines = [f"{'kernel':<44} {'file':<62} {'ok':<4} {'modelled us':>12}"]
    for done in outcomes:
        mark = "no" if done.problem else "yes"
        lines.append(f"{done.case.name:<44} {done.place:<62} {mark:<4} {done.modelled:>12}")
        lines += [f"    {text}" for text in (done.problem, *done.findings) if text]
    failed = sum(bool(done.problem) for done in outcomes)
    lines.append(f"{len(outcomes)} kernels, {failed} failed")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a clone of aws-neuron-sdk")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    options = parser.parse_args()
    nkisim.install(force=True)
    folder = Folder(options.folder)
    outcomes = [outcome(case, folder) for case in cases(folder) if options.only in case.name]
    print(table(outcomes))
    return 1 if any(done.problem for done in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

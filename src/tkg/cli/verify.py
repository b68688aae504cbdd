"""`tkg verify`: the named cases on a backend against the reference in float64."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tkg.backends import registry
from tkg.contract.errors import Unsupported
from tkg.testing.cases import find, select
from tkg.testing.verify import Row, verify_cases


def verify(
    backend: Annotated[
        str | None, typer.Option(help="Backend to verify; default: the one for CPU arrays.")
    ] = None,
    tag: Annotated[
        str, typer.Option(help="Which cases: smoke, ci, edge, model, bench or all.")
    ] = "ci",
    case: Annotated[
        list[str] | None, typer.Option(help="Only the case of this name; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cases' random numbers.", min=0)] = 0,
) -> None:
    """Compare a backend with the reference on the named cases; exit code 1 if one fails.

    A case passes if every output is what some number within its error budget rounds to, the new
    K and V are the right ones, and nothing else in the caches has changed.
    """
    try:
        cases = [find(name) for name in case] if case else select(tag)
        chosen = registry.choose_for(backend, "cpu").name
    except (ValueError, Unsupported) as error:
        Console(stderr=True, soft_wrap=True).print(f"tkg verify: {error}", markup=False)
        raise typer.Exit(2) from None
    console = Console()
    table = Table(title=f"{chosen} against float64")
    table.add_column("case", no_wrap=True)
    table.add_column("worst")
    for heading in ("error", "budget", "used", ""):
        table.add_column(heading, justify="right")
    rows: list[Row] = []
    with console.status("verifying") as status:
        for row in verify_cases(cases, chosen, seed):
            rows.append(row)
            table.add_row(*_cells(row))
            status.update(f"verified {len(rows)} of {len(cases)}")
    console.print(table)
    failed = sum(not row.ok for row in rows)
    refused = sum(bool(row.refused) for row in rows)
    passed = len(rows) - failed - refused
    console.print(f"{passed} passed, {failed} failed, {refused} refused by the backend")
    if failed or not passed:
        raise typer.Exit(1)


def _cells(row: Row) -> tuple[str, ...]:
    worst = row.worst
    if worst is None:
        return row.case, row.refused, "", "", "", "[yellow]refused[/yellow]"
    verdict = "[green]ok[/green]" if row.ok else "[red]FAILED[/red]"
    error, budget = f"{worst.error:.1e}", f"{worst.budget:.1e}"
    return row.case, worst.what, error, budget, f"{worst.used:.0%}", verdict

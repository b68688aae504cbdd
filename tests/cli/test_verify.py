"""`tkg verify`."""

from __future__ import annotations

import dataclasses

import pytest
import typer
from typer.testing import CliRunner

from tkg.backends import registry
from tkg.cli import verify as module
from tkg.testing.verify import Row, verify_cases

app = typer.Typer()
app.command()(module.verify)
runner = CliRunner()


@pytest.mark.repeats
def test_smoke_on_a_backend(backend: str) -> None:
    result = runner.invoke(app, ["--backend", backend, "--tag", "smoke"])
    assert result.exit_code == 0, result.output
    for text in ("qwen3-0.6b", "projection-llama3-8b-tp8", "ok", "passed, 0 failed"):
        assert text in result.output


def test_named_cases_only(backend: str) -> None:
    result = runner.invoke(app, ["--backend", backend, "--case", "sink", "--case", "row"])
    assert result.exit_code == 0
    assert "2 passed, 0 failed, 0 refused" in result.output


def test_a_failure_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, **kwargs):
        for row in verify_cases(*args, **kwargs):
            wrong = dataclasses.replace(row.checks[0], error=1.0, used=12.0)
            yield dataclasses.replace(row, checks=(wrong, *row.checks[1:]))

    monkeypatch.setattr(module, "verify_cases", broken)
    result = runner.invoke(app, ["--backend", "reference", "--case", "sink"])
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "1200%" in result.output


def test_nothing_verified_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Row("sink", refused="d_head is too large")
    monkeypatch.setattr(module, "verify_cases", lambda *args: iter([refused]))
    result = runner.invoke(app, ["--backend", "reference", "--case", "sink"])
    assert result.exit_code == 1
    assert "0 passed, 0 failed, 1 refused" in result.output


def test_a_backend_that_cannot_run_here_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "unavailable", lambda backend: f"no {backend.name} in here")
    result = runner.invoke(app, ["--backend", "cuda"])
    assert result.exit_code == 2
    assert "no cuda in here" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--backend", "abacus"], "'abacus'"),
        (["--tag", "nightly"], "'nightly'"),
        (["--case", "llama9"], "'llama9'"),
    ],
)
def test_a_wrong_request_is_exit_code_2(arguments: list[str], text: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert text in result.output
    assert "Traceback" not in result.output


def test_a_negative_seed_is_refused() -> None:
    result = runner.invoke(app, ["--seed", "-1", "--case", "sink"])
    assert result.exit_code == 2
    assert "--seed" in result.output

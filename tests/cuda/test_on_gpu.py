"""`make test-gpu` where there is no GPU: its parts are bounded, and failures are told."""

from __future__ import annotations

import sys

import pytest

from tests.on_gpu import Part, last_line, parts, run
from tests.small_cases import LARGEST, small, weights


def python(code: str, seconds: int = 20) -> Part:
    return Part([sys.executable, "-c", code], seconds, {"TKG_EXAMPLES": "3"})


def test_all_parts_but_the_last_fit_into_ten_minutes() -> None:
    *bounded, last = parts().items()
    assert last[0] == "sweeps"
    assert sum(part.seconds for _, part in bounded) < 600
    assert {name for name, _ in bounded} >= {"suite", "memcheck", "racecheck"}


def test_a_part_gets_its_environment_and_its_last_line_is_told() -> None:
    right, text = run("echo", python("import os; print('x'); print(os.environ['TKG_EXAMPLES'])"))
    assert right and text.startswith("exit 0") and text.endswith("; 3")


def test_a_failure_is_told() -> None:
    assert run("fails", python("raise SystemExit(7)"))[0] is False


def test_a_part_that_takes_too_long_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    right, text = run("sleeps", python(code, seconds=3))
    assert not right and text == "cut off after 3 s"
    assert "begun" in capsys.readouterr().out


def test_a_missing_command_is_a_failure() -> None:
    right, text = run("missing", Part(["compute-sanitizer-of-nobody"], 5, {}))
    assert not right and "not on the PATH" in text


def test_the_last_line_is_without_decoration() -> None:
    assert last_line("a\n========= ERROR SUMMARY: 0 errors\n\n") == "ERROR SUMMARY: 0 errors"
    assert last_line("") == "said nothing"


def test_the_small_cases_are_most_of_them_and_small() -> None:
    cases = small()
    assert len(cases) > 80
    assert all(weights(case) <= LARGEST for case in cases)

"""`make test-gpu`: the behaviour suite on this machine's GPU, then compute-sanitizer.

`python -m tests.on_gpu [part ...]` runs some parts only. Needs the sources, torch, triton and the
tests' packages; nothing is built. Every part is bounded in time and reported in the summary at the
end; the exit status is 1 if one failed, was cut off or could not run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKERS = min(14, os.cpu_count() or 1)
"""Most of the time goes into compiling kernels, one processor each."""

SMALL = [sys.executable, "-m", "tests.small_cases"]
SANITIZER = ["compute-sanitizer", "--error-exitcode", "99", "--tool"]


@dataclass(frozen=True)
class Part:
    """A command, its environment beside this process's own, and the seconds it may take."""

    command: list[str]
    seconds: int
    environment: dict[str, str]


def parts() -> dict[str, Part]:
    """The parts in their order; all but the last stay below ten minutes together.

    Each new shape is compiled, so the suite tries few random calls and every eighth size; "sweeps"
    tries every second one.
    """
    pytest = [sys.executable, "-m", "pytest", "-k", "cuda", "-q", "-W", "default"]
    pytest += ["-n", str(WORKERS), "--dist", "worksteal", "-p", "no:cacheprovider", "--maxfail=40"]
    cuda = {"TKG_TEST_BACKENDS": "cuda"}
    few = cuda | {"TKG_EXAMPLES": "20", "TKG_SWEEP": "8"}
    # Without PyTorch's pool of memory each array ends where its allocation ends.
    unpooled = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return {
        "cases": Part([*SMALL, "60"], 100, {}),
        "suite": Part([*pytest, "tests/backends"], 320, few),
        "memcheck": Part([*SANITIZER, "memcheck", *SMALL, "50"], 80, unpooled),
        "racecheck": Part([*SANITIZER, "racecheck", *SMALL, "50"], 80, {}),
        "sweeps": Part([*pytest, "tests/backends/test_sweeps.py"], 590, cuda | {"TKG_SWEEP": "2"}),
    }


def run(name: str, part: Part) -> tuple[bool, str]:
    """Whether a part was right, and a line on it. Its output goes to this process's."""
    print(f"== {name}: {' '.join(part.command)}", flush=True)
    if shutil.which(part.command[0]) is None:
        return False, f"not run: {part.command[0]} is not on the PATH"
    start = time.monotonic()
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | part.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=part.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # pytest's workers too
        text, _ = process.communicate()
        print(text[-3000:], flush=True)
        return False, f"cut off after {part.seconds} s"
    print(text[-6000:], flush=True)
    spent = time.monotonic() - start
    return process.returncode == 0, f"exit {process.returncode}, {spent:.0f} s; {last_line(text)}"


def last_line(text: str) -> str:
    """What a command said last."""
    lines = [line.strip(" =") for line in text.splitlines() if line.strip(" =")]
    return lines[-1] if lines else "said nothing"


def machine() -> str:
    """The GPU and the versions that the results hold for."""
    import torch
    import triton

    if not torch.cuda.is_available():
        sys.exit("make test-gpu: torch finds no CUDA device on this machine")
    major, minor = torch.cuda.get_device_capability()
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}, {versions}"


def main(*names: str) -> int:
    known = parts()
    about = machine()
    results = {name: run(name, known[name]) for name in names or list(known)[:-1]}
    print(f"\nsummary of make test-gpu on {about}")
    for name, (right, text) in results.items():
        print(f"  {name:10} {'ok' if right else 'FAILED':7} {text}")
    return 0 if all(right for right, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

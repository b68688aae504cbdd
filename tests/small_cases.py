"""Runs small cases of the cuda backend and checks them: `python -m tests.small_cases [seconds]`.

What compute-sanitizer watches: no pytest, no other process. Each case's name is printed when it is
right; the exit status is 1 if one is wrong.
"""

from __future__ import annotations

import sys
import time

from tkg.testing.case import Case, ProjectionCase
from tkg.testing.cases import CASES, PROJECTION_CASES
from tkg.testing.verify import verify_cases

LARGEST = 2**22
"""Elements of the weights of a case that counts as small."""


def weights(case: Case | ProjectionCase) -> int:
    """Elements of a case's weights."""
    if isinstance(case, ProjectionCase):
        return case.heads * case.d_head * case.hidden
    return case.hidden * (2 * case.q_heads + 2 * case.kv_heads) * case.d_head


def small() -> list[Case | ProjectionCase]:
    """The named cases of the suite that are small, the smallest first."""
    cases = [c for c in (*CASES, *PROJECTION_CASES) if "ci" in c.tags and weights(c) <= LARGEST]
    return sorted(cases, key=weights)


def main(seconds: str = "inf") -> int:
    """Stops after the case during which the seconds have passed."""
    end = time.monotonic() + float(seconds)
    cases, right, wrong = small(), 0, []
    for case in cases:
        (row,) = verify_cases([case], "cuda")
        ok = row.ok and not row.refused
        print(case, "right" if ok else f"WRONG: {row}", flush=True)
        right += ok
        wrong += [] if ok else [case.name]
        if time.monotonic() > end:
            break
    print(f"{right} of {len(cases)} cases right, {len(wrong)} wrong: {' '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

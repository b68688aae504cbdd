"""A process that forks after it has used the core: the child has none of the parent's threads."""

import subprocess
import sys

PROGRAM = """
import os, sys
import numpy as np
import tkg

tkg.set_num_threads(3)
rng = np.random.default_rng(0)
projection = tkg.Projection(tkg.Linear(rng.standard_normal((512, 1024), np.float32)), "cpu")
x = rng.standard_normal((2, 512), np.float32)
parent = projection(x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(projection(x), parent) else 3)
_, status = os.waitpid(child, 0)
assert np.array_equal(projection(x), parent)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_starts_its_own_threads() -> None:
    # Python 3.12 and later warn that a process with threads forks; that is what is tried here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr

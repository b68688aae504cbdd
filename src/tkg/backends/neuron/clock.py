"""Work for the tensor engine while it waits.

It runs at half its clock for 3 us after 3 us of less than half use (Neuron Explorer's glossary).
At first it waits for X, and before the values and before the output projection for softmax, and
would then begin slowly. So meanwhile it multiplies zeros, behind all other work, for nobody.
"""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import PMAX

COLUMNS = 128  # of such a multiply: it holds up other work for 0.1 us at most
MULTIPLIES = 28  # in a row: about 3 us at half the clock, all that it takes to rise
LAST = 16  # of those while the output projection waits: fewer than would outlast it


class Clock(nl.NKIObject):
    """Keeps the clock up."""

    def __init__(self, sbm):
        self.zeros = sbm.stack((PMAX, COLUMNS), nl.bfloat16, "clock.zeros")
        nisa.memset(self.zeros, 0.0, engine=nisa.engine.gpsimd)
        # One for all of them, taken from the beginning on: in what others had before they would
        # wait for those.
        self.sums = nl.ndarray((PMAX, COLUMNS), nl.float32, buffer=nl.psum, name="clock")
        self.multiply([], 1)

    def keep(self, after, count=MULTIPLIES):
        """Multiplies once the instructions `after` are done. To be called behind what it waits
        for: of the instructions that may start, the engine takes the first in program order."""
        if len(after) > 0:
            self.multiply(after, count)

    def start(self, after=()):
        """Multiplies from the kernel's beginning on, or once the instructions `after` are done. To
        be called behind the work of then."""
        self.multiply(after, MULTIPLIES)

    def multiply(self, after, count):
        for _ in range(count):
            multiply = nisa.nc_matmul(self.sums, self.zeros, self.zeros, accumulate=False)
            if len(after) > 0:
                multiply.depends_on(*after)

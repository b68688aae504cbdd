"""Kernel modules import nki when they are imported: here that is the simulator."""

from __future__ import annotations

from tkg.backends.neuron import launch

assert launch.simulated()

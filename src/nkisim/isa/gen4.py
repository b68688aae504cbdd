"""Instructions that only a NeuronCore-v4 has: each refuses by name."""

from __future__ import annotations

from typing import Any, NoReturn

from .. import rules


def nc_matmul_mx(*args: Any, **kwargs: Any) -> NoReturn:
    """Matmul of microscaled (MX) operands."""
    rules.only_gen4("nki.isa.nc_matmul_mx")


def quantize_mx(*args: Any, **kwargs: Any) -> NoReturn:
    """Quantisation to microscaled (MX) formats."""
    rules.only_gen4("nki.isa.quantize_mx")


def activate2(*args: Any, **kwargs: Any) -> NoReturn:
    """Activation with two stages before the function."""
    rules.only_gen4("nki.isa.activate2")


def exponential(*args: Any, **kwargs: Any) -> NoReturn:
    """exp(x - max) on the Vector engine."""
    rules.only_gen4("nki.isa.exponential")


def rand2(*args: Any, **kwargs: Any) -> NoReturn:
    """Uniform random numbers in a range."""
    rules.only_gen4("nki.isa.rand2")

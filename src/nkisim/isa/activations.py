"""Activation functions of the Scalar engine, and the inputs that each is valid for.

The hardware uses piece-wise polynomials whose error is not published; here the functions are exact
to float32. Names and ranges are nki.api.shared.rst's; where it gives only a name the formula is the
usual one. Outside its range a function's result is "invalid" on hardware; here it is the exact one,
except for `sin`, whose behaviour is published.
"""

from __future__ import annotations

import math

import numpy as np

from .ops import Function, define

_PI = np.float32(np.pi)
_TANH_SCALE = 2 * math.sqrt(2 / math.pi)
_SIGMOID_SCALE = np.float32(1.702)

# erf and erfc are Taylor series of four terms about the nearest multiple of 1/256, where the
# standard library gives the value; up to 27.25 erfc is above 0 in float64.
_GRID = 256
_LAST = 27.25
_POINTS = np.arange(int(_LAST * _GRID) + 1) / _GRID
_ERF = np.array([math.erf(x) for x in _POINTS])
_ERFC = np.array([math.erfc(x) for x in _POINTS])
_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-_POINTS * _POINTS)


def _near(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For |x|: the index of the nearest grid point, and how much erf grows from there to |x|."""
    size = np.abs(x, dtype=np.float64)
    index = np.rint(np.fmin(size, _LAST) * _GRID).astype(np.intp)
    c = index * (1 / _GRID)
    d = np.minimum(size, _LAST) - c
    square = 2 * c * c
    cubic = (square - 1) * (1 / 3) - d * c * (square - 3) * (1 / 6)
    return index, _SLOPE.take(index) * d * (1 + d * (d * cubic - c))


def erf(x: np.ndarray) -> np.ndarray:
    """2/sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    index, growth = _near(x)
    return np.copysign(_ERF.take(index) + growth, x).astype(np.float32)


def _normal(x: np.ndarray) -> np.ndarray:
    """The normal distribution function, float64: accurate in the left tail too."""
    index, growth = _near(x.astype(np.float64) * math.sqrt(0.5))
    tail = (_ERFC.take(index) - growth) / 2
    return np.where(x < 0, tail, 1 - tail)


def _density(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    """ln(1 + e^x)."""
    return np.maximum(x, np.float32(0)) + np.log1p(np.exp(-np.abs(x)))


def gelu(x: np.ndarray) -> np.ndarray:
    return (x * _normal(x)).astype(np.float32)


def gelu_dx(x: np.ndarray) -> np.ndarray:
    return (_normal(x) + x * _density(x)).astype(np.float32)


def gelu_apprx_tanh(x: np.ndarray) -> np.ndarray:
    """0.5 x (1 + tanh u), written as x sigmoid(2 u) so that the left tail stays accurate."""
    wide = x.astype(np.float64)
    twice = _TANH_SCALE * wide * (1 + 0.044715 * wide * wide)
    return x * sigmoid(twice.astype(np.float32))


def gelu_apprx_sigmoid(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(_SIGMOID_SCALE * x)


def gelu_apprx_sigmoid_dx(x: np.ndarray) -> np.ndarray:
    s = sigmoid(_SIGMOID_SCALE * x)
    return s + _SIGMOID_SCALE * x * s * (1 - s)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def silu_dx(x: np.ndarray) -> np.ndarray:
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def sine(x: np.ndarray) -> np.ndarray:
    """sin within [-pi, pi]. Beyond, the engine extends its last cubic without range reduction
    (nki.api.shared.rst: sin(9.0) is about 27.65, which is the Taylor cubic about pi)."""
    y = np.sin(x)
    beyond = np.abs(x) > _PI
    if beyond.any():
        far = x[beyond]
        over = np.abs(far) - _PI
        y[beyond] = np.copysign(1, far) * (over * over * over / 6 - over)
    return y


def _full(name: str, function: Function) -> None:
    define(name, activation=function)


def _limited(name: str, function: Function, low: float, high: float) -> None:
    define(name, activation=function, valid=(low, high))


_full("copy", lambda x: x)
_full("square", np.square)
_full("sigmoid", sigmoid)
_full("relu", lambda x: np.maximum(x, np.float32(0)))
_full("gelu", gelu)
_full("gelu_dx", gelu_dx)
_full("gelu_apprx_tanh", gelu_apprx_tanh)
_full("gelu_apprx_sigmoid", gelu_apprx_sigmoid)
_full("gelu_apprx_sigmoid_dx", gelu_apprx_sigmoid_dx)
_full("silu", silu)
_full("silu_dx", silu_dx)
_full("tanh", np.tanh)
_full("softplus", softplus)
_full("mish", lambda x: x * np.tanh(softplus(x)))
_full("erf", erf)
_full("erf_dx", lambda x: np.float32(2 / math.sqrt(math.pi)) * np.exp(-x * x))
_full("exp", np.exp)
_full("sign", np.sign)
_full("abs", np.abs)
_limited("log", np.log, 2.0**-64, 2.0**64)
_limited("sin", sine, -math.pi, math.pi)
_limited("arctan", np.arctan, -math.pi / 2, math.pi / 2)
_limited("sqrt", np.sqrt, 2.0**-116, 2.0**118)
_limited("rsqrt", lambda x: np.float32(1) / np.sqrt(x), 2.0**-87, 2.0**97)
_limited("reciprocal", lambda x: np.float32(1) / x, 2.0**-42, 2.0**42)
# prelu's slope is an argument of activate2, which a NeuronCore-v3 has not.
define("prelu")

"""The rules for a projection (`Linear`), shared by both operations."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tkg.contract import dtypes
from tkg.contract.arrays import Array
from tkg.contract.block import Linear
from tkg.contract.errors import Rules
from tkg.contract.quantization import QuantizationType

SCALE_ROWS = (1, 128)

Product = tuple[str, int, int]
"""A size that is a product: the factors' names, and the factors."""


def check_dtype(rules: Rules, field: str, array: Array, allowed: tuple[str, ...]) -> bool:
    """Check an array's dtype."""
    return array.dtype in allowed or rules.broken(
        field, f"must have dtype {' or '.join(allowed)}", array.dtype, about_type=True
    )


def check_vector(rules: Rules, field: str, array: Array, size: int, what: str) -> None:
    """Check a `[1, size]` float array."""
    check_dtype(rules, field, array, dtypes.FLOATS)
    if array.shape != (1, size):
        rule = f"must have shape (1, {what}) = (1, {size})"
        rules.broken(field, rule, f"shape {array.shape}")


def check_linear(
    rules: Rules, field: str, linear: Linear, *, rows: Product | None, sections: int
) -> bool:
    """Check a projection by itself.

    `rows` is the number of input features that it must take, if that is known. `sections` is 3
    for QKV, whose STATIC weight scale may have a column for each of Q, K and V.
    Returns whether the weight's shape is sound.
    """
    weight = linear.weight
    allowed = dtypes.FLOATS if linear.quantization is QuantizationType.NONE else dtypes.FP8
    if weight.dtype not in allowed:
        kind = f"{rules.name(field + '.quantization')} {linear.quantization.name}"
        rule = f"must have dtype {' or '.join(allowed)} with {kind}"
        rules.broken(f"{field}.weight", rule, weight.dtype, about_type=True)
    if weight.ndim != 2 or min(weight.shape) == 0:
        rule = "must be a matrix [input features, output features]"
        return rules.broken(f"{field}.weight", rule, f"shape {weight.shape}")
    if rows is not None:
        check_rows(rules, field, linear, rows)
    columns = weight.shape[1]
    if linear.bias is not None:
        check_vector(rules, f"{field}.bias", linear.bias, columns, "output features")
    _check_scales(rules, field, linear, columns, sections)
    return True


def check_rows(rules: Rules, field: str, linear: Linear, product: Product) -> None:
    """Check that a projection takes as many input features as the product says."""
    names, first, second = product
    shape, rows = linear.weight.shape, first * second
    if len(shape) != 2 or shape[0] == rows:
        return
    fix = "A torch.nn.Linear weight is [out, in]: transpose it" if shape[1] == rows else ""
    rule = f"must have {names} = {first} * {second} = {rows} rows"
    rules.broken(f"{field}.weight", rule, f"shape {shape}", fix)


def _check_scales(rules: Rules, field: str, linear: Linear, columns: int, sections: int) -> None:
    kind = linear.quantization
    if kind is QuantizationType.NONE and linear.weight_scale is None and linear.input_scale is None:
        return
    if kind is QuantizationType.ROW:
        allowed = (columns,)
    elif kind is QuantizationType.STATIC:
        allowed = (1, sections) if sections > 1 else (1,)
    else:
        allowed = ()
    _check_scale(rules, f"{field}.weight_scale", linear.weight_scale, kind, allowed)
    allowed = (1,) if kind is QuantizationType.STATIC else ()
    if _check_scale(rules, f"{field}.input_scale", linear.input_scale, kind, allowed):
        value = linear.input_scale_value()
        if not _positive(value):
            rules.broken(f"{field}.input_scale", "must be positive and finite", value)


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _check_scale(
    rules: Rules,
    field: str,
    scale: Array | None,
    kind: QuantizationType,
    columns: tuple[int, ...],
) -> bool:
    """Check one scale; returns whether its values can be looked at."""
    if not columns:
        if scale is not None:
            rules.broken(field, f"must be None with quantisation {kind.name}", scale)
        return False
    if scale is None:
        return rules.broken(field, f"must be given with quantisation {kind.name}", "None")
    check_dtype(rules, field, scale, dtypes.FLOATS)
    if scale.ndim != 2 or scale.shape[0] not in SCALE_ROWS or scale.shape[1] not in columns:
        widths = " or ".join(str(n) for n in columns)
        rule = f"must have shape (1, {widths}) or (128, {widths})"
        return rules.broken(field, rule, f"shape {scale.shape}")
    return scale.on_host and check_equal_rows(rules, field, scale)


def check_equal_rows(rules: Rules, field: str, scale: Array) -> bool:
    """Check that all rows of a `[128, n]` scale are equal."""
    if scale.shape[0] == 1:
        return True
    values = scale.values()
    same = bool(np.all(values == values[:1]))
    return same or rules.broken(field, "must have 128 equal rows", "rows that differ")


def check_one_kind(rules: Rules, arrays: Iterable[tuple[str, Array | None]]) -> None:
    """Check that all arrays, each after its field, are like the first: of one kind and device."""
    kind = device = first = None
    for field, array in arrays:
        if array is None:
            continue
        if first is None:
            first, kind, device = field, array.kind, array.device
        elif array.kind != kind or array.device != device:
            rules.broken(
                field,
                f"must be the same kind of array, on the same device, as {rules.name(first)} "
                f"({kind} on {device})",
                f"{array.kind} on {array.device}",
                about_type=True,
            )

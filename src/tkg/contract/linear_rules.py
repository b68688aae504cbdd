"""The rules for a projection (`Linear`), shared by both operations."""

from __future__ import annotations

import math

import numpy as np

from tkg.contract import dtypes
from tkg.contract.arrays import Array
from tkg.contract.block import Linear
from tkg.contract.errors import Rules
from tkg.contract.quantization import QuantizationType

SCALE_ROWS = (1, 128)


def check_dtype(rules: Rules, field: str, array: Array, allowed: tuple[str, ...]) -> bool:
    """Check an array's dtype."""
    if array.dtype in allowed:
        return True
    rule = f"must have dtype {' or '.join(allowed)}"
    return rules.check(False, field, rule, array.dtype, about_type=True)


def check_vector(rules: Rules, field: str, array: Array | None, size: int, what: str) -> None:
    """Check an optional `[1, size]` float array."""
    if array is not None:
        check_dtype(rules, field, array, dtypes.FLOATS)
        shape, rule = (1, size), f"must have shape (1, {what}) = (1, {size})"
        rules.check(array.shape == shape, field, rule, f"shape {array.shape}")


def check_linear(
    rules: Rules, field: str, linear: Linear, *, rows: tuple[int, str] | None, sections: int
) -> bool:
    """Check a projection by itself.

    `rows` is the number of input features the weight must have and how it comes about;
    `sections` is 3 for QKV, whose STATIC weight scale may have a column for each of Q, K and V.
    Returns whether the weight's shape is sound.
    """
    weight = linear.weight
    quantized = linear.quantization is not QuantizationType.NONE
    rules.check(
        weight.dtype in (dtypes.FP8 if quantized else dtypes.FLOATS),
        f"{field}.weight",
        f"must have dtype {' or '.join(dtypes.FP8 if quantized else dtypes.FLOATS)} with "
        f"{rules.name(field + '.quantization')} {linear.quantization.name}",
        weight.dtype,
        about_type=True,
    )
    if not rules.check(
        weight.ndim == 2 and min(weight.shape) > 0,
        f"{field}.weight",
        "must be a matrix [input features, output features]",
        f"shape {weight.shape}",
    ):
        return False
    if rows is not None:
        check_rows(rules, field, linear, *rows)
    columns = weight.shape[1]
    check_vector(rules, f"{field}.bias", linear.bias, columns, "output features")
    _check_scales(rules, field, linear, columns, sections)
    return True


def check_rows(rules: Rules, field: str, linear: Linear, rows: int, why: str) -> None:
    """Check that a projection takes `rows` input features; `why` is how that number comes about."""
    shape = linear.weight.shape
    if len(shape) != 2 or shape[0] == rows:
        return
    fix = "A torch.nn.Linear weight is [out, in]: transpose it" if shape[1] == rows else ""
    rules.check(False, f"{field}.weight", f"must have {why} = {rows} rows", f"shape {shape}", fix)


def _check_scales(rules: Rules, field: str, linear: Linear, columns: int, sections: int) -> None:
    kind = linear.quantization
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
        rule = "must be positive and finite"
        rules.check(_positive(value), f"{field}.input_scale", rule, value)


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
        rule = f"must be None with quantisation {kind.name}"
        rules.check(scale is None, field, rule, scale)
        return False
    if not rules.check(
        scale is not None, field, f"must be given with quantisation {kind.name}", "None"
    ):
        return False
    assert scale is not None
    check_dtype(rules, field, scale, dtypes.FLOATS)
    widths = " or ".join(str(n) for n in columns)
    rule = f"must have shape (1, {widths}) or (128, {widths})"
    shape_ok = scale.ndim == 2 and scale.shape[0] in SCALE_ROWS and scale.shape[1] in columns
    if not rules.check(shape_ok, field, rule, f"shape {scale.shape}"):
        return False
    return scale.on_host and check_equal_rows(rules, field, scale)


def check_equal_rows(rules: Rules, field: str, scale: Array) -> bool:
    """Check that all rows of a `[128, n]` scale are equal."""
    values = scale.values()
    same = scale.shape[0] == 1 or bool(np.all(values == values[:1]))
    return rules.check(same, field, "must have 128 equal rows", "rows that differ")


def check_one_kind(rules: Rules, arrays: dict[str, Array]) -> None:
    """Check that all arrays are of one kind and on one device."""
    first_field, first = next(iter(arrays.items()))
    for field, array in arrays.items():
        if array.kind == first.kind and array.device == first.device:
            continue
        rules.check(
            False,
            field,
            f"must be the same kind of array, on the same device, as {rules.name(first_field)} "
            f"({first.kind} on {first.device})",
            f"{array.kind} on {array.device}",
            about_type=True,
        )

"""What GpSimd's instructions refuse, and how they say it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nkisim.isa as nisa
import nkisim.language as nl
from nkisim import NkiHazardError, NkiNotImplementedError, NkiValidationError
from nkisim.enums import PSUM
from tests.nkisim.harness import empty, execute, tile

BF16 = ml_dtypes.bfloat16


def refused(body: Any, error: type[Exception], *words: str, **options: Any) -> None:
    with pytest.raises(error) as caught:
        execute(body, **options)
    for word in words:
        assert word in str(caught.value)


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return tile(np.zeros(shape, dtype))


FLAT: Any = [1, 4]
BROKEN: dict[str, tuple[Any, tuple[str, ...]]] = {
    "iota psum": (lambda: nisa.iota(empty((4, 4), buffer=PSUM), [[1, 4]]), ("iota", "dst", "SBUF")),
    "iota count": (lambda: nisa.iota(empty((4, 5)), [[1, 4]]), ("iota", "pattern", "4 elements")),
    "iota five": (lambda: nisa.iota(empty((4, 1)), [[1, 1]] * 5), ("pattern", "5 dimensions")),
    "iota flat": (lambda: nisa.iota(empty((4, 4)), FLAT), ("pattern", "pairs")),
    "iota channel": (
        lambda: nisa.iota(empty((4, 4)), [[1, 4]], 0, 0.5),  # type: ignore[arg-type]
        ("channel_multiplier", "0.5"),
    ),
    "select op": (
        lambda: nisa.affine_select(empty((4, 4)), [[1, 4]], 0, zeros((4, 4)), 0.0, nl.add),
        ("cmp_op", "nl.add"),
    ),
    "select value": (
        lambda: nisa.affine_select(empty((4, 4)), [[1, 4]], 0, zeros((4, 4)), zeros((4, 1))),
        ("on_false_value",),
    ),
    "select shape": (
        lambda: nisa.affine_select(empty((4, 4)), [[1, 4]], 0, zeros((4, 5)), 0.0),
        ("on_true_tile", "[4, 5]"),
    ),
    "reduce op": (
        lambda: nisa.tensor_partition_reduce(empty((1, 4)), nl.multiply, zeros((4, 4))),
        ("op", "nl.multiply"),
    ),
    "reduce dst": (
        lambda: nisa.tensor_partition_reduce(empty((4, 1)), nl.add, zeros((4, 4))),
        ("dst", "[4, 1]"),
    ),
    "reduce bits": (
        lambda: nisa.tensor_partition_reduce(empty((1, 4)), nl.bitwise_or, zeros((4, 4))),
        ("dst", "float32"),
    ),
    "gather index": (
        lambda: nisa.nc_n_gather(empty((4, 2)), zeros((4, 4)), zeros((4, 2), np.int32)),
        ("indices", "int32", "uint32"),
    ),
    "gather dtype": (
        lambda: nisa.nc_n_gather(
            empty((4, 2), "bfloat16"), zeros((4, 4)), zeros((4, 2), np.uint32)
        ),
        ("data", "float32"),
    ),
    "gather width": (
        lambda: nisa.nc_n_gather(empty((4, 3)), zeros((4, 4)), zeros((4, 2), np.uint32)),
        ("indices", "[4, 2]"),
    ),
    "local partitions": (
        lambda: nisa.local_gather(empty((8, 16)), zeros((8, 4)), zeros((8, 1), np.uint16)),
        ("index", "8 partitions", "16"),
    ),
    "local each": (
        lambda: nisa.local_gather(empty((16, 48)), zeros((16, 4)), zeros((16, 1), np.uint16), 3),
        ("num_elem_per_idx", "3"),
    ),
    "local valid": (
        lambda: nisa.local_gather(
            empty((16, 17)), zeros((16, 4)), zeros((16, 1), np.uint16), num_valid_indices=17
        ),
        ("num_valid_indices", "17", "1 to 16"),
    ),
    "local many": (
        lambda: nisa.local_gather(empty((16, 4112)), zeros((16, 4)), zeros((16, 257), np.uint16)),
        ("num_valid_indices", "4112", "4096"),
    ),
    "local index": (
        lambda: nisa.local_gather(empty((16, 16)), zeros((16, 4)), zeros((16, 1), np.uint32)),
        ("index", "uint32"),
    ),
    "topk dtype": (
        lambda: nisa.topk(empty((16, 2)), empty((16, 2), "uint32"), zeros((16, 2), BF16), 16),
        ("val_dst", "float32"),
    ),
    "topk n": (
        lambda: nisa.topk(
            empty((16, 2), "bfloat16"), empty((16, 2), "uint32"), zeros((16, 2), BF16), 7
        ),
        ("n", "got 7", "8 to 65535"),
    ),
    "topk columns": (
        lambda: nisa.topk(
            empty((16, 2), "bfloat16"), empty((16, 2), "uint32"), zeros((16, 2), BF16), 33
        ),
        ("src", "32 elements", "33"),
    ),
    "topk k": (
        lambda: nisa.topk(
            empty((16, 9), "bfloat16"), empty((16, 9), "uint32"), zeros((16, 2), BF16), 8
        ),
        ("val_dst", "K = 9"),
    ),
    "nonzero width": (
        lambda: nisa.nonzero_with_count(empty((16, 8), "int32"), zeros((16, 8))),
        ("dst", "9"),
    ),
    "nonzero dtype": (
        lambda: nisa.nonzero_with_count(empty((16, 9), "float32"), zeros((16, 8))),
        ("dst", "float32", "int32"),
    ),
    "nonzero padding": (
        lambda: nisa.nonzero_with_count(empty((16, 9), "int32"), zeros((16, 8)), 0, 0.5),  # type: ignore[arg-type]
        ("padding_val", "0.5"),
    ),
    "bounds shape": (
        lambda: nisa.sequence_bounds(empty((2, 2, 8)), zeros((2, 8))),
        ("dst", "[2, 2, 8]"),
    ),
    "bounds dtype": (
        lambda: nisa.sequence_bounds(empty((1, 2, 8), "int16"), zeros((1, 8))),
        ("dst", "int16"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_named(case: str) -> None:
    body, words = BROKEN[case]
    refused(body, NkiValidationError, *words)


def test_local_gather_lengths_must_agree_f11() -> None:
    """F11: hardware ignores num_elem_per_idx unless it accounts for the whole of dst."""

    def body() -> None:
        nisa.local_gather(empty((16, 64)), zeros((16, 8)), zeros((16, 2), np.uint16))

    refused(body, NkiValidationError, "local_gather", "dst", "64 elements", "= 32")


@pytest.mark.parametrize("name", ["nc_n_gather", "local_gather"])
def test_an_index_outside_is_a_hazard(name: str) -> None:
    def body() -> None:
        if name == "nc_n_gather":
            nisa.nc_n_gather(empty((4, 1)), zeros((4, 4)), tile(np.full((4, 1), 4, np.uint32)))
        else:
            index = tile(np.full((16, 1), 7, np.uint16))
            nisa.local_gather(empty((16, 32)), zeros((16, 8)), index, 2)

    refused(body, NkiHazardError, name, "ind", "reaches element")


def test_nonzero_with_count_needs_gen3() -> None:
    def body() -> None:
        nisa.nonzero_with_count(empty((16, 9), "int32"), zeros((16, 8)))

    refused(body, NkiValidationError, "nonzero_with_count", "trn1", target="trn1")


@pytest.mark.parametrize(
    "name", ["nc_matmul_mx", "quantize_mx", "activate2", "exponential", "rand2"]
)
def test_what_only_gen4_has_says_so_f05_f55(name: str) -> None:
    """F05, F55: an instruction of NeuronCore-v4 fails by its name."""
    refused(lambda: getattr(nisa, name)(1, 2), NkiNotImplementedError, name, "NeuronCore-v4")

"""One handle for NumPy arrays, torch tensors and descriptions of arrays.

The contract and the NumPy-based backends see only `Array`; torch is never imported here, only
recognised when the user has it.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from tkg.contract import dtypes
from tkg.contract.errors import Rules

AnyArray = Any
"""What a user may pass: a NumPy array, a torch tensor, a `Float8E4M3` or an `ArraySpec`. A field of
a call's parts that is annotated so holds the `Array` handle once the part is built."""

_BITS = {
    dtypes.BFLOAT16: "int16",
    dtypes.FLOAT8_E4M3: "uint8",
    dtypes.FLOAT8_E4M3FN: "uint8",
}
"""Integer dtype of the same width, through which torch and NumPy share these types' memory."""

_INT32 = np.dtype(np.int32)
_SKIP_SLOT = np.array(dtypes.SKIP_SLOT)
_FEW = 64  # numbers that are looked through sooner as a list than as an array


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array that need not exist; takes an array's place in `tkg.explain`.

    Attributes:
        shape: the shape.
        dtype: NumPy's name of the dtype, such as `"bfloat16"`.
    """

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        dtypes.itemsize(self.dtype)  # a wrong name fails here, with NumPy's own message


class Float8E4M3:
    """Marks a torch uint8 tensor as bytes of NKI's float8_e4m3 (largest value 240).

    torch has only the OCP format (`torch.float8_e4m3fn`, largest 448); its tensors are taken as
    they are. A `Float8E4M3` shares the tensor's memory.

    Attributes:
        bits: the uint8 tensor.

    Raises:
        TypeError: `bits` is not a torch uint8 tensor.
    """

    def __init__(self, bits: Any) -> None:
        if _torch_dtype(bits) != "uint8":
            raise TypeError(
                f"Float8E4M3: bits must be a torch.uint8 tensor; got {type(bits).__name__} "
                f"{getattr(bits, 'dtype', '')}. NumPy users pass ml_dtypes.float8_e4m3 arrays"
            )
        self.bits = bits

    def __repr__(self) -> str:
        return f"Float8E4M3({tuple(self.bits.shape)}, {self.bits.device})"


@dataclass(eq=False, slots=True)
class Array:
    """An array of a call: what it is, and where it lives.

    Not to be changed; `frozen` would make it four times as slow to make, some ten times a call.

    Attributes:
        shape: the shape.
        dtype: NumPy's name of the element type.
        kind: `"numpy"`, `"torch"` or `"spec"` (a description without data).
        device: `"cpu"`, or torch's device string; `"none"` for a description.
        source: the user's own object, returned to them when it is an output; `None` if released.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str
    device: str
    source: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * dtypes.itemsize(self.dtype)

    @property
    def on_host(self) -> bool:
        """Whether the values can be read from Python without a copy from another device."""
        return self.device == "cpu"

    @property
    def writable(self) -> bool:
        return self.kind != "numpy" or self.source.flags.writeable

    def released(self) -> Array:
        """The same array without its values: its owner may free them."""
        return Array(self.shape, self.dtype, self.kind, self.device, None)

    def numpy(self) -> np.ndarray:
        """A NumPy view of the same memory. Only for arrays on the host."""
        if self.kind == "numpy":
            return self.source
        torch = sys.modules["torch"]
        tensor = self.source.bits if isinstance(self.source, Float8E4M3) else self.source
        if tensor.requires_grad:
            tensor = tensor.detach()
        bits = _BITS.get(self.dtype)
        if bits is None:
            return tensor.numpy()
        return tensor.view(getattr(torch, bits)).numpy().view(dtypes.NUMPY[self.dtype])

    def values(self) -> np.ndarray:
        """A NumPy array of the values: a view on the host; from a device a copy, which waits for
        the device."""
        return self.numpy() if self.on_host else self.to_host().numpy()

    def to_host(self) -> Array:
        """A torch tensor's handle on the host; a copy if the tensor is on a device."""
        if isinstance(self.source, Float8E4M3):
            source: Any = Float8E4M3(self.source.bits.cpu())
        else:
            source = self.source.cpu()
        return Array(self.shape, self.dtype, self.kind, "cpu", source)

    def first(self) -> float:
        """The first element, wherever the array lives; NaN for a description."""
        return float("nan") if self.kind == "spec" else float(self.values().flat[0])

    def like(self, values: Any) -> Any:
        """`values` as the user's kind of array, without a copy: a NumPy array, or a torch tensor
        from a backend on a device, where uint8 stands for the bytes of float8_e4m3."""
        if self.kind == "numpy":
            return values
        torch = sys.modules["torch"]
        if isinstance(values, torch.Tensor):
            return Float8E4M3(values) if values.dtype == torch.uint8 else values
        name = values.dtype.name
        bits = _BITS.get(name)
        if bits is None:
            return torch.from_numpy(values)
        tensor = torch.from_numpy(values.view(bits))
        if name == dtypes.FLOAT8_E4M3:
            return Float8E4M3(tensor)
        return tensor.view(getattr(torch, name))

    def __repr__(self) -> str:
        place = "" if self.device in ("cpu", "none") else f" @ {self.device}"
        return f"{self.dtype}{list(self.shape)}{place}"


def as_array(value: Any) -> Array | None:
    """The handle of a NumPy array, torch tensor, `Float8E4M3` or `ArraySpec`; `None` stays `None`.

    Raises:
        TypeError: anything else. Lists and scalars are not converted: an array that was made in
            passing could not be updated in place.
    """
    if isinstance(value, np.ndarray):
        return Array(value.shape, _dtype_name(value.dtype), "numpy", "cpu", value)
    if value is None or isinstance(value, Array):
        return value
    if isinstance(value, ArraySpec):
        return Array(value.shape, value.dtype, "spec", "none", value)
    if isinstance(value, Float8E4M3):
        bits = value.bits
        return Array(tuple(bits.shape), dtypes.FLOAT8_E4M3, "torch", _device(bits), value)
    name = _torch_dtype(value)
    if name is not None:
        return Array(tuple(value.shape), name, "torch", _device(value), value)
    raise TypeError(
        f"must be a NumPy array or a torch tensor; got {type(value).__module__}."
        f"{type(value).__qualname__}"
    )


def handle(rules: Rules, field: str, value: Any) -> Array | None:
    """`as_array`, with a value of the wrong type as a broken rule (and `None`)."""
    try:
        return as_array(value)
    except TypeError as error:
        rule, _, got = str(error).partition("; got ")
        rules.broken(field, rule, got, about_type=True)
        return None


def own_handle(owner: object, field: str, value: Any) -> None:
    """Put the handle of an array in place of the array in a field of a frozen object.

    Raises:
        TypeError: it is no array.
    """
    try:
        array = as_array(value)
    except TypeError as error:
        raise TypeError(f"{type(owner).__name__}: {field} {error}") from None
    if array is None:
        raise TypeError(f"{type(owner).__name__}: {field} must be given; got None")
    object.__setattr__(owner, field, array)


def index_values(array: Array) -> np.ndarray:
    """A new int64 array, in C order, of an index array's values, 2^32-1 (unsigned "none") turned
    into -1."""
    values = array.values()
    wide = values.astype(np.int64, order="C")
    if values.dtype == _INT32:  # holds no 2^32-1
        return wide
    if wide.size > _FEW or dtypes.SKIP_SLOT in wide.ravel().tolist():
        wide[wide == _SKIP_SLOT] = -1
    return wide


def library(array: Array) -> Any:
    """The library whose functions work on the array where it is: NumPy for arrays on the host,
    torch for a tensor on a device."""
    return np if array.on_host else sys.modules["torch"]


def indices(array: Array) -> Any:
    """`index_values`, of the array's `library`: a tensor on a device stays there."""
    if array.on_host:
        return index_values(array)
    torch = sys.modules["torch"]
    values = array.source.to(torch.int64)
    return torch.where(values == dtypes.SKIP_SLOT, -1, values)


@functools.cache
def _dtype_name(dtype: np.dtype) -> str:
    return dtype.name if dtype.isnative else dtype.str


def _torch_dtype(value: Any) -> str | None:
    """torch's dtype name without the prefix, or `None` if `value` is no torch tensor."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    return _torch_name(value.dtype)


@functools.cache
def _torch_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _device(tensor: Any) -> str:
    return "cpu" if tensor.is_cpu else str(tensor.device)

"""`nki.typing`: annotations of kernel parameters. They document; nothing checks them."""

from __future__ import annotations

from typing import Any


class _TensorMeta(type):
    def __getitem__(cls, shape: Any) -> TensorType:
        return TensorType(shape if isinstance(shape, tuple) else (shape,))


class tensor(metaclass=_TensorMeta):
    """A kernel argument that is a tensor; `tensor[128, 512]` tells its shape too."""


class TensorType:
    """What `tensor[...]` is: an annotation with a shape."""

    def __init__(self, shape: tuple[Any, ...]):
        self.shape = shape

    def __repr__(self) -> str:
        return f"tensor[{', '.join(map(str, self.shape))}]"

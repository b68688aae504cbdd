"""The arithmetic of tensor views: shapes and element strides in, shapes and element strides out.

Nothing here knows of storage. Each function raises ValueError with the rule that is broken;
`NkiTensor` adds the tensor and the kernel's line.
"""

from __future__ import annotations

from math import prod

Shape = tuple[int, ...]
Layout = tuple[Shape, Shape]


def row_major(shape: Shape) -> Shape:
    """Element strides of a dense row-major tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def permute(shape: Shape, strides: Shape, order: Shape) -> Layout:
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"dims must be a permutation of 0 to {len(shape) - 1}, got {order}")
    return tuple(shape[d] for d in order), tuple(strides[d] for d in order)


def split(shape: Shape, strides: Shape, dim: int, sizes: Shape) -> Layout:
    """One dimension into several; one of `sizes` may be -1."""
    sizes = fill_in(sizes, shape[dim])
    inner = tuple(step * strides[dim] for step in row_major(sizes))
    return shape[:dim] + sizes + shape[dim + 1 :], strides[:dim] + inner + strides[dim + 1 :]


def fill_in(sizes: Shape, count: int) -> Shape:
    """`sizes` with -1 replaced, so that their product is `count`."""
    known = prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known and count % known == 0:
        sizes = tuple(count // known if size == -1 else size for size in sizes)
    if prod(sizes) != count or any(size < 1 for size in sizes):
        raise ValueError(f"the sizes {sizes} must multiply to {count}")
    return sizes


def merge(shape: Shape, strides: Shape, first: int, last: int) -> Layout:
    """Dimensions first to last (inclusive) into one; they must be dense with respect to each
    other."""
    for dim in range(first, last):
        if shape[dim] != 1 and strides[dim] != strides[dim + 1] * shape[dim + 1]:
            raise ValueError(
                f"dimensions {first} to {last} of shape {shape} with strides {strides} are not"
                " contiguous, so they cannot become one without a copy"
            )
    size = prod(shape[first : last + 1])
    return shape[:first] + (size,) + shape[last + 1 :], strides[:first] + (
        strides[last],
    ) + strides[last + 1 :]


def reshape(shape: Shape, strides: Shape, new: Shape) -> Layout:
    """The strides of the same elements in another shape; ValueError if that takes a copy."""
    new = fill_in(new, prod(shape))
    old = [(size, step) for size, step in zip(shape, strides, strict=True) if size != 1]
    result: list[int] = []
    sizes = list(new)
    while sizes:
        # Take the fewest old dimensions whose product a group of new ones makes.
        group, total = [sizes.pop(0)], 1
        have = group[0]
        taken: list[tuple[int, int]] = []
        while total != have:
            if total < have:
                size, step = old.pop(0)
                if taken and taken[-1][1] != size * step:
                    raise ValueError(
                        f"shape {shape} with strides {strides} cannot become {new} without a copy"
                    )
                taken.append((size, step))
                total *= size
            else:
                group.append(sizes.pop(0))
                have *= group[-1]
        unit = taken[-1][1] if taken else 1
        result += [step * unit for step in row_major(tuple(group))]
    return new, tuple(result)


def rearranged(
    shape: Shape, strides: Shape, source: tuple, target: tuple, sizes: dict[str, int]
) -> Layout:
    """einops-like: split the dimensions of `source` into names, then order and merge by
    `target`."""
    if len(source) != len(shape):
        raise ValueError(f"the source pattern {source} must have {len(shape)} dimensions")
    known: dict[str, tuple[int, int]] = {}
    for dim, names in enumerate(source):
        names = (names,) if isinstance(names, str) else tuple(names)
        parts = fill_in(tuple(sizes.get(name, -1) for name in names), shape[dim])
        steps = row_major(parts)
        for name, size, step in zip(names, parts, steps, strict=True):
            known[name] = (size, step * strides[dim])
    flat = [name for item in target for name in ((item,) if isinstance(item, str) else item)]
    if sorted(flat) != sorted(known):
        raise ValueError(f"the target pattern {target} must use each of {sorted(known)} once")
    layout: Layout = tuple(known[n][0] for n in flat), tuple(known[n][1] for n in flat)
    for dim, item in enumerate(target):
        if not isinstance(item, str):
            layout = merge(*layout, dim, dim + len(item) - 1)
    return layout


def is_dense(shape: Shape, strides: Shape) -> bool:
    """Row-major without gaps (size-1 dimensions do not matter)."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def last_element(shape: Shape, strides: Shape) -> int:
    """Offset of the furthest element from the first."""
    return sum((size - 1) * step for size, step in zip(shape, strides, strict=True))

"""The examples in the docstrings of AWS's API stubs, with inputs and NumPy's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from published_inputs import BF16, draw, into_last, matrices, product
from published_source import Case, Excerpt, Folder, blocks

ISA = "api/nki/isa/__init__.py"
LANGUAGE = "api/nki/language/__init__.py"


def docstrings() -> list[Case]:
    """The examples of nki.isa's stub."""
    rows = np.array([[5], [0], [31], [5]], np.uint32)
    places = np.array([[5], [0], [31], [6]], np.uint32)

    def scattered(values: Any, where: Any, table: Any) -> np.ndarray:
        table[where[:, 0]] = values
        return table

    def nonzero(x: Any) -> np.ndarray:
        return np.tile([1, 3, -1, -1, 2], (8, 1))

    def gathered(x: Any, where: Any) -> np.ndarray:
        flat = where.T.reshape(-1)
        return x[flat].transpose((*range(x.ndim - 1, x.ndim - 2, -1), *range(1, x.ndim - 1), 0))

    def indices(columns: int, limit: int) -> np.ndarray:
        return np.random.default_rng(5).integers(0, limit, (128, columns)).astype(np.uint32)

    def example(name: str, *rest: Any) -> Case:
        return Case(name, Excerpt(ISA, (f"def {name}(",), name), *rest)

    exchange = Excerpt(
        ISA,
        ("send_to_rank=next_rank",),
        given="batch_size, hidden_dim, data, out",
        before=("rank = nl.program_id()",),
        after=("nisa.dma_copy(dst=out[rank], src=recv_buffer)",),
    )
    registers = Excerpt(
        ISA,
        ("reg1 = nisa.register_alloc(0)", "loop_count = nisa.register_alloc()"),
        given="out",
        after=(
            "cell = nl.ndarray((1, 1), nl.int32)",
            "nisa.register_store(cell, reg2)",
            "nisa.dma_copy(dst=out, src=cell)",
        ),
    )
    one = Excerpt(
        ISA,
        ("computed_bound = nl.ones([1]", "counter_reg = nisa.register_alloc(0)"),
        given="out",
        after=(
            "nisa.register_store(result_tensor, loop_reg)",
            "nisa.dma_copy(dst=out, src=result_tensor)",
        ),
    )
    barrier = Excerpt(
        ISA,
        ("# Synchronize between two cores",),
        given="batch_size, hidden_dim",
        before=("core_id = nl.program_id()",),
        after=("return shared_tensor",),
    )
    return [
        Case(
            "core_barrier",
            barrier,
            lambda: (4, 8),
            run=lambda kernel, *rest: kernel[2](*rest).shape,
            want=lambda rows, columns: (rows, columns),
            options={"checks": "report"},
        ),
        Case(
            "sendrecv of what was never written",
            exchange,
            lambda: (4, 8, draw(2, 4, 8), np.zeros((2, 4, 8), np.float32)),
            run=lambda kernel, *rest: kernel[2](*rest),
            refusal="never written",
        ),
        Case(
            "registers",
            registers,
            lambda: (np.zeros((1, 1), np.int32),),
            lambda y: y + 10,
            into_last,
        ),
        Case(
            "registers of one element",
            one,
            lambda: (np.zeros((1, 1), np.int32),),
            lambda y: y + 1,
            into_last,
        ),
        Case(
            "nonzero_with_count, 15 of 16 partitions unwritten",
            Excerpt(ISA, ("def nonzero_with_count_kernel",), "nonzero_with_count_kernel"),
            lambda: (np.tile(np.array([0, 1, 0, 2], np.float32), (128, 1)),),
            nonzero,
            lambda kernel, x: kernel(x)[::16],
            options={"checks": "report"},
        ),
        example("indirect_gather_kernel", lambda: (draw(32, 16), rows), lambda x, i: x[i[:, 0]]),
        example(
            "indirect_scatter_kernel",
            lambda: (draw(4, 16), places, draw(32, 16, seed=1)),
            scattered,
        ),
        example("nc_matmul_accumulate_kernel", lambda: matrices(512, 96, 300), product),
        example(
            "gather_transpose_kernel",
            lambda: (draw(300, 128, dtype=BF16), indices(1, 300)),
            gathered,
        ),
        example(
            "gather_transpose_2d_kernel",
            lambda: (draw(300, 128, dtype=BF16), indices(2, 300)),
            gathered,
        ),
        example(
            "gather_transpose_4d_kernel",
            lambda: (draw(300, 1, 3, 64, dtype=BF16), indices(2, 300)),
            gathered,
        ),
    ]


def snippets(folder: Folder) -> list[Case]:
    """The examples of nki.language's stub."""
    wide = lambda: (draw(128, 1024), np.zeros((128, 1024), np.float32))  # noqa: E731
    found = [
        Case(
            f"nl.{name}",
            Excerpt(LANGUAGE, (f"nl.{name}(",), given="input_tensor, out_tensor"),
            wide,
            lambda x, y: x * x,
            into_last,
        )
        for name in ("affine_range", "sequential_range", "static_range")
    ]
    matmul = Excerpt(
        LANGUAGE,
        ("result = nl.copy(result_psum)",),
        given="x_tensor, y_tensor, out",
        after=("nl.store(out, value=result)",),
    )
    gather = Excerpt(
        LANGUAGE, ("nl.gather_flattened(",), given="data_tensor, indices_tensor, actual_tensor"
    )
    index = np.random.default_rng(3).integers(0, 512, (128, 512)).astype(np.uint32)
    found += [
        Case(
            "nl.copy of nl.matmul",
            matmul,
            lambda: (*matrices(128, 96, 300), np.zeros((96, 300), np.float32)),
            lambda x, y, out: product(x, y),
            into_last,
        ),
        Case(
            "nl.gather_flattened",
            gather,
            lambda: (draw(128, 512), index, np.zeros((128, 512), np.float32)),
            lambda x, i, out: np.take_along_axis(x, i.astype(np.int64), 1),
            into_last,
        ),
    ]
    for ordinal, (line, block) in enumerate(blocks(folder.text(LANGUAGE), "assert nl.equal")):
        if "nl.abs_m" in block:  # NeuronCore-v4
            continue
        given = "expected_tensor, actual_tensor" if "_tensor" in block else ""
        excerpt = Excerpt(LANGUAGE, ("assert nl.equal",), ordinal=ordinal, given=given)
        arguments = (lambda: (np.eye(128, dtype=np.float32),) * 2) if given else tuple
        found.append(Case(f"nki.language, line {line}", excerpt, arguments, run=comparing))
    return found


def comparing(kernel: Any, *arguments: Any) -> None:
    """The examples assert that nl.equal's tile is true, which says nothing: look into the tile."""
    import nki.language as nl  # pyright: ignore[reportMissingImports]

    former = nl.equal
    nl.equal = lambda x, y: bool(np.asarray(former(x, y).array).all())
    try:
        kernel(*arguments)
    finally:
        nl.equal = former

"""The kernels in AWS's pages on the language, access patterns, loops, scheduling and migration."""

from __future__ import annotations

import numpy as np
from published_inputs import BF16, draw, exact, into_last, product
from published_source import Case, Excerpt

GUIDE = "get-started/nki-language-guide.rst"
ACCESS = "deep-dives/nki-aps.rst"
LANGUAGE = "api/nki/language/__init__.py"
MIGRATION = "migration/index.rst"
SCHEDULING = "guides/how-to-scheduling-apis.rst"


def guide() -> list[Case]:
    """The language guide: its assertions about tensors and views, and its kernels."""
    marks = {
        "attributes of a tensor": ("assert t.strides == (64, 1)",),
        "views share storage": ("nisa.memset(dst=u, value=1.0)",),
        "the partition dimension stays": ("t[0, :, :]            # shape",),
        "views compose": ("assert u.shape == (64, 4)",),
        "access pattern of tuples": ("u = t.ap(pattern=[(1024, 128)", "pattern = t.get_pattern()"),
        "a tensor of the guide": ("assert t.shape == (128,128)", "u = t.reshape((128,2,64))"),
        "indexing": ("u = t[0, 0, 10]", "u = t[0:64, 0, 0:64]", "u = t[...]", "v = u[:, 0:32, :]"),
    }
    found = [Case(name, Excerpt(GUIDE, texts)) for name, texts in marks.items()]
    process = ("def tiled_process",)
    blank = lambda: (draw(256, 512), np.zeros((256, 512), np.float32))  # noqa: E731
    found += [
        Case(
            "unrolled loop",
            Excerpt(GUIDE, ("def example_kernel",), "example_kernel"),
            lambda: (draw(512, 512, dtype=np.float16),),
            lambda x: None,
        ),
        Case(
            "an object",
            Excerpt(GUIDE, ("c.toggle()",), "c"),
            want=lambda: (1, True),
            run=lambda c: (c.x, c.y),
        ),
        Case("an object as argument", Excerpt(GUIDE, ("kernel(A(1))",), "A"), run=lambda a: None),
        Case("an enumeration", Excerpt(GUIDE, ("f(E.x)",), "E"), run=lambda e: None),
        Case(
            "function as argument, relu",
            Excerpt(GUIDE, process, "relu_kernel"),
            blank,
            lambda x, y: np.maximum(x, 0),
            into_last,
        ),
        Case(
            "function as argument, scale",
            Excerpt(GUIDE, process, "scale_kernel"),
            blank,
            lambda x, y: x / 2,
            into_last,
        ),
    ]
    return found


def access_patterns() -> list[Case]:
    found = [
        Case(name, Excerpt(ACCESS, (mark,)))
        for name, mark in {
            "a slice is a pattern": "u = t.slice(dim=1, start=8, end=24)",
            "chained patterns": "inner = t.ap(pattern",
            "chained slices": "t_a = t.slice",
            "reinterpreted pattern": "cast_to_bf16 = t.ap",
        }.items()
    ]
    found.append(Case("a partition stride", Excerpt(ACCESS, ("[64, 8], [1, 32]",)), refusal="64"))
    kernels = {
        "scalar_dynamic_select": (lambda: (draw(4, 128, 512),), lambda a: a[3]),
        "scalar_dynamic_dma": (lambda: (draw(512, 512),), lambda a: a[384:512, 0:256]),
        "gather_rows": (lambda: (draw(128, 512),), lambda a: a[0:128:2]),
        "indirect_vector_dynamic_dma": (lambda: (draw(128, 512),), lambda a: a[0:128:2]),
    }
    for name, (arguments, want) in kernels.items():
        found.append(Case(name, Excerpt(ACCESS, (f"def {name}",), name), arguments, want))
    for name in ("indirect_scalar_dynamic_dma", "indirect_vector_dynamic_dma"):
        arguments, want = kernels[name.replace("indirect_scalar", "scalar")]
        found.append(Case(name, Excerpt(MIGRATION, (f"def {name}",), name), arguments, want))
    return found


def loops() -> list[Case]:
    page = "deep-dives/nki-dynamic-loops.rst"
    over = "input_tensor, out_tensor"
    rows = ("nl.dynamic_range(start, stop, 128)",)
    pair = lambda n: (draw(n, 512), np.zeros((n, 512), np.float32))  # noqa: E731
    count = lambda n: np.array([[n]], np.int32)  # noqa: E731
    row = lambda n: np.zeros((1, n), np.float32)  # noqa: E731
    while_loop = Excerpt(
        LANGUAGE,
        ("nl.while_loop(reg, body)",),
        given="data, count_input, out",
        after=("nisa.dma_copy(dst=out, src=acc)",),
    )
    while_register = Excerpt(
        MIGRATION,
        ("while reg:  # loop will terminate",),
        given="out",
        after=("nisa.dma_copy(dst=out, src=cond)",),
    )
    counted = Excerpt(
        LANGUAGE, ("nl.fori_loop(0, ub_reg, body)",), given="N, ub_input, data, output"
    )
    return [
        Case(
            "device loop, once",
            Excerpt(page, ("nl.dynamic_range(1)",), given=over),
            lambda: pair(128),
            lambda x, y: x * x,
            into_last,
        ),
        Case(
            "device loop over rows",
            Excerpt(page, rows, given=over),
            lambda: pair(512),
            lambda x, y: x + 2,
            into_last,
        ),
        Case(
            "fori_loop",
            counted,
            lambda: (5, count(3), draw(1, 5), row(5)),
            lambda size, n, x, y: np.where(np.arange(5) < 3, x, 0),
            into_last,
        ),
        Case(
            "while_loop",
            while_loop,
            lambda: (draw(1, 1), count(4), row(1)),
            lambda x, n, y: x * 4,
            into_last,
        ),
        Case(
            "while on a register", while_register, lambda: (count(7),), lambda y: y * 0, into_last
        ),
    ]


def scheduling() -> list[Case]:
    three = lambda: tuple(draw(128, 16, seed=i) for i in range(3))  # noqa: E731
    exponentials = lambda *xs: tuple(np.exp(exact(x)) for x in xs)  # noqa: E731
    positive = lambda: (np.abs(draw(128, 16)) + 1,)  # noqa: E731
    recip = lambda x: 1 / exact(x) + (exact(x) + 1)  # noqa: E731
    edges = ('("plus1", "recip")',)
    names = ("def kernel(a, b, c)",)
    return [
        Case("without edges", Excerpt(SCHEDULING, edges, "kernel"), positive, recip),
        Case("with edges", Excerpt(SCHEDULING, edges, "scheduled"), positive, recip),
        Case("edges from a list", Excerpt(SCHEDULING, names, "scheduled"), three, exponentials),
        Case(
            "no_reorder", Excerpt(SCHEDULING, ("def loop(a, b, c)",), "loop"), three, exponentials
        ),
        Case(
            "no_reorder of a callee",
            Excerpt(SCHEDULING, ("def loop_body",), "loop"),
            three,
            exponentials,
        ),
    ]


def migration() -> list[Case]:
    blocks_ = lambda: (draw(8, 128, 512),)  # noqa: E731
    same = lambda x: x  # noqa: E731
    name = "sb_blocks_migrated"
    arch = "guides/architecture/"
    zeros = Excerpt(
        f"{arch}trainium_inferentia2_arch.rst",
        ("psum_buf = nl.zeros",),
        given="N, a, b, out",
        before=("stationary_tile, moving_tile = nl.load(a), nl.load(b)",),
        after=("nisa.dma_copy(dst=out, src=nl.copy(psum_buf))",),
    )
    transpose = Excerpt(
        f"{arch}trainium2_arch.rst",
        ("src=hbm_src",),
        given="hbm_src, out",
        after=("nisa.dma_copy(dst=out, src=sbuf_dst)",),
    )
    return [
        Case(
            "blocks in the free dimension",
            Excerpt(MIGRATION, (f"def {name}(",), name),
            blocks_,
            same,
        ),
        Case("a tile a block", Excerpt(MIGRATION, (f"def {name}(",), name, 1), blocks_, same),
        Case(
            "one tile for all blocks",
            Excerpt(MIGRATION, (f"def {name}_incorrect",), f"{name}_incorrect"),
            blocks_,
            same,
        ),
        Case(
            "accumulation over zeros",
            zeros,
            lambda: (2, draw(128, 128), draw(128, 128, seed=1), np.zeros((128, 128), np.float32)),
            lambda n, a, b, y: n * product(a, b),
            into_last,
        ),
        Case(
            "transpose by DMA",
            transpose,
            lambda: (draw(512, 128, dtype=BF16), np.zeros((128, 512), BF16)),
            lambda x, y: x.T,
            into_last,
        ),
    ]

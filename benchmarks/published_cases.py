"""Which kernels AWS has published for the present API, with inputs and NumPy's answers.

Left out: those of the former API (neuronxcc), those that need a NeuronCore-v4, and fragments that
are not whole; those that are wrong as printed are here with the refusal they must meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from published_docstrings import docstrings, snippets
from published_inputs import BF16, draw, exact, matrices, product
from published_pages import access_patterns, guide, loops, migration, scheduling
from published_source import Case, Excerpt, Folder

EXAMPLES = "examples/"
GUIDE = "get-started/nki-language-guide.rst"
TUTORIAL = "guides/tutorials/kernel-optimization.rst"


def cases(folder: Folder) -> list[Case]:
    return [
        *additions(),
        *scripts(),
        *matmuls(),
        *small_files(),
        *mambas(),
        *overviews(),
        *guide(),
        *access_patterns(),
        *loops(),
        *scheduling(),
        *migration(),
        *docstrings(),
        *snippets(folder),
    ]


def additions() -> list[Case]:
    small = lambda: (draw(4, 3, dtype=np.float16), draw(4, 3, dtype=np.float16, seed=1))  # noqa: E731
    name = "nki_tensor_add_kernel"
    add = lambda a, b: a + b  # noqa: E731
    files = [f"{EXAMPLES}getting_started_{kind}.py" for kind in ("baremetal", "jax", "torch")]
    found = [Case("tensor addition", Excerpt(file, name=name), small, add) for file in files]
    for page in (GUIDE, "get-started/quickstart-implement-run-kernel.rst"):
        excerpt = Excerpt(page, ("c_tile = nl.ndarray", name), name=name)
        excerpt.marks = ("nisa.tensor_tensor(dst=c_tile",)
        excerpt.ordinal = 0 if page == GUIDE else -1
        found.append(Case("tensor addition", excerpt, small, add))
    tiled = Excerpt(
        f"{EXAMPLES}tensor_addition/tensor_addition_nki_kernels.py", name="nki_tensor_add"
    )
    found.append(
        Case(
            "tensor addition, tiled", tiled, lambda: (draw(256, 1024), draw(256, 1024, seed=1)), add
        )
    )
    return found


def scripts() -> list[Case]:
    """Programs that check themselves."""
    files = {
        "quick start of nki.simulate": "simulate/nki_simulate_example.py",
        "average pool (script)": "average_pool2d/average_pool2d_nki_kernels.py",
        "transpose (script)": "transpose2d/transpose2d_nki_kernels.py",
        "tensor addition (script)": "getting_started_baremetal.py",
        "Mamba v1, v2, v3 (script)": "fused_mamba/mamba_nki_kernels.py",
    }
    return [Case(name, Excerpt(EXAMPLES + file, script=True)) for name, file in files.items()]


def matmuls() -> list[Case]:
    file = f"{EXAMPLES}matrix_multiplication/matrix_multiplication_nki_kernels.py"
    found = [
        Case(
            "matmul, one tile",
            Excerpt(file, name="nki_matmul_basic_"),
            lambda: matrices(128, 64, 512, BF16),
            product,
            tolerance=2**-8,
        ),
        Case(
            "matmul, one tile, transposed view",
            Excerpt(file, name="nki_matmul_basic_"),
            lambda: (draw(64, 128, dtype=BF16).T, draw(128, 512, dtype=BF16, seed=1)),
            product,
            tolerance=2**-8,
        ),
        Case(
            "matmul, all dimensions blocked",
            Excerpt(file, name="nki_matmul_fully_optimized_"),
            lambda: matrices(512, 256, 512, BF16, 2, 1, 2),
            product,
            tolerance=2**-7,
        ),
    ]
    for name in ("nki_matmul_tiled_", "nki_matmul_hoist_load_", "nki_matmul_block_free_dimension_"):
        arguments = lambda: matrices(256, 256, 1024, BF16)  # noqa: E731
        found.append(Case(name, Excerpt(file, name=name), arguments, product, tolerance=2**-8))
    sizes = [(128, 128, 512), (256, 256, 1024), (256, 256, 1024), (256, 256, 1024), (512, 256, 512)]
    for version, (k, m, n) in enumerate(sizes):
        more = (2, 1, 2) if version == 4 else ()
        excerpt = Excerpt(
            TUTORIAL,
            ("def matrix_multiply_kernel",),
            name="matrix_multiply_kernel",
            ordinal=version,
        )
        arguments = lambda k=k, m=m, n=n, more=more: matrices(k, m, n, np.float32, *more)  # noqa: E731
        found.append(Case(f"matmul tutorial v{version + 1}", excerpt, arguments, product))
    profile = Excerpt(
        "guides/use-neuron-profile.rst", ("def nki_matmul(",), "nki_matmul", alone=True
    )
    found.append(
        Case(
            "matmul of the profiler's MLP",
            profile,
            lambda: matrices(512, 256, 512, np.float32, 2, 1, 2),
            product,
        )
    )
    return found


def windows(x: np.ndarray, size: int) -> np.ndarray:
    c, h, w = x.shape
    return x.reshape(c, h // size, size, w // size, size)


def small_files() -> list[Case]:
    pool = f"{EXAMPLES}average_pool2d/average_pool2d_nki_kernels.py"
    turn = f"{EXAMPLES}transpose2d/transpose2d_nki_kernels.py"
    image = lambda dtype: np.arange(72).astype(dtype).reshape(2, 6, 6)  # noqa: E731
    found = [
        Case(
            f"average pool, {np.dtype(dtype).name}",
            Excerpt(pool, name="tensor_avgpool_kernel"),
            lambda dtype=dtype: (image(dtype), 2),
            lambda x, size: exact(windows(x, size)).mean((2, 4)),
            tolerance=tolerance,
        )
        for dtype, tolerance in ((np.float32, 1e-6), (BF16, 2**-7))
    ]
    found += [
        Case(
            "transpose by copies",
            Excerpt(turn, name="tensor_transpose2D_kernel_"),
            lambda: (draw(5, 7 * 9), (7, 9)),
            lambda x, s: x.reshape(-1, *s).transpose(0, 2, 1).reshape(x.shape),
        ),
        Case(
            "strided split",
            Excerpt(f"{EXAMPLES}index-case-1.py", name="tensor_split_kernel_"),
            lambda: (draw(4, 5, dtype=BF16),),
            lambda x: (x[:, 0::2], x[:, 1::2]),
        ),
        Case(
            "max pool",
            Excerpt(f"{EXAMPLES}index-case-3.py", name="tensor_maxpool_kernel_"),
            lambda: (image(BF16), 2),
            lambda x, size: windows(x, size).max((2, 4)),
        ),
        Case(
            "exp",
            Excerpt(f"{EXAMPLES}layout-pass.py", name="tensor_exp_kernel_"),
            lambda: (draw(128, 512, dtype=BF16),),
            lambda x: np.exp(exact(x)),
            tolerance=2**-8,
        ),
        Case(
            "256 partitions",
            Excerpt(f"{EXAMPLES}layout-violation.py", name="tensor_exp_kernel_"),
            lambda: (draw(256, 512, dtype=BF16),),
            refusal="128",
        ),
    ]
    return found


def selective_scan(delta: Any, u: Any, a: Any, b: Any, c: Any) -> np.ndarray:
    delta, u, a, b, c = (exact(array) for array in (delta, u, a, b, c))
    state, y = np.zeros((*delta.shape[:2], a.shape[1])), np.empty(delta.shape)
    for t in range(delta.shape[2]):
        drive = (delta * u)[:, :, t, None] * b[:, None, :, t]
        state = np.exp(delta[:, :, t, None] * a) * state + drive
        y[:, :, t] = (state * c[:, None, :, t]).sum(-1)
    return y


def mambas() -> list[Case]:
    def arguments() -> tuple[Any, ...]:
        delta, u = np.abs(draw(1, 128, 512)) / 2, draw(1, 128, 512, seed=1)
        a = -np.abs(draw(128, 2, seed=2))
        return delta, u, a, draw(1, 2, 512, seed=3), draw(1, 2, 512, seed=4)

    file = f"{EXAMPLES}fused_mamba/mamba_nki_kernels.py"
    return [
        Case(name, Excerpt(file, name=name), arguments, selective_scan)
        for name in ("mamba_v1", "mamba_v2", "mamba_v3")
    ]


def overviews() -> list[Case]:
    folder = "get-started/about/"
    tiling, lnc, dma = (
        folder + page for page in ("tiling-overview.rst", "lnc.rst", "nki-dma-overview.rst")
    )
    exponential = "def tensor_exp_kernel_isa"
    looped = ("def tensor_exp_kernel_(",)
    found = [
        Case(
            f"load, exp, store {shape}",
            Excerpt(dma, (exponential,), "tensor_exp_kernel_isa", i),
            lambda shape=shape: (draw(*shape, dtype=BF16),),
            lambda x: np.exp(exact(x)),
            tolerance=2**-8,
        )
        for i, shape in enumerate([(4, 4096), (128, 128)])
    ]
    found += [
        Case(
            "tiles in a loop",
            Excerpt(tiling, looped, "tensor_exp_kernel_"),
            lambda: (np.abs(draw(256, 512)) + 1,),
            lambda x: 1 / exact(x),
        ),
        Case(
            "tiles of any size",
            Excerpt(tiling, looped, "tensor_exp_kernel_", 1),
            lambda: (np.abs(draw(256, 40)) + 1,),
            lambda x: 1 / exact(x),
        ),
        Case(
            "tiles of any size, ragged",
            Excerpt(tiling, looped, "tensor_exp_kernel_", 1),
            lambda: (np.abs(draw(200, 40)) + 1,),
            refusal="dma_copy",
        ),
        Case(
            "one core or two (prints)",
            Excerpt(lnc, ("def lnc_test",), "lnc_test", extra={"input": draw(2, 4)}),
            lambda: (draw(2, 4),),
            lambda x: None,
        ),
    ]
    for cores in (1, 2):
        found.append(
            Case(
                f"reciprocal on {cores} core(s)",
                Excerpt(lnc, ("def lnc_test",), "lnc_test", 1),
                lambda: (np.abs(draw(2, 128, 128)) + 1,),
                lambda x: 1 / exact(x),
                lambda kernel, x, cores=cores: kernel[cores](x),
            )
        )
    return found

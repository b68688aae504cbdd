"""A projection's later calls do what a new projection's first call does, errors included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tkg
import tkg.layer
from tests.calls import BACKENDS, same_bits
from tkg.testing.placed import back, tensor

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="TKG_TEST_BACKENDS leaves cpu out")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

X_FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "another row": lambda x: x[::-1].copy(),
    "more rows": lambda x: np.concatenate([x, x]),
    "one vector": lambda x: x[0],
    "another shape": lambda x: x[None],
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "in half": lambda x: x.astype(np.float16),
    "in double": lambda x: x.astype(np.float64),
    "in torch": lambda x: tensor(x, "cpu"),
    "too short": lambda x: x[..., 1:],
    "no rows": lambda x: x[:0],
    "a list": lambda x: x.tolist(),
    "nothing": lambda x: None,
}


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16, np.float16], ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_later_projections_are_like_first_ones(
    dtype: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)

    def own(array: np.ndarray) -> Any:
        return array if library == "numpy" else tensor(array, "cpu")

    weight, bias = (rng.standard_normal(shape, np.float32) for shape in ((24, 40), (1, 40)))

    def made() -> tkg.Projection:
        return tkg.Projection(tkg.Linear(own(weight), own(bias)), backend="cpu")

    def tried(project: tkg.Projection, x: Any) -> Any:
        try:
            return back(project(x))
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    project, checked = made(), []
    full = tkg.layer.checked_attention
    monkeypatch.setattr(
        tkg.layer, "checked_attention", lambda rules, call: checked.append(1) or full(rules, call)
    )
    for name, form in {"first": np.copy, **X_FORMS}.items():
        x = rng.standard_normal((3, 24), np.float32).astype(dtype)
        for given in (own(x), form(x) if library == "numpy" or name == "nothing" else own(x)):
            want = tried(made(), given)
            checked.clear()
            got = [tried(project, given) for _ in range(2)]
            if isinstance(want, tuple):
                assert got == [want, want]
                continue
            assert len(checked) <= 1 + (name == "strided")
            assert all(same_bits(one, want) for one in got)

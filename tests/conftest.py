"""What every test shares: the backends under test, and quiet, bounded hypothesis runs."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.calls import BACKENDS
from tests.interpreter import INTERPRETED, each_row_alone, patch_once
from tests.short import EXAMPLES, SHORT

if INTERPRETED:
    patch_once()
    each_row_alone()

settings.register_profile(
    "tkg",
    deadline=None,  # the first example of a process loads and warms up a backend
    database=None,
    derandomize=True,  # the same examples everywhere; TKG_HYPOTHESIS=explore draws fresh ones
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
    # A smaller example of a failure takes hundreds of calls to find.
    phases=[p for p in Phase if not (SHORT and p in (Phase.shrink, Phase.explain))],
)
settings.register_profile("explore", settings.get_profile("tkg"), derandomize=False)
settings.load_profile(os.environ.get("TKG_HYPOTHESIS", "tkg"))


def pytest_configure(config: pytest.Config) -> None:
    """Workers share the processors: NumPy reads this when it is loaded, before their conftest."""
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a short run, leave out what repeats another test on other numbers."""
    left_out = [i for i in items if SHORT and i.get_closest_marker("repeats")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend under test in turn."""
    return request.param

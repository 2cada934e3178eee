"""Settings of all tests: one BLAS thread, and how hypothesis draws examples."""

import gc
import os

from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

# Tests run in parallel, and waiting BLAS threads spin. A plugin of pytest may have imported
# NumPy already, so the environment alone is too late for this process; processes that tests start inherit it.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(name, "1")
import numpy  # noqa: E402, F401

threadpool_limits(1, user_api="blas")

# The same examples in every run, so that a failure is a failure of the change under test.
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=150)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_finish():
    """Exclude the objects of pytest from garbage collections, which some tests count."""
    gc.collect()
    gc.freeze()

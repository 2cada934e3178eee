"""What holds for all tests: how hypothesis draws examples."""

import gc
import os

from hypothesis import HealthCheck, settings

# Before NumPy is imported. Tests run side by side, and the threads of a BLAS, which spin while they wait,
# would take the processors from one another.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(name, "1")

# The same examples in every run, so that a failure is a failure of the change under test.
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=150)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_finish():
    """Take what pytest holds of so many tests out of each collection of a test that counts what is left."""
    gc.collect()
    gc.freeze()

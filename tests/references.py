"""Reference counts."""

import gc
import sys


def counts(objects):
    """Return the reference count of each object, after collecting garbage of earlier tests."""
    gc.collect()
    return [sys.getrefcount(o) for o in objects]

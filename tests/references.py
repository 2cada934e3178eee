"""How often objects are referred to."""

import gc
import sys


def counts(objects):
    """Return the references to each, with what earlier tests left in cycles collected first."""
    gc.collect()
    return [sys.getrefcount(o) for o in objects]

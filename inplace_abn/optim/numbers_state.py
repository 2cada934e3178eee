"""State of an object that consists of a few numbers, as a flat dictionary of arrays."""

from typing import ClassVar

import numpy as np

from .._state import check_mapping, stored


class NumbersState:
    """The part of schedules and scalers that saves and loads."""

    #: What the state has: attribute -> function(name, value) that returns the value, or raises.
    state_checks: ClassVar = {}

    def state_dict(self):
        """Return the numbers as a flat dictionary of arrays, as it goes into `numpy.savez`."""
        return {name: np.array(getattr(self, name)) for name in self.state_checks}

    def load_state_dict(self, state):
        """Go on from the `state_dict` of another object of this kind, settings included.

        Parameters
        ----------
        state : mapping of str to array

        Raises
        ------
        TypeError, ValueError
            For names that are missing or unexpected, and values that do not fit; nothing is changed then.
        """
        self.prepare_load(state)()

    def prepare_load(self, state):
        """Check a state; return a function without arguments that loads it. See `load_state_dict`."""
        check_mapping("state", state)
        checks = self.state_checks
        missing, unexpected = sorted(checks.keys() - state.keys()), sorted(state.keys() - checks.keys())
        if missing or unexpected:
            raise ValueError(f"state has {missing=} and {unexpected=} names for {type(self).__name__}")
        found = {name: check(name, stored(state[name]).tolist()) for name, check in checks.items()}
        self.check_state(found)

        def load():
            vars(self).update(found)
            self.loaded()

        return load

    def check_state(self, found):
        """Raise if the numbers do not fit this object."""

    def loaded(self):
        """Put the numbers into effect."""

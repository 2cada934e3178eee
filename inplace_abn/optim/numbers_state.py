"""Saving and loading of objects whose state is a few numbers."""

from typing import ClassVar

import numpy as np

from .._state import check_mapping, stored


class NumbersState:
    """Mixin for schedules and scalers: `state_dict` and `load_state_dict`."""

    #: The attributes in the state: name -> function(name, value) that returns the checked value.
    state_checks: ClassVar = {}

    def state_dict(self):
        """Return the numbers as a flat dictionary of arrays, for `numpy.savez`."""
        return {name: np.array(getattr(self, name)) for name in self.state_checks}

    def load_state_dict(self, state):
        """Load the `state_dict` of another object of this class, including its settings.

        Parameters
        ----------
        state : mapping of str to array

        Raises
        ------
        TypeError, ValueError
            For missing or unexpected names, and invalid values; nothing is changed.
        """
        self.prepare_load(state)()

    def prepare_load(self, state):
        """Check a state; return a function without parameters that loads it. See `load_state_dict`."""
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
        """Raise if the numbers do not match this object."""

    def loaded(self):
        """Apply the numbers after loading."""

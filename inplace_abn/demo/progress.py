"""Progress of a training: a bar in a terminal, else one line for each epoch."""

import sys
import time


class Progress:
    """Shows steps and epochs on stderr.

    Parameters
    ----------
    steps : int
        The number of calls of `step`.
    shown : bool
        False: show nothing.
    """

    def __init__(self, steps, shown=True):
        from tqdm import tqdm

        self._bar = tqdm(total=steps, unit="step", disable=None if shown else True)
        self._prints = shown and self._bar.disable
        self._began = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def step(self, **values):
        """Count a step; the values are shown in the bar."""
        self._bar.update()
        if values:
            self._bar.set_postfix(values, refresh=False)

    def stage(self, text):
        """Show the name of the current stage in the bar."""
        self._bar.set_description(text)

    def line(self, text):
        """Print a line with the elapsed time if there is no bar."""
        if self._prints:
            print(f"{text}, {time.perf_counter() - self._began:.0f} s", file=sys.stderr, flush=True)

"""The number of guarded channels of a layer on a GPU: those of zero or tiny weight, whose xhat is saved."""

import warnings
import weakref
from collections import deque
from functools import partial

from .. import _core
from .layer import guarded_channels
from .libraries import open_driver

# Memory that kernels write and the host reads: (two int32, their address on the device). The oldest of those
# that are no longer used is taken first, since a kernel that is still running may write to the newest.
_reports = deque()


class Guard:
    """The number of guarded channels of a layer, which is the capacity of its side buffer of xhat.

    A channel is guarded if its weight is zero or tiny. The device counts them in each forward and writes the
    number to memory of the host, which reads it in the next forward without waiting. So the capacity is that
    of an earlier step. Until it has grown, a channel that newly exceeds the limit loses up to 4 binary digits
    of xhat. A channel whose weight is suddenly zero gets a zero gradient of the weight and a dx without the
    term of xhat, with a RuntimeWarning. `forget` avoids that.

    >>> Guard().known
    """

    __slots__ = ("_address", "_report", "capacity", "known")

    def __init__(self):
        self.known = self._report = None  # None: read weight and bias
        self.capacity = 0

    def __del__(self, reports=_reports):  # an argument: at the interpreter's end globals are None
        if self._report is not None:
            reports.append((self._report, self._address))

    def forget(self):
        """Read weight and bias again at the next forward; call it after changing them by hand."""
        self.known = None

    def prepare(self, device, stream, read, dtype, strategy):
        """Return (capacity of the side buffer, address of the report).

        read() returns weight, bias and slope as arrays of the host, or None; it waits for the stream.
        """
        if self.known is None:
            open_driver()
            if _core._cuda_is_capturing(device, stream):
                raise RuntimeError(
                    "inplace_abn: the first call of a layer reads its weight, which a CUDA graph cannot "
                    "record; call the layer once before the capture"
                )
            if self._report is None:
                self._report, self._address = _take_report(device)
            self.known = self._report[0] = self.capacity = guarded_channels(*read(), dtype, strategy)
            self._report[1] = 0
        self.capacity, losses = self._report
        if losses:
            _warn(losses)
            self._report[1] = 0
        return self.capacity, self._address


def _take_report(device):
    """Return two numbers in memory of the host, and their address on the device."""
    if not _reports:
        memory, address = _core._cuda_host_memory(device, 4096)
        numbers = memory.cast("i")
        _reports.extend((numbers[i : i + 2], address + 4 * i) for i in range(0, len(numbers), 2))
    return _reports.popleft()


def _warn(losses):
    warnings.warn(
        f"the weight of {losses} channels became zero or tiny at once: its gradient was 0 in an earlier "
        "step; inplace_abn._cuda.guard.forget(module or weight) after changing weights by hand avoids that",
        RuntimeWarning,
        stacklevel=3,
    )


_guards = {}  # id of a module or array -> (weak reference to it, its Guard)


def guard_of(owner):
    """Return the Guard of a module, or of the weight of a call without a module; a new one for None."""
    key = id(owner)
    reference, guard = _guards.get(key, (None, None))
    if owner is not None and (reference is None or reference() is not owner):
        guard = Guard()
        _guards[key] = weakref.ref(owner, partial(_remove, key)), guard
    return Guard() if guard is None else guard


def _remove(key, reference):
    if key in _guards and _guards[key][0] is reference:
        del _guards[key]


def forget(owner):
    """Let the next forward count the guarded channels of a module, or of a weight, anew."""
    if id(owner) in _guards:
        guard_of(owner).forget()

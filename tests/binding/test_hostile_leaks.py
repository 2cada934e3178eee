"""Ten thousand calls of every function, accepted and refused: references, traced memory and the process."""

import copy
import gc
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from keywords import as_running, as_sums
from references import counts

from inplace_abn import Context, _core, functional

SHAPE = (2, 3, 8)
CALLS = 10_000
REFUSED = (TypeError, ValueError, RuntimeError)
STATM = Path("/proc/self/statm")
PAGE = 4096


def resident():
    """Return the resident bytes of the process, or 0 if the system does not report them."""
    return int(STATM.read_text().split()[1]) * PAGE if STATM.exists() else 0


class Arguments:
    """Arrays shared by all calls; each call has a new context."""

    def __init__(self):
        self.x = np.linspace(-3, 3, 48, dtype=np.float32).reshape(SHAPE)
        self.dz, self.residual, self.added = (np.ones(SHAPE, np.float32) for _ in range(3))
        self.weight = np.array([0, 40, 1], np.float32)
        self.bias = np.ones(3, np.float32)
        self.statistics = np.zeros(3, np.float32), np.ones(3, np.float32)
        self.sums = np.ones(3)
        self.options = {"activation": "elu", "activation_param": 1.0}
        self.prelu = {"activation": "prelu", "slope": self.bias[:1], "residual": self.residual}
        self.short = np.ones((2, 3, 7), np.float32)

    def forward(self, **changes):
        return functional.forward(
            self.x,
            weight=self.weight,
            bias=self.bias,
            **as_running(self.statistics),
            **{**self.options, **changes},
        )


def accepted(a):
    """Return all functions by name."""
    sums = a.sums

    def whole(strategy, **options):
        _, ctx = a.forward(strategy=strategy, **options)
        return ctx

    def apply():
        ctx = whole("inplace")
        functional.backward_apply(ctx, a.dz, **as_sums(functional.backward_reduce(ctx, a.dz)), count=16)

    return {
        "forward": a.forward,
        "forward standard": lambda: whole("standard"),
        "normalize": lambda: functional.normalize(a.x, mean=sums, var=sums, count=16, weight=a.weight),
        "backward": lambda: functional.backward(whole("inplace"), a.dz),
        "backward of more": lambda: functional.backward(whole("inplace", **a.prelu), a.dz),
        "backward into": lambda: functional.backward(
            whole("standard", **a.prelu), a.dz, residual_grad=a.added
        ),
        "sides": lambda: functional.backward(whole("inplace", activation="silu"), a.dz),
        "backward over dz": lambda: functional.backward(whole("inplace"), a.dz, overwrite=True),
        "backward_reduce": lambda: functional.backward_reduce(whole("inplace"), a.dz),
        "backward_apply": apply,
        "recompute": lambda: whole("checkpoint").recompute(),
        "recompute out": lambda: whole("checkpoint_xhat").recompute(out=np.empty_like(a.dz)),
        "attributes": lambda: (repr(ctx := whole("inplace")), ctx.saved, ctx.nbytes, ctx.shape),
        "release": lambda: whole("inplace").release(),
        "context_from_state": lambda: functional.context_from_state(
            functional.forward(a.x, activation="silu", hold=False)[1].state()
        ),
        "pickle": lambda: copy.copy(functional.forward(a.x, hold=False)[1]),
        "statistics": lambda: functional.statistics(a.x),
        "merge_statistics": lambda: functional.merge_statistics([sums, sums], [sums, sums], [1, 2]),
        "stream": lambda: _core.stream(a.bias),
        "save": lambda: _core.save(a.x, owner=str, role="input").release(),
        "save and drop": lambda: _core.save((0, 8), owner="somebody", role="input"),
        "saved_by": lambda: _core.saved_by(a.x),
        "saved_by somebody": lambda: (
            _core.save(a.x, owner="somebody", role="input"),
            _core.saved_by(a.x[:]),
        ),
        "refuse_if_saved": lambda: _core.refuse_if_saved(a.x, writer="nobody"),
        "restore_writeable": lambda: _core.restore_writeable(a.x),
        "info": functional.info,
        "get_num_threads": functional.get_num_threads,
        "set_num_threads": lambda: functional.set_num_threads(functional.get_num_threads()),
    }


def refusals(a):
    ctx, freed = (a.forward(strategy="checkpoint")[1] for _ in range(2))
    freed.release()
    kept = a.dz[...]
    keeps = functional.forward(a.dz)[1]
    sums = a.sums
    return {
        "forward": lambda: functional.forward(a.x, weight=a.bias, bias=a.short[0, 0]),
        "forward name": lambda: functional.forward(a.short, strategy="none"),
        "forward keyword": lambda: _core.forward(a.short, wieght=a.bias),
        "forward dtype": lambda: functional.forward(a.short.astype(np.int32)),
        "forward byte order": lambda: functional.forward(a.short.astype(">f4")),
        "forward kind": lambda: functional.forward(a.short.tolist()),
        "forward broadcast": lambda: functional.forward(np.broadcast_to(a.short, (9, 2, 3, 7))),
        "forward relu": lambda: functional.forward(a.short, activation="relu"),
        "forward one": lambda: functional.forward(a.short[:1, :, 0]),
        "forward statistics": lambda: functional.forward(a.short, training=False),
        "forward number": lambda: functional.forward(a.short, momentum="half"),
        "forward isa": lambda: _core.forward(a.short, isa="none"),
        "forward overlap": lambda: functional.forward(a.short, weight=a.short[0, :, 0]),
        "forward residual": lambda: functional.forward(a.x, residual=a.short),
        "forward slope": lambda: functional.forward(
            a.x, activation="prelu", slope=np.float32([np.nan]), residual=a.residual
        ),
        "backward residual": lambda: functional.backward(ctx, a.dz, residual_grad=a.added),
        "forward kept": lambda: (functional.forward(kept), keeps),
        "normalize": lambda: functional.normalize(a.short, mean=sums, var=sums, count=1),
        "backward": lambda: functional.backward(ctx, a.short),
        "backward kept": lambda: (functional.backward(ctx, kept, overwrite=True), keeps),
        "backward freed": lambda: functional.backward(freed, a.dz),
        "backward dtype": lambda: functional.backward(ctx, a.short.astype(float)),
        "backward_reduce": lambda: functional.backward_reduce(None, a.short),
        "backward_apply": lambda: functional.backward_apply(
            ctx, kept, sum_dy=sums, sum_dy_xhat=sums, count=17
        ),
        "recompute": lambda: ctx.recompute(out=a.short),
        "context_from_state": lambda: functional.context_from_state({"version": 1}),
        "statistics": lambda: functional.statistics(a.short, channel_axis=0),
        "merge_statistics": lambda: functional.merge_statistics([sums], [sums], [-1]),
        "stream": lambda: _core.stream(a.short),
        "set_num_threads": lambda: functional.set_num_threads(0),
    }


def traced(function):
    """Return the growth of Python's memory in bytes over 500 calls."""
    tracemalloc.start()
    try:
        function()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(500):
            function()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def leaks(function, objects):
    """Return what so many calls leak: references, traced bytes, resident bytes."""
    for _ in range(500):
        function()
    references, held = counts(objects), resident()
    for _ in range(CALLS - 2000):
        function()
    gc.collect()
    held = resident() - held
    # A leak occurs in each call. Other threads, such as those of pytest-xdist, allocate occasionally.
    grown = min(traced(function) for _ in range(3))
    return counts(objects) != references, grown, held


def check(function, arguments):
    arrays = [v for v in vars(arguments).values() if isinstance(v, np.ndarray)]
    referred, grown, held = leaks(function, [*arrays, *arguments.statistics, Context, _core])
    assert not referred
    assert grown < 2000  # 4 bytes a call
    assert held < 1 << 20  # 100 bytes a call; the smallest side array of a context is 64


@pytest.mark.parametrize("name", accepted(Arguments()))
def test_calls_leak_nothing(name):
    arguments = Arguments()
    check(accepted(arguments)[name], arguments)


@pytest.mark.parametrize("name", refusals(Arguments()))
def test_refused_calls_leak_nothing(name):
    arguments = Arguments()
    call = refusals(arguments)[name]
    with pytest.raises(REFUSED):
        call()

    def refused():
        with suppress(*REFUSED):
            call()

    check(refused, arguments)


@pytest.mark.parametrize("table", [accepted, refusals])
def test_the_tables_have_all_functions(table):
    functions = {name for name in functional.__all__ if name.islower()} | {"stream", "recompute", "release"}
    never = {accepted: set(), refusals: {"info", "get_num_threads", "release"}}[table]
    named = {name.split()[0] for name in table(Arguments())}
    assert functions - never <= named

"""Forward and backward of random arrays: a correct result, or a documented error and no array changed.

``INPLACE_ABN_FUZZ=20000`` draws 20,000 examples, different ones in each run; the default 500 are fixed.
"""

import os
import re

import numpy as np
import pytest
from batches import INVERTIBLE, Batch
from bounds import EPS, Terms, assert_within, expected, without_kinks
from fuzz import ARRAY_NAMES, DTYPES, any_calls, fitting_calls
from hypothesis import HealthCheck, event, given, settings
from keywords import as_merged, as_parameters

from inplace_abn import functional, reference

pytestmark = [pytest.mark.arithmetic, pytest.mark.essential]

EXAMPLES = int(os.environ.get("INPLACE_ABN_FUZZ", 500))
NAMES = (
    r"\b(x|z|dz|weight|bias|running_mean|running_var|mean|var|count|sum_dy|sum_dy_xhat|out|ctx|momentum|eps"
    r"|residual|residual_grad|slope"
)
NAMES = re.compile(NAMES + r"|activation|activation_param|strategy|channel_axis|threads|training)\b")
fuzzed = settings(
    max_examples=EXAMPLES // 2,
    derandomize=EXAMPLES <= 500,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# ---- the arguments of a call, before and after it ----------------------------------------------------------


class Trial:
    """The arrays of one call, and copies of their contents before it."""

    def __init__(self, call):
        self.call, self.options = call, call.options
        built = {name: getattr(call, name).build() for name in ARRAY_NAMES if getattr(call, name)}
        self.arrays = {name: array for name, (array, _) in built.items()}
        self.owners = {name: owner for name, (_, owner) in built.items()}
        if call.alias and call.alias[1] in built:
            name, other, is_view = call.alias
            is_view = is_view and isinstance(self.arrays[other], np.ndarray)
            self.arrays[name] = self.arrays[other][...] if is_view else self.arrays[other]
            self.owners.pop(name, None)
        self.values = {
            n: np.array(a, subok=False) for n, a in self.arrays.items() if isinstance(a, np.ndarray)
        }

    def state(self):
        flags = [a.flags.writeable for a in self.arrays.values() if isinstance(a, np.ndarray)]
        return flags, [owner.tobytes() for owner in self.owners.values()]

    def attempt(self, function, *arguments, **keywords):
        """Return the result, or None if the call raises an error. Only invalid calls may raise one."""
        before = self.state()
        try:
            return function(*arguments, **keywords)
        except (TypeError, ValueError) as error:
            refusal = str(error)
        assert not self.call.fits, refusal
        assert NAMES.search(refusal), refusal
        assert self.state() == before, refusal
        return None

    def given(self, *names):
        return [self.arrays.get(name) for name in names]

    def check_nothing_else_was_written(self, before, *written):
        """Assert that memory between and around the elements of an array is unchanged."""
        for (name, owner), old in zip(self.owners.items(), before[1], strict=True):
            may = elements(self.arrays[name], owner) if name in written else False
            same = np.frombuffer(owner.tobytes(), np.uint8) == np.frombuffer(old, np.uint8)
            assert (same | may).all(), name


def elements(array, owner):
    """Return a mask of the bytes of `owner` that belong to elements of `array`."""
    mask = np.zeros(owner.nbytes, bool)
    first = array.ctypes.data - owner.ctypes.data
    np.ndarray((*array.shape, array.itemsize), bool, mask, first, (*array.strides, 1))[...] = True
    return mask


# ---- expected results --------------------------------------------------------------------------------------


class ExpectedResults:
    """The reference's results for a trial's forward, with error bounds."""

    def __init__(self, trial):
        options, values = trial.options, trial.values
        self.axis, self.dtype = options["channel_axis"], values["x"].dtype
        self.name = self.dtype.name
        self.training = options["training"]
        x = self.first(values["x"])
        self.count, channels = x.size // max(1, x.shape[1]), x.shape[1]
        self.residual = self.first(values["residual"]) if "residual" in values else None
        self.vectors = [values.get("weight", np.ones(channels)), values.get("bias", np.zeros(channels))]
        self.statistics = None if self.training else (values["running_mean"], values["running_var"])
        self.batch = Batch(x, np.zeros_like(x), *self.vectors, self.residual, values.get("slope"))
        self.terms = {
            "keeps": reference.KEEPS[options["strategy"]],
            "activation": options["activation"],
            "param": float(options["activation_param"]) or 1.0,  # relu and identity ignore it
            "eps": options["eps"],
            "statistics": self.statistics,
        }
        per_channel = [
            np.isfinite(np.asarray(v, np.float64)) for v in (*self.vectors, *(self.statistics or ()))
        ]
        # The reference gives NaN for infinity and overflow; activations without an inverse ignore some of dz.
        floats = [v.astype(np.float64) for v in values.values() if v.dtype.name in DTYPES]
        self.keeps_nan = not any(np.isinf(v).any() for v in floats)
        self.keeps_nan &= options["activation"] in INVERTIBLE
        self.promised = self.finite(x)
        for finite in per_channel:
            self.promised = self.promised & finite
        if self.statistics is not None:
            var = self.statistics[1].astype(float) + options["eps"]
            self.promised = self.promised & (var > 0)
            self.keeps_nan &= (var >= 1e-30).all()

    def first(self, array):
        return np.moveaxis(np.asarray(array), self.axis, 1)

    @np.errstate(all="ignore")
    def with_dz(self, dz=None):
        """Return the expected results; dz is set to 0 where rounding may move y across a kink."""
        if dz is not None:
            self.batch = without_kinks(self.batch._replace(dz=self.first(dz)), self.name, **self.terms)
        return expected(self.batch, self.name, **self.terms)

    @np.errstate(all="ignore")
    def fits_float(self):
        """True where y without the residual does not overflow float; no results are guaranteed elsewhere.

        "pre_activation" computes z from the kept y, which must not overflow the dtype of x either.
        """
        terms = Terms(self.batch, self.name, affine=True, **self.terms)
        normal = terms.gamma * terms.xhat + terms.beta
        fits = np.isfinite(normal.astype("float64" if self.name == "float64" else "float32"))
        if self.terms["keeps"] == "y":
            y = normal if self.residual is None else normal + self.residual.astype(np.float64)
            fits &= np.isfinite(y.astype(self.batch.x.dtype))
        return fits

    def promised_elements(self):
        """Return `promised`, the channels with guaranteed results, broadcastable to x."""
        return self.promised.reshape(1, -1, *[1] * (self.batch.x.ndim - 2))

    def has_y(self):
        """True where the residual is not NaN. A NaN there makes the gradients of its channel NaN."""
        return np.ones(self.batch.x.shape, bool) if self.residual is None else ~np.isnan(self.residual)

    @staticmethod
    def finite(array):
        """Return a mask of the channels whose elements are all finite."""
        return np.isfinite(array.astype(np.float64)).all(axis=(0, *range(2, array.ndim)))

    @np.errstate(all="ignore")
    def check(self, name, got, want, error, promised=None):
        """Compare what is guaranteed: finite results of finite channels, and that NaN propagates."""
        got = np.asarray(got)
        if self.keeps_nan:
            assert np.isnan(got[np.isnan(want)].astype(want.dtype)).all(), name
        promised = self.promised if promised is None else promised
        if want.ndim > promised.ndim:
            promised = promised.reshape(1, -1, *[1] * (want.ndim - 2))
        limit = {"float16": 65504, "bfloat16": 3.3e38, "float32": 3.4e38, "float64": 1.7e308}[got.dtype.name]
        promised = promised & np.isfinite(want) & np.isfinite(error) & (np.abs(want) + error < limit)
        got, want = np.where(promised, got.astype(want.dtype), 0), np.where(promised, want, 0)
        assert_within(got, want, np.where(promised, error, 0), name)

    @np.errstate(all="ignore")
    def check_of_residual(self, trial, got, want, promised):
        """Check dresidual: a new array, or added to residual_grad."""
        added, right, error = trial.arrays.get("residual_grad"), want.dresidual, want.dresidual_error
        assert (got is None) == (self.residual is None)
        if got is None:
            return
        promised = promised.reshape(1, -1, *[1] * (right.ndim - 2)) & self.has_y()
        if added is not None:
            assert got is added
            right = right + self.first(trial.values["residual_grad"]).astype(right.dtype)
            error = error + (
                EPS[self.name] + EPS["float64" if self.name == "float64" else "float32"]
            ) * np.abs(right)
        self.check("dresidual", self.first(got), right, error, promised)

    @np.errstate(all="ignore")
    def check_statistics(self, mean, var, before=None, momentum=1.0):
        """Check the statistics of the batch or, given `before`, the updated running statistics."""
        terms = Terms(self.batch, self.name, **{**self.terms, "statistics": None}, affine=True)
        want_mean, want_var, _ = reference.statistics(self.batch.x, dtype=terms.y.dtype)
        mean_error = terms.sums * np.sqrt(want_var) + 2 * EPS["float64"] * np.abs(want_mean)
        var_error = 2 * (terms.sums + 2 * terms.u) * want_var
        promised = self.finite(self.batch.x)
        if before is not None:
            unbiased = self.count / (self.count - 1)
            sizes = [np.abs(b.astype(want_mean.dtype)) for b in before]
            sizes = [sizes[0] + np.abs(want_mean), sizes[1] + want_var * unbiased]
            want_mean, want_var = reference.update_running(*before, want_mean, want_var, self.count, momentum)
            stored = 2 * EPS[np.asarray(mean).dtype.name]
            mean_error = momentum * mean_error + stored * sizes[0] + 1e-44
            var_error = momentum * unbiased * var_error + stored * sizes[1] + 1e-44
        self.check("mean", mean, want_mean, mean_error, promised)
        self.check("var", var, want_var, var_error, promised)


# ---- one step ----------------------------------------------------------------------------------------------


def forward(trial):
    """Return (z, ctx), or None if refused: by forward, or by statistics and normalize."""
    options = dict(trial.options)
    parameters = trial.given("weight", "bias", "running_mean", "running_var")
    arrays = dict(zip(("residual", "slope"), trial.given("residual", "slope"), strict=True))
    (x,) = trial.given("x")
    if not trial.call.parts or options["training"] is not True:
        return trial.attempt(functional.forward, x, **as_parameters(parameters), **options, **arrays)
    machine = {name: options[name] for name in ("channel_axis", "threads")}
    statistics = trial.attempt(functional.statistics, x, **machine)
    if statistics is None:
        return None
    options.pop("training")
    return trial.attempt(
        functional.normalize, x, **as_merged(statistics), **as_parameters(parameters), **options, **arrays
    )


def backward(trial, ctx, count):
    """Return the gradients, or None if refused: by backward, or by backward_reduce and backward_apply."""
    options = {"threads": trial.options["threads"]}
    dz, added = trial.given("dz", "residual_grad")
    writing = {**options, "overwrite": trial.call.overwrite, "residual_grad": added}
    if not trial.call.parts:
        return trial.attempt(functional.backward, ctx, dz, **writing)
    sums = trial.attempt(functional.backward_reduce, ctx, dz, **options)
    if sums is None:
        return None
    dx = trial.attempt(functional.backward_apply, ctx, dz, **sums._asdict(), count=count, **writing)
    return None if dx is None else functional.Gradients(dx, sums[1], sums[0], sums.dslope, added)


def check_backward(trial, right, ctx):
    (dz,) = trial.given("dz")
    want = right.with_dz(trial.values.get("dz") if isinstance(dz, np.ndarray) and fits_x(trial, dz) else None)
    if isinstance(dz, np.ndarray) and fits_x(trial, dz):
        writeable = dz.flags.writeable
        dz.flags.writeable = True
        dz[...] = np.moveaxis(want.batch.dz, 1, right.axis)
        dz.flags.writeable = writeable
        assert not trial.call.fits or np.array_equal(right.first(dz), want.batch.dz, equal_nan=True)
    before = trial.state()
    got = backward(trial, ctx, right.count)
    event(f"backward {'refused' if got is None else 'done'}")
    if got is None:
        assert not ctx.freed
        ctx.release()
        return
    assert (got.dx is dz) == trial.call.overwrite
    trial.check_nothing_else_was_written(before, *["dz"] * trial.call.overwrite, "residual_grad")
    check_gradients(trial, right, got, want)


def check_gradients(trial, right, got, want):
    finite = right.promised & right.finite(want.batch.dz)
    finite = finite & right.fits_float().all(axis=(0, *range(2, want.dx.ndim)))
    promised = finite & right.has_y().all(axis=(0, *range(2, want.dx.ndim)))
    right.check("dx", right.first(got.dx), want.dx, want.dx_error, promised)
    right.check_of_residual(trial, got.dresidual, want, finite)
    for name, place in (("dweight", "weight"), ("dbias", "bias"), ("dslope", "slope")):
        gradient = getattr(got, name)
        has_sums = trial.call.parts and name != "dslope"
        assert (gradient is None) == (place not in trial.arrays and not has_sums), name
        if gradient is not None:
            expected = getattr(want, name)
            of_all = promised if expected.shape == promised.shape else promised.all(keepdims=True)
            right.check(name, gradient, expected, getattr(want, f"{name}_error"), of_all)


def fits_x(trial, dz):
    x = trial.values["x"]
    return dz.shape == x.shape and dz.dtype == x.dtype


def check(call):
    """Forward, recompute and backward of one call."""
    trial = Trial(call)
    before = trial.state()
    done = forward(trial)
    event(f"forward {'refused' if done is None else 'done'}")
    if done is None:
        return
    z, ctx = done
    right, x = ExpectedResults(trial), trial.arrays["x"]
    overwrites = right.terms["keeps"] != "x"
    assert (z is x) == (right.terms["keeps"] == "z")
    updated = ["running_mean", "running_var"] * right.training
    trial.check_nothing_else_was_written(before, *["x"] * overwrites, *updated)
    residual = trial.arrays.get("residual")
    assert residual is None or not residual.flags.writeable
    want = right.with_dz()
    right.check("z", right.first(z), want.z, want.z_error, right.promised_elements() & right.fits_float())
    running = trial.given("running_mean", "running_var")
    if right.training and right.count and running[0] is not None:
        old = trial.values["running_mean"], trial.values["running_var"]
        right.check_statistics(*running, old, trial.options["momentum"])
    if call.options["strategy"].startswith("checkpoint"):
        assert ctx.recompute().tobytes() == z.tobytes()
    check_backward(trial, right, ctx)
    assert trial.state()[0] == before[0]  # unlocked


@fuzzed
@given(fitting_calls())
def test_valid_calls_return_correct_results(call):
    check(call)


@fuzzed
@given(any_calls())
def test_any_call_is_correct_or_refused(call):
    check(call)

"""Random calls for hypothesis: arrays of every layout and magnitude, described as data, then built.

Descriptions are dataclasses, so that a failing case that hypothesis prints can be pasted as an ``@example``.
"""

import math
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from functools import cache

import batches
import numpy as np
from batches import dtype_of, ml_dtypes, parameter_dtype
from bounds import SMALLEST
from hypothesis import strategies as st

from inplace_abn import reference

DTYPES = ["float32", "float64", "float16"] + ["bfloat16"] * (ml_dtypes is not None)
UNFIT_DTYPES = ["object", "complex64", "int32", "bool", "longdouble", ">f4", ">f8", "U3", "f4,i2", "M8[s]"]

# ---- values ------------------------------------------------------------------------------------------------

# Largest and smallest magnitude. Squares and products of three overflow neither double nor longdouble.
SIZES = {"float16": (1e4, 1e-6), "float64": (1e60, 1e-60)}


def _with(values, special):
    if values.size:
        values.flat[values.size // 2] = special
    return values


# Content of one channel, or of one element of a vector: (rng, shape, dtype) -> float64.
VALUES = {
    "normal": lambda rng, shape, dtype: rng.normal(size=shape),
    "few": lambda rng, shape, dtype: rng.integers(-2, 3, shape).astype(float),
    "constant": lambda rng, shape, dtype: np.full(shape, 3.0),
    "far": lambda rng, shape, dtype: rng.normal(size=shape) * 1e-3 + (1e6 if dtype != "float16" else 1e3),
    "outlier": lambda rng, shape, dtype: _with(rng.normal(size=shape), SIZES.get(dtype, (1e30, 0))[0]),
    "huge": lambda rng, shape, dtype: rng.normal(size=shape) * SIZES.get(dtype, (1e30, 0))[0],
    "tiny": lambda rng, shape, dtype: rng.normal(size=shape) * SIZES.get(dtype, (0, 1e-30))[1],
    "denormal": lambda rng, shape, dtype: rng.integers(-9, 10, shape) * SMALLEST.get(dtype, 0.0),
    "zeros": lambda rng, shape, dtype: rng.choice([0.0, -0.0], shape),
    "nan": lambda rng, shape, dtype: _with(rng.normal(size=shape), np.nan),
    "inf": lambda rng, shape, dtype: _with(rng.normal(size=shape), -np.inf),
}
PROMISED = [name for name in VALUES if name not in ("nan", "inf")]


def fill(shape, kinds, dtype, seed, axis):
    """Return float64 values of this shape: along `axis`, each index has the next of `kinds`."""
    values, rng = np.zeros(shape), np.random.default_rng(seed)
    if not shape:
        return values
    axis = min(axis, len(shape) - 1)
    slices = np.moveaxis(values, axis, 0)
    for i, part in enumerate(slices):
        slices[i] = VALUES[kinds[i % len(kinds)]](rng, part.shape, dtype)
    return values


# ---- arrays ------------------------------------------------------------------------------------------------


class Subclass(np.ndarray):
    pass


@dataclass(frozen=True)
class Array:
    """Description of an array."""

    shape: tuple
    dtype: str = "float32"
    order: tuple = ()  # the axes by decreasing stride; () for C order
    steps: tuple = ()  # step of each axis: negative reverses it, 0 broadcasts it; () for 1
    sliding: bool = False  # overlapping windows
    shift: int = 0  # bytes by which the array is misaligned
    make: str = "ndarray"
    values: tuple = ("normal",)
    seed: int = 0
    axis: int = 1  # of the channels

    def build(self):
        """Return (array or list to pass, array that owns its memory)."""
        values = fill(self.shape, self.values, self.dtype, self.seed, self.axis)
        dtype = np.dtype(dtype_of(self.dtype) if self.dtype in DTYPES else self.dtype)
        array, owner = self._view(dtype)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array[...] = (
                np.abs(values).astype("i8").astype(dtype) if dtype.kind in "MV" else values.astype(dtype)
            )
        return MAKES[self.make](array), owner

    def _view(self, dtype):
        if dtype.kind in "OV":
            array = np.zeros(self.shape, dtype)
            return array, array
        strides, reach, item = [0] * len(self.shape), 1, dtype.itemsize
        for axis in (self.order or range(len(self.shape)))[::-1]:
            step = self.steps[axis] if self.steps else 1
            strides[axis] = item * step * (1 if self.sliding else reach)
            reach *= max(1, self.shape[axis] * abs(step))
        first = -sum(s * (n - 1) for s, n in zip(strides, self.shape, strict=True) if s < 0 and n > 0)
        owner = np.full(reach * item + 64, 77, np.uint8)
        if self.make == "memmap":
            with tempfile.TemporaryFile() as file:
                owner = np.memmap(file, np.uint8, "w+", shape=owner.shape)
        return np.ndarray(self.shape, dtype, owner, first + 16 + self.shift, strides), owner


def _locked(array):
    array.flags.writeable = False
    return array


MAKES = {
    "ndarray": lambda array: array,
    "memmap": lambda array: array.view(np.memmap),
    "read-only": _locked,
    "subclass": lambda array: array.view(Subclass),
    "masked": np.ma.MaskedArray,
    "list": lambda array: array.tolist(),
}


# ---- drawing -----------------------------------------------------------------------------------------------

# Drawing takes longer than the calls under test, so several choices are drawn as the digits of one
# number, of which 0 is the simplest, and strategies are cached.

SEEDS = st.integers(0, 1 << 16)
YES = st.booleans()


@cache
def digits(*bases):
    """Return a strategy for tuples of digits, each from 0 to its base - 1."""
    assert math.prod(bases) < 1 << 24  # larger ranges are not drawn uniformly

    def split(number):
        found = []
        for base in bases:
            number, digit = divmod(number, base)
            found.append(digit)
        return tuple(found)

    return st.integers(0, math.prod(bases) - 1).map(split)


@cache
def shapes(least=2, most=5):
    """Shapes that include sizes 0 and 1, and occasionally a row longer than any vector."""
    sizes, lengths = (1, 2, 3, 4, 5, 6, 0, 1, 2, 3), 144

    def shape(drawn):
        (ndim, length), small = drawn
        found = [sizes[digit] for digit in small[: least + ndim]]
        if found and length > 2 * lengths:
            found[-1] = length - 2 * lengths + 6
        return tuple(found)

    return st.tuples(digits(most - least + 1, 3 * lengths), digits(*[len(sizes)] * most)).map(shape)


@cache
def kinds(promised=True):
    """Return a strategy for the content of the channels."""
    names = PROMISED if promised else list(VALUES)
    some = digits(*[1 + len(names)] * 5)
    return some.map(lambda drawn: tuple(names[digit - 1] for digit in drawn if digit) or names[:1])


@st.composite
def fitting_batches(draw, shape, dtype, channel_axis, last):
    """Draw valid batches in one of the two layouts: contiguous, or every n-th sample and channel."""
    ndim, axis = len(shape), channel_axis % len(shape)
    spatial = [i for i in range(1, ndim) if i != axis]
    order = (0, *spatial, axis) if last else (0, axis, *spatial)
    steps = [1] * ndim
    every, of_channels, make = draw(digits(3, 3, 4))
    steps[0] += every
    if not last and spatial:
        steps[axis] += of_channels
    make = "memmap" if make == 3 else "ndarray"
    return Array(shape, dtype, order, tuple(steps), False, 0, make, draw(kinds()), draw(SEEDS), axis)


@cache
def permutations(ndim):
    """Return a strategy for permutations of the axes; the simplest is the identity."""

    def order(drawn):
        left = list(range(ndim))
        return tuple(left.pop(digit) for digit in drawn)

    return digits(*range(ndim, 0, -1)).map(order)


#: Attribute of an `Array` -> strategy for its changed value.
CHANGES = {
    "shape": shapes(0, 6),
    "dtype": st.sampled_from(DTYPES + UNFIT_DTYPES),
    "sliding": st.just(True),
    "shift": st.integers(1, 7),
    "make": st.sampled_from(list(MAKES)),
    "values": kinds(promised=False),
}


@st.composite
def some_of(draw, strategies):
    """Draw a value for each name of a random subset of `strategies`."""
    chosen = draw(digits(*[2] * len(strategies)))
    return {name: draw(of) for (name, of), yes in zip(strategies.items(), chosen, strict=True) if yes}


@st.composite
def any_arrays(draw, fits):
    """`fits`, or that array with one or more of its properties changed."""
    array = replace(fits, **draw(some_of(CHANGES)))
    ndim = len(array.shape)
    reorder, restep = draw(digits(2, 2))
    if reorder or ndim != len(fits.shape):
        array = replace(array, order=draw(permutations(ndim)))
    if restep or ndim != len(fits.shape):
        steps = draw(digits(*[8] * ndim))
        array = replace(array, steps=tuple((1, 1, 1, 2, 3, -1, -2, 0)[digit] for digit in steps))
    return array


# ---- calls -------------------------------------------------------------------------------------------------

ARRAY_NAMES = ("x", "dz", "weight", "bias", "running_mean", "running_var")
ARRAY_NAMES += ("residual", "residual_grad", "slope")
# Pairs of arguments that may share memory, valid or not.
ALIASES = [("residual", "x"), ("residual_grad", "x"), ("residual_grad", "dz"), ("residual_grad", "residual")]
ALIASES += [("slope", "weight"), ("slope", "bias"), ("slope", "running_mean"), ("slope", "running_var")]


@dataclass(frozen=True)
class Call:
    """Forward and backward of one batch."""

    x: Array
    dz: Array
    weight: Array | None = None
    bias: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    residual: Array | None = None
    residual_grad: Array | None = None
    slope: Array | None = None
    alias: tuple = ()  # (name, other, is_view): `name` is `other` or a view of it; () for separate memory
    options: dict = field(default_factory=dict)  # of forward
    overwrite: bool = False
    parts: bool = False  # True: statistics + normalize and backward_reduce + backward_apply
    fits: bool = True  # True: valid, must be accepted


FRACTIONS = st.one_of(st.sampled_from([0.0, 1.0, 0.1]), st.floats(0, 1))
# With these, constants of the reference do not overflow double.
PARAMS = [0.01, 1.0, 0.75, 0.01, 1.0, 0.75, 1e-30, 1e-9, 1e-4, 3.0, 1e4, 1e9]
EPS = [1e-5] * 6 + [1e-300, 5e-324, 1e-30, 1e-3, 1.0, 1e30]
UNFIT = st.sampled_from([0, -1, float("nan"), float("inf"), -1e-300, 10**400, "x", None, b"", [], 1j, 2**63])
UNFIT_OPTIONS = dict.fromkeys(
    ("momentum", "eps", "activation", "activation_param", "strategy", "channel_axis", "threads"), UNFIT
)


SCHEMES = [(name, strategy) for name, strategy in batches.SCHEMES for _ in range(1 + (name == "prelu"))]


@st.composite
def fitting_options(draw):
    param, eps, axis, threads, training = draw(digits(len(PARAMS), len(EPS), 2, 4, 2))
    activation, strategy = draw(st.sampled_from(SCHEMES))
    return {
        "activation": activation,
        "activation_param": PARAMS[param],
        "strategy": strategy,
        "eps": EPS[eps],
        "momentum": draw(FRACTIONS),
        "channel_axis": (1, -1)[axis],
        "threads": (None, 1, 2, 3)[threads],
        "training": training == 1,
    }


@st.composite
def vectors(draw, count, dtype):
    (step,), kept, seed = draw(digits(3)), draw(kinds()), draw(SEEDS)
    return Array((count,), str(parameter_dtype(dtype)), (0,), (1 + step,), values=kept, seed=seed)


@st.composite
def residuals(draw, shape, dtype, axis, last, options, parts):
    """Draw the arguments of a call with a residual, which may be read-only and contain any values."""
    residual = draw(fitting_batches(shape, dtype, axis, last))
    locked, adds, is_view, alias = draw(digits(2, 2, 2, 8))
    found = {"residual": replace(residual, values=draw(kinds(promised=False)))}
    if locked:
        found["residual"] = replace(found["residual"], make="read-only")
    if adds or parts:
        found["residual_grad"] = draw(fitting_batches(shape, dtype, axis, last))
    if alias == 1 and reference.KEEPS[options["strategy"]] == "x":
        found["alias"] = ("residual", "x", is_view == 1)
    return found


@st.composite
def fitting_calls(draw):
    """Calls that must be accepted and return correct results."""
    shape, options = draw(shapes()), draw(fitting_options())
    dtype, *yes = draw(digits(len(DTYPES), 2, 2, 2, 2, 2, 2, 2, 2))
    last, weight, bias, tracked, shared, overwrite, parts, residual = (digit == 1 for digit in yes)
    dtype = DTYPES[dtype]
    axis = options["channel_axis"] % len(shape)
    channels = shape[axis]
    if math.prod(shape) == channels:  # one value per channel: training would raise an error
        options["training"] = False
    call = Call(*(draw(fitting_batches(shape, dtype, axis, last)) for _ in range(2)), options=options)
    tracked = tracked or not options["training"]
    given = {"weight": weight, "bias": bias, "running_mean": tracked, "running_var": tracked}
    call = replace(call, **{name: draw(vectors(channels, dtype)) for name, yes in given.items() if yes})
    if options["activation"] == "prelu":
        call = replace(call, slope=draw(vectors(1 if shared else channels, dtype)))
    if residual:
        call = replace(call, **draw(residuals(shape, dtype, axis, last, options, parts)))
    return replace(call, overwrite=overwrite, parts=parts)


@st.composite
def any_calls(draw):
    """Calls of which some or all arguments may be invalid."""
    call = draw(fitting_calls())
    first, second, third, some, alias, of, is_view = draw(digits(9, 10, 10, 4, 4, len(ALIASES), 2))
    names = list(dict.fromkeys([first, *[place - 1 for place in (second, third) if place]]))
    names = [ARRAY_NAMES[place] for place in names]
    channels = call.x.shape[call.options["channel_axis"]]
    usual = {"slope": Array((channels,), str(parameter_dtype(call.x.dtype)))}
    changes = {name: draw(any_arrays(getattr(call, name) or usual.get(name, call.x))) for name in names}
    if not {"x", "dz"} & {*names} and some == 1:
        changes = dict.fromkeys(names)  # None: omit these arguments
    options = draw(some_of(UNFIT_OPTIONS)) if draw(YES) else {}
    if alias == 1:
        changes["alias"] = (*ALIASES[of], is_view == 1)
    return replace(call, **changes, options={**call.options, **options}, fits=False)

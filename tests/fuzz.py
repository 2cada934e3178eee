"""Arrays of every make and numbers of every size, for hypothesis: described as data, then built.

What hypothesis prints of a failure is the text of an ``@example``: descriptions are dataclasses.
"""

import tempfile
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from batches import ACTIVATIONS, STRATEGIES, dtype_of, ml_dtypes, parameter_dtype
from bounds import SMALLEST
from hypothesis import strategies as st

from inplace_abn import reference

DTYPES = ["float32", "float64", "float16"] + ["bfloat16"] * (ml_dtypes is not None)
UNFIT_DTYPES = ["object", "complex64", "int32", "bool", "longdouble", ">f4", ">f8", "U3", "f4,i2", "M8[s]"]

# ---- values ------------------------------------------------------------------------------------------------

# Where squares, and products of three, stay within double and longdouble.
SIZES = {"float16": (1e4, 1e-6), "float64": (1e60, 1e-60)}


def _with(values, special):
    if values.size:
        values.flat[values.size // 2] = special
    return values


# What one channel, or one element of a vector, is filled with: (rng, shape, dtype) -> float64.
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
    """How to make an array."""

    shape: tuple
    dtype: str = "float32"
    order: tuple = ()  # the axes, that of the largest stride first; () for C order
    steps: tuple = ()  # along each axis; below 0 backwards, 0 as a broadcast array; () for 1
    sliding: bool = False  # windows that overlap
    shift: int = 0  # bytes from where it would be aligned
    make: str = "ndarray"
    values: tuple = ("normal",)
    seed: int = 0
    axis: int = 1  # of the channels

    def build(self):
        """Return (what to pass, the array that owns all of its memory)."""
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

SEEDS = st.integers(0, 1 << 16)


def shapes(least=2, most=5):
    """Shapes with sizes 0 and 1 in them, and now and then a row longer than any vector."""
    sizes = st.one_of(st.integers(1, 6), st.integers(0, 3))
    small = st.lists(sizes, min_size=least, max_size=most).map(tuple)
    long = st.builds(lambda shape, n: (*shape[:-1], n), small, st.integers(7, 150))
    return st.one_of(small, small, long) if least else small


def kinds(promised=True):
    """Return a strategy for what the channels are filled with."""
    names = st.sampled_from(PROMISED if promised else list(VALUES))
    return st.one_of(st.just(("normal",)), st.lists(names, min_size=1, max_size=5).map(tuple))


@st.composite
def fitting_batches(draw, shape, dtype, channel_axis, last=None):
    """Batches that are to be taken: of one of the two layouts, whole or every n-th sample and channel."""
    ndim, axis = len(shape), channel_axis % len(shape)
    last = draw(st.booleans()) if last is None else last
    spatial = [i for i in range(1, ndim) if i != axis]
    order = (0, *spatial, axis) if last else (0, axis, *spatial)
    steps = [1] * ndim
    steps[0] = draw(st.integers(1, 3))
    if not last and spatial:
        steps[axis] = draw(st.integers(1, 3))
    make = draw(st.sampled_from(["ndarray", "ndarray", "ndarray", "memmap"]))
    return Array(shape, dtype, order, tuple(steps), False, 0, make, draw(kinds()), draw(SEEDS), axis)


def any_dtype():
    return st.sampled_from(DTYPES + UNFIT_DTYPES)


@st.composite
def any_arrays(draw, fits):
    """`fits`, or that array with one or more of its properties changed."""
    changes = st.fixed_dictionaries(
        {},
        optional={
            "shape": shapes(0, 6),
            "dtype": any_dtype(),
            "sliding": st.just(True),
            "shift": st.integers(1, 7),
            "make": st.sampled_from(list(MAKES)),
            "values": kinds(promised=False),
        },
    )
    array = replace(fits, **draw(changes))
    ndim = len(array.shape)
    order = (
        draw(st.permutations(range(ndim))) if draw(st.booleans()) or ndim != len(fits.shape) else fits.order
    )
    steps = st.lists(st.sampled_from([1, 1, 1, 2, 3, -1, -2, 0]), min_size=ndim, max_size=ndim)
    keep = draw(st.booleans()) and ndim == len(fits.shape)
    return replace(array, order=tuple(order), steps=fits.steps if keep else tuple(draw(steps)))


# ---- calls -------------------------------------------------------------------------------------------------

PLACES = ("x", "dz", "weight", "bias", "running_mean", "running_var", "residual", "residual_grad", "slope")
# What may be given the memory of what, fit or not.
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
    alias: tuple = ()  # one of ALIASES, and whether it is a view; () for memory of its own
    options: dict = field(default_factory=dict)  # of forward
    overwrite: bool = False
    parts: bool = False  # statistics, normalize, backward_reduce and backward_apply
    fits: bool = True  # is to be taken


FRACTIONS = st.one_of(st.sampled_from([0.0, 1.0, 0.1]), st.floats(0, 1))
# The reference's own constants stay within double for these.
PARAMS = st.one_of(st.sampled_from([0.01, 1.0, 0.75]), st.sampled_from([1e-30, 1e-9, 1e-4, 3.0, 1e4, 1e9]))
EPS = st.one_of(st.just(1e-5), st.sampled_from([1e-300, 5e-324, 1e-30, 1e-3, 1.0, 1e30]))
UNFIT = st.sampled_from([0, -1, float("nan"), float("inf"), -1e-300, 10**400, "x", None, b"", [], 1j, 2**63])
NUMBERS_AND_NAMES = (
    "momentum",
    "eps",
    "activation",
    "activation_param",
    "strategy",
    "channel_axis",
    "threads",
)
UNFIT_OPTIONS = dict.fromkeys(NUMBERS_AND_NAMES, UNFIT)


@st.composite
def fitting_options(draw):
    activation = draw(st.sampled_from([*ACTIVATIONS, "prelu"]))
    invertible = reference.ACTIVATIONS[activation].inverse is not None
    return {
        "activation": activation,
        "activation_param": draw(PARAMS),
        "strategy": draw(st.sampled_from([s for s in STRATEGIES if invertible or reference.KEEPS[s] != "z"])),
        "eps": draw(EPS),
        "momentum": draw(FRACTIONS),
        "channel_axis": draw(st.sampled_from([1, -1])),
        "threads": draw(st.sampled_from([None, 1, 2, 3])),
        "training": draw(st.booleans()),
    }


@st.composite
def fitting_calls(draw):
    """Calls that must be taken, and be right."""
    shape, dtype, options = draw(shapes()), draw(st.sampled_from(DTYPES)), draw(fitting_options())
    axis = options["channel_axis"] % len(shape)
    channels = shape[axis]
    if int(np.prod(shape)) == channels:  # one value in each
        options["training"] = False
    last = draw(st.booleans())
    x, dz, residual = (draw(fitting_batches(shape, dtype, axis, last)) for _ in range(3))

    def vector(count=channels):
        steps = (draw(st.integers(1, 3)),)
        kept, seed = draw(kinds()), draw(SEEDS)
        return Array((count,), str(parameter_dtype(dtype)), (0,), steps, values=kept, seed=seed)

    weight, bias = (vector() if draw(st.booleans()) else None for _ in range(2))
    tracked = not options["training"] or draw(st.booleans())
    mean, var = (vector(), vector()) if tracked else (None, None)
    slope = vector(draw(st.sampled_from([1, channels]))) if options["activation"] == "prelu" else None
    overwrite, parts, added, alias = draw(st.booleans()), draw(st.booleans()), None, ()
    if draw(st.booleans()):  # read only, and may hold anything
        make = draw(st.sampled_from([residual.make, "read-only"]))
        residual = replace(residual, make=make, values=draw(kinds(promised=False)))
        if parts or draw(st.booleans()):
            added = draw(fitting_batches(shape, dtype, axis, last))
        if reference.KEEPS[options["strategy"]] == "x" and draw(st.integers(0, 7)) == 0:
            alias = ("residual", "x", draw(st.booleans()))
    else:
        residual = None
    return Call(x, dz, weight, bias, mean, var, residual, added, slope, alias, options, overwrite, parts)


@st.composite
def any_calls(draw):
    """Calls of which something, or everything, may be unfit."""
    call = draw(fitting_calls())
    names = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True))
    channels = call.x.shape[call.options["channel_axis"]]
    usual = {"slope": Array((channels,), str(parameter_dtype(call.x.dtype)))}
    changes = {name: draw(any_arrays(getattr(call, name) or usual.get(name, call.x))) for name in names}
    if not {"x", "dz"} & {*names} and draw(st.integers(0, 3)) == 0:
        changes = dict.fromkeys(names)  # left out
    options = draw(st.one_of(st.just({}), st.fixed_dictionaries({}, optional=UNFIT_OPTIONS)))
    if draw(st.integers(0, 3)) == 0:
        changes["alias"] = (*draw(st.sampled_from(ALIASES)), draw(st.booleans()))
    return replace(call, **changes, options={**call.options, **options}, fits=False)

"""Accuracy: ``python -m benchmarks.accuracy``.

Measures relative L2 errors of z, dx and dweight against float64, for random float32 data in the shapes and
layouts of the limit table; PyTorch's errors for comparison; whether results have the same bits for 1, 2 and 7
threads; two hard cases: a mean of 1e4 with a standard deviation of 1, and weights from 1e-6 to 10 of either
sign with some zeros. Then every activation, two of them also with a residual, in every dtype, for the
strategies "inplace" and "standard"; those without an inverse for "standard" alone.

At a kink, float32 and float64 may disagree on the sign of y, and both one-sided slopes are valid derivatives.
The float64 gradients use the side of the measured z.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import ROOT, limit, machine, peers, plans, tables, targets
from benchmarks.contestants import EPS, Batch, InPlaceABN, parameter
from benchmarks.report import Judged
from inplace_abn import functional, reference

_BLOCK = 1 << 22  # elements converted to float64 at a time
_THREADS = (1, 2, 7)
_HARD = (32, 64, 28, 28)
_KINKED = ("leaky_relu", "prelu", "selu")
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_DOCS = ROOT / "docs" / "functions.md"
BEGIN, END = "<!-- accuracy-table:begin -->", "<!-- accuracy-table:end -->"
_LEGEND = (
    "z, dx, dweight: norm of the difference from the float64 result / norm of the float64 result, over the "
    "whole array. The target is in parentheses; PyTorch has none.",
    "same bits: yes if z, dx and dweight are equal, bit for bit, for every number of threads.",
)


class Errors(NamedTuple):
    """By name of a result: relative L2 error, the same of the worst channel, max |error| / max |value|."""

    total: dict
    worst: dict
    farthest: dict


def exact(batch, z, activation="leaky_relu", residual=False):
    """Yield the float64 results of the layer, some channels at a time.

    Parameters
    ----------
    batch : Batch
        The inputs x0, dz0, weight and bias.
    z : ndarray
        The measured output, in the batch's layout; only its sign is used.
    activation : str
    residual : bool
        True to add the batch's residual.

    Yields
    ------
    channels : slice
    results : dict of str to ndarray
        float64 "z", "dx", "dresidual" as (elements, channels), "dweight" and "var" as (channels,).
    """
    x0, dz0, z = (_by_channel(array, batch) for array in (batch.x0, batch.dz0, z))
    phi, param = reference.ACTIVATIONS[activation], parameter(activation)
    step = max(1, _BLOCK // (x0.size // x0.shape[1]))
    for start in range(0, x0.shape[1], step):
        channels = slice(start, start + step)
        x, dz = (_columns(array, channels).astype(np.float64) for array in (x0, dz0))
        weight, bias = (array[channels].astype(np.float64) for array in (batch.weight, batch.bias))
        mean, var = x.mean(0), x.var(0)
        inv_std = 1 / np.sqrt(var + EPS)
        xhat = (x - mean) * inv_std
        y = weight * xhat + bias
        if residual:
            y = y + _columns(_by_channel(batch.residual, batch), channels).astype(np.float64)
        side = y
        if activation in _KINKED:
            left = np.signbit(_columns(z, channels).astype(np.float32))  # z = -0.0: y < 0 that underflowed
            side = np.where(left, -np.abs(y) - np.finfo(np.float64).tiny, np.abs(y))
        dy = dz * phi.derivative(side, param)
        dweight = (dy * xhat).sum(0)
        dx = weight * inv_std * (dy - dy.mean(0) - xhat * dweight / len(x))
        results = {"z": phi.phi(y, param), "dx": dx, "dweight": dweight, "var": var, "dresidual": dy}
        yield channels, results


def _by_channel(array, batch):
    """Return a view of `array` as (N, C, *spatial)."""
    return np.moveaxis(array, batch.channel_axis, 1)


def _columns(array, channels):
    """Return these channels of an (N, C, *spatial) array as (elements, channels)."""
    return np.moveaxis(array[:, channels], 1, -1).reshape(-1, array[:, channels].shape[1])


def errors(batch, judged, **layer):
    """Return the `Errors` of the measured results; 0 where measured and exact result are all zeros.

    Parameters
    ----------
    batch : Batch
        The inputs.
    judged : dict of str to ndarray
        "z" (always), "dx", "dresidual" in the batch's layout; "dweight", "var" as (C,).
    **layer
        As for `exact`.
    """
    sums = {name: [] for name in judged}
    for channels, results in exact(batch, judged["z"], **layer):
        for name, array in judged.items():
            full = array.ndim > 1
            got = _columns(_by_channel(array, batch), channels) if full else array[channels][None]
            want = results[name] if full else results[name][None]
            off = np.nan_to_num(np.abs(got.astype(np.float64) - want), nan=np.inf)
            sums[name].append([(off**2).sum(0), (want**2).sum(0), off.max(0), np.abs(want).max(0)])
    found = Errors({}, {}, {})
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, parts in sums.items():
            wrong, size, off, largest = np.concatenate(parts, axis=1)
            found.total[name] = float(np.sqrt(np.nan_to_num(wrong.sum() / size.sum(), posinf=np.inf)))
            found.worst[name] = float(np.sqrt(np.nan_to_num(wrong / size, posinf=np.inf).max()))
            found.farthest[name] = float(np.nan_to_num(off.max() / largest.max(), posinf=np.inf))
    return found


def run(batch, threads, **options):
    """Return z, dx and dweight of inplace_abn; in place they overwrite the batch's x and dz."""
    return results(make(batch, threads, **options))


def make(batch, threads, **options):
    """Return a layer after its forward."""
    batch.restore()
    layer = InPlaceABN(batch, threads, **options)
    layer.forward()
    return layer


def results(layer):
    """Return z and the gradients of a layer after its forward."""
    if layer.residual is not None:
        layer.residual_grad.fill(0)
    layer.backward()
    found = {"z": layer.z, "dx": layer.gradients.dx, "dweight": layer.gradients.dweight}
    return found if layer.residual is None else found | {"dresidual": layer.gradients.dresidual}


def run_torch(batch, threads):
    """Return PyTorch's z, dx and dweight, in the batch's layout."""
    layer = peers.TorchEager(batch, threads)
    layer.forward()
    layer.backward()
    z, dx = (np.moveaxis(t.detach().numpy(), 1, batch.channel_axis) for t in (layer.z, layer.gradients[0]))
    return {"z": z, "dx": dx, "dweight": layer.gradients[1].numpy()}


def same_bits(batch):
    """Return whether z, dx and dweight have the same bits for every number of threads in `_THREADS`."""
    seen = set()
    for threads in _THREADS:
        results = run(batch, threads)
        seen.add(tuple(hash(array.tobytes()) for array in results.values()))
    return len(seen) == 1


def measure(rows, threads, with_torch):
    """Return an entry for each row and contestant: "shape", "layout", "who", errors and "same_bits"."""
    entries = []
    for row in rows:
        print(f"{row.shape} {row.layout}", file=sys.stderr, flush=True)
        batch = Batch(row.shape, row.layout)
        place = {"shape": row.shape, "layout": row.layout}
        total = errors(batch, run(batch, threads)).total
        own = {name: Judged(total[name], bound, at_most=True) for name, bound in targets.ACCURACY.items()}
        entries.append({**place, "who": "inplace_abn", **own, "same_bits": same_bits(batch)})
        if with_torch:
            total = errors(batch, run_torch(batch, threads)).total
            entries.append({**place, "who": "PyTorch", **{name: Judged(total[name]) for name in total}})
    return entries


def hard_cases(threads, shape):
    """Return an entry for each hard case, layout and result: "case", "layout", "result" and "error"."""
    entries = []
    for layout in targets.LAYOUTS:
        batch = Batch(shape, layout)
        batch.x0 += np.float32(1e4)
        batch.restore()
        _, var, _ = functional.statistics(batch.x, channel_axis=batch.channel_axis, threads=threads)
        judged = run(batch, threads) | {"var": var}
        found = [("mean 1e4, deviation 1", errors(batch, judged), targets.ACCURACY_OFFSET)]
        batch = Batch(shape, layout)
        rng = np.random.default_rng(1)
        batch.weight[:] = np.geomspace(1e-6, 10, shape[1]) * rng.choice([-1, 1], shape[1])
        batch.weight[::8] = 0
        batch.bias[:] = rng.uniform(-10, 10, shape[1])
        found.append(
            ("weights 1e-6 to 10 and 0", errors(batch, run(batch, threads)), targets.ACCURACY_WEIGHTS)
        )
        for case, of, bounds in found:
            for result, bound in bounds.items():
                judged = Judged(of.worst[result], bound, at_most=True)
                entries.append({"case": case, "layout": layout, "result": result, "error": judged})
    return entries


def activations(threads, shape):
    """Return an entry for each dtype and activation, with and without a residual."""
    entries = []
    for dtype in _DTYPES:
        print(f"activations, {dtype}", file=sys.stderr, flush=True)
        batch = Batch(shape, targets.CHANNELS_FIRST, dtype)
        for name, activation in reference.ACTIVATIONS.items():
            if activation.inverse is None:
                entries.append(_without_inverse(batch, threads, dtype, name))
                continue
            for residual in (False, True) if name in plans.RESIDUAL else (False,):
                entries.append(_activation(batch, threads, dtype, name, residual))
    return entries


def _activation(batch, threads, dtype, name, residual):
    layer = {"activation": name, "residual": residual}
    standard = errors(batch, run(batch, threads, strategy="standard", **layer), **layer)
    made = make(batch, threads, **layer)
    escaped = sum(array.size for role, array in made.context.saved.items() if role == "escape_xhat")
    inplace = errors(batch, results(made), **layer)
    single = dtype == "float32" and name in targets.MINIMUM
    bounds = targets.ACCURACY_ACTIVATIONS if single else {}
    half = targets.HALF_ERROR if dtype in ("float16", "bfloat16") else None
    return {
        "activation": name,
        "residual": residual,
        "dtype": dtype,
        "standard": standard.total["dx"],
        "dx": Judged(inplace.total["dx"], bounds.get("dx"), at_most=True),
        "dresidual": inplace.total.get("dresidual"),
        "times": Judged(inplace.total["dx"] / standard.total["dx"], half, at_most=True),
        "farthest": Judged(inplace.farthest["dx"], bounds.get("farthest"), at_most=True),
        "escaped": Judged(escaped / batch.x.size, bounds.get("escaped"), at_most=True),
    }


def _without_inverse(batch, threads, dtype, name):
    """Return the entry of an activation without an inverse: the error of "standard" alone.

    dz is 0 next to kinks, where either one-sided slope is correct.
    """
    x, weight, bias = (array.astype(np.float64) for array in (batch.x0, batch.weight, batch.bias))
    y, _ = functional.forward(
        x, weight=weight, bias=bias, activation="identity", channel_axis=batch.channel_axis, threads=threads
    )
    distances = [np.abs(y - kink) for kink in reference.ACTIVATIONS[name].kinks]
    dz0 = batch.dz0
    batch.dz0 = np.where(np.min(distances, axis=0) < 1e-4, 0, dz0).astype(dz0.dtype)
    try:
        found = errors(batch, run(batch, threads, strategy="standard", activation=name), activation=name)
    finally:
        batch.dz0 = dz0
    return {"activation": name, "residual": False, "dtype": dtype, "standard": found.total["dx"], "dx": None}


def activations_text(entries):
    """Return the tables of the activations as Markdown."""
    rows = {}
    for entry in entries:
        name = entry["activation"] + (" + residual" if entry["residual"] else "")
        own = "-" if entry["dx"] is None else tables.judged(entry["dx"], ".1e")
        if entry["dx"] is not None and entry["dtype"] in ("float16", "bfloat16"):
            own += f", {tables.judged(entry['times'], '.1f', 'x')}"
        rows.setdefault(name, [name]).append(f"{entry['standard']:.1e}; {own}")
    blocks = [
        'Relative L2 error of dx against float64: strategy "standard"; strategy "inplace". For half types '
        "also the ratio of the two.",
        tables.grid(["", *_DTYPES], rows.values()),
    ]
    rows = [
        [
            entry["activation"] + (" + residual" if entry["residual"] else ""),
            tables.judged(entry["farthest"], ".1e"),
            tables.judged(entry["escaped"], ".2%"),
        ]
        for entry in entries
        if entry["dtype"] == "float32" and entry["dx"] is not None
    ]
    headers = ["", "dx: max error / max value", "escaped elements"]
    return "\n\n".join([*blocks, 'Strategy "inplace", float32:', tables.grid(headers, rows)])


def text(description, entries, hard):
    """Return the tables of the shapes and of the hard cases as Markdown."""
    rows = [
        [
            tables.shape_name(entry["shape"]),
            entry["layout"],
            entry["who"],
            *(tables.judged(entry[name], ".1e") for name in targets.ACCURACY),
            {True: "yes", False: "NO", None: ""}[entry.get("same_bits")],
        ]
        for entry in entries
    ]
    headers = ["shape", "layout", "", *targets.ACCURACY, "same bits with 1, 2, 7 threads"]
    blocks = [
        "\n".join(machine.header(description)),
        "Relative L2 error against float64",
        tables.grid(headers, rows),
        tables.listed(_LEGEND),
    ]
    rows = [
        [entry["case"], entry["layout"], entry["result"], tables.judged(entry["error"], ".1e")]
        for entry in hard
    ]
    blocks += ["Hard cases: relative L2 error of the worst channel"]
    blocks += [tables.grid(["case", "layout", "result", "error"], rows)]
    return "\n\n".join(blocks)


def main(argv=None):
    """Run the command; return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--shapes", nargs="+", type=limit.shape, metavar="NxCxHxW")
    parser.add_argument("--layouts", nargs="+", choices=targets.LAYOUTS)
    parser.add_argument("--no-peers", action="store_true", help="skip PyTorch")
    parser.add_argument("--activations", action="store_true", help="measure the activations only")
    parser.add_argument("--docs", type=Path, nargs="?", const=_DOCS, metavar="FILE",
                        help="write the tables of activations into docs/functions.md")  # fmt: skip
    limit.add_threads(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="write accuracy.json there")
    arguments = parser.parse_args(argv)
    with_torch = not arguments.no_peers and "torch-eager" in peers.installed()
    description = machine.describe(arguments.threads)
    rows = targets.select(arguments.shapes, arguments.layouts)
    entries, hard = [], []
    if not arguments.activations:
        entries = measure(rows, arguments.threads, with_torch)
        hard = hard_cases(arguments.threads, _HARD)
        print(text(description, entries, hard), end="\n\n")
    found = activations(arguments.threads, _HARD)
    print(activations_text(found))
    if arguments.docs:
        published = activations_text(tables.without_targets(found))
        tables.rewrite(arguments.docs, published, BEGIN, END)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        content = {"machine": description, "accuracy": entries, "hard_cases": hard, "activations": found}
        content = json.dumps(content, indent=1, default=Judged.plain)
        (arguments.output / "accuracy.json").write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())

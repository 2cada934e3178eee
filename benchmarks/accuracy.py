"""How exact: ``python -m benchmarks.accuracy``.

Relative L2 errors of z, dx and dweight against float64, on random float32 data in the shapes and layouts of
the limit table, PyTorch's own beside them; whether results have the same bits for 1, 2 and 7 threads; and two
hard cases: a mean of 1e4 with a spread of 1, and weights from 1e-6 to 10 of either sign with zeros between.

At the kink of leaky_relu float32 and float64 may differ in the sign of y, and either slope is a derivative
there. The float64 gradients take the side that the judged z is on.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks import limit, machine, peers, tables, targets
from benchmarks.contestants import EPS, SLOPE, Batch, InPlaceABN
from benchmarks.report import Judged
from inplace_abn import functional

_BLOCK = 1 << 22  # elements taken to float64 at a time
_THREADS = (1, 2, 7)
_HARD = (32, 64, 28, 28)
_LEGEND = (
    "z, dx, dweight: the norm of the difference from the float64 result / the norm of that result, over the "
    "whole array. In brackets the bound; PyTorch is shown, not judged.",
    "same bits: whether all three are the same, bit for bit, for every number of threads.",
)


def exact(batch, z):
    """Yield the float64 results of the layer, some channels at a time.

    Parameters
    ----------
    batch : Batch
        The inputs x0, dz0, weight and bias.
    z : ndarray
        The judged output, in the batch's layout; only its sign is used.

    Yields
    ------
    channels : slice
    results : dict of str to ndarray
        float64 "z" and "dx" as (elements, channels), "dweight" and "var" as (channels,).
    """
    x0, dz0, z = (_by_channel(array, batch) for array in (batch.x0, batch.dz0, z))
    step = max(1, _BLOCK // (x0.size // x0.shape[1]))
    for start in range(0, x0.shape[1], step):
        channels = slice(start, start + step)
        x, dz = (_columns(array, channels).astype(np.float64) for array in (x0, dz0))
        positive = _columns(z, channels) >= 0
        weight, bias = (array[channels].astype(np.float64) for array in (batch.weight, batch.bias))
        mean, var = x.mean(0), x.var(0)
        inv_std = 1 / np.sqrt(var + EPS)
        xhat = (x - mean) * inv_std
        y = weight * xhat + bias
        dy = np.where(positive, dz, SLOPE * dz)
        dweight = (dy * xhat).sum(0)
        dx = weight * inv_std * (dy - dy.mean(0) - xhat * dweight / len(x))
        yield channels, {"z": np.where(y >= 0, y, SLOPE * y), "dx": dx, "dweight": dweight, "var": var}


def _by_channel(array, batch):
    """Return a view of `array` as (N, C, *spatial)."""
    return np.moveaxis(array, batch.channel_axis, 1)


def _columns(array, channels):
    """Return these channels of (N, C, *spatial) as (elements, channels)."""
    return np.moveaxis(array[:, channels], 1, -1).reshape(-1, array[:, channels].shape[1])


def errors(batch, **judged):
    """Return the relative L2 error of each judged result, and that of its worst channel.

    Parameters
    ----------
    batch : Batch
        The inputs.
    **judged : ndarray
        "z" (always), "dx" in the batch's layout; "dweight", "var" as (C,).

    Returns
    -------
    total, worst : dict of str to float
        0 where the result and the exact one are both all zeros.
    """
    sums = {name: [] for name in judged}
    for channels, results in exact(batch, judged["z"]):
        for name, array in judged.items():
            full = array.ndim > 1
            got = _columns(_by_channel(array, batch), channels) if full else array[channels][None]
            want = results[name] if full else results[name][None]
            sums[name].append([((got - want) ** 2).sum(0), (want**2).sum(0)])
    total, worst = {}, {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, parts in sums.items():
            wrong, size = np.concatenate(parts, axis=1)
            total[name] = float(np.sqrt(np.nan_to_num(wrong.sum() / size.sum(), posinf=np.inf)))
            worst[name] = float(np.sqrt(np.nan_to_num(wrong / size, posinf=np.inf).max()))
    return total, worst


def run(batch, threads):
    """Return inplace_abn's z, dx and dweight; z and dx are the batch's x and dz, written over."""
    batch.restore()
    layer = InPlaceABN(batch, threads)
    layer.forward()
    layer.backward()
    return {"z": layer.z, "dx": layer.gradients.dx, "dweight": layer.gradients.dweight}


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
    """Return one entry for each row and contestant: "shape", "layout", "who", errors and "same_bits"."""
    entries = []
    for row in rows:
        print(f"{row.shape} {row.layout}", file=sys.stderr, flush=True)
        batch = Batch(row.shape, row.layout)
        place = {"shape": row.shape, "layout": row.layout}
        total, _ = errors(batch, **run(batch, threads))
        own = {name: Judged(total[name], bound, at_most=True) for name, bound in targets.ACCURACY.items()}
        entries.append({**place, "who": "inplace_abn", **own, "same_bits": same_bits(batch)})
        if with_torch:
            total, _ = errors(batch, **run_torch(batch, threads))
            entries.append({**place, "who": "PyTorch", **{name: Judged(total[name]) for name in total}})
    return entries


def hard_cases(threads, shape):
    """Return one entry for each hard case, layout and result: "case", "layout", "result" and "error"."""
    entries = []
    for layout in targets.LAYOUTS:
        batch = Batch(shape, layout)
        batch.x0 += np.float32(1e4)
        batch.restore()
        _, var, _ = functional.statistics(batch.x, channel_axis=batch.channel_axis, threads=threads)
        found = [
            ("mean 1e4, spread 1", errors(batch, **run(batch, threads), var=var), targets.ACCURACY_OFFSET)
        ]
        batch = Batch(shape, layout)
        rng = np.random.default_rng(1)
        batch.weight[:] = np.geomspace(1e-6, 10, shape[1]) * rng.choice([-1, 1], shape[1])
        batch.weight[::8] = 0
        batch.bias[:] = rng.uniform(-10, 10, shape[1])
        found.append(
            ("weights 1e-6 to 10 and 0", errors(batch, **run(batch, threads)), targets.ACCURACY_WEIGHTS)
        )
        for case, (_, worst), bounds in found:
            for result, bound in bounds.items():
                judged = Judged(worst[result], bound, at_most=True)
                entries.append({"case": case, "layout": layout, "result": result, "error": judged})
    return entries


def text(description, entries, hard):
    """Return both tables as Markdown."""
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
    headers = ["shape", "layout", "", *targets.ACCURACY, "same bits for 1, 2, 7 threads"]
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
    blocks += ["Hard cases: the worst channel's relative L2 error"]
    blocks += [tables.grid(["case", "layout", "result", "error"], rows)]
    return "\n\n".join(blocks)


def main(argv=None):
    """Run the command; return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--shapes", nargs="+", type=limit.shape, metavar="NxCxHxW")
    parser.add_argument("--layouts", nargs="+", choices=targets.LAYOUTS)
    parser.add_argument("--no-peers", action="store_true", help="leave PyTorch out")
    limit.add_threads(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="write accuracy.json there")
    arguments = parser.parse_args(argv)
    with_torch = not arguments.no_peers and "torch-eager" in peers.installed()
    description = machine.describe(arguments.threads)
    rows = targets.select(arguments.shapes, arguments.layouts)
    entries = measure(rows, arguments.threads, with_torch)
    hard = hard_cases(arguments.threads, _HARD)
    print(text(description, entries, hard))
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        content = {"machine": description, "accuracy": entries, "hard_cases": hard}
        content = json.dumps(content, indent=1, default=Judged.plain)
        (arguments.output / "accuracy.json").write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Layers as text, for consoles, notebooks and error messages."""

from html import escape
from textwrap import indent

#: Types of errors whose message gets the name of the layer.
_NAMED = (TypeError, ValueError, RuntimeError, FloatingPointError)


def with_name(error, layer):
    """Return an error of the same type whose message begins with the name of the layer."""
    if type(error) not in _NAMED or getattr(error, "_names_layer", False):
        return error
    message = str(error)
    named = error if message.startswith(layer.label) else type(error)(f"{layer.label}: {message}")
    named._names_layer = True
    return named if named is error else named.with_traceback(error.__traceback__)


def plain(layer):
    """Return the text of a layer and the layers inside, in the format of PyTorch."""
    kind, inside = type(layer).__name__, list(layer.children())
    if not inside:
        return f"{kind}({layer.extra_repr()})"
    lines = [layer.extra_repr()] if layer.extra_repr() else []
    lines += [f"({key}): {plain(child)}" for key, child in inside]
    return f"{kind}(\n{indent(chr(10).join(lines), '  ')}\n)"


def html(layer):
    """Return an HTML table of a layer and the layers inside, with their numbers of parameters."""
    rows = []
    for path, inner in layer.named_layers():
        values = [value for key, value in inner.named_parameters() if "." not in key]
        count = sum(value.data.size for value in values)
        depth = path.count(".") + bool(path)
        what = escape(f"{type(inner).__name__}({inner.extra_repr()})")
        name = escape(path.rpartition(".")[2])
        rows.append(
            f'<tr><td style="text-align:left;padding-left:{depth + 0.5}em">{name}</td>'
            f'<td style="text-align:left"><code>{what}</code></td>'
            f"<td>{f'{count:,}' if count else ''}</td></tr>"
        )
    total = sum(parameter.data.size for parameter in layer.parameters())
    return (
        '<table><thead><tr><th style="text-align:left">name</th><th style="text-align:left">layer</th>'
        f"<th>parameters</th></tr></thead><tbody>{''.join(rows)}</tbody><tfoot><tr><td></td><td></td>"
        f"<td><b>{total:,}</b></td></tr></tfoot></table>"
    )

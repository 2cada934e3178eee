"""A plan as an HTML page: the tables, and the memory over the step as SVG. It needs no other file."""

from html import escape

from ..memory import plot
from ..memory.tables import human
from .step import shortened

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #8884}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"""
_WIDTH, _HEIGHT = 900, 320
#: Layers listed for each strategy.
_LAYERS = 12


def whole(plan):
    """Return the page."""
    title = escape(plan._title()[0])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{body(plan)}</body></html>\n"
    )


def body(plan):
    """Return the content of the page."""
    parts = [f"<h1>{escape(plan._title()[0])}</h1>", _table(*plan.columns())]
    parts += [f"<p>{escape(note)}</p>" for note in plan._notes()]
    parts += ["<h2>Memory over the step</h2>", _picture(plan)]
    if plan.advice:
        rows = [
            [human(advice.saves), f"{advice.time:+.1%}" if advice.time > 1e-3 else "none", advice.change]
            for advice in plan.advice
        ]
        parts += ["<h2>What to change next</h2>", _table(["saves", "additional time", "change"], rows)]
    for planned in plan.strategies:
        if planned.step is not None:
            parts.append(_details(planned))
    return "".join(parts)


def _table(heads, rows):
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _details(planned):
    roles = [[role, human(nbytes)] for role, nbytes in planned.step.by_role.items() if nbytes]
    layers = [
        [layer, human(nbytes)] for layer, nbytes in list(planned.step.by_layer.items())[:_LAYERS] if nbytes
    ]
    return (
        f"<details><summary>{escape(planned.strategy)}: {human(planned.step.kept)} kept for the backward"
        "</summary>"
        f"{_table(['role', 'kept'], roles)}{_table(['layer', 'kept'], layers)}</details>"
    )


def _picture(plan):
    steps = [planned for planned in plan.strategies if planned.step is not None]
    top = max([planned.step.peak for planned in steps] + [plan.budget or 0], default=0) or 1
    shapes, legend = [], []
    for planned, look in zip(steps, plot.styles([planned.strategy for planned in steps]), strict=True):
        points, color = shortened(planned.step), look["color"]
        scale = _WIDTH / (planned.step.work or 1)
        path = " ".join(f"{point[3] * scale:.1f},{_y(point[1], top):.1f}" for point in points)
        width = look["linewidth"]
        shapes.append(f'<polyline fill="none" stroke="{color}" stroke-width="{width}" points="{path}"/>')
        legend.append(f'<b style="color:{color}">{escape(planned.strategy)}</b> {human(planned.step.peak)}')
    if plan.budget is not None:
        y = _y(plan.budget, top)
        shapes.append(
            f'<line x1="0" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888" stroke-dasharray="5 4"/>'
        )
        shapes.append(f'<text x="4" y="{y - 4:.1f}" font-size="12">budget {human(plan.budget)}</text>')
    return (
        f"<p>{' · '.join(legend)}</p>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" fill="currentColor" '
        'style="border-bottom:1px solid #888">'
        "<title>Bytes in use, by estimated time: forward, loss, backward, optimizer</title>"
        f"{''.join(shapes)}</svg>"
    )


def _y(nbytes, top):
    return _HEIGHT - nbytes / top * (_HEIGHT - 20)

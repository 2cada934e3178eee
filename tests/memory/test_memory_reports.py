"""Reports of the ledger: tables, `explain`, and plots."""

import doctest
import gc
import html.parser
import importlib
import itertools

import numpy as np
import pytest
from test_memory import STRATEGIES, chain, images

from inplace_abn import memory
from inplace_abn.layers import ABN, InPlaceABN
from inplace_abn.memory import tables


def run(net, x, label=""):
    with memory.ledger(label=label) as ledger:
        net.backward(np.ones_like(net(x)))
    return ledger


@pytest.mark.parametrize("module", ["memory", "memory._ledger", "memory.events", "memory.tables"])
def test_examples(module):
    module = importlib.import_module(f"inplace_abn.{module}")
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


# ---- tables ------------------------------------------------------------------------------------------------


def test_rows_of_the_table():
    x = images()
    table = run(chain("inplace"), x).table()
    wanted = [
        ("0 (Pointwise)", "input", x.nbytes, None),
        ("1 (ABN)", "z", 2 * x.nbytes, None),
        ("2 (Pointwise)", "input", 0, ("1 (ABN)", "z")),
        ("3 (ABN)", "z", 2 * x.nbytes, None),
        ("4 (Pointwise)", "input", 0, ("3 (ABN)", "z")),
    ]
    assert [(row.layer, row.role, row.nbytes, row.shared_with) for row in table] == wanted
    assert table[1].shape == (4, 8, 64, 64)
    assert table[1].dtype == np.float32
    assert (len(table), table.buffers, table.nbytes) == (5, 3, 5 * x.nbytes)


def test_text_of_the_table():
    text = str(run(chain("inplace"), images()).table())
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "role", "shape", "dtype", "MiB"]
    assert lines[2].split() == ["0", "(Pointwise)", "input", "(4,", "4,", "64,", "64)", "float32", "0.250"]
    assert lines[4].endswith("z of 1 (ABN)")
    assert lines[-1].split() == ["kept", "for", "the", "backward,", "3", "buffers", "1.250"]
    assert len({len(line) for line in lines}) == 1


def test_calls_of_one_layer_are_one_row():
    layer, x = ABN(4), images()
    with memory.ledger() as ledger:
        layer(layer(x))
    (row,) = ledger.table()
    assert (row.count, row.nbytes) == (2, 2 * x.nbytes)
    assert "x (2 times)" in str(ledger.table())


def test_table_of_an_empty_ledger():
    with memory.ledger() as ledger:
        pass
    assert list(ledger.table()) == []
    assert str(ledger.table()).splitlines()[-1].split()[-1] == "0"
    assert "0 bytes kept" in str(ledger)
    assert "<table>" in ledger._repr_html_()


def test_table_with_when_now():
    net, x = chain("inplace"), images()
    with memory.ledger() as ledger:
        z = net(x)
        assert ledger.table("now").nbytes == ledger.table().nbytes == ledger.kept
        net.backward(np.ones_like(z))
        assert ledger.table("now").nbytes == 0
    for call in (ledger.table, ledger.explain):
        with pytest.raises(ValueError, match="when must be 'kept' or 'now', got 'then'"):
            call("then")


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (5 << 29, "2.5 GiB")]
)
def test_human(nbytes, text):
    assert tables.human(nbytes) == text


# ---- explain -----------------------------------------------------------------------------------------------


def test_explain_names_the_layers_of_a_buffer_and_what_would_free_it():
    """Two buffers per normalization with strategy "standard", one in place."""
    text = run(chain("standard"), images()).explain()
    assert text.startswith("2.2 MiB in 5 buffers, kept at the highest point.")
    assert "1. 512.0 KiB (22%) as x of 1 (ABN)" in text
    assert "2 (Pointwise) keeps the result of 1 (ABN), 512.0 KiB: strategy='inplace' would write" in text
    assert "relu" not in text
    text = run(chain("inplace"), images()).explain()
    assert "as z of 1 (ABN) and input of 2 (Pointwise)" in text
    assert "one buffer of 2 layers: freed after the backward of all of them" in text
    assert "strategy='inplace'" not in text


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_explain_does_not_advise_inplace_where_it_would_not_help(strategy):
    assert "strategy='inplace' would" not in run(chain(strategy), images()).explain()


def test_explain_lists_the_largest():
    ledger = run(chain("standard"), images())
    text = ledger.explain(most=1)
    assert "\n2. " not in text
    assert "4 more buffers: 1.8 MiB." in text


def test_explain_when_nothing_is_kept():
    net, x = chain("standard"), images()
    ledger = run(net, x)
    del x
    gc.collect()
    assert ledger.explain("now") == "Nothing is kept for a backward now."


def test_explain_reports_arrays_that_a_variable_keeps_alive():
    net, x = chain("standard"), images()
    ledger = run(net, x)
    text = ledger.explain("now")
    assert "256.0 KiB is no longer kept by a layer, but still allocated" in text
    assert "input of 0 (Pointwise)" in text
    assert x is not None


def test_explain_reports_views_that_keep_a_whole_array():
    data = images(n=16)
    with memory.ledger() as ledger:
        ABN(4)(data[:2])
        layer = ABN(4)
        layer(data[:2])
    assert "it is part of an array of 1.0 MiB, which stays allocated as a whole" in ledger.explain("now")


def test_explain_counts_pending_calls():
    layer = ABN(4)
    with memory.ledger() as ledger:
        for _ in range(3):
            layer(images())
    assert "3 calls of ABN wait for their backward" in ledger.explain()


def test_explain_of_guarded_channels():
    layer = InPlaceABN(4)
    layer.weight.data[:] = 0
    with memory.ledger() as ledger:
        layer(images())
    text = ledger.explain()
    assert "to free it: another weight or strategy 'checkpoint_xhat'\n" in text + "\n"
    assert "leaky_relu" not in text


@pytest.mark.parametrize(("activation", "advised"), [("elu", True), ("prelu", True), ("identity", False)])
def test_explain_advises_leaky_relu_only_for_other_activations(activation, advised):
    layer = InPlaceABN(4, activation=activation)
    layer.weight.data[:] = 0
    with memory.ledger() as ledger:
        layer(images())
    assert ("or strategy 'checkpoint_xhat', or leaky_relu" in ledger.explain()) == advised


def test_explain_says_that_relu_must_be_replaced():
    net = chain("standard")
    net[1].activation = "relu"
    text = run(net, images()).explain()
    assert text.count("this needs leaky_relu instead of relu, which has no inverse") == 1


def test_repr_of_explain_is_its_text():
    text = run(chain("standard"), images()).explain()
    assert repr(text) == str(text)
    assert text._repr_html_().startswith("<pre>2.2 MiB")


# ---- plots -------------------------------------------------------------------------------------------------


def test_line_of_bars():
    ledger = run(chain("standard"), images())
    line = str(ledger).splitlines()[-1]
    assert line.count("│") == 1  # the end of the forward
    line = line.removeprefix("forward ").removesuffix(" backward").replace("│", "")
    heights = [" ▁▂▃▄▅▆▇█".index(bar) for bar in line]
    top = heights.index(max(heights))
    assert heights[:top] == sorted(heights[:top])
    assert heights[top:] == sorted(heights[top:], reverse=True)
    assert max(heights) == 8
    assert heights[0] == heights[-1] == 0


class Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html():
    page = Balanced()
    page.feed(run(chain("inplace"), images(), "<inplace>")._repr_html_())
    page.close()
    assert not page.open
    assert "<Ledger '<inplace>': 1.2 MiB kept" in page.text
    assert "z of 1 (ABN)" in page.text


def test_timeline():
    seconds, live, total = run(chain("standard"), images()).timeline()
    assert len(seconds) == len(live) == len(total)
    assert all(a <= b for a, b in itertools.pairwise(seconds))
    assert live[0] == live[-1] == 0
    assert (total >= live).all()


@pytest.fixture
def agg():
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="plots need matplotlib")
    backend = pyplot.rcParams["backend"]
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(backend)


def curves(ax, count):
    """Return the step functions of a plot: the first lines."""
    return [line.get_xydata() for line in ax.get_lines()[:count]]


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.usefixtures("agg")
def test_plot():
    strategies = ("standard", "checkpoint", "inplace")
    ledgers = [run(chain(strategy), images(), strategy) for strategy in strategies]
    ax = ledgers[0].plot(*ledgers[1:])
    assert {
        "standard: 2.2 MiB, 5 buffers", "checkpoint: 1.2 MiB, 3 buffers", "inplace: 1.2 MiB, 3 buffers",
    } < set(texts(ax))  # fmt: skip
    assert ax.get_title("left") == "checkpoint and inplace keep 56% of the memory of standard"
    assert ax.get_ylabel() == "kept for the backward (MiB)"
    found = curves(ax, 3)
    assert [points[:, 1].max() for points in found] == [ledger.kept / 2**20 for ledger in ledgers]
    ax.figure.canvas.draw()
    assert ledgers[0].plot(ax=ax) is ax


@pytest.mark.usefixtures("agg")
def test_save_and_free_of_a_layer_are_mirrored_in_a_plot():
    """Five layers: saves at 1 to 5, frees at 6 to 10. Layers that save nothing keep their position."""
    ledgers = [run(chain(strategy), images(), strategy) for strategy in ("standard", "checkpoint")]
    standard, checkpoint = curves(ledgers[0].plot(ledgers[1]), 2)
    assert standard[:, 0].tolist() == list(range(12))
    assert checkpoint[:, 0].tolist() == [0, 1, 2, 4, 7, 9, 10, 11]
    assert checkpoint[-1, 1] == standard[-1, 1] == 0


@pytest.mark.usefixtures("agg")
def test_equal_strategies_are_both_visible_in_a_plot():
    ledgers = [run(chain(strategy), images(), strategy) for strategy in STRATEGIES]
    lines = ledgers[0].plot(*ledgers[1:]).get_lines()[: len(STRATEGIES)]
    dashed = [line for line in lines if line.is_dashed()]
    solid = [line for line in lines if not line.is_dashed()]
    assert len(dashed) == len(STRATEGIES) - 2  # standard is solid, and one of those that keep half
    assert all(line.get_linewidth() < min(other.get_linewidth() for other in solid) for line in dashed)
    assert len({line.get_color() for line in lines}) == len(STRATEGIES)


@pytest.mark.usefixtures("agg")
def test_plot_of_buffers():
    ledgers = [run(chain(strategy), images(), strategy) for strategy in ("standard", "inplace")]
    ax = ledgers[0].plot(ledgers[1], y="buffers")
    assert [points[:, 1].max() for points in curves(ax, 2)] == [5, 3]
    assert ax.get_title("left") == "inplace keeps 3 buffers, standard 5"
    assert {"standard: 5 buffers", "inplace: 3 buffers"} < set(texts(ax))


@pytest.mark.usefixtures("agg")
def test_plot_names_the_largest_temporary():
    ledgers = [run(chain(strategy), images(), strategy) for strategy in ("standard", "checkpoint")]
    (note,) = (text for text in texts(ledgers[0].plot(ledgers[1])) if "temporaries" in text)
    assert note.endswith("the largest, 512.0 KiB in checkpoint, 4 (Pointwise)")


@pytest.mark.usefixtures("agg")
def test_plot_over_time():
    ledger = run(chain("standard"), images(), "standard")
    ax = ledger.plot(x="time")
    (points,) = curves(ax, 1)
    assert points[:-1, 0].tolist() == sorted(1e3 * ledger.timeline()[0])
    assert any("dots: the forward ends" in text for text in texts(ax))
    for wrong in ({"x": "layer"}, {"y": "KiB"}):
        with pytest.raises(ValueError, match=r"must be '\w+' or '\w+', got "):
            ledger.plot(**wrong)


@pytest.mark.usefixtures("agg")
def test_plot_of_several_steps_counts_steps():
    net, x = chain("standard"), images()
    with memory.ledger() as ledger:
        for _ in range(2):
            net.backward(np.ones_like(net(x)))
    (points,) = curves(ledger.plot(), 1)
    assert points[:, 0].tolist() == list(range(22))


@pytest.mark.usefixtures("agg")
def test_plot_of_nothing():
    with memory.ledger() as ledger:
        pass
    ledger.plot().figure.canvas.draw()
    with memory.ledger() as ledger:
        chain("standard")(images())
    ledger.plot(ledger).figure.canvas.draw()


def test_plot_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'inplace-abn-numpy\[demo\]'"):
        run(chain("standard"), images()).plot()

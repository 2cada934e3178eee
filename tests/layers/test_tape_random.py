"""The tape: random graphs of recorded calls against finite differences."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import STRATEGIES, abn, conv, normal

from inplace_abn import layers
from inplace_abn.layers import Activation, GlobalAvgPool2d, Graph, no_grad, record

pytestmark = pytest.mark.essential

SHAPE = (3, 4, 3, 4)
SMOOTH = {"activation": "softplus"}


class Program(Graph):
    """Draw a list of (operation, operand, operand) over earlier arrays, without refused operations."""

    def __init__(self, program):
        self.program = program
        self.conv, self.shared = conv(seed=1), abn(strategy="inplace_2", **SMOOTH)
        self.wide = conv(8, 4, 1, seed=2)
        self.end = layers.Sequential(conv(seed=4), abn(strategy="inplace", **SMOOTH))
        self.pool, self.gate = GlobalAvgPool2d(keepdims=True), Activation("sigmoid")
        self.soft = Activation("softplus", inplace=True)
        self.norms = layers.Sequential(*(abn(strategy=name, **SMOOTH) for name in STRATEGIES))
        self.block = layers.Residual(layers.Sequential(abn(**SMOOTH), conv(seed=3)))
        self.branches = layers.Concat(self.block, self.end)

    def compute(self, x):
        arrays = [x]
        for operation, i, j in self.program:
            a, b = arrays[i % len(arrays)], arrays[j % len(arrays)]
            if operation in ("validate", "validate elsewhere"):
                self.validate(a, operation)
                continue
            try:
                z = self.apply(operation, a, b, j)
            except ValueError as error:
                if "overwrite" not in str(error) and "writes in place" not in str(error):
                    raise
                continue
            # An overwritten array can only be used with its new content.
            arrays = [array for array in arrays if (array is not z and operation != "xhat") or array is not a]
            arrays.append(z)
        return self.sum_of(arrays)

    def apply(self, operation, a, b, j):
        match operation:
            case "conv":
                return self.conv(a)
            case "shared":
                return self.shared(a)
            case "activation":
                return self.soft(a)
            case "block":
                return self.block(a)
            case "norm" | "xhat":
                return self.norms[2 if operation == "xhat" else [0, 1, 3, 4][j % 4]](a)
            case "add":
                return layers.add(a, b)
            case "mul":
                return layers.mul(a, self.gate(b))
            case "gate":
                return layers.mul(self.gate(self.pool(a)), b)
            case "concat":
                return self.wide(layers.concat([a, b]))
            case "joined":
                joined, (left, _) = layers.joined_array(a, (4, 4))
                left = self.end(a, out=left)
                return self.wide(layers.concat([left, b], out=joined))
            case "branches":
                return self.wide(self.branches(a))

    def validate(self, a, operation):
        """Call layers between recorded calls, without recording them on this tape."""
        if operation == "validate":
            with no_grad():
                self.conv(a)
                self.shared(a.copy())
            return
        with record():
            self.conv(a.copy())

    def sum_of(self, arrays):
        total = arrays[0]
        for array in arrays[1:]:
            total = layers.add(total, array)
        return layers.mul(total, total)


OPERATIONS = [
    "conv", "shared", "activation", "block", "norm", "xhat", "add", "mul", "gate", "concat", "joined",
    "branches", "validate", "validate elsewhere",
]  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 7), st.integers(0, 7)), max_size=7)


@settings(max_examples=60)
@given(program=STEPS, seed=st.integers(0, 99))
def test_gradients_of_random_graphs_against_finite_differences(program, seed):
    network, x = Program(program), normal(SHAPE, seed)
    z = network(x)
    dz = normal(z.shape, seed + 1)
    gradients = {"x": network.backward(dz)}
    arrays = {"x": x}
    for name, parameter in network.named_parameters():
        arrays[name], gradients[name] = parameter.data, parameter.grad
    directions = {name: normal(array.shape, seed + 2) for name, array in arrays.items()}
    claimed = sum(
        float((gradients[name] * directions[name]).sum()) for name in arrays if gradients[name] is not None
    )

    def objective(step):
        for name, array in arrays.items():
            array += step * directions[name]
        value = float((network(x) * dz).sum())
        network.release()  # instead of no_grad(), where no call is refused because of kept arrays
        for name, array in arrays.items():
            array -= step * directions[name]
        return value

    near, far = (objective(h) - objective(-h) for h in (1e-4, 2e-4))
    numeric = (8 * near - far) / 12e-4
    scale = max(1.0, abs(numeric), abs(objective(0)))
    assert abs(claimed - numeric) < 1e-6 * scale
    assert all(not layer._calls for _, layer in network.named_layers())
    assert x.flags.writeable

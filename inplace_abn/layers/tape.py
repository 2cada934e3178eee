"""A tape that records calls of layers: gradients of networks that are not a sequence.

>>> import numpy as np
>>> from inplace_abn import layers
>>> conv, abn = layers.Conv2d(2, 2, 1), layers.InPlaceABN(2)
>>> x = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
>>> with layers.record() as tape:
...     z = layers.add(abn(conv(x)), x)
>>> dx = tape.backward(np.ones_like(z))
>>> dx.shape
(4, 2, 3, 3)
"""

from .. import _arguments as arguments
from .calls import number_or_type
from .gradient_sums import GradientSums, may_overwrite
from .recorder import Recorder, active

__all__ = ["Tape", "record"]


def record(*inputs):
    """Record the calls of layers in a ``with`` block, for one common backward.

    Recorded are calls of layers, and of `add`, `mul` and `concat`. Not recorded are calls that a layer makes
    inside itself, calls inside `no_grad` (their results are constants for the tape), and calls of other
    threads. Recorded calls belong to the tape. Other calls of the same layers have their own backward, at any
    time.

    Arrays are identified by object and content: an in-place layer returns its input array, and a gradient
    belongs to the content that a call took. Until the block ends, arrays of recorded calls are read-only;
    only recorded calls change them. Results of NumPy functions are not recorded.

    Parameters
    ----------
    *inputs : ndarray, optional
        The arrays from outside whose gradients `Tape.backward` returns. A recorded call then raises an error
        for any other floating-point array that no recorded call has made, such as the result of a NumPy
        function. Without `inputs`, every unknown array is an array from outside.

    Returns
    -------
    Tape
        For the ``with`` statement.

    Raises
    ------
    TypeError, ValueError
        In a recorded call: if an unknown array shares memory with a known one, such as a reshaped or sliced
        result; if an array has been overwritten; if `inputs` are given and an array is unknown.

    Examples
    --------
    A gate, as in squeeze-and-excitation (Hu et al. 2018, https://arxiv.org/abs/1709.01507):

    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> pool, gate = layers.GlobalAvgPool2d(keepdims=True), layers.Activation("sigmoid")
    >>> x = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    >>> with layers.record() as tape:
    ...     z = layers.mul(x, gate(pool(x)))
    >>> tape.backward(np.ones_like(z)).shape
    (2, 3, 4, 4)

    Two inputs:

    >>> y = np.ones((2, 3, 1, 1))
    >>> with layers.record(x, y) as tape:
    ...     z = layers.mul(x, y)
    >>> dx, dy = tape.backward(np.ones_like(z))
    >>> dy.shape
    (2, 3, 1, 1)
    """
    return Tape(inputs)


class Tape(Recorder):
    """The recorded calls of a ``with`` block, and their common backward; made by `record`.

    The arrays that the calls keep are released if the tape is deleted, or an error ends the block.
    """

    def backward(self, dz=None, *, outputs=None, inputs=None, overwrite=False):
        """Return the gradients of the inputs, and add those of parameters to their ``grad``.

        Run the backward of each recorded call in reverse order, and release the arrays that the call keeps.
        Gradients of one value are summed. The backward can run once, inside the block or after it.

        Parameters
        ----------
        dz : ndarray, float, or sequence of them
            Gradient of the result; of each result, if `outputs` is a sequence. Default: 1, for a loss.
        outputs : ndarray, float, or sequence of them, optional
            The results of recorded calls that dz belongs to. Default: the only result that is not an input of
            another recorded call.
        inputs : ndarray or sequence of ndarray, optional
            Arrays from outside, or results of recorded calls, whose gradients are returned. Default: the
            arrays passed to `record`, or else the only array from outside. The gradient of an array from
            outside belongs to the content that it had at first, also if a layer has overwritten it; that of
            any other array belongs to its present content.
        overwrite : bool
            True if dz may be overwritten.

        Returns
        -------
        ndarray, or tuple of ndarray
            The gradient of the input, or of each of several inputs.

        Raises
        ------
        RuntimeError
            If the backward has run already, or the calls were released.
        TypeError, ValueError
            If dtype or shape of dz is wrong, if `outputs` or `inputs` are missing or unknown, or if an input
            has no influence on the outputs. The backward can be called again after these errors, but not
            after an error in the backward of a layer.

        Examples
        --------
        Two results, and the gradient of one in the middle:

        >>> import numpy as np
        >>> from inplace_abn import layers
        >>> x, first = np.ones((2, 3)), layers.Linear(3, 4, dtype=float)
        >>> second = layers.Linear(4, 1, dtype=float)
        >>> with layers.record() as tape:
        ...     middle = first(x)
        ...     z = second(middle)
        >>> gradients = [np.ones((2, 1)), np.ones((2, 4))]
        >>> dx, dmiddle = tape.backward(gradients, outputs=[z, middle], inputs=[x, middle])
        >>> bool(np.allclose(dmiddle, 1 + second.weight.data))
        True
        """
        self.check_open()
        seeds = self._seeds(dz, outputs)
        wanted, single = self._requested(inputs)
        connected = self._connected_to(value for value, _ in seeds)
        for value, name in wanted:
            if value not in connected:
                raise ValueError(
                    f"{name}: expected an input of the outputs, but no recorded call leads from it to them"
                )
        gradients = self.gradients(seeds, [value for value, _ in wanted], overwrite)
        return gradients[0] if single else gradients

    def gradients(self, seeds, wanted, overwrite):
        """Return the gradients of the values `wanted`, given those in `seeds`; None without a connection."""
        self.check_open()
        active.tape, before = None, active.tape
        try:
            sums = self._run(GradientSums(seeds, overwrite), set(wanted))
        finally:
            active.tape = before
            self._close("its backward has run already, or failed")
        totals = {value: sums.take(value) for value in set(wanted)}
        return tuple(totals[value] for value in wanted)

    def _run(self, sums, wanted):
        """Run the backwards of the calls; return the sums, with the gradients of the wanted values."""
        needed = wanted.union(*(results for _, _, _, results, _ in self._calls))
        while self._calls:
            layer, call, sources, results, returns_tuple = self._calls.pop()
            entries = [sums.pop(value, keep=value in wanted) for value in results]
            present = [entry for entry in entries if entry is not None]
            if not present:
                call.release()
                continue
            dz = tuple(entry and entry[0] for entry in entries) if returns_tuple else entries[0][0]
            gradients = layer.backward(
                dz, call=call, overwrite=all(may_overwrite(*entry) for entry in present)
            )
            gradients = gradients if isinstance(gradients, tuple) else (gradients,)
            if sources:
                values = [value if value in needed else None for value in sources]
                sums.add(values, gradients, present)
        return sums

    def _connected_to(self, outputs):
        """Return the values that the outputs depend on, and the outputs themselves."""
        connected = set(outputs)
        for _, _, sources, results, _ in reversed(self._calls):
            if not connected.isdisjoint(results):
                connected.update(sources)
        return connected

    # ---- values of the arguments of backward ---------------------------------------------------------------

    def _seeds(self, dz, outputs):
        """Check the gradients of the outputs, and return [(value, gradient)]."""
        makers = {
            value: (layer, call._output[i] if returns_tuple else call._output)
            for layer, call, _, results, returns_tuple in self._calls
            for i, value in enumerate(results)
        }
        if outputs is None:
            pairs = [(self._only_output(makers), dz, "dz")]
        elif not isinstance(outputs, (tuple, list)):
            pairs = [(self.value_of("outputs", outputs), dz, "dz")]
        else:
            gradients = [None] * len(outputs) if dz is None else dz
            if not isinstance(gradients, (tuple, list)) or len(gradients) != len(outputs):
                raise TypeError(
                    f"dz: expected a list of {len(outputs)} gradients, one for each output, got "
                    f"{number_or_type(dz)}"
                )
            pairs = [
                (self.value_of(f"outputs[{i}]", output), gradient, f"dz[{i}]")
                for i, (output, gradient) in enumerate(zip(outputs, gradients, strict=True))
            ]
        for value, _, name in pairs:
            if value not in makers:
                raise ValueError(
                    f"{name}: the output is an array from outside, expected the result of a recorded call"
                )
        return [(value, _checked(gradient, name, makers[value][1])) for value, gradient, name in pairs]

    def _only_output(self, makers):
        """Return the value of the only result that is not an input of a recorded call."""
        taken = {value for _, _, sources, _, _ in self._calls for value in sources}
        left = [value for value in makers if value not in taken]
        if len(left) == 1:
            return left[0]
        if not left:
            raise RuntimeError(
                "tape: no call was recorded; call layers inside the block, and outside of no_grad()"
            )
        names = ", ".join(makers[value][0].label for value in left)
        raise ValueError(
            f"outputs: {len(left)} results, of {names}, are not inputs of other recorded calls; pass those "
            "that dz belongs to: backward(dz, outputs=z), or backward([dz1, dz2], outputs=[z1, z2])"
        )

    def _requested(self, inputs):
        """Return ([(value, name)] of the inputs, True if a single gradient is returned)."""
        if inputs is None and self._declared:
            inputs = self._declared if len(self._declared) > 1 else self._declared[0]
        if inputs is None:
            self._refuse_unnamed_inputs(())
            return [(value, name) for _, value, name in self._outside], bool(self._outside)
        single = not isinstance(inputs, (tuple, list))
        inputs = [inputs] if single else inputs
        values = [self.value_of(f"inputs[{i}]", array, first=True) for i, array in enumerate(inputs)]
        self._refuse_unnamed_inputs(values)
        return [(value, f"inputs[{i}]") for i, value in enumerate(values)], single

    def _refuse_unnamed_inputs(self, named):
        """Raise an error if there are several arrays from outside that are not all in `named`.

        One of them may be the result of a NumPy function, whose gradient would be lost.
        """
        if self._declared or len(self._outside) <= 1:
            return
        left = [name for _, value, name in self._outside if value not in named]
        if left:
            raise ValueError(
                f"inputs: {len(self._outside)} arrays were not made by recorded calls, and of these "
                f"{'; '.join(left)} {'are' if len(left) > 1 else 'is'} not named; name all inputs of the "
                "network, inputs=[a, b], and make everything else by recorded calls: layers.add, mul, "
                "concat, or a layer"
            )


def _checked(dz, name, shape_and_dtype):
    """Return a gradient of this shape and dtype. None in place of both: the result is a number; default 1."""
    if shape_and_dtype is None:
        return 1.0 if dz is None else dz
    arguments.gradient(name, dz, *shape_and_dtype)
    return dz

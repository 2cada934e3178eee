"""Small cases, many in one test: each test takes pytest milliseconds, more than the work of such a case."""

import functools
import inspect
import itertools


def each(**axes):
    """Run the test with all combinations of these arguments; a failure names the combination.

    Not for tests that skip, or with fixtures whose state a case changes for the next one.
    """
    cases = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return lambda test: in_turn(test, axes, lambda **others: cases)


def in_turn(test, names, cases_of):
    """Return a test that calls this one with every case: values of the named arguments, for given others."""

    @functools.wraps(test)
    def test_all(**others):
        for case in cases_of(**others):
            try:
                test(**case, **others)
            except Exception as error:
                raise AssertionError(f"with {case}") from error

    signature = inspect.signature(test)
    others = [parameter for name, parameter in signature.parameters.items() if name not in names]
    test_all.__signature__ = signature.replace(parameters=others)  # these are what pytest gives
    return test_all

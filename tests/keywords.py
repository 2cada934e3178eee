"""Sequences of arrays as the keyword arguments of `functional`, `_core` and `reference`."""


def as_parameters(values):
    """Return weight and bias, and the running statistics if there are four values."""
    return dict(zip(("weight", "bias", "running_mean", "running_var"), values, strict=False))


def as_running(values):
    """Return running_mean and running_var."""
    return dict(zip(("running_mean", "running_var"), values, strict=True))


def as_merged(values):
    """Return mean, var and count, as `statistics` and `merge_statistics` return them."""
    return dict(zip(("mean", "var", "count"), values, strict=True))


def as_sums(values):
    """Return sum_dy and sum_dy_xhat, the first two results of `backward_reduce`."""
    return dict(zip(("sum_dy", "sum_dy_xhat"), values, strict=False))


def as_inputs(*arrays):
    """Return x and further arguments of `forward` as a mapping for `gradcheck`; x is passed by position."""
    return dict(zip(("x", "weight", "bias", "running_mean", "running_var"), arrays, strict=False))

"""Convert models that use `torch.nn`'s batch norms."""

from .convert import convert
from .report import Report, report
from .revert import revert

__all__ = ["Report", "convert", "report", "revert"]

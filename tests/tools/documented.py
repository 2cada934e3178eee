"""Check that the built site documents every public name: ``python tests/tools/documented.py SITE``.

Public are the names in ``__all__`` of the package and of its public modules. An object that several modules
export needs one entry, under any of these names or under the name of the module that defines it.
"""

import importlib
import re
import sys
from pathlib import Path

PACKAGE = "inplace_abn"
MODULES = (
    "checkpoint", "distributed", "export", "functional", "layers", "memory", "models", "ops", "optim",
    "reference",
)  # fmt: skip


def public():
    """Return (name, object) for every public name."""
    names = []
    for module in (PACKAGE, *(f"{PACKAGE}.{name}" for name in MODULES)):
        imported = importlib.import_module(module)
        names += [(f"{module}.{name}", getattr(imported, name)) for name in imported.__all__]
    return names


def missing(site):
    """Return the public names without an entry in the reference of the site in this folder."""
    pages = Path(site).glob("reference*/**/*.html")
    entries = {name for page in pages for name in re.findall(r'id="([\w.]+)"', page.read_text("utf-8"))}
    names = public()
    documented = {id(value) for name, value in names if name in entries}
    for _, value in names:
        defined = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"
        if defined in entries:
            documented.add(id(value))
    return [name for name, value in names if id(value) not in documented]


if __name__ == "__main__":
    if found := missing(sys.argv[1]):
        sys.exit(f"not in the reference: {', '.join(found)}")

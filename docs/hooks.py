"""Hooks of the documentation's build: the notebooks of examples/ become pages of the site."""

import shutil
from pathlib import Path

DOCS = Path(__file__).parent


def on_pre_build(config):
    """Copy the notebooks to where the site's builder looks for pages."""
    (DOCS / "examples").mkdir(exist_ok=True)
    for path in sorted((DOCS.parent / "examples").glob("*.ipynb")):
        shutil.copyfile(path, DOCS / "examples" / path.name)


def on_post_build(config):
    """Remove the copies."""
    shutil.rmtree(DOCS / "examples")

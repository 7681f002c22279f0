"""How the pages of this folder become a site: `make site`."""

import os
import shutil
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import download_reference

from segdistill._version import __version__

project = "segdistill"
author = "the segdistill authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["example_report"]

myst_enable_extensions = ["deflist", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages of the same words as their table of contents

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"  # its fonts are the reader's own: a page asks no other server for anything
html_title = "segdistill"
html_copy_source = False
html_show_sphinx = html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f6f78", "color-brand-content": "#1f6f78"},
    "dark_css_variables": {"color-brand-primary": "#6cc5cf", "color-brand-content": "#6cc5cf"},
}

PAGES = ("example_report", "gallery/report")
"""Folders of pages that segdistill wrote: they are opened as they are, where Sphinx would offer them to be saved."""


html_math_renderer = "mathml"  # MathJax would be fetched from another server


def setup(app):
    """Let links lead to the product's own pages, which are copied, and to pictures; write formulas as MathML."""
    app.add_html_math_renderer("mathml", (_formula("inline"), None), (_formula("block"), None))
    app.connect("doctree-read", _open_pages)
    app.connect("doctree-resolved", _link_pictures)
    app.connect("build-finished", _copy_pages)


def _formula(display):
    def visit(writer, node):
        writer.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit


def _open_pages(app, tree):
    here = Path(app.env.docname).parent
    for node in list(tree.findall(download_reference)):
        target = Path(os.path.normpath(here / node["reftarget"]))
        if target.parent.as_posix() in PAGES:
            uri = Path(os.path.relpath(target, here)).as_posix()
            node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def _link_pictures(app, tree, page):
    """Let each picture lead to its file: on a narrow screen its writing is too small to read."""
    for node in list(tree.findall(nodes.image)):
        known = app.env.images.get(node["uri"])
        if known is not None and not isinstance(node.parent, nodes.reference):
            place = Path(os.path.relpath(f"_images/{known[1]}", Path(page).parent)).as_posix()
            link = nodes.reference("", "", refuri=place, internal=True)
            node.replace_self(link)
            link += node


def _copy_pages(app, error):
    for folder in PAGES:
        if error is None:
            shutil.copytree(Path(app.srcdir) / folder, Path(app.outdir) / folder, dirs_exist_ok=True)

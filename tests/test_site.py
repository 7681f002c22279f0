"""The site: every page is in it, nothing is missing, nothing is asked of another server; the tutorial goes through."""

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from chromium import Tab
from conftest import REPOSITORY, needs_package

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, all warnings being errors."""
    needs_package("sphinx", "dev")
    out = tmp_path_factory.mktemp("site")
    # A process of its own: Sphinx imports the package once more, with other annotations.
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        out / ".doctrees",
        DOCS,
        out,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


class Resources(HTMLParser):
    """What a browser fetches by itself when it shows a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("search", "index", "next", "prev", "canonical"):
            self.found.append(given.get("href") or "")


def test_no_page_asks_another_server_for_anything(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        reader = Resources()
        reader.feed(page.read_text(encoding="utf-8"))
        assert not [url for url in reader.found if re.match(r"(https?:)?//", url)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_link_inside_leads_somewhere(site):
    for page in site.rglob("*.html"):
        for target in re.findall(r'href="([^"#?:]+)(?:[#?][^"]*)?"', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_pages_of_commands_and_keys_are_there(site):
    text = (site / "cli.html").read_text(encoding="utf-8")
    assert "segdistill data prepare" in re.sub("<[^>]+>", "", text)
    assert (site / "methods/sstkd.html").is_file()
    assert "Predictor" in (site / "api/runtime.html").read_text(encoding="utf-8")


def test_the_glossary_has_the_words_that_pages_link_to():
    words = re.findall(r"^## (.+)\n\n\S", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert {"tap", "critic", "class map", "gap closed", "labelled share"} <= set(words)
    assert words == sorted(words, key=str.lower)
    anchors = {re.sub(r"[^\w -]", "", word.lower()).replace(" ", "-") for word in words}
    linked = {
        anchor
        for page in (*DOCS.glob("*.md"), *DOCS.glob("howto/*.md"))
        for anchor in re.findall(r"glossary\.md#([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert {"tap", "critic", "class-map", "gap-closed", "labelled-share"} <= linked <= anchors


def test_the_gallery_is_whole_and_small(site):
    gallery = DOCS / "gallery"
    for page in (DOCS / "gallery.md", DOCS / "index.md", REPOSITORY / "README.md"):
        shown = re.findall(r"\]\(((?:docs/)?gallery/[^)]+)\)", page.read_text(encoding="utf-8"))
        assert shown, page
        assert all((page.parent / path).is_file() for path in shown), shown
    assert sum(path.stat().st_size for path in gallery.rglob("*") if path.is_file()) < 2_000_000
    assert (gallery / "scene.webp").stat().st_size <= 120_000
    opened = (site / "gallery.html").read_text(encoding="utf-8")
    assert 'href="gallery/report/index.html"' in opened  # opened, not saved
    assert 'href="example_report/index.html"' in (site / "results.html").read_text(encoding="utf-8")


def test_no_line_is_taken_for_a_comment():
    """A line of Markdown that begins with a per cent sign is one to Sphinx, and is lost."""
    for page in DOCS.rglob("*.md"):
        assert not re.search(r"^\s*%", page.read_text(encoding="utf-8"), re.M), page


def test_every_picture_opens_and_no_footer_is_half_empty(site):
    for name in ("gallery.html", "index.html"):
        page = (site / name).read_text(encoding="utf-8")
        pictures = re.findall(r'<img [^>]*src="(_images/[^"]+)"', page)
        assert pictures
        assert all(f'href="{picture}"' in page for picture in pictures)
        assert "Copyright" not in page


def test_pages_fit_narrow_and_dark_screens(site, browser, tmp_path):
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    with Tab(browser, tmp_path) as tab:
        for dark in (False, True):
            tab.screen(360, dark=dark)
            for name in ("index.html", "gallery.html", "tutorial.html", "results.html"):
                tab.open((site / name).as_uri())
                assert tab.evaluate(fits), name
        lines = "[...document.querySelectorAll('td.text-right')].map(e => e.getBoundingClientRect().width)"
        assert min(tab.evaluate(lines)) >= 60  # the last page's, which has columns of numbers


def test_the_gallery_names_commands_that_exist():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    commands = {line.split()[1] for line in re.findall(r"^segdistill .*", text, re.M)}
    assert commands == {"compare", "report", "data", "export", "benchmark", "serve"}
    assert (REPOSITORY / "docs/gallery.yaml").is_file()


@pytest.mark.parametrize("page", sorted((DOCS / "howto").glob("*.md")), ids=lambda path: path.stem)
def test_how_tos_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "howto"}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(code, str(page), "exec"), names)
    if page.stem == "method":  # a run observes the taps that are named alone
        assert names["SquaredLogits"]().teacher_taps() == {"logits"}


def test_the_tutorial_word_by_word(tmp_path, monkeypatch, segdistill):
    needs_package("matplotlib", "report")
    needs_package("onnxruntime", "export")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    ran = 0
    for language, code in re.findall(r"```(python|yaml|bash)\n(.*?)```", text, re.S):
        if language == "yaml":
            (tmp_path / "street.yaml").write_text(code)
        elif language == "python":
            exec(compile(code, "tutorial.md", "exec"), {})
        else:
            for line in code.strip().splitlines():
                status, out, err = segdistill(*shlex.split(line)[1:])
                assert status == 0, (line, out, err)
                ran += 1
    assert ran == 9
    assert (tmp_path / "report/index.html").is_file()
    assert len(list((tmp_path / "predictions/ids").iterdir())) == 16

"""The server's page in a real browser: files, samples, divider, toggles, keys; all of it from this server."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from chromium import Tab
from serving import Halves, samples, served, serving

HOSTILE = "<img src=x onerror=window.hacked=1>"
TAB, SPACE, LEFT, RIGHT = ("Tab", 9), (" ", 32, " "), ("ArrowLeft", 37), ("ArrowRight", 39)


class Quarters:
    """A model that sees another class in each quarter, from the left."""

    def __call__(self, pixels):
        columns = np.arange(pixels.shape[1]) * 4 // pixels.shape[1]
        return np.tile(columns.astype(np.uint8), (pixels.shape[0], 1))


@pytest.fixture(scope="module")
def port():
    student = served(Halves(0, 1), name=HOSTILE)
    baseline = served(Halves(1, 1), "baseline", size=[96, 128])
    teacher = served(Quarters(), "teacher", ["sky", "road", HOSTILE, "car"], palette=[(i, i, i) for i in range(4)])
    with serving(student, baseline, teacher, samples=samples()) as port:
        yield port


@pytest.fixture
def tab(browser, tmp_path, port):
    with Tab(browser, tmp_path / "profile") as tab:
        tab.screen(1280)
        tab.open(f"http://127.0.0.1:{port}/")
        tab.wait("document.querySelectorAll('#models li').length === 3")
        yield tab
        assert tab.evaluate("faults") == []
        assert tab.evaluate("window.hacked") is None
        assert all(url.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:")) for url in tab.requested())
        logged = [event["params"]["entry"] for event in tab.events if event.get("method") == "Log.entryAdded"]
        logged = [entry for entry in logged if entry["level"] == "error"]
        assert [entry["text"] for entry in logged if not re.search(r"status of (413|415|422)", entry["text"])] == []
        assert not [event for event in tab.events if event.get("method") == "Runtime.exceptionThrown"]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "street <b>.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 64, (60, 80, 3), np.uint8)).save(path)
    return path


READY = "document.querySelectorAll('#maps figure').length === {count} && /pixels$/.test(status_.textContent)"


def wait_ready(tab, count):
    tab.evaluate("window.status_ = document.getElementById('status')")
    tab.wait(READY.format(count=count))


def texts(tab, selector):
    return tab.evaluate(f"[...document.querySelectorAll('{selector}')].map((one) => one.textContent)")


def chosen(tab, field):
    return tab.evaluate(f"[...document.getElementById('{field}').options].map((option) => option.value)")


def colour(tab, x, y, canvas="#under"):
    return tab.evaluate(f"[...document.querySelector('{canvas}').getContext('2d').getImageData({x}, {y}, 1, 1).data]")


def test_the_networks_are_named(tab):
    student, baseline, _ = texts(tab, "#models li")
    assert student == f"student {HOSTILE}: 0.0123 M parameters, 3 classes, sees images at their own size"
    assert baseline.endswith("3 classes, sees images at 96×128")


def test_a_file_is_chosen_and_every_control_works(tab, photo):
    tab.choose("#file", photo)
    wait_ready(tab, 5)
    assert texts(tab, "#status") == [f"{photo.name}: 60×80 pixels"]
    assert texts(tab, "#maps figcaption b") == ["image", "teacher", "baseline", "student", "student ≠ teacher"]
    assert [bool(re.fullmatch(r"\d+\.\d ms", text)) for text in texts(tab, "#maps figcaption span")] == [
        False, True, True, True, False
    ]  # fmt: skip
    assert texts(tab, "#legend tbody button") == ["sky", "road", "car", HOSTILE]
    assert texts(tab, "#legend tbody tr:first-child td") == ["25.0", "0.0", "50.0"]  # teacher, baseline, student
    assert texts(tab, "#legend tbody tr:last-child td") == ["25.0", "–", "–"]
    assert chosen(tab, "left") == ["image", "teacher", "baseline", "student", "differs"]
    assert tab.evaluate("[left.value, right.value]") == ["image", "student"]
    (line,) = texts(tab, "#difference")
    # of the four quarters the student has sky, sky, road, road; the teacher sky, road, that other class, car
    assert line.startswith("The student differs from the teacher in 66.7 % of the pixels (75.0 % are compared).")
    assert f"They share 3 classes by name; only the teacher has {HOSTILE}; pixels of such" in line
    for kind in chosen(tab, "left"):
        tab.evaluate(f"left.value = '{kind}'; left.dispatchEvent(new Event('input'))")
        assert texts(tab, "#left-tag") == ["student ≠ teacher" if kind == "differs" else kind]
    differs = [colour(tab, x, 30) for x in (5, 25, 45, 75)]
    assert [red > 1.3 * blue for red, _, blue, _ in differs] == [False, True, False, True]  # orange
    assert [blue > 1.3 * green for _, green, blue, _ in differs] == [False, False, True, False]  # violet
    tab.evaluate("against.value = 'baseline'; against.dispatchEvent(new Event('input'))")
    assert texts(tab, "#difference")[0].startswith(
        "The student differs from the baseline in 50.0 % of the pixels. Orange"
    )


def test_colours_are_those_of_the_classes_and_can_be_hidden(tab, photo):
    tab.choose("#file", photo)
    wait_ready(tab, 5)
    tab.evaluate("alpha.value = 100; alpha.dispatchEvent(new Event('input'))")
    tab.evaluate("left.value = 'student'; left.dispatchEvent(new Event('input'))")
    tab.wait("document.querySelector('#under').getContext('2d').getImageData(2, 2, 1, 1).data[0] === 200")
    assert [colour(tab, x, 10)[:3] for x in (0, 39, 40, 79)] == [[200, 30, 30]] * 2 + [[30, 160, 60]] * 2
    pixels = np.asarray(Image.open(photo))
    tab.evaluate("document.querySelector('#legend tbody button').click()")  # the sky's
    assert colour(tab, 7, 10)[:3] == pixels[10, 7].tolist()
    assert colour(tab, 60, 10)[:3] == [30, 160, 60]
    pressed = "[...document.querySelectorAll('#legend button')].map((one) => one.getAttribute('aria-pressed')).join()"
    assert tab.evaluate(pressed) == "false,true,true,true"
    tab.evaluate("none.click()")
    assert tab.evaluate(pressed) == "false,false,false,false"
    assert colour(tab, 60, 10)[:3] == pixels[10, 60].tolist()
    tab.evaluate("all.click()")
    assert tab.evaluate(pressed) == "true,true,true,true"
    assert colour(tab, 7, 10)[:3] == [200, 30, 30]


def test_the_divider_is_dragged_and_moved_with_keys(tab, photo):
    tab.choose("#file", photo)
    wait_ready(tab, 5)
    tab.evaluate("view.scrollIntoView({block: 'center'})")
    x, y, width, height = tab.evaluate(
        "(({x, y, width, height}) => [x, y, width, height])(view.getBoundingClientRect())"
    )
    tab.drag((x + width / 2, y + height / 2), (x + width / 4, y + height / 2))
    position = "Number(view.style.getPropertyValue('--pos').replace('%', ''))"
    assert abs(tab.evaluate(position) - 25) < 1
    clip = tab.evaluate("getComputedStyle(over).clipPath")
    assert re.match(r"inset\(0(px|%)? 0(px|%)? 0(px|%)? 2[45]\.?\d*%\)", clip), clip
    assert tab.evaluate("document.activeElement.id") == "divider"
    before = tab.evaluate(position)
    tab.key(*RIGHT)
    tab.key(*RIGHT)
    middle = tab.evaluate(position)
    tab.key(*LEFT)
    assert before < tab.evaluate(position) < middle
    assert tab.evaluate("divider.getAttribute('aria-valuetext')").endswith(" % from the left")


def test_all_is_reached_by_keys(tab, photo):
    tab.choose("#file", photo)
    wait_ready(tab, 5)
    tab.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(40):
        tab.key(*TAB)
        tab.evaluate("window.here = document.activeElement")
        seen.append(tab.evaluate("here.id || here.dataset.class || here.tagName"))
        if seen[-1] == "0":
            break
    assert [name for name in seen if name != "DIV"] == [
        "A", "file", "sample", "left", "right", "alpha", "divider", "all", "none", "0"
    ]  # fmt: skip
    tab.key(*SPACE)
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
    tab.key(*SPACE)
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    unnamed = """[...document.querySelectorAll("input, select, button, [role=img]")].filter((one) =>
      !one.labels?.length && !one.getAttribute("aria-label") && !one.textContent.trim()).map((one) => one.outerHTML)"""
    assert tab.evaluate(unnamed) == []


def test_a_sample_shows_its_truth(tab):
    assert texts(tab, "#sample option") == ["val: choose…", "first", "<b>second</b>"]
    tab.evaluate("sample.value = 1; sample.dispatchEvent(new Event('change'))")
    wait_ready(tab, 6)
    assert texts(tab, "#maps figcaption b")[:2] == ["image", "truth"]
    assert chosen(tab, "against") == ["teacher", "baseline", "truth"]
    tab.evaluate("against.value = 'truth'; against.dispatchEvent(new Event('input'))")
    # truth: sky above, road below, 24 of 2400 ignored above on the left; the student: sky left, road right
    assert texts(tab, "#difference")[0].startswith(
        "The student differs from the truth in 50.5 % of the pixels (99.0 % are compared)."
    )


def test_a_file_is_dropped_or_pasted(tab, photo):
    tab.drop(300, 300, photo)
    wait_ready(tab, 5)
    tab.evaluate("status_.textContent = ''")
    tab.evaluate("""fetch('/samples/0').then((answer) => answer.blob()).then((blob) => {
      const data = new DataTransfer();
      data.items.add(new File([blob], "from the clipboard.png", {type: "image/png"}));
      document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
    })""")
    tab.wait("status_.textContent === 'from the clipboard.png: 40×60 pixels'")


def test_what_goes_wrong_is_said_on_the_page(tab, tmp_path, photo):
    (tmp_path / "notes.png").write_text("hello")
    tab.choose("#file", tmp_path / "notes.png")
    tab.wait("!error.hidden")
    assert texts(tab, "#error") == [
        "not an image of a kind that is read here: JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM, AVIF, JPEG2000"
    ]
    tab.evaluate("state.limits.bytes = 10")
    tab.choose("#file", photo)
    tab.wait("/more than the 10 that the server takes/.test(error.textContent)")
    tab.evaluate(f"state.limits.bytes = {2**25}")
    tab.choose("#file", photo)
    wait_ready(tab, 5)
    assert tab.evaluate("error.hidden")


def test_the_last_image_counts(tab, photo, tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "last.png")
    tab.choose("#file", photo)
    tab.choose("#file", tmp_path / "last.png")
    wait_ready(tab, 5)
    assert texts(tab, "#status") == ["last.png: 20×30 pixels"]
    assert tab.evaluate("[under.width, under.height]") == [30, 20]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, False), (360, True)])
def test_it_fits_the_screen(tab, photo, width, dark):
    tab.screen(width, dark=dark)
    tab.choose("#file", photo)
    wait_ready(tab, 5)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 200) == dark


@pytest.mark.parametrize("width", [1280, 360])
def test_the_interface_is_described_offline(tab, port, width):
    tab.screen(width)
    tab.open(f"http://127.0.0.1:{port}/docs")
    tab.wait("document.querySelectorAll('section').length === 6")
    paths = ["/predict", "/image", "/models", "/samples", "/samples/{number}", "/samples/{number}/truth"]
    assert texts(tab, "h2 code") == paths
    assert f"curl --data-binary @street.jpg 'http://127.0.0.1:{port}/predict?format=json'" in texts(tab, "pre")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


class Stranger(BaseHTTPRequestHandler):
    """Another server on this machine, with a page that frames an address and shows a picture from it."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        port = self.path.strip("/")
        page = f'<iframe src="http://127.0.0.1:{port}/"></iframe><img src="http://127.0.0.1:{port}/samples/0">'
        self.wfile.write(page.encode() if port.isdecimal() else b"")

    def log_message(self, *_):
        pass


def test_pages_of_others_get_nothing(browser, tmp_path):
    model = Halves()
    stranger = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=stranger.serve_forever).start()
    with serving(served(model), samples=samples()) as port, Tab(browser, tmp_path / "profile") as tab:
        try:
            tab.open(f"http://127.0.0.1:{stranger.server_port}/{port}")
            read, post = tab.evaluate(f"""Promise.all([
              fetch("http://127.0.0.1:{port}/models").then(() => "read", () => "refused"),
              fetch("http://127.0.0.1:{port}/predict?sample=0", {{method: "POST", mode: "no-cors"}})
                .then(() => "answered", () => "refused"),
            ])""")
            assert (read, post, model.seen) == ("refused", "refused", [])
            assert tab.evaluate("document.images[0].naturalWidth") == 0
            logged = str([event["params"] for event in tab.events if event.get("method") == "Log.entryAdded"])
            assert "frame-ancestors" in logged
        finally:
            stranger.shutdown()
            stranger.server_close()

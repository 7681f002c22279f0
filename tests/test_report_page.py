"""The page in a real browser: every control is used, on a wide and on a narrow screen."""

import html
import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from chromium import QUIET
from conftest import PATIENCE
from segdistill.report import write_report
from test_report import write_run

VISIT = """
<script>
addEventListener("error", (event) => (window.broken ??= []).push(event.message));
setTimeout(() => {
  const all = (selector) => [...document.querySelectorAll(selector)], told = {};
  const change = (field, value) => { field.value = value; field.dispatchEvent(new Event("input", {bubbles: true})); };
  const hidden = () => all(".off").length;
  told.chips = all("[data-series]").map((chip) => {
    const before = hidden(); chip.click(); const during = hidden(); chip.click();
    return [before, during, hidden(), chip.getAttribute("aria-pressed")];
  });
  told.sorted = all("th > button").map((button) => {
    const order = () => [...button.closest("table").tBodies[0].rows].map((row) => row.textContent).join();
    button.click(); const down = order(); button.click(); return [down, order(), button.parentNode.ariaSort];
  });
  const source = () => all(".under").map((image) => image.src).join();
  const right = () => all(".shape").map((image) => image.src).join();
  const form = document.querySelector(".tools").elements;
  told.left = [...form.left.options].map((option) => { change(form.left, option.value); return source().length; });
  const seen = new Set();
  for (const option of form.right.options) { change(form.right, option.value); seen.add(right()); }
  told.right = [seen.size, form.right.options.length];
  told.classes = [...form.class.options].map((option) => {
    change(form.class, option.value);
    return [option.value, all(".shot:not([hidden])").length, document.querySelector(".count").textContent];
  });
  change(form.class, "");
  change(form.alpha, "20");
  told.alpha = document.querySelector(".cards").style.getPropertyValue("--alpha");
  told.sliders = all(".compare input").map((slider) => {
    change(slider, "30"); return slider.closest(".compare").style.getPropertyValue("--pos");
  });
  told.details = all("details").map((item) => {
    const was = item.open; item.firstElementChild.click(); return item.open !== was;
  });
  told.nav = all("nav a").map((link) => { link.click(); return location.hash === link.getAttribute("href"); });
  told.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  told.wide = [document.documentElement.scrollWidth, innerWidth];
  told.broken = window.broken || [];
  const out = document.createElement("pre");
  out.id = "told"; out.textContent = JSON.stringify(told); document.body.append(out);
}, 1500);
</script>
"""


SCREEN = """<!doctype html><iframe width="{width}" height="800" src="{page}"></iframe>
<script>
setInterval(() => {{
  const told = document.querySelector("iframe").contentDocument.getElementById("told");
  if (told && !document.getElementById("told")) document.body.append(document.importNode(told, true));
}}, 200);
</script>
"""
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    teacher = write_run(root / "teacher", level=0.4, student=1)
    write_run(root / "none", level=0.2, student=2)
    cwd = write_run(root / "cwd", "cwd", level=0.3, teacher=teacher, student=3)
    record = cwd / "metrics.jsonl"
    shown = '"gradient_ce": 1, "gradient_cwd_logits": 2, "cosine_cwd_logits": 0.5, "lr"'
    record.write_text(record.read_text().replace('"lr"', shown))
    write_run(root / "kd", "kd", level=0.25, teacher=teacher)
    return write_report([root], out=root / "report", images=2, say=lambda _: None)


def visit(browser: str, profile: Path, page: Path, width: int, *options: str) -> dict:
    """Open the page on a screen of a width, with a script that uses everything on it; return what the script saw."""
    inner, outer = page.with_name("visited.html"), page.with_name("screen.html")
    inner.write_text(page.read_text(encoding="utf-8").replace("</body>", VISIT + "</body>"), encoding="utf-8")
    outer.write_text(SCREEN.format(width=width, page=inner.name))
    command = [browser, *QUIET, f"--user-data-dir={profile}", *options, "--allow-file-access-from-files"]
    command += ["--window-size=1400,900", "--virtual-time-budget=15000", "--dump-dom", outer.as_uri()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        dom = process.communicate(timeout=PATIENCE)[0].decode()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # none of the browser's own processes outlives the test
    assert process.returncode == 0
    found = re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(("width", "options"), [(1280, ()), (360, (DARK,))])
def test_every_control_works(browser, page, tmp_path, width, options):
    told = visit(browser, tmp_path / "profile", page, width, *options)
    assert told["broken"] == []
    assert len(told["chips"]) == 3
    for before, during, after, pressed in told["chips"]:
        assert (before, after, pressed) == (0, 0, "true")
        assert during > 0
    assert len(told["sorted"]) > 20
    assert any(down != up for down, up, _ in told["sorted"])
    assert all(order in ("ascending", "descending") for *_, order in told["sorted"])
    assert len(told["left"]) >= 6  # image, truth, teacher, baseline, student, errors
    assert all(told["left"])
    assert told["right"][0] == told["right"][1]  # every layer is another picture
    shots = told["classes"][0][1]
    assert shots == 4
    assert all(
        count <= shots and (value == "" or "images have this class" in text) for value, count, text in told["classes"]
    )
    assert any(count < shots for _, count, _ in told["classes"])
    assert told["alpha"] == "0.2"
    assert told["sliders"] == ["30%"] * shots
    assert all(told["details"])
    assert told["details"]
    assert all(told["nav"])
    assert len(told["nav"]) == 9  # all sections
    assert told["dark"] == (DARK in options)
    assert told["wide"][0] <= told["wide"][1] == width  # nothing sticks out of the screen

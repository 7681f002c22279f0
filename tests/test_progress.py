"""How far lengthy work is: bars on a terminal, lines elsewhere, nothing for a script; the table of a comparison."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from comparisons import SOURCE, finished
from conftest import PATIENCE
from segdistill._printing import ProgressLines, animated, counted, untold
from segdistill.comparison.executors.choice import choose_executor
from segdistill.comparison.executors.local import Local
from segdistill.comparison.executors.task import Outcome, Task
from segdistill.comparison.plan import load_plan
from segdistill.comparison.watch import RunState, Watch
from segdistill.engine.record import Recorder
from segdistill.show import bars
from segdistill.show import compare as show_compare
from segdistill.show.bars import manner, progress, speaking


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class Gone(Terminal):
    """A terminal that was closed."""

    def write(self, text):
        raise OSError(5, "Input/output error")


# Lines.


def test_lines_come_at_tenths_and_minutes_but_not_all_the_time():
    clock, stream = Clock(), io.StringIO()
    with progress("images", stream, clock=clock) as told:
        for done in range(1, 401):
            clock.now += 0.5
            told(done, 400)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "40/400 images, 2 a second, 0:03:00 left"
    assert len(lines) == 10
    assert lines[-1] == "400/400 images, 2 a second, 0:00:00 left"

    clock, stream = Clock(), io.StringIO()
    told = ProgressLines("images", stream, clock=clock)
    for done in range(1, 5):  # a tenth takes hours: a line a minute
        clock.now += 59
        told(done, 10_000)
    assert stream.getvalue().splitlines() == [
        "2/10000 images, 0.0169 a second, 6 days, 19:51:22 left",
        "4/10000 images, 0.0169 a second, 6 days, 19:49:24 left",
    ]


def test_short_work_gets_no_lines():
    clock, stream = Clock(), io.StringIO()
    told = ProgressLines("images", stream, clock=clock)
    for done in range(1, 101):
        clock.now += 0.04
        told(done, 100)
    assert stream.getvalue() == ""


def test_bytes_and_what_was_there_before():
    clock, stream = Clock(), io.StringIO()
    told = ProgressLines("a.tar", stream, bytes=True, clock=clock)
    told(500_000_000, 1_000_000_000)  # from an earlier call
    clock.now = 10
    told(600_000_000, 1_000_000_000)
    clock.now = 71
    told(700_000_000, None)
    assert stream.getvalue().splitlines() == [
        "a.tar: 600.0 of 1000.0 MB, 10.0 MB a second, 0:00:40 left",
        "a.tar: 700.0 MB, 2.8 MB a second",
    ]


def test_a_closed_pipe_ends_no_work(monkeypatch):
    class Pipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    clock = Clock()
    told = ProgressLines("images", Pipe(), clock=clock)
    clock.now = 100
    told(1, 2)
    monkeypatch.setenv("TERM", "xterm")
    with progress("images", Gone()) as told:
        told(1, 2)
    with show_compare.live(Gone()) as watch:
        assert watch is not None


def test_items_are_counted():
    seen = []
    assert list(counted("ab", 1, lambda *at: seen.append(at))) == ["a", "b"]
    assert seen == [(1, 1), (2, 2)]
    with untold("images") as told:
        told(1, None)


# Bars.


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("of_bytes", [False, True])
def test_a_bar_has_rate_and_time_left_at_any_width(monkeypatch, columns, of_bytes):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    unit = 10**6 if of_bytes else 1
    with progress("images of [red]val[/red]\x1b", stream, bytes=of_bytes) as told:
        for done in range(1, 31):
            told(done * unit, 30 * unit)
            time.sleep(0.002)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    widest = max(map(len, re.split(r"[\r\n]", shown)))
    assert widest <= columns
    assert "images of" in shown
    assert ("━" in shown) == (columns > 60)
    assert "/s" in shown
    assert re.search(r"\d:\d\d", shown)
    if columns == 200:
        assert "images of [red]val[/red]\\x1b" in shown


@pytest.mark.parametrize(
    "variables", [{"TERM": "dumb"}, {"TERM": "unknown"}, {"TERM": "xterm", "TTY_INTERACTIVE": "0"}]
)
def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch, tmp_path, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    clock, stream = Clock(), Terminal()
    with progress("images", stream, clock=clock) as told:
        clock.now = 30
        told(10, 20)
    assert stream.getvalue() == "10/20 images\n"
    with show_compare.live(stream) as watch:
        assert watch is None
    recorder = Recorder(tmp_path, 4, 0, stream=Terminal())
    assert recorder.bar is None
    recorder.close()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("TTY_INTERACTIVE", raising=False)
    assert animated(Terminal())
    assert not animated(io.StringIO())


def test_a_slow_run_is_never_silent_for_long_and_says_once_how_it_would_be_shorter(tmp_path):
    clock, stream = Clock(), io.StringIO()
    recorder = Recorder(tmp_path, 200, 0, stream=stream, advice="Take less.", clock=clock)
    clock.now = 500  # a cache was filled, which says nothing of the steps
    recorder.begin()
    for step in range(1, 7):
        clock.now += 50
        recorder.alive(step)
    assert stream.getvalue().splitlines() == [
        "step 1/200  50 s a step  left 2:45:50",
        "note: 2:45:50 to go. Take less.",
        "step 3/200  50 s a step  left 2:44:10",
        "step 5/200  50 s a step  left 2:42:30",
    ]
    clock.now += 50
    recorder.step(7, {"loss": 1.0, "images_per_s": 1.0, "memory_mb": 1.0})
    recorder.alive(7)
    assert stream.getvalue().splitlines()[4:] == ["step 7/200  loss 1.0000  1.0 img/s  1 MiB  left 2:40:50"]
    recorder.close()


def test_a_fast_run_says_nothing_more_than_before(tmp_path):
    clock, stream = Clock(), io.StringIO()
    recorder = Recorder(tmp_path, 2000, 1000, stream=stream, advice="Take less.", clock=clock)
    recorder.begin()
    for step in range(1001, 1100):
        clock.now += 0.09
        recorder.alive(step)
    assert stream.getvalue() == ""
    clock.now += 2
    recorder.alive(1100)
    assert stream.getvalue() == "step 1100/2000  0.109 s a step  left 0:01:38\n"
    recorder.close()


def test_the_bar_of_a_run_moves_with_each_step(monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm")
    recorder = Recorder(tmp_path, 200, 0, stream=Terminal())
    recorder.alive(3)
    assert recorder.bar.tasks[0].completed == 3
    recorder.close()


def test_no_colour_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress("images", stream) as told:
        told(1, 2)
    assert not re.search(r"\x1b\[[\d;]*3\dm", stream.getvalue())


def test_a_run_shows_what_comes_before_its_steps(monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    recorder = Recorder(tmp_path, 4, 0, stream=stream)
    with recorder.stage("views") as told:
        told(3, 7)
        recorder.bar.refresh()
    assert [task.description for task in recorder.bar.tasks] == [""]
    recorder.close()
    assert "3/7" in stream.getvalue()
    silent = Recorder(None, 4, 0)
    with silent.stage("views") as told:
        told(1, 2)
    lines = Recorder(tmp_path, 4, 0, stream=io.StringIO())
    with lines.stage("views") as told:
        told.clock = lambda: told.began + 100
        told(1, 2)
    assert lines.stream.getvalue().startswith("1/2 views")
    lines.close()


# What a script reads.


def test_who_is_told_what(capsys):
    with speaking(["eval", "--quiet"]):
        assert manner().quiet
        assert not manner().json
        print("nobody reads this", file=sys.stderr)
        print("result")
    assert capsys.readouterr() == ("result\n", "")
    for words in (["eval", "--json", "-"], ["eval", "--json=-"]):
        with speaking(words):
            print("said")
            bars.print_json("{}")
        assert capsys.readouterr() == ("{}\n", "said\n")
    with speaking(["eval", "--json", "a.json"]):
        assert not manner().json
    assert not manner().quiet


def test_one_process_prints_the_result(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    bars.print_json("{}")
    assert capsys.readouterr().out == ""


def test_json_alone(segdistill, whole, tmp_path):
    status, out, err = segdistill("doctor", "--json", "-")
    assert (status, err) == (0, "")
    assert json.loads(out)["missing"]["report"] == []
    status, out, err = segdistill("eval", whole, "--json", "-")
    assert status == 0
    assert json.loads(out)["split"] == "val"
    status, out, _ = segdistill("eval", "--quiet", whole, "--json", tmp_path / "a.json")
    assert "written to" not in out
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["split"] == "val"
    status, out, err = segdistill("data", "check", whole, "--json", "-", "--workers", "0")
    assert set(json.loads(out)["splits"]) >= {"train", "val"}
    assert "images" in err


def test_quiet_training_prints_its_result_alone(segdistill, whole, tmp_path):
    status, out, err = segdistill("--quiet", "train", whole, "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    assert len(out.split("val mIoU")) == 2
    status, out, err = segdistill("train", whole, "train.lrr=1", "--quiet")
    assert (status, out) == (2, "")
    assert "unknown key train.lrr" in err


def test_a_reader_that_goes_costs_nothing():
    code = "import sys; from segdistill import cli; sys.argv = ['segdistill', 'doctor', '--json', '-']; cli.main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(PATIENCE) == 0


# The table of a comparison.


def record(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)


def test_runs_are_watched_by_what_they_write(tmp_path):
    plan = load_plan(SOURCE, ["methods=[none,kd]", "seeds=2"], tmp_path)
    clock = Clock()
    record(plan.runs[1].folder, {"step": 10, "val_miou": 0.9})  # of an earlier call
    watch = Watch(plan.runs, "val", clock)
    first, second, third, _fourth = plan.runs
    assert {state.state for state in watch.states()} == {"waiting"}
    assert watch.left() is None
    record(first.folder, {"step": 0}, {"step": 10, "val_miou": 0.25}, "{damaged", [1], {"step": 11})
    clock.now = 10
    assert watch.states()[0] == RunState(first.folder.name, "running", 11, 40, 0.25)
    record(first.folder, {"step": 20, "val_miou": 0.2})
    with (first.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2')  # half a line
    clock.now = 19
    assert watch.states()[0] == RunState(first.folder.name, "running", 20, 40, 0.25, 20.0)
    (second.folder / "metrics.jsonl").write_text('{"step": 10, "val_miou": 0.5}\n', encoding="utf-8")
    os.utime(second.folder / "metrics.jsonl", (1, 1))
    assert watch.states()[1] == RunState(second.folder.name, "running", 10, 40, 0.5)
    watch.ended(first, Outcome(0.3))
    watch.ended(third, Outcome(error="no"))
    states = watch.states()
    assert (states[0].state, states[0].miou, states[0].step) == ("done", 0.3, 40)
    assert (states[2].state, states[3].state) == ("failed", "waiting")
    assert watch.left() == pytest.approx(19 / (40 - 11) * (30 + 40))


def test_runs_that_are_there_count_as_done(tmp_path):
    plan = finished(tmp_path, "methods=[none,kd]", "seeds=1")
    for split in (plan.options.split, None):
        watch = Watch(plan.runs, split)
        for run in plan.runs:
            watch.ended(run, Outcome())
        assert {state.state for state in watch.states()} == {"done"}
        assert watch.left() is None
        assert all(0 < state.miou < 1 for state in watch.states())


@pytest.mark.parametrize(("columns", "lines"), [(40, 14), (100, 14), (100, 60)])
def test_the_table_fits_its_terminal(tmp_path, monkeypatch, columns, lines):
    from rich.console import Console

    plan = load_plan(SOURCE, ["methods=[none,kd,cwd,at]", "seeds=5"], tmp_path)
    clock = Clock()
    watch = Watch(plan.runs, "val", clock)
    record(plan.runs[-1].folder, {"step": 10, "val_miou": 0.25})
    clock.now = 60
    watch.states()
    record(plan.runs[-1].folder, {"step": 20})
    clock.now = 120
    watch.ended(plan.runs[3], Outcome(error="no"))
    table = show_compare.RunsTable()
    stream = io.StringIO()
    console = Console(file=stream, width=columns, height=lines, force_terminal=True, no_color=True)
    console.print(table)
    assert stream.getvalue() == ""
    table(watch)
    console.print(table)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue()).splitlines()
    assert max(map(len, shown)) <= columns
    assert len(shown) < lines
    assert sum("20/40" in line for line in shown) == 1
    assert any("25.00" in line for line in shown)
    assert "1 running, 18 waiting, 1 failed; about" in " ".join(" ".join(shown[-2:]).split())
    assert sum("waiting" in line for line in shown) == (19 if lines == 60 else 14 - show_compare.BESIDES - 2 + 1)


COMPARE = """
import sys
from segdistill import cli
sys.argv = ["segdistill", *sys.argv[1:]]
cli.main()
"""


def in_terminal(arguments, folder, *, columns=100, until=None):
    """Run a command in a terminal; what it shows, and its exit code. `until` gets what is shown, and the process."""
    main, side = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    command = [sys.executable, "-c", COMPARE, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, cwd=folder, env=variables, start_new_session=True
    )
    os.close(side)
    shown, stopped = b"", False
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        try:
            part = os.read(main, 65536)
        except OSError:  # all have closed it
            break
        if not part:
            break
        shown += part
        if until is not None and not stopped:
            stopped = until(shown.decode("utf-8", "replace"), process)
    os.close(main)
    return shown.decode("utf-8", "replace"), process.wait(PATIENCE)


TINY = """
data: {name: synthetic, size: [32, 32], crop: [32, 32], images: 4, batch_size: 2, workers: 0}
student: {name: espnet_c}
train: {steps: 1000000, log_every: 1, lr: 0.01, threads: 1, device: cpu}
methods: [none]
seeds: 1
split: val
"""


def test_a_comparison_in_a_terminal_and_its_end_by_control_c(tmp_path):
    (tmp_path / "c.yaml").write_text(TINY, encoding="utf-8")
    given = ["compare", "c.yaml", "--out", "table"]

    def stop(shown, process):
        if not re.search(r"[1-9]\d*/1000000", shown):
            return False
        process.send_signal(signal.SIGINT)
        return True

    shown, status = in_terminal(given, tmp_path, until=stop)
    assert status == 2
    assert "the same command goes on" in shown
    assert shown.rstrip().endswith("\x1b[?25h") or shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "running" in shown
    assert "Traceback" not in shown
    (log,) = (tmp_path / "table").glob("*/log.txt")
    assert "step" in log.read_text(encoding="utf-8")


def test_silent_tasks(tmp_path, capfd):
    silent = choose_executor("local", None, jobs=1, silent=True)
    assert not silent.prints
    assert Local(1).prints
    (found,) = silent.run([Task(print, ("loud",))])
    assert found == (0, Outcome())
    assert capfd.readouterr().out == ""

"""Write `docs/methods/`: a page per method, from its docstrings, its source and what the benchmarks measured.

    python docs/make_pages.py            # or: make docs

What stands below the line `<!-- by hand -->` of a page is kept.
"""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from typer.main import get_command

from segdistill.cli import app
from segdistill.comparison.reference import config_entries
from segdistill.methods import list_methods, method_class, method_options, resolve_methods

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs/methods"
BY_HAND = "<!-- by hand -->"

USE = """
```python
import torch
from segdistill import Distiller, Tapped
from segdistill.methods import build_method
from segdistill.models import build_model

student, teacher = (Tapped(build_model(f"pspnet_resnet18_{width}", num_classes=5)) for width in ("quarter", "half"))
images, target = torch.rand(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))

distiller = Distiller(student, build_method("NAME"))         # the student and all that is trained with it
distiller.adapt(teacher.eval(), images)                      # makes the layers that fit these two networks
with torch.no_grad():
    seen = teacher(images, distiller.method.teacher_taps())
terms, *_ = distiller(images, target, seen, progress=0.5)    # weighted terms by name: "ce", "NAME_…"
sum(terms.values()).backward()
```
"""


CONFIG_HEAD = """
# The configuration

This page explains every key of a run's configuration. Use it as a reference when you write or change a YAML file; the
pages under *How to* explain how the keys work together. On the command line, `key.sub=value` after the file changes
single keys. An unknown key is refused, and the message names the most similar one. So is a key that nothing would use,
such as `train.momentum` with `optimizer: adamw`; if `train.optimizer=adamw` on the command line replaces the file's
`sgd`, the file's momentum goes with it. `segdistill list config train.lr` prints one entry of this page.
"""
CLI_HEAD = """
# The command line

This page lists all commands with their arguments and options, as `--help` prints them for one command. `CONFIG` is a
YAML file, the folder of a run, or the name of a configuration that comes with the package; `key.sub=value` after it
changes single keys ([Configuration](config.md)). An error is one line with exit code 2, Ctrl-C gives exit code 130;
`--debug` prints the traceback ([Troubleshooting](troubleshooting.md)).

## Progress, and output for scripts

Commands that take long show their progress on standard error. On a terminal it is a bar with its rate and the time
left. Elsewhere it is a line at each tenth and each minute, and no line for work of a few seconds. On a terminal,
`compare`, `curve` and `demo` draw a table of their runs with their state, mIoU so far and time left; the output of a
run is then in `log.txt` in its folder. `TERM=dumb` prints lines instead of drawing, and `NO_COLOR=1` turns colours
off.

Two options are for scripts:

- `--quiet`, anywhere on the command line, prints nothing but the result and errors.
- `--json FILE`, which most commands have, writes the result as JSON. `--json -` prints only the JSON on standard
  output; everything else goes to standard error.

```bash
segdistill --quiet doctor --json - | python -m json.tool
```

## Completion in a shell

`segdistill --install-completion` installs completion for the shell that it is called from: bash, zsh, fish or
PowerShell (tried in bash 5, zsh 5.9 and fish 3.6). After a new start, the shell completes commands, options, names of
configurations, `method=`, `data.name=`, the data sets of `data prepare`, and files. `segdistill --show-completion`
prints what would be installed. Completion does not load torch, so it is fast.
"""
ABOUT = {
    "data": "Further keys are options of the data set; `segdistill list data` prints them.",
    "student and teacher": "The same keys under `student` and under `teacher`. Further keys are options of the "
    "network's family, such as `pretrained`, `aux`, `width` and `depth`.",
    "compare": "Further keys for `segdistill compare`, at the top level of the file or as `key=value`.",
}


def main() -> None:
    """Write all pages and the index."""
    PAGES.mkdir(exist_ok=True)
    for name in list_methods():
        path = PAGES / f"{name}.md"
        kept = path.read_text().partition(BY_HAND)[2] if path.is_file() else ""
        path.write_text(page(name) + (f"\n{BY_HAND}{kept}" if kept.strip() else ""))
    (PAGES / "README.md").write_text(index())
    (ROOT / "docs/config.md").write_text(config_page())
    (ROOT / "docs/cli.md").write_text(cli_page())


def page(name: str) -> str:
    """The generated part of a method's page.

    Args:
        name: of the method.
    """
    cls = method_class(name)
    module = importlib.import_module(cls.__module__)
    about = description(cls)
    parts = [
        f"# `{name}`: {title(module)}",
        about,
        f"In a config: `method: {name}`{', or with options' * bool(method_options(name).model_fields)}. "
        f"It reads {taps(name)}.",
        "## Options",
        options(name, cls),
        *([] if name == "none" else ["## From Python", USE.replace("NAME", name).strip()]),
        *losses(module),
        *departures(module),
        "## Cost",
        cost(name),
        *configurations(name),
        f"Source: [`src/segdistill/methods/{name}.py`](../../src/segdistill/methods/{name}.py)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(module: ModuleType) -> str:
    """What stands behind the colon of the module's first line."""
    first = inspect.getdoc(module).splitlines()[0]  # type: ignore[union-attr]
    return first.partition(": ")[2].rstrip(".") or first.rstrip(".")


def description(thing: Any) -> str:
    """A docstring up to its first section."""
    return re.split(r"\n\n(?:Args|Returns|Raises|Source):\n|\n\n>>>", inspect.getdoc(thing) or "")[0]


def section(thing: Any, name: str) -> str:
    """A section of a Google docstring, without its heading and indentation; empty if there is none."""
    found = re.search(rf"^{name}:\n((?:    .*\n?|\n(?=    ))+)", inspect.getdoc(thing) or "", re.MULTILINE)
    return inspect.cleandoc(found[1]) if found else ""


def arguments(thing: Any) -> dict[str, str]:
    """Argument → what the docstring says of it, in one line."""
    entries = re.split(r"\n(?=\w+: )", section(thing, "Args"))
    pairs = (entry.partition(": ") for entry in entries if entry)
    return {name.lstrip("*"): " ".join(text.split()) for name, _, text in pairs}


def options(name: str, cls: type) -> str:
    """The options with their defaults, as a table."""
    said = arguments(cls)
    rows = [
        f"| `{option}` | `{json.dumps(field.default, default=str)}` | {said.get(option, '').replace('|', '∣')} |"
        for option, field in method_options(name).model_fields.items()
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) if rows else "None."


def taps(name: str) -> str:
    """The taps that the method reads by default."""
    method = method_class(name)()
    own, other = sorted(method.student_taps()), sorted(method.teacher_taps())
    if not own:
        return "nothing of a teacher"
    student = ", ".join(f"`{tap}`" for tap in own)
    return f"the taps {student}" + (
        "" if own == other else f" of the student and {', '.join(f'`{t}`' for t in other)} of the teacher"
    )


def losses(module: ModuleType) -> list[str]:
    """The pure functions that the file defines, with what their docstrings say."""
    found = [
        (name, f)
        for name, f in vars(module).items()
        if inspect.isfunction(f)
        and f.__module__ == module.__name__
        and not name.startswith("_")
        and ">>>" in (f.__doc__ or "")
    ]
    parts = []
    for name, function in found:
        example = re.search(r"^>>> .*", inspect.getdoc(function) or "", re.MULTILINE | re.DOTALL)
        said = "\n".join(f"- `{argument}`: {text}" for argument, text in arguments(function).items())
        source = section(function, "Source")
        parts += [
            f"### `{name}`",
            description(function),
            said,
            f"Source: {' '.join(source.split())}" if source else "",
            f"```pycon\n{example[0].rstrip()}\n```" if example else "",
        ]
    return ["## The losses alone", *parts] if parts else []


def departures(module: ModuleType) -> list[str]:
    """What the source marks as different from the paper."""
    names = {getattr(thing, "__module__", None) or "" for thing in vars(module).values()}
    ours = [name for name in names if re.match(r"segdistill\.(methods\._(?!base)|texture)", name)]
    paths = {Path(inspect.getsourcefile(sys.modules[name]) or "") for name in (module.__name__, *ours)}
    found = []
    for path in sorted(paths):
        lines = [line.strip() for line in path.read_text().splitlines()]
        for i, line in enumerate(lines):
            marked = re.match(r"# Differs from the (paper: |authors' code, which )", line)
            if marked:
                ours = marked[1].startswith("paper")
                text = line[marked.end() :] if ours else f"the authors' code {line[marked.end() :]}"
                for more in lines[i + 1 :]:
                    if not more.startswith("# "):
                        break
                    text += more.removeprefix("#")
                found.append(f"- {text[0].upper()}{text[1:]}")
    return ["## Where it differs from the paper, or from the authors' code", "\n".join(found)] if found else []


def cost(name: str) -> str:
    """The rows of the step benchmark that belong to the method."""
    path = ROOT / "benchmarks/results/step_cpu.json"
    result = json.loads(path.read_text())
    aliases = {"skd": ("pair", "skd"), "fakd": ("fakd", "fakd (kd)"), "i2ckd": ("i2ckd", "i2ckd triplet")}
    rows = [row for row in result["rows"] if row["method"] in aliases.get(name, (name,))]
    if name == "none":
        return "Nothing beyond the student's own step."
    if not rows:
        return f"Not measured yet; `python benchmarks/step.py --only {name}` does."
    lines = [f"| {row['method']} | {row['time_ratio']:.2f} | {row['memory_ratio']:.2f} |" for row in rows]
    machine = result["machine"]
    return "\n".join(
        [
            "| method | step time / floor | peak memory / floor |",
            "|---|---|---|",
            *lines,
            "",
            "The floor is a step without distillation that runs the teacher all the same.",
            f"{result['note']}; {machine['cpu']}, threads: {machine['threads']}, float32, `{result['command']}`.",
        ]
    )


def configurations(name: str) -> list[str]:
    """The shipped configurations that use the method."""
    found = [f"- any, with `method={name}`: `segdistill distill configs/camvid/student_cpu.yaml method={name}`"]
    for path in sorted(ROOT.glob("configs/*/*.yaml")):
        spec = yaml.safe_load(path.read_text()).get("method")
        if spec and name in [entry["name"] for entry in resolve_methods(spec)]:
            found.append(f"- [`{path.relative_to(ROOT)}`](../../{path.relative_to(ROOT)})")
    return [] if name == "none" else ["## Configurations", "\n".join(found)]


def config_page() -> str:
    """The reference of the configuration, from the docstrings under its keys."""
    parts = [CONFIG_HEAD.strip()]
    for section, entries in config_entries().items():
        parts.append(f"## `{section}`" if " " not in section else f"## {section.capitalize()}")
        parts.append(ABOUT.get(section, ""))
        rows = []
        for entry in entries:
            default = f"`{entry.default}`" if entry.default else ""
            rows.append(f"| `{entry.key}` | {cell(entry.type)} | {cell(default)} | {cell(entry.text)} |")
        parts.append("\n".join(["| key | type | default | what it means |", "|---|---|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part) + "\n"


def cli_page() -> str:
    """The reference of the command line, from what `--help` says."""
    parts = [CLI_HEAD.strip()]
    for name, command in sorted(commands(get_command(app)).items()):
        usage = " ".join(["segdistill", name, *(shown(p) for p in positional(command)), "[OPTIONS]"])
        parts += [f"## `segdistill {name}`", " ".join(str(command.help).split()), f"```text\n{usage}\n```"]
        rows = [
            f"| `{cell(shown(parameter))}` | {cell(said(parameter))} |"
            for parameter in positional(command)
            if said(parameter)
        ]
        rows += [f"| {flags(option)} | {cell(said(option))} |" for option in optional(command)]
        parts += ["\n".join(["| | |", "|---|---|", *rows])] if rows else []
        parts += [command.epilog] if command.epilog else []
    return "\n\n".join(parts) + "\n"


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """All commands of a group by their names, those of its groups with the group's name before them."""
    found = {}
    for name, command in group.commands.items():
        if not command.hidden:
            nested = hasattr(command, "commands")
            found |= commands(command, f"{prefix}{name} ") if nested else {f"{prefix}{name}": command}
    return found


def shown(argument: Any) -> str:
    """An argument as usage lines show it."""
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def positional(command: Any) -> list[Any]:
    """The arguments of a command."""
    return [p for p in command.params if p.param_type_name == "argument"]


def optional(command: Any) -> list[Any]:
    """The options of a command."""
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]


def said(parameter: Any) -> str:
    """What `--help` says of a parameter."""
    return " ".join((parameter.help or "").split())


def flags(option: Any) -> str:
    """An option's names, and its default where it has one that says something."""
    default = option.default
    shown = "" if callable(default) or default in (None, False, True, (), []) else f" (default `{default}`)"
    return " ".join(f"`{flag}`" for flag in option.opts) + shown


def cell(text: str) -> str:
    """A text inside a table of Markdown."""
    return text.replace("|", "\\|")


def index() -> str:
    """The list of all methods."""
    rows = []
    for name in list_methods():
        module = importlib.import_module(method_class(name).__module__)
        rows.append(f"| [`{name}`]({name}.md) | {title(module)} |")
    tree = ["```{toctree}", ":hidden:", "", *list_methods(), "```"]
    return "\n".join(["# Methods", "", "| name | what it transfers |", "|---|---|", *rows, "", *tree]) + "\n"


if __name__ == "__main__":
    main()

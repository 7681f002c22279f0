"""A trained student's model card: the README.md with which Hugging Face's hub shows a model."""

import importlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segdistill._printing import visible
from segdistill.engine.config import read_config
from segdistill.engine.run_folder import CONFIG, ENVIRONMENT, STUDENT, SUMMARY, stored_json, write_text
from segdistill.engine.student import read_card, student_path

README = "README.md"
SCORES = {"miou": "mIoU", "macc": "mAcc", "pixel_accuracy": "pixel accuracy"}
"""Figures of an evaluation, and what they are called."""
LOCAL = ("root", "train", "val", "test", "images", "masks", "checkpoint", "weights", "unlabelled", "threads", "workers")
"""Settings that say where something is on one machine, or how fast it is: not part of the recipe."""


def write_model_card(run: str | Path, *, license: str | None = None, out: str | Path | None = None) -> Path:
    """Write a run's model card.

    Args:
        run: its folder.
        license: as the hub names it, such as `apache-2.0`; left out, the card has none.
        out: the file (default: README.md in the run's folder).

    Returns:
        The file's path.

    Raises:
        ValueError: as `model_card` does, or if the file cannot be written.
    """
    path = Path(run).expanduser() / README if out is None else Path(out)
    write_text(path, model_card(run, license=license))
    return path


def model_card(run: str | Path, *, license: str | None = None) -> str:
    """A run's model card: metadata in YAML, then what the student is, reaches and needs, in Markdown.

    Args:
        run: its folder.
        license: as the hub names it.

    Raises:
        ValueError: if huggingface_hub is missing, or the run has no student or no summary.
    """
    hub = import_hub()
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no run folder; a model card needs the run's figures beside its student")
    card, summary = read_card(student_path(folder)), stored_json(folder / SUMMARY)
    if "miou" not in summary:
        raise ValueError(f"no {SUMMARY} in {folder}; the run is not finished: segdistill train or distill … --resume")
    config = read_config(folder) if (folder / CONFIG).is_file() else {}
    scores = {"val": summary, **_evaluations(folder)}
    name = folder.resolve().name
    data = hub.ModelCardData(
        license=license,
        library_name="segdistill",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "knowledge-distillation", "segdistill", _network(card)],
        datasets=[_data(card)],
        metrics=["mean_iou"],
        model_name=name,
        eval_results=list(_results(hub, card, scores)),
    )
    body = "\n\n".join(
        [
            f"# {escape(name)}",
            _what(card, summary),
            "## Results",
            _figures(scores, stored_json(folder / ENVIRONMENT)),
            "## Classes",
            _classes(card, summary),
            "## How to use it",
            _usage(card, sorted(file.name for file in folder.glob("*.onnx"))),
            "## Training",
            _recipe(config, stored_json(folder / ENVIRONMENT)),
            "## Limits",
            _limits(card, scores),
        ]
    )
    text: str = f"---\n{data.to_yaml()}\n---\n\n{body}\n"
    return str(hub.ModelCard(text))


def import_hub() -> Any:
    """Huggingface_hub.

    Raises:
        ValueError: if it is missing.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise ValueError("this needs huggingface_hub; pip install 'segdistill[hub]'") from None


def escape(text: object) -> str:
    r"""A text as Markdown that shows it as it is, on one line: nothing in it is a link, markup or HTML.

    >>> escape("a|b <script> [x](y)")
    'a\\|b &lt;script&gt; \\[x\\](y)'
    """
    line = " ".join(visible(str(text)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", line)


def code(text: str, language: str = "") -> str:
    """A block of code in Markdown, whatever marks are in the text.

    Args:
        text: of the code.
        language: of it.
    """
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{visible(text).rstrip()}\n{marks}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The run's evaluations by split; that of val is the summary's."""
    found = {file.stem.removeprefix("eval_"): stored_json(file) for file in sorted(folder.glob("eval_*.json"))}
    return {split: figures for split, figures in found.items() if split != "val" and "miou" in figures}


def _network(card: Mapping[str, Any]) -> str:
    return str((card.get("network") or {}).get("name", "a network of one's own"))


def _data(card: Mapping[str, Any]) -> str:
    return str(card.get("data") or "unknown")


def _results(hub: Any, card: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> Iterable[Any]:
    data = _data(card)
    for split, figures in scores.items():
        for key, name in SCORES.items():
            if figures.get(key) is not None:
                kind = "mean_iou" if key == "miou" else key
                yield hub.EvalResult(
                    task_type="image-segmentation",
                    task_name="Semantic segmentation",
                    dataset_type=data,
                    dataset_name=data,
                    dataset_split=split,
                    metric_type=kind,
                    metric_name=name,
                    metric_value=round(100 * figures[key], 4),
                )


def _what(card: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    methods = [name for name in card.get("method") or [] if name != "none"]
    how = f"distilled with {', '.join(map(escape, methods))}" if methods else "trained without a teacher"
    flops = summary.get("flops")
    work = "" if not flops else f", {flops / 1e9:.2f} GFLOPs for {'×'.join(map(str, summary['flops_size']))} pixels"
    return (
        f"A network for semantic segmentation, {escape(_network(card))}, {how} on {escape(_data(card))}: "
        f"{len(card['classes'])} classes, {summary.get('params', 0) / 1e6:.3f} million parameters{work}. Trained with "
        f"segdistill {escape(card.get('segdistill', ''))}."
    )


def _figures(scores: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    header = ["split", *(f"{name}, %" for name in SCORES.values()), "images", "seed"]
    seed = str(scores["val"].get("seed", "–"))
    rows = [
        [escape(split), *(_percent(figures.get(key)) for key in SCORES), str(figures.get("images", "–")), seed]
        for split, figures in scores.items()
    ]
    note = "One run of one seed; the student is the best on val among those that were validated."
    machine = ", ".join(facts.get("gpus") or [facts["cpu"]] if facts.get("cpu") else [])
    versions = facts.get("versions") or {}
    where = f" Machine: {escape(machine)}, torch {escape(versions.get('torch', '?'))}." if machine else ""
    command = facts.get("command")
    made = f"\n\n{code(_command(command), 'bash')}" if command else ""
    return f"{_table(header, rows)}\n\n{note}{where}{made}"


def _command(command: str) -> str:
    """A command as it was given, by the name of the program alone."""
    program, _, arguments = command.partition(" ")
    named = "segdistill" if Path(program).stem in ("cli", "__main__", "segdistill") else shlex.quote(program)
    return f"{named} {arguments}".strip()


def _classes(card: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    iou = summary.get("iou") or {}
    rows = [
        [str(number), escape(name), "#{:02x}{:02x}{:02x}".format(*colour), _percent(iou.get(name))]
        for number, (name, colour) in enumerate(zip(card["classes"], card["palette"], strict=True))
    ]
    return _table(["number", "class", "colour", "IoU on val, %"], rows)


def _usage(card: Mapping[str, Any], onnx: Sequence[str]) -> str:
    size = card.get("size")
    seen = f", resized to {size[0]}×{size[1]} as in training" if size else ""
    name = f"{_network(card)}" if card.get("network") else None
    load = f'load_student("{STUDENT}")' if name else f'load_student("{STUDENT}", network)  # an instance of yours'
    python = (
        "import torch\nfrom segdistill import load_student\n\n"
        f"network = {load}\nimages = torch.rand(1, 3, 512, 1024)  # RGB in 0…1{seen}\n"
        "with torch.inference_mode():\n    ids = network(images).argmax(1)  # (N,H,W), numbers as above"
    )
    parts = ["With PyTorch; the network normalises by itself:", code(python, "python")]
    if onnx:
        runtime = (
            f"from segdistill.runtime import Predictor\n\n"
            f'prediction = Predictor({onnx[0]!r})("street.jpg")\nprediction.blend().save("street_classes.png")'
        )
        parts += ["Without PyTorch, by ONNX Runtime:", code(runtime, "python")]
    parts += ["From the command line:", code(f"segdistill predict {STUDENT} images/ --out predictions", "bash")]
    return "\n\n".join(parts)


def _recipe(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The settings of the run, without where its files were."""
    sections = ("data", "student", "train", "method")
    told = {section: _portable(value) for section, value in config.items() if section in sections}
    teacher = config.get("teacher")
    entries = teacher if isinstance(teacher, list) else [teacher]
    if any(isinstance(entry, Mapping) and entry.get("name") for entry in entries):
        told["teacher"] = _portable(teacher)
    if not told:
        return "The run's configuration was not kept."
    weights = facts.get("teacher")
    taught = f"\n\nThe teacher's weights have the digest `{escape(str(weights)[:16])}`." if weights else ""
    return f"{code(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), 'yaml')}{taught}"


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _portable(inner) for key, inner in value.items() if key not in LOCAL and inner is not None}
        return {key: inner for key, inner in kept.items() if not isinstance(inner, str) or "/" not in inner}
    return [_portable(inner) for inner in value] if isinstance(value, list) else value


def _limits(card: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    hard = sorted((value, name) for name, value in (scores["val"].get("iou") or {}).items() if value is not None)[:3]
    weakest = ", ".join(f"{escape(name)} ({_percent(value)} %)" for value, name in hard)
    lines = [
        f"It knows the {len(card['classes'])} classes above and gives every pixel one of them, whatever is there.",
        f"It was trained and measured on {escape(_data(card))} alone; on images of another kind it was not measured.",
        "The figures are of one seed; another one gives others.",
        *([f"Weakest on val: {weakest}."] if weakest else []),
        "The data's own licence may restrict what the weights may be used for.",
    ]
    return "\n".join(f"- {line}" for line in lines)

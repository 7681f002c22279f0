"""What SSTKD's texture costs: the contourlet transform and the quantised statistics against a network's step.

`python benchmarks/texture.py` writes `results/texture.json`. The maps are those of a PSPNet-R101 teacher at 512×1024:
256 + 512 channels at stride 8; the step is forward and backward of PSPNet-R18 on one image of that size.

`python benchmarks/texture.py --descent` writes `results/texture_descent.json` instead: what the two terms do, each by
itself, on built-in data and on CamVid (`$SEGDISTILL_CAMVID`; the extra `weights`); about 15 minutes of one core.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from _descent import BATCH, RATE, SEEDS, STEPS, camvid, streets
from _measure import RESULTS, Row, Work, compare, forward_backward, image_step, machine, report
from _texture_terms import REGIONS, statistical, structural
from segdistill.methods.sstkd import SSTKD
from segdistill.models import build_model
from segdistill.texture import contourlet, contourlet_energy

CHANNELS, SIZE, STUDENT = 768, (64, 128), 192


def main() -> None:
    """Measure all rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--descent", action="store_true", help="what the terms do, instead of what they cost")
    parser.add_argument("--data", nargs="+", choices=["streets", "camvid"], default=["streets", "camvid"])
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.descent:
        return descent(arguments.data)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = f"python {shlex.join(sys.argv)}"
    report("texture" if device == "cpu" else "texture_gpu", list(rows(device, arguments.repeats)), command=command)


def descent(data: list[str]) -> None:
    """Measure what both terms do by themselves, print the means, and write all of it beside what is there already.

    Args:
        data: which set-ups.
    """
    how = {"command": f"python {shlex.join(sys.argv)}", "seeds": SEEDS, "steps": STEPS, "rate": RATE}
    how |= {"images_per_step": BATCH, "regions_per_image": REGIONS}
    for name in data:
        found = {"streets": streets, "camvid": camvid}[name](SEEDS)
        parts: dict[str, Any] = {**how, "machine": machine()}
        for part, measure, error in (
            ("statistical", statistical, "quantile_error"),
            ("structural", structural, "edges"),
        ):
            parts[part] = []
            for row in measure(found, SEEDS):
                parts[part].append(row)
                for kind in ("linear", "small"):
                    before, after = ({k: row[kind][when][k]["mean"] for k in ("loss", error)} for when in WHEN)
                    changes = ", ".join(f"{k} {before[k]:.4f} -> {after[k]:.4f}" for k in before)
                    print(f"{name:8}{part:12}{row['form']:52}{kind:8}{changes}", flush=True)
        path = RESULTS / "texture_descent.json"
        written = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(written | {name: parts}, separators=(",", ":")) + "\n")


WHEN = ("before", "after")


def rows(device: str, repeats: int) -> Iterator[Row]:
    """All comparisons, one after the other."""
    x = torch.randn(1, CHANNELS, *SIZE, device=device, requires_grad=True)
    many = {"repeats": max(repeats, 5)}
    yield compare(
        "contourlet / copy of its input",
        lambda: contourlet(x.detach()),
        lambda: x.detach().clone(),
        memory_target=3.0,
        note="forward, (4,3); the target is on memory",
        **many,
    )
    yield compare(
        "energy / copy of its input",
        forward_backward(contourlet_energy, x),
        lambda: x.detach().clone(),
        note="forward and backward",
        **many,
    )
    yield compare(
        "contourlet / channel by channel",
        lambda: contourlet(x.detach()),
        lambda: [contourlet(x.detach()[:, channel : channel + 1]) for channel in range(CHANNELS)],
        time_target=0.2,
        note="forward; the same code, one channel at a time",
        repeats=repeats,
    )
    step = image_step(build_model("pspnet_resnet18", num_classes=19).to(device), 19, (512, 1024))
    share = {"time_target": 0.08, "repeats": repeats}
    yield compare("contourlet / PSPNet-R18", lambda: contourlet(x.detach()), step, note="forward", **share)
    yield compare(
        "CDM / PSPNet-R18",
        forward_backward(contourlet_energy, x),
        step,
        note="contourlet, forward and backward",
        **share,
    )
    yield compare("DTIEM / PSPNet-R18", statistics(device), step, note="64 regions, forward and backward", **share)


def statistics(device: str) -> Work:
    """The statistical term with what the student's side needs of projection, forward and backward."""
    taps: list[dict[str, Tensor]] = [
        {"low1": torch.randn(1, a, 128, 256), "low2": torch.randn(1, b, *SIZE)} for a, b in ((64, 128), (256, 512))
    ]
    method = SSTKD(structural_weight=0.0, response_weight=0.0, holistic_weight=0.0)
    method.adapt(*taps)
    method.to(device)
    student = torch.randn(1, STUDENT, *SIZE, device=device, requires_grad=True)
    teacher = torch.randn(1, CHANNELS, *SIZE, device=device)
    return forward_backward(lambda s, t: method.statistical_terms(s, t)["statistical"], student, teacher)


if __name__ == "__main__":
    main()

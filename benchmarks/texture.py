"""What SSTKD's texture costs: the contourlet transform and the quantised statistics against a network's step.

`python benchmarks/texture.py` writes `results/texture.json`. The maps are those of a PSPNet-R101 teacher at 512×1024:
256 + 512 channels at stride 8; the step is forward and backward of PSPNet-R18 on one image of that size.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from _measure import Row, Work, compare, forward_backward, image_step, report
from segdistill.methods.sstkd import SSTKD
from segdistill.models import build_model
from segdistill.texture import contourlet, contourlet_energy

CHANNELS, SIZE, STUDENT = 768, (64, 128), 192


def main() -> None:
    """Measure all rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = f"python {shlex.join(sys.argv)}"
    report("texture" if device == "cpu" else "texture_gpu", list(rows(device, arguments.repeats)), command=command)


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

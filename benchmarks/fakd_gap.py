"""How far FAKD's bounds lie above the mean loss over drawn features.

    python benchmarks/fakd_gap.py [--seeds N] [--draws N]

Features, classifiers, covariances and teachers are random; the mean of the plain loss over features drawn around them
is held against the bound that `augmented_channel_kl` and `augmented_pixel_kl` compute without a draw.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from _measure import RESULTS, machine
from segdistill.losses import augmented_channel_kl, augmented_pixel_kl, channel_kl, pixel_kl
from segdistill.methods.fakd import logit_variance

CLASSES, CHANNELS, MAP = 5, 8, (6, 8)
STRENGTHS = (1e-3, 1e-2, 0.1, 0.3, 1.0)
PARTS = 100


def once(seed: int, strength: float, draws: int) -> dict[str, tuple[float, float, float, float]]:
    """Plain loss, mean over draws, its standard error, and bound of both forms, for one random case in float64.

    Args:
        seed: of the case; the draws are the same numbers for every strength.
        strength: λ.
        draws: how many; each is taken with both signs.
    """
    torch.manual_seed(seed)
    features, noise = (torch.randn(n, CHANNELS, *MAP, dtype=torch.float64) for n in (1, draws))
    weight = torch.randn(CLASSES, CHANNELS, dtype=torch.float64) / CHANNELS**0.5
    covariance = torch.rand(CLASSES, CHANNELS, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (1, *MAP))
    teacher = torch.randn(1, CLASSES, *MAP, dtype=torch.float64)

    def logits(x: Tensor) -> Tensor:
        return torch.einsum("ca,nahw->nchw", weight, x)

    moved = (strength * covariance[labels]).sqrt().movedim(3, 1) * noise
    drawn = [logits(features + sign * moved) for sign in (1, -1)]
    student = logits(features)
    variance = logit_variance(labels, weight=weight, covariance=covariance, scale=strength)
    forms: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
        "channel": (channel_kl, augmented_channel_kl(student, teacher, variance)),
        "pixel": (
            pixel_kl,
            augmented_pixel_kl(student, teacher, labels, weight=weight, covariance=covariance, scale=strength),
        ),
    }
    found = {}
    for name, (plain, bound) in forms.items():
        # Both losses are means over images: a draw is an image here, and the spread of a hundredth of them is seen.
        parts = [torch.cat(pair) for pair in zip(*(side.chunk(PARTS) for side in drawn), strict=True)]
        values = torch.stack([plain(part, teacher.expand_as(part)) for part in parts])
        error = values.std().item() / math.sqrt(PARTS)
        found[name] = (plain(student, teacher).item(), values.mean().item(), error, bound.item())
    return found


def main() -> None:
    """Measure, print, write `results/fakd_gap.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for strength in STRENGTHS:
        cases = [once(seed, strength, arguments.draws) for seed in range(arguments.seeds)]
        for form in ("channel", "pixel"):
            plain, mean, error, bound = ([case[form][i] for case in cases] for i in range(4))
            row = {
                "form": form,
                "strength": strength,
                "plain": statistics.mean(plain),
                "mean": statistics.mean(mean),
                "standard_error": math.sqrt(sum(e**2 for e in error)) / len(error),
                "bound": statistics.mean(bound),
                "gap": statistics.mean(b - m for b, m in zip(bound, mean, strict=True)),
                "factor": statistics.mean((b - p) / (m - p) for b, m, p in zip(bound, mean, plain, strict=True)),
            }
            rows.append(row)
            print("  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    path = RESULTS / "fakd_gap.json"
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "case": f"{CLASSES} classes, {CHANNELS} channels, a map of {MAP[0]}×{MAP[1]}, diagonal covariances, τ = 1",
        "seeds": list(range(arguments.seeds)),
        "draws": f"{arguments.draws}, each with both signs",
    }
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    print(f"-> {path}")


if __name__ == "__main__":
    main()

"""How much memory the prediction of one large image takes, through windows, from the file to the files.

    python benchmarks/prediction_memory.py [--side 10000] [--windows 512 1024]

writes `results/prediction_memory.json`: the largest resident memory of a new process that reads a JPEG, segments it
and writes class numbers, colours and blend, with windows of several sizes; beside it an image with a hundredth of the
pixels, and what the logits alone would take. The network is one convolution to 19 classes, so that what is measured is
not the network.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from _measure import RESULTS, machine
from segdistill import Protocol, predict

CLASSES = 19
PALETTE = [(13 * i, 255 - 13 * i, 7 * i) for i in range(CLASSES)]


def segment(image: str, out: str, window: int) -> float:
    """Segment one file in this process; its largest resident memory so far, in GB."""
    torch.manual_seed(0)
    protocol = Protocol(window=(window, window))
    predict(nn.Conv2d(3, CLASSES, 3, padding=1), [image], out, palette=PALETTE, protocol=protocol)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(side: int, window: int) -> dict[str, float]:
    """The same in a new process, of an image of side × side pixels."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/large.jpg"
        tile = np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8)
        whole = np.tile(tile, (-(-side // 250), -(-side // 250), 1))[:side, :side]
        Image.fromarray(whole).save(path)
        arguments = [sys.executable, __file__, "--windows", str(window), "--segment", path, f"{folder}/out"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        ids = np.asarray(Image.open(Path(folder) / "out/ids/large.png"))
        assert ids.shape == (side, side)
    logits = CLASSES * side * side * 4 / 1e9
    return {"side": side, "window": window, "peak_gb": round(float(done.stdout), 3), "logits_gb": round(logits, 3)}


def main() -> None:
    """Measure, print and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--windows", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--segment", nargs=2, metavar=("IMAGE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    if arguments.segment:
        print(segment(*arguments.segment, arguments.windows[0]))
        return
    rows = []
    sides = [(arguments.side // 10, arguments.windows[0]), *((arguments.side, window) for window in arguments.windows)]
    for side, window in sides:
        rows.append(measure(side, window))
        found, logits = rows[-1]["peak_gb"], rows[-1]["logits_gb"]
        print(f"{side}×{side} through {window}×{window}: {found:.2f} GB; the logits alone {logits:.2f} GB")
    facts = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "torch_threads": torch.get_num_threads()}
    path = RESULTS / "prediction_memory.json"
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    print(f"-> {path}")


if __name__ == "__main__":
    main()

"""The memory of a process that holds one network and nothing else: run as a program, it prints its peak.

`python -m segdistill.measure.footprint student.safetensors 512 1024 1` loads the file, segments one image of 512×1024
three times on one thread, and prints the bytes that the process held at most. Of an ONNX file, PyTorch is not loaded.
"""

import subprocess
import sys
from pathlib import Path

from segdistill._types import Size

PASSES = 3


def peak_rss(file: Path, size: Size, threads: int) -> int | None:
    """Bytes that a process of its own holds at most while a network works; None if it cannot be run or nobody tells.

    Args:
        file: a student's, or an ONNX file.
        size: (H,W) of the image.
        threads: of the CPU.
    """
    command = [sys.executable, "-m", __name__, str(file), *map(str, (*size, threads))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    last = ended.stdout.strip().splitlines()[-1:] if ended.returncode == 0 else []
    return int(last[0]) if last and last[0].isdigit() else None


def work(file: str, size: Size, threads: int) -> None:
    """Load a network and run it."""
    if file.endswith(".onnx"):
        import numpy as np

        from segdistill.runtime import Predictor

        predictor = Predictor(file, threads=threads)
        image = np.zeros((1, 3, *(predictor.size or size)), np.uint8)
        for _ in range(PASSES):
            predictor.run(image)
        return
    import torch

    from segdistill.engine.student import load_student

    torch.set_num_threads(threads)
    network = load_student(file)
    with torch.inference_mode():
        for _ in range(PASSES):
            network(torch.zeros(1, 3, *size))


def own_peak() -> int | None:
    """Bytes that this process has held at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage tells begins before this program did
        peak = next(
            (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")), None
        )
        return None if peak is None else 1024 * int(peak.split()[1])
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    name, height, width, count = sys.argv[1:]
    work(name, (int(height), int(width)), int(count))
    print(own_peak())

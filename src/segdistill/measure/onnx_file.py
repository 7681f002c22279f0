"""An ONNX file of a student in ONNX Runtime, without PyTorch: input `image`, outputs `ids` or `logits` or both."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill._printing import first_line
from segdistill._types import Size

METADATA = "segdistill"
"""The key under which the file says what it is, as JSON."""


class OnnxSession:
    """A file, ready to run.

    Args:
        path: of the file.
        threads: of the CPU.

    Attributes:
        classes: names, as the file has them.
        size: (H,W) of the one image that it takes; None: any.
        multiple: of which sides have to be where any size goes.
        align_corners: whether its logits are resized so.
        whole: whether it takes uint8.

    Raises:
        ValueError: if ONNX Runtime is missing, or the file cannot be read or is no student's.
    """

    def __init__(self, path: Path, threads: int):
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"{path} needs onnxruntime; pip install 'segdistill[export]'") from None
        if not path.is_file():
            raise ValueError(f"no file at {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            told = json.loads(self.session.get_modelmeta().custom_metadata_map.get(METADATA, "null"))
        except Exception as error:
            raise ValueError(f"{path} is no file that ONNX Runtime reads: {first_line(error)[:150]}") from error
        self.outputs = [output.name for output in self.session.get_outputs()]
        inputs = [value.name for value in self.session.get_inputs()]
        if not isinstance(told, dict) or inputs != ["image"] or not {"ids", "logits"} & set(self.outputs):
            raise ValueError(f"{path} is not a student's ONNX file: `segdistill export` writes those")
        self.classes = [str(name) for name in told.get("classes", [])]
        self.align_corners = bool(told.get("align_corners", False))
        self.multiple = int(told.get("multiple", 1))
        self.whole = (told.get("input") or {}).get("dtype") == "uint8"
        size = (told.get("input") or {}).get("size")
        self.size: Size | None = None if size is None else (int(size[0]), int(size[1]))

    def takes(self, size: Size) -> Size:
        """(H,W) of what the file takes of an image: its own size, or the nearest multiples of what it wants.

        Args:
            size: (H,W) of the image.
        """
        height, width = (max(1, round(side / self.multiple)) * self.multiple for side in size)
        return self.size or (height, width)

    def blank(self, size: Size) -> NDArray[Any]:
        """A black image (1,3,H,W) in the file's type.

        Args:
            size: (H,W) of the image that it stands for.
        """
        return np.zeros((1, 3, *self.takes(size)), np.uint8 if self.whole else np.float32)

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """Logits (1,C,h,w) where the file gives them, else class numbers (1,H,W).

        Args:
            image: (1,3,H,W), as `blank`.
        """
        wanted = "logits" if "logits" in self.outputs else "ids"
        result: NDArray[Any] = self.session.run([wanted], {"image": image})[0]
        return result

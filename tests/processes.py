"""What tests of several processes share: two processes, and a step that shows whether they are one."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

CLASSES = ["sky", "road", "tree", "car", "sign"]


def in_processes(function: Callable[..., None], *arguments: Any, joined: bool = True) -> list[int | None]:
    """Run a function in two processes, as under torchrun; their exit codes.

    Args:
        function: what each of them runs.
        *arguments: of the function.
        joined: whether they are joined already; else the function may join them once.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # any free port, kept
    # Fresh interpreters would spend seconds on imports; copies of this one cannot train once it has compiled a network.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segdistill.engine.loop", "segdistill.texture", "pytest"])
    workers = [
        context.Process(target=_join, args=(rank, str(store.port), joined, function, *arguments)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    return [worker.exitcode for worker in workers]


def _join(rank: int, port: str, joined: bool, function: Callable[..., None], *arguments: Any) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # as under torchrun: the port is open already
    torch.set_num_threads(1)  # a forked process has no thread pool
    if joined:  # once for all runs: a store that is opened anew at the same port may meet the one before
        torch.distributed.init_process_group("gloo")
    function(*arguments)
    if joined:
        torch.distributed.destroy_process_group()


class Plain(nn.Module):
    """A small network with all taps, at strides of 2 and 4; without batch norm, so that a batch can be cut up.

    Args:
        width: channels.
        classes: C.
        seed: of its weights.
        norm: whether it has batch norm nevertheless.
    """

    def __init__(self, width: int = 8, classes: int = len(CLASSES), seed: int = 3, norm: bool = False):
        super().__init__()
        torch.manual_seed(seed)
        self.low1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.low2 = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width) if norm else nn.Tanh())
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.body(self.low2(self.low1(x))))
        return {"out": nn.functional.interpolate(logits, x.shape[-2:], mode="bilinear")}


TAPS = {"low1": "low1", "low2": "low2", "features": "head:input", "logits": "head"}


def uneven_folder(root: Path, images: int = 8, size: int = 64) -> str:
    """A data set whose images have very different shares of ignored pixels, the first one nothing else."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 3)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            mask = random.integers(0, len(CLASSES), (size // 8, size // 8)).repeat(8, 0).repeat(8, 1)
            image = 40 * mask[..., None] + random.integers(0, 60, (size, size, 3))
            mask[: size - i * size // images] = 255
            Image.fromarray(image.astype(np.uint8)).save(root / f"images/{split}/{i}.png")
            Image.fromarray(mask.astype(np.uint8)).save(root / f"masks/{split}/{i}.png")
    return str(root)


def plain_config(root: str, method: Any, **train: Any) -> dict[str, Any]:
    """A run of `Plain` networks whose weights stay as they are, so that each step's gradient can be compared."""
    data = {"name": "folder", "root": root, "classes": CLASSES, "batch_size": 8, "workers": 0, "scale": [1, 1]}
    steps = {"steps": 3, "lr": 1e-12, "precision": "fp32", "log_every": 1, "save_every": 0, "threads": 1}
    network = {"taps": TAPS, "classifier": "head"}
    return {"data": data, "student": network, "teacher": network, "method": method, "train": {**steps, **train}}


class Gradients:
    """The gradient of each step of each optimiser, as one vector, while it is open."""

    def __enter__(self) -> list[Tensor]:
        self.seen: list[Tensor] = []
        self.handle = register_optimizer_step_pre_hook(self._keep)
        return self.seen

    def _keep(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.seen.append(torch.cat([p.grad.detach().flatten().double() for p in parameters]))

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

"""How the processes of a run find each other, also where torchrun has started them anew."""

import time
import uuid
from typing import Any

import torch.distributed as dist

PATIENCE = 600.0
"""Seconds that a process waits for the others to start."""
PAUSE = 0.05
"""Seconds between two looks."""


def join(backend: str, *, patience: float = PATIENCE) -> None:
    """Join the other processes, which torchrun or another launcher has told of each other.

    Args:
        backend: `nccl` or `gloo`.
        patience: seconds to wait for the others.

    Raises:
        ConnectionError: if they do not come.
    """
    store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    meeting = agree(store, rank, world, patience)
    own = dist.PrefixStore(meeting, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=world)


def agree(store: Any, rank: int, world: int, patience: float = PATIENCE) -> str:
    """A name that the processes that are here now agree on, and those of an earlier attempt did not know.

    torchrun keeps its store when it starts the processes of a machine anew. In it they would find where those before
    them could be reached, and wait for these. How often they were started is no such name: machines count differently.
    So the first process answers each of the others by what only that one can have said just now.

    Args:
        store: shared by all processes.
        rank: of this process.
        world: number of processes.
        patience: seconds to wait for the others.

    Raises:
        ConnectionError: if they do not come.
    """
    own, began, missing = uuid.uuid4().hex, time.monotonic(), set(range(1, world)) if rank == 0 else {0}
    meeting = own
    if rank:
        store.set(f"hello/{rank}", own)
    while missing:
        if time.monotonic() - began > patience:
            whom = f"{'the first one' if rank else 'others'} ({', '.join(map(str, sorted(missing)))})"
            raise ConnectionError(
                f"process {rank} of {world} has waited {patience:.0f} s for {whom}, which did not come; start "
                f"all {world} with one address and port"
            )
        if rank:
            heard, _, meeting = _read(store, f"welcome/{rank}").partition(" ")
            if heard == own:
                store.set(f"{meeting}/{rank}", "here")
                return meeting
        else:
            missing = {other for other in missing if not _read(store, f"{own}/{other}")}
            for other in missing:
                if heard := _read(store, f"hello/{other}"):
                    store.set(f"welcome/{other}", f"{heard} {own}")
        if missing:
            time.sleep(PAUSE)
    return meeting


def _read(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""

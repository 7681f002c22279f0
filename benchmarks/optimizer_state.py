"""What train.shard=optimizer saves: bytes of the optimiser's state that each of several processes keeps.

python benchmarks/optimizer_state.py                    # computed for 2, 4, 8 processes, measured with 2
python benchmarks/optimizer_state.py --json FILE        # and written down
"""

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdistill.engine.joining import join
from segdistill.engine.optim import build_optimizer
from segdistill.engine.sharding import Shards, share_out
from segdistill.engine.train_config import TrainConfig
from segdistill.models import build_model

NETWORKS = {"PSPNet-R18": "pspnet_resnet18", "SegFormer-B5": "hf:segformer-b5"}
OPTIMIZERS = ("sgd", "adamw")


def stepped(name: str, optimizer: str, *, shard: bool) -> int:
    """Bytes of the state of an optimiser after a step."""
    network = build_model(name, num_classes=19)
    built = build_optimizer(network.parameters(), TrainConfig(optimizer=optimizer))
    shards = Shards(built) if shard else None
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built.step()
    if shards is not None:
        return shards.state_bytes()
    states = (value for state in built.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in states if isinstance(value, Tensor))


def measure(rank: int, port: str, queue: Any) -> None:
    """What one of two processes keeps."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the port is open already
    torch.set_num_threads(1)
    join("gloo")
    found = {(label, kind): stepped(name, kind, shard=True) for label, name in NETWORKS.items() for kind in OPTIMIZERS}
    queue.put((rank, found))
    torch.distributed.destroy_process_group()


def main() -> None:
    """Print a table; write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=measure, args=(rank, str(store.port), queue)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    measured = dict(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    rows = []
    for label, name in NETWORKS.items():
        sizes = [p.numel() for p in build_model(name, num_classes=19).parameters()]
        for kind in OPTIMIZERS:
            each = [
                4 * size if kind == "sgd" else 8 * size + 4 for size in sizes
            ]  # momentum; two averages and the step
            row: dict[str, Any] = {"network": label, "optimizer": kind, "parameters": sum(sizes)}
            row["unsharded"], row["unsharded_measured"] = sum(each), stepped(name, kind, shard=False)
            for world in (2, 4, 8):
                owners = share_out(sizes, world)
                held = [sum(e for e, o in zip(each, owners, strict=True) if o == rank) for rank in range(world)]
                row[f"most_of_{world}"], row[f"least_of_{world}"] = max(held), min(held)
            row["measured_of_2"] = [measured[rank][label, kind] for rank in (0, 1)]
            rows.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

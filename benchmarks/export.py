"""Which networks can be exported to ONNX, and how far the files are from them, of one size and of any.

    python benchmarks/export.py [--only WORD …]

writes `results/export.json`. Weights are random, the runtime is ONNX Runtime on one thread.
"""

import argparse
import json
import sys
import time
from typing import Any

import torch

from _measure import RESULTS, machine
from segdistill import build_model
from segdistill.deploy.formats import open_onnx
from segdistill.deploy.graph import Interface, to_onnx
from segdistill.deploy.samples import Samples
from segdistill.deploy.verify import example_batches, verify

SIZE = (96, 128)
CLASSES = ["a", "b", "c", "d", "e"]
SEGFORMER = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16,
             "num_attention_heads": [1, 1, 1, 1]}  # fmt: skip
STAGES = ["stage1", "stage2", "stage3", "stage4"]
CONVNEXT = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "out_features": STAGES}
SWIN = {"model_type": "swin", "depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 1, 1], "window_size": 4,
        "out_features": STAGES}  # fmt: skip
MASK2FORMER = {"backbone_config": SWIN, "num_queries": 8, "feature_size": 32, "mask_feature_size": 32,
               "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
               "encoder_feedforward_dim": 16, "dim_feedforward": 16}  # fmt: skip
DPT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64,
       "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}  # fmt: skip
NETWORKS: dict[str, dict[str, object]] = {
    "pspnet_resnet18_quarter": {},
    "deeplabv3_resnet18_quarter": {},
    "deeplabv3plus_resnet18_quarter": {},
    "deeplabv3plus_tf_efficientnet_lite0": {},
    "deeplabv3_efficientnet_b1": {},
    "fcn_resnet18_quarter": {},
    "fcn_convnext_atto": {"output_stride": 32},
    "isanet_resnet18_quarter": {},
    "pspnet_mobilenetv2_plus": {},
    "lightnet_mobilenetv2_plus": {},
    "hrnet_w18_small": {},
    "espnet": {"q": 2},
    "espnet_c": {"q": 2},
    **{f"smp:{decoder}:resnet18": {} for decoder in (
        "Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "PAN", "UPerNet",
        "Segformer",
    )},
    "smp:DPT:tu-vit_tiny_patch16_224": {"arguments": {"decoder_fusion_channels": 16}},
    "smp:Unet:efficientnet-b0": {},
    "smp:Unet:mit_b0": {},
    "smp:Unet:timm-mobilenetv3_small_100": {},
    "hf:segformer-b0": {"config": SEGFORMER},
    "hf:upernet-convnext-tiny": {"config": {"backbone_config": CONVNEXT, "hidden_size": 16}},
    "hf:upernet-swin-tiny": {"config": {"backbone_config": SWIN, "hidden_size": 16}},
    "hf:mask2former-swin-tiny": {"config": MASK2FORMER},
    "hf:dpt-large": {"config": DPT},
    "torchvision:deeplabv3_mobilenet_v3_large": {},
    "torchvision:lraspp_mobilenet_v3_large": {},
    "torchvision:fcn_resnet50": {},
}  # fmt: skip


def row(name: str, dynamic: bool) -> dict[str, Any]:
    """How far a file is from its network, and how long the exporter took; or why there is none."""
    torch.manual_seed(0)
    network = build_model(name, num_classes=len(CLASSES), **NETWORKS[name]).eval().requires_grad_(False)
    interface = Interface(SIZE, dynamic)
    began = time.perf_counter()
    try:
        graph = to_onnx(network, interface)
        took = time.perf_counter() - began
        batches = example_batches(Samples(None, "random images"), interface, 1)
        check = verify(network, open_onnx(graph, threads=1), interface, batches, CLASSES)
    except ValueError as error:
        return {"network": name, "dynamic": dynamic, "refused": str(error)}
    return {"network": name, "dynamic": dynamic, **check.figures(), "export_s": round(took, 1)}


def shown(figures: dict[str, Any]) -> str:
    """A cell of the table."""
    return "refused" if "refused" in figures else f"{figures['max_difference']:.0e}"


def main() -> None:
    """Measure, print and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""])
    wanted = parser.parse_args().only
    torch.set_num_threads(1)
    rows = []
    print("| network | one size | any size |\n|---|---|---|")
    for name in NETWORKS:
        if any(word in name for word in wanted):
            pair = [row(name, dynamic) for dynamic in (False, True)]
            print(f"| `{name}` | {shown(pair[0])} | {shown(pair[1])} |", flush=True)
            rows += pair
    if wanted == [""]:
        facts = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "size": list(SIZE)}
        path = RESULTS / "export.json"
        path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
        print(f"-> {path}")


if __name__ == "__main__":
    main()

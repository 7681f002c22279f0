"""What `segdistill benchmark` prints."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from segdistill._printing import number_of
from segdistill.show import percent


def benchmark(console: Console, result: Mapping[str, Any]) -> None:
    """Print what networks cost, and what a method adds to them."""
    names = ("size", "M params", "GFLOPs", "MiB peak", "ms", "ms p95")
    heads = [Column("mode", no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in names)]
    table = Table(Column("network", overflow="fold"), *heads, title="benchmark", box=SIMPLE_HEAD, collapse_padding=True)
    for row in result["rows"]:
        timed = [f"{row[key]:.1f}" if row.get(key) is not None else "–" for key in ("peak_mib", "ms", "ms_p95")]
        counted = ["–", "–"] if row["params"] is None else [f"{row['params'] / 1e6:.3f}", f"{row['flops'] / 1e9:.2f}"]
        table.add_row(row["network"], row["mode"], "×".join(map(str, row["size"])), *counted, *timed)
    console.print(table)
    facts = result["environment"]
    machine = ", ".join(facts["gpus"]) if result["device"].startswith("cuda") else facts["cpu"]
    console.print(
        f"one image, float32, {result['repeats']} passes on {machine}, {facts['threads']} threads; a multiply-add is "
        "two FLOPs; peak: memory beyond weights and image"
    )
    if "costs" in result:
        _costs(console, result)


def formats(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `benchmark_formats` returned."""
    names = ("MB", f"{result['split']} mIoU %", "agree %", "ms", "ms p95", "RSS MB")
    heads = [Column(name, justify="right", no_wrap=True) for name in names]
    table = Table(
        "network",
        Column("format", overflow="fold", min_width=17),
        *heads,
        title="formats",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    for row in result["rows"]:
        rss = "–" if row["peak_rss"] is None else f"{row['peak_rss'] / 1e6:.0f}"
        timed = (f"{row['ms']:.2f}", f"{row['ms_p95']:.2f}", rss)
        scored = (percent(row["miou"]), percent(row["agreement"]))
        table.add_row(row["role"], row["format"], f"{row['bytes'] / 1e6:.2f}", *scored, *timed)
    console.print(table)
    size, facts = "×".join(map(str, result["size"])), result["environment"]
    console.print(
        f"{number_of(result['images'], 'image')} of {result['split']} scored; one image of {size} timed, "
        f"{result['repeats']} passes on {facts['cpu']}, {result['threads']} threads; RSS: peak of a process that runs "
        "this file alone; agreement: pixels of the class that the student in PyTorch gives",
        highlight=False,
    )


def _costs(console: Console, result: Mapping[str, Any]) -> None:
    heads = [Column(name, justify="right") for name in ("trained", "fixed values", "GFLOPs", "% of the student")]
    size, student = "×".join(map(str, result["costs_size"])), result["costs_student_flops"]
    table = Table(Column("part", overflow="fold"), *heads, "counted by", title=f"{result['method']} at {size}")
    for row in result["costs"]:
        flops = [f"{row['flops'] / 1e9:.3f}", f"{100 * row['flops'] / student:.2f}"]
        table.add_row(row["part"], f"{row['trained']:,}", f"{row['fixed']:,}", *flops, row["counted"])
    console.print(table)
    console.print("in training only, forward, one image; elementwise work is not counted")

"""What `segdistill list` and `layers` print."""

import inspect
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from segdistill.show import plain


def options_line(model: Any) -> str:
    """Options and their defaults, comma-separated."""
    return ", ".join(f"{k}={f.default}" if not f.is_required() else k for k, f in model.model_fields.items())


def first_line(cls: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").splitlines()[0]


def catalogue(console: Console, what: str, *, stats: bool = False) -> None:
    """Print methods, networks, data sets or configurations; networks with their sizes, if asked for.

    Raises:
        ValueError: on another word, or stats of anything but models.
    """
    shown = {"methods": methods, "data": data_sets, "models": sizes if stats else networks}
    others = {"metrics": metrics, "configs": configs}
    if what not in ("all", *shown, *others):
        raise ValueError(f"list {what}: expected methods, models, data, metrics, configs or config")
    if stats and what != "models":
        raise ValueError("--stats is of models: `segdistill list models --stats`")
    for show in shown.values() if what == "all" else [{**shown, **others}[what]]:
        show(console)


def configs(console: Console) -> None:
    """Print the configurations that come with the package, by the names under which every command takes them."""
    from segdistill.engine.shipped import describe_config, list_configs

    table = Table(Column("configuration", no_wrap=True), "what it is", title="configurations")
    for name in list_configs():
        table.add_row(name, describe_config(name))
    console.print(table)


def methods(console: Console) -> None:
    """Print all methods with their options."""
    from segdistill.methods import list_methods, method_class, method_options

    table = Table("method", "what it carries over", "options", title="methods")
    for name in list_methods():
        table.add_row(name, first_line(method_class(name)), options_line(method_options(name)))
    console.print(table)


def metrics(console: Console) -> None:
    """Print all metrics that `eval --metric` takes beside the mean IoU."""
    from segdistill.metrics import list_metrics, metric_class

    table = Table("metric", "what it says", title="metrics")
    for name in list_metrics():
        table.add_row(name, first_line(metric_class(name)))
    console.print(table)


def data_sets(console: Console) -> None:
    """Print all data sets with their options."""
    from segdistill.data.sets import dataset_class, dataset_options, list_datasets

    table = Table("data set", "what it is", "options", title="data sets")
    for name in list_datasets():
        table.add_row(name, first_line(dataset_class(name)), options_line(dataset_options(name)))
    console.print(table)


def networks(console: Console) -> None:
    """Print names of networks, of ours and of other libraries."""
    from segdistill.models import external_names, list_models

    table = Table("network", title="networks: <family>_<any timm backbone>, among them")
    for name in list_models():
        table.add_row(name)
    console.print(table)
    table = Table("library", "networks, for example", title="networks of other libraries")
    for library, names in external_names().items():
        table.add_row(library, " ".join(names))
    console.print(table)


def config_reference(console: Console, key: str | None) -> None:
    """Print what a configuration may say, or one of its sections or keys.

    Args:
        console: where to.
        key: such as `train` or `train.lr`; None for all of it.

    Raises:
        ValueError: if there is no such key.
    """
    from segdistill.comparison.reference import find_entries

    for section, entries in find_entries(key).items():
        table = Table(Column("key", overflow="fold"), "type", "default", "what it means", title=section)
        for entry in entries:
            table.add_row(entry.key, entry.type, entry.default, entry.text)
        console.print(table)


def sizes(console: Console) -> None:
    """Print parameters and operations of the networks of the papers, beside the papers' figures, then of all others."""
    from segdistill.measure.sizes import listed_sizes, published_sizes

    table = Table(
        "network", "options", "classes", "params M", "paper", "GFLOPs", "G mult-adds", "paper", "source",
        title="networks of the papers, at 512×1024",
    )  # fmt: skip
    for size in published_sizes():
        assert size.published is not None
        options = ", ".join(f"{k}={v}" for k, v in size.options.items())
        adds = "–" if size.published.multiply_adds is None else f"{size.published.multiply_adds:g}"
        table.add_row(size.name, options, str(size.classes), f"{size.params / 1e6:.4g}", f"{size.published.params:g}",
                      f"{size.flops / 1e9:.2f}", f"{size.flops / 2e9:.3f}", adds, size.published.source)  # fmt: skip
    console.print(table)
    console.print("params with the auxiliary head, as in the papers; operations without it: the papers count it too")
    table = Table("network", "params M", "GFLOPs", "G mult-adds", title="all networks, default options, 19 classes")
    for size in listed_sizes():
        table.add_row(size.name, f"{size.params / 1e6:.4g}", f"{size.flops / 1e9:.2f}", f"{size.flops / 2e9:.3f}")
    console.print(table)


def layers(console: Console, model: str, size: tuple[int, int], depth: int) -> None:
    """Print the submodules of a network with the shapes that they give, and its taps, known or proposed."""
    from segdistill.measure.layers import named_layers

    found = named_layers(model, size, depth)
    table = Table("path", "module", "output", "stride", "tap", title=f"{model} at {size[0]}×{size[1]}")
    for path, layer in found.layers.items():
        stride = f"{size[0] / layer.map[2]:.3g}" if layer.map else "–"
        table.add_row(path, layer.kind, "×".join(map(str, layer.shape)), stride, ", ".join(found.taps.get(path, [])))
    console.print(table)
    for line in found.lines():
        plain(console)(line)

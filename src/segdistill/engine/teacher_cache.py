"""A cached teacher: what the methods read of it, for K views of each image, computed once and read with the images."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segdistill._version import __version__
from segdistill.data import SegmentationDataset
from segdistill.data.dataset import hash_names
from segdistill.data.sampler import Address, view_loader
from segdistill.engine.build import build_mixing
from segdistill.engine.checkpoint import tensor_digest
from segdistill.engine.config import Config
from segdistill.engine.faults import TrainingStopped
from segdistill.engine.lock import locked
from segdistill.engine.run_folder import read_json, write_json
from segdistill.engine.settings import TEACHER_PATHS, fixed_settings, unnumbered
from segdistill.engine.tap_store import TapStore
from segdistill.engine.teacher import observe
from segdistill.engine.teacher_views import members
from segdistill.taps import GIVEN, Taps

if TYPE_CHECKING:
    from segdistill.engine.training import Training

FACTS = "cache.json"
"""What a cache was filled with."""

NOT_SEEN = (
    *("data.root", "data.unlabelled", "data.batch_size", "data.eval_batch_size", "data.packed"),
    *("data.only", "data.labelled"),
    *("teacher.taps", "teacher.classifier", "teacher.weights_key", *sorted(TEACHER_PATHS)),
)
"""Settings that change nothing of what a cache holds, or are told otherwise: images and weights by what they are."""

PATIENCE = 60.0
"""Seconds to wait for another run that makes the files."""

SAMPLE = 16
"""Images whose pixels tell one data set from another, besides the names of all of them."""


def cached_taps(config: Config, names: set[str]) -> set[str]:
    """The taps that are kept; none where no teacher is cached, or the methods read nothing of it.

    Args:
        config: the configuration.
        names: what the methods read from the teacher.
    """
    cached = config.distils and config.cached_teacher is not None
    return names - set(GIVEN) if cached else set()


def plan_cache(training: "Training") -> TapStore:
    """What a run's cache would be; nothing is read or written.

    Raises:
        ValueError: if the teacher shows something else each time.
    """
    section, run = training.config.cached_teacher, training.run
    assert section is not None
    assert section.cache is not None
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, *training.dry_size(), generator=generator).to(run.device, memory_format=training.layout)
    with run.autocast():
        seen, again = (observe(training.teacher, images, training.cached) for _ in range(2))
    for name in sorted(training.cached):
        one, other = seen[name].float(), again[name].float()
        if not bool((one - other).abs().max() <= 0.01 * one.abs().max()):
            raise ValueError(
                f"teacher.cache: the teacher's tap {name} is another one each time it sees an image (a dropout that is "
                "never off?), so that it cannot be kept; leave cache out"
            )
    shapes = {name: seen[name].shape[1:] for name in sorted(training.cached)}
    counts = [len(dataset) for dataset in _datasets(training)]
    folder = Path(section.cache).expanduser()
    if folder.resolve() == training.folder.resolve():
        raise ValueError(f"teacher.cache: {folder} is the folder of the run itself; name another one")
    return TapStore(folder, shapes, counts, section.cache_views, section.cache_precision, section.cache_topk)


class Cache:
    """What is kept of a teacher: parts, each with some of the taps, whatever methods they were kept for.

    Args:
        parts: that have all the taps that are read, each tap once.
    """

    def __init__(self, parts: Sequence[TapStore]):
        self.parts = list(parts)

    def read(self, addresses: Sequence[Address]) -> Taps:
        """The taps of some views, (N,A,h,w) each.

        Args:
            addresses: of the views.

        Raises:
            ValueError: if one is not there.
        """
        taps: Taps = {}
        for part in self.parts:
            taps |= part.read(addresses)
        return taps


def open_cache(training: "Training") -> Cache:
    """A run's cache. Taps that no earlier run has kept get a part of their own, beside those that are there.

    Raises:
        ValueError: if it was filled otherwise, with a line that says what differs, or there is no room for it.
    """
    store, run = plan_cache(training), training.run
    facts = _facts(training, store)
    _, lacking = _parts(store, facts, training.cached)
    if run.main and lacking:
        with locked(store.folder, patience=PATIENCE):  # another run may be about to make it
            _, lacking = _parts(store, facts, training.cached)
            if lacking:
                part = _new_part(store, lacking)
                training.recorder.say(f"teacher.cache {part.folder}: {part}")
                part.folder.mkdir(exist_ok=True)
                part.create()
                kept = {name: tap for name, tap in facts["taps"].items() if name in lacking}
                write_json(part.folder / FACTS, {**facts, "taps": kept})  # last: without it, the files are made again
    run.barrier()
    return Cache(_parts(store, facts, training.cached)[0])


def _new_part(store: TapStore, taps: set[str]) -> TapStore:
    """Where taps go that are not there yet: into the cache's folder, or into one inside that has their names."""
    folder = store.folder / "+".join(sorted(taps)) if (store.folder / FACTS).is_file() else store.folder
    shapes = {name: shape for name, shape in store.shapes.items() if name in taps}
    return TapStore(folder, shapes, store.counts, store.views, store.precision, store.topk)


def _parts(store: TapStore, facts: Mapping[str, Any], taps: set[str]) -> tuple[list[TapStore], set[str]]:
    """The parts of a cache that have some of the taps, and the taps that none has."""
    found, lacking = [], set(taps)
    for path in (store.folder / FACTS, *sorted(store.folder.glob(f"*/{FACTS}"))):
        if not path.is_file():
            continue
        there = read_json(path, ("taps",))
        _check_same(path.parent, there, facts)
        shapes = {name: tap["shape"] for name, tap in there["taps"].items()}
        part = TapStore(path.parent, shapes, store.counts, store.views, store.precision, store.topk)
        part.reads = lacking & set(shapes)
        if part.reads:
            found.append(part)
        lacking -= part.reads
    return found, lacking


def _check_same(folder: Path, there: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    advice = "delete that folder to fill it anew, or name another one as teacher.cache"
    first = lambda key: (key != DIGESTS[0], "." not in key, key)  # noqa: E731 -- other weights explain the rest
    for key in sorted(there.keys() | facts.keys(), key=first):
        was, now = there.get(key, "null"), facts.get(key, "null")
        if key == "taps" or was == now:
            continue
        told = f"other {key} than these" if key in DIGESTS else f"{key}={was}, not {now}"
        raise ValueError(f"{folder} was filled with {told}; {advice}")
    for name, tap in facts["taps"].items():
        was = there["taps"].get(name, tap)
        if was != tap:
            raise ValueError(f"{folder} was filled with tap {name} of {_told(was)}, not {_told(tap)}; {advice}")


def _told(tap: Mapping[str, Any]) -> str:
    return f"{'×'.join(map(str, tap['shape']))} at {tap['path'] or 'the output'}"


DIGESTS = ("weights of the teacher", "images", "unlabelled images")
"""Facts that are digests, of which a line says no more."""


def _facts(training: "Training", store: TapStore) -> dict[str, Any]:
    """All that a cache depends on."""
    config, teacher = training.config, training.teacher
    assert teacher is not None
    seen = {"train.precision"}
    settings = {
        key: value
        for key, value in fixed_settings(config).items()
        if key in seen or (key.startswith(("data.", "teacher.")) and not unnumbered(key).startswith(NOT_SEEN))
    }
    networks = [
        {"class": type(one.network).__qualname__, "spec": getattr(one.network, "spec", None)}
        | ({} if one is teacher else {"logits": one.paths.get("logits")})
        for one in members(teacher)
    ]
    states = [one.network.state_dict() for one in members(teacher)]
    weights = states[0] if len(states) == 1 else {str(number): state for number, state in enumerate(states)}
    labels = config.data.seen_by_labels
    if labels and training.labelled is not None:
        settings["data.labelled"] = hashlib.sha256(str(training.labelled).encode()).hexdigest()[:16]
    digests = {name: _images_digest(d, labels) for name, d in zip(DIGESTS[1:], _datasets(training), strict=False)}
    return {
        "segdistill": __version__,
        **{key: str(value) for key, value in settings.items() if value is not None},
        "the teacher's network": " and ".join(map(str, networks)),
        "the colour of padding": str(tuple(map(float, training.transform.fill))),
        DIGESTS[0]: tensor_digest(weights),
        **digests,
        "taps": {name: {"path": teacher.paths.get(name), "shape": shape} for name, shape in store.shapes.items()},
    }


def _datasets(training: "Training") -> list[SegmentationDataset]:
    return [training.train_set, *([] if training.unlabelled is None else [training.unlabelled])]


def _images_digest(dataset: SegmentationDataset, labels: bool) -> str:
    sha = hash_names(dataset.names)
    for index in sorted({round(place) for place in np.linspace(0, len(dataset) - 1, SAMPLE)}):
        for part in dataset[index][: 2 if labels else 1]:
            sha.update(part.contiguous().numpy().data)
    return sha.hexdigest()


def fill(training: "Training", cache: Cache) -> None:
    """Let the teacher see every view that is not there yet, part by part; each process takes its share.

    Records are made in groups that are always the same, so that they are alike to the bit however often the filling was
    interrupted. Several runs may fill one cache: each begins elsewhere, and passes over what another has done.

    Raises:
        TrainingStopped: if the process was asked to stop; what is there stays.
    """
    for part in cache.parts:
        _fill(training, part)


def _fill(training: "Training", store: TapStore) -> None:
    run, data, cfg = training.run, training.config.data, training.cfg
    size = data.images_per_step // (cfg.accumulate * run.world)
    groups = [range(first, min(first + size, store.entries)) for first in range(0, store.entries, size)]
    missing = [group for group in groups if not store.holds(group)]
    run.barrier()  # all have looked before one writes, so that the shares fit together
    mine = missing[run.rank :: run.world]
    begin = os.getpid() * 7919 % max(1, len(mine))
    mine = mine[begin:] + mine[:begin]
    training.recorder.say(f"teacher.cache {store.folder}: {store.count()} of {store.entries} views are there")
    if missing and not store.writable:
        raise ValueError(f"teacher.cache: {store.folder} lacks views and cannot be written to; name another folder")
    addresses = [store.addresses(group) for group in mine]
    workers = data.workers if mine else 0
    datasets = _datasets(training)
    how: dict[str, Any] = {"workers": workers, "device": run.device, "mixing": build_mixing(data)}
    batches = view_loader(datasets, training.transform, addresses, **how)
    with training.recorder.stage(f"views in {store.folder}") as told:
        for group, (images, _) in zip(mine, batches, strict=True):
            if run.stopped:
                break
            if not store.holds(group):
                images = images.to(run.device, memory_format=training.layout, non_blocking=True)
                with run.autocast():
                    seen = observe(training.teacher, images, set(store.shapes))
                store.write(group, seen)  # outside: under autocast, a CPU cannot even join float16 tensors
            told(store.count(), store.entries)
    if mine:
        training.recorder.say(f"teacher.cache {store.folder}: {store.count()} of {store.entries} views")
    if run.any(bool(run.stopped)):
        raise TrainingStopped(
            f"stopped with {store.count()} of {store.entries} views in {store.folder}; the same command goes on"
        )
    run.barrier()

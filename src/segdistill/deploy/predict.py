"""Prediction: images and videos in, files of class numbers and colours out."""

import glob
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segdistill._types import Size
from segdistill.data.files import IMAGE_SUFFIXES, Array, Bytes, Range, check_range, read_image
from segdistill.data.transforms import EvalTransform
from segdistill.data.walk import dangling_link, is_foreign, names_below
from segdistill.deploy.outputs import KINDS, CityscapesLabels, Pictures
from segdistill.deploy.video import VIDEO_SUFFIXES, VideoReader, VideoWriter, is_video
from segdistill.engine.protocol import Protocol, infer_ids, named_protocol, read_protocol
from segdistill.engine.run_folder import make_folder, write_atomically
from segdistill.engine.runtime import Runtime
from segdistill.engine.student import load_student, read_card


def find_images(paths: Iterable[str | Path], out: str | Path | None = None) -> list[tuple[Path, Path]]:
    """Find images and videos, each with the relative path that its results are named by.

    Hidden files in folders, and what a system leaves there, are passed over.

    Args:
        paths: files, folders that are searched through, or patterns such as `street_*.jpg` and `days/**/*.png`.
        out: folder of the results, whose own folders, such as `ids/`, are left out of the search.

    Raises:
        ValueError: if a path is missing, a folder has no image, a pattern fits none, an image is a result itself, or
            the results of two images would have one name.
    """
    results = [] if out is None else [Path(out) / kind for kinds in KINDS.values() for kind in kinds]
    taken: dict[Path, Path] = {}
    found = []
    for file, name in _candidates(paths, results):
        stem = name.with_suffix("")
        if stem not in taken:
            taken[stem] = file
            found.append((file, name))
        elif not file.samefile(taken[stem]):
            raise ValueError(
                f"{taken[stem]} and {file} would both be written to {stem}.png; rename one, or predict them one by one "
                "with another --out"
            )
    if not found:
        raise ValueError("no images: give image files, or folders of them")
    return found


def _candidates(paths: Iterable[str | Path], results: list[Path]) -> Iterator[tuple[Path, Path]]:
    for path in _spelled_out(paths):
        dangling = dangling_link(path)
        if dangling is not None:
            raise ValueError(dangling)
        if not path.exists():
            raise ValueError(f"no image or folder at {path}")
        whole = path.resolve()
        if any(folder.resolve() in (whole, *whole.parents) for folder in results):
            raise ValueError(f"{path}: this is where results are written to; set another folder with --out")
        if path.is_dir():
            names = names_below(path, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES), results)
            if not names:
                raise ValueError(f"no images ({' '.join(IMAGE_SUFFIXES)}) in {path}")
            yield from ((path / name, Path(name)) for name in names)
        elif not is_foreign(path.name):  # a shell's `*` finds those too
            yield path, Path(path.name)


def _spelled_out(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The paths, and in the place of a pattern what it fits."""
    for path in map(Path, paths):
        if path.exists() or path.is_symlink() or not glob.has_magic(str(path)):
            yield path
            continue
        fitting = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not fitting:
            raise ValueError(f"no image or folder fits the pattern {path}")
        yield from fitting


def predict(
    model: nn.Module | str | Path,
    images: Iterable[str | Path],
    out: str | Path,
    *,
    run: Runtime | None = None,
    palette: list[tuple[int, int, int]] | None = None,
    alpha: float = 0.5,
    format: Literal["pictures", "cityscapes"] = "pictures",
    protocol: Protocol | None = None,
    size: Size | None = None,
    frames: bool = False,
    image_range: Range | None = None,
    max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Path, Tensor]]:
    """Segment image files into `ids/` (class numbers), `colour/` and `blend/` (over the image) PNGs.

    With `format="cityscapes"`, into `label_ids/` instead: what Cityscapes' server and scripts evaluate.

    The files are written when the function is called. For more images than their class numbers fit into memory,
    `iterate_predictions` gives one at a time.

    Args:
        model: a network with a `card`, or the path of a run or a student's file.
        images: files, folders or patterns; of videos (extra `video`) every frame is segmented.
        out: folder of the results; made if it is missing. Earlier results in it are no images, and are replaced.
        run: device and precision (default: the model's device, float32).
        palette: a colour per class (default: the card's).
        alpha: share of the colour in the blend.
        format: `pictures`, or `cityscapes` for a model of its 19 classes and images with its names.
        protocol: how the network looks at an image (default: as the card says that it was validated, else whole).
            With a window, an image of any size is segmented in memory that does not grow with its logits.
        size: (H,W) that images are resized to before all else, whatever their ratio (default: as the card says that
            the data were when it was trained and validated, else as they are); results have the images' own.
        frames: whether each frame of a video becomes PNGs, in folders of the video's name.
        image_range: the values of an image's file that become 0 and 1 (default: the card's, that is those of the data
            that the model was trained on).
        max_pixels: the largest image that is read (default: Pillow's limit).
        progress: called with (images done, images in all) after each image or frame.

    Returns:
        Each image's path and its class numbers (H,W) uint8; of a video its path with those of each frame.

    Raises:
        ValueError: before any work, if there is no such model or image, results cannot be written or would have one
            name, or there is no palette; later, if an image cannot be read or a result written: what was written until
            then stays.
    """
    how: dict[str, Any] = {"palette": palette, "alpha": alpha, "format": format, "progress": progress}
    how |= {"protocol": protocol, "size": size, "frames": frames}
    reading: dict[str, Any] = {"image_range": image_range, "max_pixels": max_pixels}
    return list(iterate_predictions(model, images, out, run=run, **how, **reading))


def iterate_predictions(
    model: nn.Module | str | Path,
    images: Iterable[str | Path],
    out: str | Path,
    *,
    run: Runtime | None = None,
    palette: list[tuple[int, int, int]] | None = None,
    alpha: float = 0.5,
    format: Literal["pictures", "cityscapes"] = "pictures",
    protocol: Protocol | None = None,
    size: Size | None = None,
    frames: bool = False,
    image_range: Range | None = None,
    max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Path, Tensor]]:
    """The same as `predict`, image by image: all is checked now, an image's files are written when it is asked for.

    Args:
        model: as for `predict`.
        images: likewise.
        out: likewise.
        run: likewise.
        palette: likewise.
        alpha: likewise.
        format: likewise.
        protocol: likewise.
        size: likewise.
        frames: likewise.
        image_range: likewise.
        max_pixels: likewise.
        progress: likewise.

    Returns:
        An iterator over each image's path and its class numbers (H,W) uint8, once its files are written.

    Raises:
        ValueError: as `predict` does; what concerns a single image, when it is asked for.
    """
    if isinstance(model, nn.Module):
        network, card = model, getattr(model, "card", {})
    else:
        network, card = load_student(model), read_card(model)
    if format not in KINDS:
        raise ValueError(f"format: expected {' or '.join(KINDS)}, got {format!r}")
    writer: Pictures | CityscapesLabels
    if format == "cityscapes":
        writer = CityscapesLabels(card.get("classes") or [])
    else:
        colours = np.array(palette or card.get("palette") or [], dtype=np.uint8).reshape(-1, 3)
        if not len(colours):
            raise ValueError("predict needs a palette: this model has no card that gives one")
        writer = Pictures(colours, alpha)
    check_range(image_range, "image_range")
    files = find_images(images, out)
    writer.check(files)
    videos = [file for file, _ in files if is_video(file)]
    if videos and format != "pictures":
        raise ValueError(f"{videos[0]}: a video, of which --format {format} makes nothing; give images")
    _prepare(Path(out), writer.kinds)
    span: Any = card.get("image_range") if image_range is None else image_range

    total = sum(max(1, VideoReader(file).count) if is_video(file) else 1 for file, _ in files)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, max(done, total))  # what a video says of its length may be too little

    def read(file: Path) -> Iterable[tuple[Bytes, Fraction]]:
        if is_video(file):
            return VideoReader(file)
        return [(read_image(file, image_range=span, max_pixels=max_pixels), Fraction(0))]

    chosen = size or card.get("size")
    transform = None if chosen is None else EvalTransform(size=chosen)
    protocol = read_protocol(card.get("protocol")) if protocol is None else protocol
    seeing = _Seeing(network, transform, protocol, run, writer)
    return _segment(seeing, files, read, _Results(Path(out), frames), tell)


def card_protocol(model: str | Path, name: str | None = None, window: Size | None = None) -> Protocol:
    """The protocol that a student was validated under, with changes.

    Args:
        model: the path of a run or a student's file.
        name: of a preset to take instead.
        window: (h,w) to take instead of the protocol's, with its usual stride.

    Raises:
        ValueError: if there is no such preset, or the window has no size.
    """
    card = read_card(model)
    protocol = read_protocol(card.get("protocol")) if name is None else named_protocol(name, card.get("data"))
    return protocol if window is None else replace(protocol, window=window, stride=None)


class _Seeing:
    """What a network sees in a picture."""

    def __init__(
        self,
        network: nn.Module,
        transform: EvalTransform | None,
        protocol: Protocol,
        run: Runtime | None,
        writer: Pictures | CityscapesLabels,
    ):
        self.network, self.transform, self.protocol, self.writer = network, transform, protocol, writer
        self.run = run or Runtime(next((p.device for p in network.parameters()), torch.device("cpu")))
        network.to(self.run.device)

    def __call__(self, picture: Bytes) -> Tensor:
        """Class numbers (H,W) of (H,W,3) pixels."""
        image, size = torch.from_numpy(picture).permute(2, 0, 1), (picture.shape[0], picture.shape[1])
        if self.transform is not None:
            image, _ = self.transform(image, torch.zeros(size, dtype=torch.uint8))  # there is no mask
        with self.run.autocast():
            check = self.writer.check_classes
            found = infer_ids(self.network, image[None], self.protocol, size=size, check=check)
        return found[0].to("cpu", torch.uint8)


class _Results:
    """The files of results: a PNG of each kind for an image, a video or PNGs for a video."""

    def __init__(self, out: Path, frames: bool):
        self.out, self.frames = out, frames

    def of(self, file: Path, name: Path, stack: ExitStack) -> Callable[[str, Array, Fraction, int], None]:
        """What writes one picture of a file, given its kind, its pixels, its second and its number.

        Args:
            file: image or video.
            name: relative path that the results are named by.
            stack: ends when the file does.
        """
        if not is_video(file):
            return lambda kind, pixels, _time, _number: _write((self.out / kind / name).with_suffix(".png"), pixels)
        if self.frames:
            return lambda kind, pixels, _time, number: _write(
                self.out / kind / name.with_suffix("") / f"{number:06}.png", pixels
            )
        videos: dict[str, VideoWriter] = {}

        def write(kind: str, pixels: Array, time: Fraction, _number: int) -> None:
            if pixels.ndim == 2:  # coding a video changes values, which class numbers do not bear
                return
            if kind not in videos:
                target = (self.out / kind / name).with_suffix(".mp4")
                make_folder(target.parent)
                videos[kind] = stack.enter_context(VideoWriter(target))
            videos[kind].write(pixels, time)

        return write


def _segment(
    seeing: _Seeing,
    files: Iterable[tuple[Path, Path]],
    read: Callable[[Path], Iterable[tuple[Bytes, Fraction]]],
    results: _Results,
    told: Callable[[int], None],
) -> Iterator[tuple[Path, Tensor]]:
    done = 0
    for file, name in files:
        with ExitStack() as stack:
            write = results.of(file, name, stack)
            for number, (picture, time) in enumerate(read(file), 1):
                ids = seeing(picture)
                for kind, pixels in seeing.writer.draw(ids.numpy(), picture):
                    write(kind, pixels, time, number)
                done += 1
                told(done)
                yield file, ids


def _prepare(out: Path, kinds: tuple[str, ...]) -> None:
    """Make the folders of the results, and see that files can be written there."""
    try:
        for kind in kinds:
            (out / kind).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out / kind).close()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write results into {out} ({reason}); set another folder with --out") from error


def _write(target: Path, pixels: Array) -> None:
    make_folder(target.parent)
    write_atomically(target, lambda path: Image.fromarray(pixels).save(path, format="PNG"))

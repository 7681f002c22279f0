"""The one reader of images and masks: what kinds of files mean, and what is refused with which line."""

import os
import signal
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.data import build_dataset
from segdistill.data.files import read_image, read_mask

STEPS = np.array([[0, 255, 256, 0x1234, 0x80FF, 65535]], np.uint16)

NOBODY = 65534


def png16(path, values, kind):
    """Write a PNG of 16 bits per colour, which Pillow does not: kind 2 is RGB, 4 grey with alpha, 6 RGBA."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tiff(path, values, sample_format=1):
    """Write an uncompressed TIFF of any sample type."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    bits = 8 + len(data)  # where the list of bits per sample stands
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits if channels > 2 else values.itemsize * 8),
        (259, 3, 1, 1), (262, 3, 1, 2 if channels > 1 else 1), (273, 4, 1, 8), (277, 3, 1, channels),
        (278, 4, 1, height), (279, 4, 1, len(data)), (339, 3, 1, sample_format),
    ]  # fmt: skip
    more = struct.pack(f"<{channels}H", *[values.itemsize * 8] * channels) if channels > 2 else b""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, bits + len(more)) + data + more + directory)


def grey(path, **how):
    pixels = read_image(path, **how)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


# Images of more than 8 bits.


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_16_bit_grey_the_high_byte_counts(tmp_path, suffix):
    Image.fromarray(STEPS).save(tmp_path / f"a.{suffix}")
    assert grey(tmp_path / f"a.{suffix}") == [[0, 0, 1, 0x12, 0x80, 255]]


def test_big_endian_makes_no_difference(tmp_path):
    Image.frombytes("I;16B", (6, 1), STEPS.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert grey(tmp_path / "a.tif") == [[0, 0, 1, 0x12, 0x80, 255]]
    assert grey(tmp_path / "a.tif", image_range=(0, 0x1234)) == [[0, 14, 14, 255, 255, 255]]


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_of_16_bit_colours_the_high_byte_counts(tmp_path, kind, channels):
    values = np.stack([STEPS] * channels, -1)
    values[..., 3 if channels == 4 else channels - 1 :] = 65535 if channels != 3 else values[..., 2:]
    png16(tmp_path / "a.png", values, kind)
    assert grey(tmp_path / "a.png") == [[0, 0, 1, 0x12, 0x80, 255]]
    with pytest.raises(ValueError, match=r"a\.png: 16 bits per colour, of which Pillow reads 8, so that .*\[0, 4095\]"):
        read_image(tmp_path / "a.png", image_range=(0, 4095))


def test_of_16_bit_colours_in_a_tiff_too(tmp_path):
    tiff(tmp_path / "a.tif", np.stack([STEPS] * 3, -1))
    assert grey(tmp_path / "a.tif") == [[0, 0, 1, 0x12, 0x80, 255]]
    with pytest.raises(ValueError, match="16 bits per colour"):
        read_image(tmp_path / "a.tif", image_range=(0, 4095))


def test_a_pgm_of_16_bits(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 6 1 65535\n" + STEPS.astype(">u2").tobytes())
    assert grey(tmp_path / "a.pgm") == [[0, 0, 1, 0x12, 0x80, 255]]


@pytest.mark.parametrize(
    ("values", "sample_format", "kind"),
    [
        (np.array([[0, 0.5, 1]], np.float32), 3, r"floats \(0 to 1\)"),
        (np.array([[np.nan, np.nan]], np.float32), 3, r"floats \(none of them finite\)"),
        (np.array([[0, 500, 70000]], np.int32), 2, r"whole numbers .* \(0 to 70000\)"),
        (np.array([[-5, 500, 70000]], np.int32), 2, r"whole numbers .*\(-5 to 70000\)"),
        (np.array([[-5, 500, 7000]], np.int16), 2, r"whole numbers .*\(-5 to 7000\)"),
        (np.array([[0, 500, 70000]], np.uint32), 1, r"whole numbers .*\(0 to 70000\)"),
    ],
)
def test_what_cannot_be_mapped_safely_is_refused(tmp_path, values, sample_format, kind):
    tiff(tmp_path / "a.tif", values, sample_format)
    with pytest.raises(ValueError, match=rf"a\.tif: an image of {kind}.*data.image_range: .*--image-range"):
        read_image(tmp_path / "a.tif")


def test_a_range_maps_linearly(tmp_path):
    tiff(tmp_path / "a.tif", np.array([[-1, 0, 0.25, 0.5, 1, 7, np.nan, np.inf, -np.inf]], np.float32), 3)
    assert grey(tmp_path / "a.tif", image_range=(0, 1)) == [[0, 0, 64, 128, 255, 255, 0, 255, 0]]
    assert grey(tmp_path / "a.tif", image_range=(-1, 1))[0][:5] == [0, 128, 159, 191, 255]
    tiff(tmp_path / "b.tif", np.array([[-1000, 0, 1000, 3_000_000_000 - 2**32]], np.int32), 2)
    assert grey(tmp_path / "b.tif", image_range=(-1000, 1000)) == [[0, 128, 255, 0]]
    tiff(tmp_path / "c.tif", np.array([[0, 2**31, 2**32 - 1]], np.uint32), 1)
    assert grey(tmp_path / "c.tif", image_range=(0, 2**32 - 1)) == [[0, 128, 255]]
    Image.fromarray(STEPS).save(tmp_path / "d.png")
    assert grey(tmp_path / "d.png", image_range=(0, 512)) == [[0, 127, 128, 255, 255, 255]]


def test_an_image_of_8_bits_needs_a_range_of_bytes(tmp_path):
    Image.fromarray(np.array([[0, 10, 20, 40]], np.uint8)).save(tmp_path / "a.png")
    assert grey(tmp_path / "a.png", image_range=(0, 255)) == [[0, 10, 20, 40]]
    assert grey(tmp_path / "a.png", image_range=(0, 20)) == [[0, 128, 255, 255]]
    for other in ((0, 1), (0, 4095), (-1, 255)):
        with pytest.raises(ValueError, match=r"a\.png: an image of 8 bits, whose values are 0 to 255"):
            read_image(tmp_path / "a.png", image_range=other)


@pytest.mark.parametrize("wrong", [(1, 1), (2, 1), (0, float("inf"))])
def test_a_range_that_is_none(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"data\.image_range: expected the darkest and the brightest value"):
        build_dataset("folder", "train", root=str(tmp_path), masks=None, image_range=wrong)


# Colours, alpha, pages, EXIF.


@pytest.mark.parametrize("mode", ["L", "LA", "PA", "RGBA", "RGB", "CMYK", "YCbCr", "1"])
def test_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(tmp_path / "a.tif")
    pixels = read_image(tmp_path / "a.tif")
    assert pixels.shape == (4, 5, 3)
    assert (pixels >= 254).all()


def test_transparency_is_dropped_without_a_warning(tmp_path, recwarn):
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.save(tmp_path / "rgba.png")
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([1, 2, 3, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=bytes([100, 0]))
    Image.new("RGB", (2, 1), (10, 20, 30)).save(tmp_path / "rgb.png", transparency=(10, 20, 30))
    for name in ("rgba", "p", "rgb"):
        assert read_image(tmp_path / f"{name}.png").tolist() == [[[10, 20, 30]] * 2]
    assert read_mask(tmp_path / "p.png").tolist() == [[1, 1]]
    assert read_mask(tmp_path / "p.png", by_colour=True).tolist() == [[[10, 20, 30]] * 2]
    assert not recwarn.list


def test_colours_that_are_not_rgb(tmp_path):
    Image.new("LAB", (2, 2)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: colours of mode LAB, which is not RGB; save it as RGB"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_several_images_in_one_file(tmp_path, suffix):
    pages = [Image.new("RGB", (32, 32), (90 * i, 0, 0)) for i in range(3)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=rf"a\.{suffix}: 3 images in one file; save each as a file of its own"):
            read(tmp_path / f"a.{suffix}")


def test_a_preview_behind_the_image_is_no_second_one(tmp_path):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    preview = Image.new("RGB", (4, 4))
    kind = ImageFileDirectory_v2()
    kind[254] = 1
    preview.encoderinfo = {"tiffinfo": kind}
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "a.tif", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.tif") as file:
        assert file.n_frames == 2
    assert read_image(tmp_path / "a.tif").shape == (32, 32, 3)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    assert read_image(tmp_path / "a.jpg").shape == (32, 32, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_turns_image_and_mask_alike(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90°
    values = np.zeros((4, 6, 3), np.uint8)
    values[0, :3] = 255
    Image.fromarray(values.repeat(8, 0).repeat(8, 1)).save(tmp_path / f"a.{suffix}", exif=exif)
    upright = np.rot90(values, -1).repeat(8, 0).repeat(8, 1)
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - upright).mean() < 8
    assert read_mask(tmp_path / f"a.{suffix}").shape == (48, 32, 3)


def test_a_pgm_of_ids_that_pillow_would_scale(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 255\n\0\1\2")
    assert read_mask(tmp_path / "a.pgm").tolist() == [[0, 1, 2]]
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 2\n\0\1\2")
    with pytest.raises(
        ValueError, match=r"a\.pgm: a PGM with values up to 2, which Pillow scales; save class ids as PNG"
    ):
        read_mask(tmp_path / "a.pgm")


# Size.


def test_size_has_a_limit_with_a_way_round(tmp_path, monkeypatch):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    for read in (read_image, read_mask):
        with pytest.raises(
            ValueError, match=r"a\.png: 3×2 = 6 pixels, more than 4; .* data.max_pixels, .*--max-pixels"
        ):
            read(tmp_path / "a.png")
        with pytest.raises(ValueError, match="6 pixels, more than 5"):
            read(tmp_path / "a.png", max_pixels=5)
        assert read(tmp_path / "a.png", max_pixels=6).shape[:2] == (2, 3)
    assert Image.MAX_IMAGE_PIXELS == 2


@pytest.mark.parametrize("kind", ["folder", "camvid"])
def test_data_sets_have_the_option(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    for name in ("train", "trainannot", "images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (3, 2)).save(tmp_path / name / "a.png")
    options = {"root": str(tmp_path)}
    if kind == "folder":
        options |= {"classes": ["a", "b"], "val_fraction": 0.0, "images": "images", "masks": "masks"}
    with pytest.raises(ValueError, match=r"set data.max_pixels"):
        build_dataset(kind, "train", **options)[0]
    assert build_dataset(kind, "train", max_pixels=6, **options)[0][1].shape == (2, 3)


def test_threads_see_the_limit_of_the_process(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    threads = [
        threading.Thread(target=lambda: [read_image(tmp_path / "a.png", max_pixels=9) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_process_that_starts_while_a_file_is_opened(tmp_path):
    # A loader's processes are forked: they must find the limit as it is, and no lock that nobody will open.
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    before, done = Image.MAX_IMAGE_PIXELS, threading.Event()

    def read():
        while not done.is_set():
            read_image(tmp_path / "a.png", max_pixels=9)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # a child that waits for ever is ended
                os._exit(int(before != Image.MAX_IMAGE_PIXELS or read_image(tmp_path / "a.png").shape != (2, 3, 3)))
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()


# Files that are not what they seem.


def line_of(path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the callers look at the line
        read_image(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_file_that_vanished(tmp_path):
    assert line_of(tmp_path / "a.png").startswith("no such file any more: it was moved or deleted since")


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "a.png").symlink_to("/gone/b.png")
    assert line_of(tmp_path / "a.png").startswith("a link to /gone/b.png, which is not there")


def test_a_folder_of_an_images_name(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert line_of(tmp_path / "a.png") == "a folder, where an image was expected; rename or remove it"


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")

    def refuse(path, **options):  # the superuser may read anything, so it is played
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    assert line_of(tmp_path / "a.png") == "may not be read (Permission denied); see that you have the right to"


def test_a_file_without_permission(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    user = os.geteuid()
    if user == 0:  # the superuser may read any file
        os.seteuid(NOBODY)
    try:
        assert line_of(tmp_path / "a.png").startswith("may not be read (Permission denied)")
    finally:
        os.seteuid(user)


def test_an_empty_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert line_of(tmp_path / "a.png") == "not a readable image (an empty file, of 0 bytes); replace or remove it"


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    assert line_of(tmp_path / "a.png") == "not a readable image (Pillow does not know what it is); replace or remove it"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp", "ppm"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_file_that_is_cut_short(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a readable image (" in line_of(path)


def test_damage_of_any_kind_is_one_line(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("png", "tif", "gif", "bmp"):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / f"a.{suffix}")
        whole = bytearray((tmp_path / f"a.{suffix}").read_bytes())
        for _ in range(100):
            broken = bytearray(whole)
            for place in rng.integers(0, len(whole), 8):
                broken[place] = rng.integers(0, 256)
            path = Path(tmp_path / f"b.{suffix}")
            path.write_bytes(broken)
            for read in (read_image, read_mask):
                lines = []
                try:
                    read(path)
                except ValueError as error:
                    lines.append(str(error))
                assert all(line.startswith(f"{path}: ") and "\n" not in line for line in lines)


def test_too_little_memory(tmp_path, monkeypatch):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")

    def exhausted(path, **options):
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhausted)
    assert line_of(tmp_path / "a.png").startswith("too large for the memory that is free")


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "bmp", "ppm", "webp", "jpg"])
def test_what_a_file_holds_is_read_as_the_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(path)
    assert np.array_equal(read_image(path.read_bytes()), read_image(path))


def test_of_what_is_no_file_less_is_taken(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.eps")  # to read it, Pillow would start Ghostscript
    with pytest.raises(ValueError, match=r"^image: not a readable image \(Pillow does not know what it is\)"):
        read_image((tmp_path / "a.eps").read_bytes())
    with pytest.raises(ValueError, match=r"^image: not a readable image \(an empty file, of 0 bytes\)"):
        read_image(b"")


def test_postscript_is_never_run_whatever_it_is_called(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **options: pytest.fail("it was run"))
    head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    (tmp_path / "a.jpg").write_bytes(head)
    assert line_of(tmp_path / "a.jpg") == "not a readable image (Pillow does not know what it is); replace or remove it"

"""Videos go in and come out frame by frame, with their times."""

from fractions import Fraction

import av
import numpy as np
import pytest

from segdistill.deploy.video import VideoReader, VideoWriter, is_video

TIMES = [Fraction(n, 25) + (Fraction(1, 100) if n % 2 else 0) for n in range(10)]


def picture(index, size=(33, 47)):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., index % 3] = 200
    return pixels


def write(path, count=10):
    with VideoWriter(path) as video:
        for index in range(count):
            video.write(picture(index), TIMES[index])
    return path


def test_frames_come_back_with_their_times(tmp_path):
    reader = VideoReader(write(tmp_path / "a.mp4"))
    assert reader.count == 10
    frames = list(reader)
    assert [float(time) for _, time in frames] == pytest.approx([float(time) for time in TIMES])
    for index, (pixels, _) in enumerate(frames):
        assert pixels.shape == (34, 48, 3)  # sides are made even
        assert np.abs(pixels[:33, :47].astype(int) - picture(index)).max() < 12
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_frames_are_turned_upright(tmp_path):
    source, turned = write(tmp_path / "a.mp4"), tmp_path / "b.mov"
    with av.open(str(source)) as given, av.open(str(turned), "w") as taken:
        stream = taken.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                taken.mux(packet)
    content = turned.read_bytes()
    # The matrix of the track's header: no rotation, and a quarter turn, in fixed point.
    unit = b"".join(v.to_bytes(4, "big") for v in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    quarter = b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30))
    at = content.index(unit, content.index(b"tkhd"))
    turned.write_bytes(content[:at] + quarter + content[at + 36 :])
    flat = [pixels for pixels, _ in VideoReader(source)]
    upright = [pixels for pixels, _ in VideoReader(turned)]
    assert upright[0].shape == (48, 34, 3)
    np.testing.assert_array_equal(upright[0], np.rot90(flat[0], -1))


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path):
    def fail():
        with VideoWriter(tmp_path / "a.mp4") as video:
            video.write(picture(0), Fraction(0))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def lossless(path, count=20):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 8, 6, "bgr0"
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (6, 8, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_pixels_are_those_of_the_file(tmp_path):
    reader = VideoReader(lossless(tmp_path / "a.mkv"))
    assert reader.count == 20
    for index, (pixels, time) in enumerate(reader):
        np.testing.assert_array_equal(pixels, np.random.default_rng(index).integers(0, 256, (6, 8, 3), np.uint8))
        assert float(time) == pytest.approx(index / 5, abs=1e-3)


def test_a_file_cut_short_is_told(tmp_path):
    whole = lossless(tmp_path / "a.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.warns(UserWarning, match=r"b.mkv: cut short\? It says 20 frames, \d+ could be read"):
        assert 5 < sum(1 for _ in VideoReader(tmp_path / "b.mkv")) < 19


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no video at .*a.mp4"),
        (b"", "not a readable video .an empty file, of 0 bytes."),
        (b"nothing" * 99, "not a readable video .Invalid data found"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        VideoReader(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(ValueError, match="no video in it, only audio"):
        VideoReader(tmp_path / "a.mp4")


def test_names_tell():
    assert is_video("a/B.MP4")
    assert not is_video("a.png")

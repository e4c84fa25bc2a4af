"""Videos: what is written can be decoded, by a browser too, and a failure leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from metarl.errors import ConfigError
from metarl.rendering.replay import Moment
from metarl.rendering.video import check_video_path, side_by_side, write_video

GREY = np.full((41, 61, 3), 128, np.uint8)


def decoded(path: Path) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        about = {
            "codec": stream.codec_context.name,
            "format": stream.codec_context.pix_fmt,
            "rate": stream.average_rate,
            "seconds": float(stream.duration * stream.time_base),
            "streams": len(container.streams),
        }
        return about, [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def shades(num: int) -> Iterator[np.ndarray[Any, Any]]:
    for index in range(num):
        yield np.full((41, 61, 3), 20 * index, np.uint8)


def test_a_video_is_h264_that_browsers_play_and_holds_every_frame(tmp_path: Path) -> None:
    """Odd sizes grow by one pixel, and the last frame stays."""
    path = tmp_path / "shades.mp4"
    write_video(path, shades(10), Fraction(80, 3), hold_seconds=0.3)
    about, frames = decoded(path)
    assert about["codec"] == "h264" and about["format"] == "yuv420p" and about["streams"] == 1
    assert about["rate"] == Fraction(80, 3) and abs(about["seconds"] - 18 * 3 / 80) < 0.01
    assert len(frames) == 10 + 8 and all(frame.shape == (42, 62, 3) for frame in frames)
    found = [frame[:40, :60].mean() for frame in frames]
    assert np.allclose(found, [20.0 * min(index, 9) for index in range(18)], atol=3)


def test_the_index_comes_first_so_that_a_browser_can_begin_at_once(tmp_path: Path) -> None:
    write_video(tmp_path / "shades.mp4", shades(5), Fraction(30))
    content = (tmp_path / "shades.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_a_gif_holds_every_frame_for_its_time_and_the_last_one_longer(tmp_path: Path) -> None:
    """At 30 frames a second each lasts 3 or 4 hundredths, together as long as they should; it plays again and again."""
    path = tmp_path / "shades.GIF"
    write_video(path, shades(10), Fraction(30), hold_seconds=0.5)
    with Image.open(path) as image:
        assert image.format == "GIF" and image.info["loop"] == 0 and image.size == (61, 41)
        times, greys = [], []
        for number in range(image.n_frames):
            image.seek(number)
            times.append(image.info["duration"])
            greys.append(float(np.asarray(image.convert("RGB")).mean()))
    assert np.allclose(greys, [20.0 * index for index in range(10)], atol=3)
    assert set(times[:-1]) == {30, 40} and sum(times) == 830 and times[-1] >= 500


def test_a_gif_of_one_frame_lasts_as_long_as_it_is_held(tmp_path: Path) -> None:
    write_video(tmp_path / "still.gif", [GREY], Fraction(10), hold_seconds=1.0)
    with Image.open(tmp_path / "still.gif") as image:
        assert (image.n_frames, image.info["duration"]) == (1, 1100)


@pytest.mark.parametrize("name", ["shades.mp4", "shades.gif"])
def test_a_failure_keeps_the_old_video_and_leaves_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_video(path, shades(3), Fraction(30))
    old = path.read_bytes()

    def broken() -> Iterator[np.ndarray[Any, Any]]:
        yield from shades(2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_video(path, broken(), Fraction(30))
    assert path.read_bytes() == old and os.listdir(tmp_path) == [name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("before-after.avi", "expected a path that ends in .mp4 or .gif, got '.*before-after.avi'"),
        ("before-after", "expected a path that ends in .mp4 or .gif"),
        ("nowhere/before-after.gif", "there is no folder .*nowhere"),
        ("nowhere/before-after.mp4", "there is no folder .*nowhere"),
        ("folder.mp4", "folder.mp4: it is a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ConfigError, match=message):
        check_video_path(tmp_path / name)


def test_a_full_disk_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    def full() -> Iterator[np.ndarray[Any, Any]]:
        yield GREY
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot write the video .*a\.mp4: No space left on device"):
        write_video(tmp_path / "a.mp4", full(), Fraction(30))
    assert not list(tmp_path.iterdir())


def test_side_by_side_an_episode_that_ended_keeps_its_last_image() -> None:
    def moments(num: int, shade: int) -> list[Moment]:
        return [Moment(np.full((41, 300, 3), shade + k, np.uint8), k, float(k), None, False) for k in range(num)]

    frames = list(side_by_side(("before", "after"), (moments(2, 10), moments(4, 100))))
    height = frames[0].shape[0]
    assert len(frames) == 4 and all(frame.shape == (height, 600, 3) and height > 41 for frame in frames)
    assert [int(frame[-1, 0, 0]) for frame in frames] == [10, 11, 11, 11]
    assert [int(frame[-1, -1, 0]) for frame in frames] == [100, 101, 102, 103]
    # The captions of both sides stand above the images, and differ.
    assert (frames[0][: height - 41, :300] != frames[0][: height - 41, 300:]).any()


def test_captions_tell_step_return_success_and_divergence_apart() -> None:
    plain = Moment(np.zeros((100, 480, 3), np.uint8), 5, 1.0, None, False)
    variants = [
        plain,
        dataclasses.replace(plain, step=6),
        dataclasses.replace(plain, total=2.0),
        dataclasses.replace(plain, success_step=3),
        dataclasses.replace(plain, invalid=True),
    ]
    pictures = [next(side_by_side(("before adaptation",), ([moment],))).tobytes() for moment in variants]
    assert len(set(pictures)) == len(pictures)

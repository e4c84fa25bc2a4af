"""Moments of two episodes side by side, with captions, as an MP4 that browsers play (H.264, yuv420p) or as a GIF."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metarl.errors import ConfigError, missing_extra
from metarl.rendering.replay import Frame, Moment
from metarl.runs.files import replacing, require_writable, shown
from metarl.statistics import number_text

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

_CAPTION_HEIGHT = 64
_FONT_SIZE = 18
_BACKGROUND, _TEXT, _GOOD, _BAD = (24, 24, 24), (235, 235, 235), (90, 220, 110), (255, 120, 90)
_CONSTANT_QUALITY = 23
"""x264's scale: 0 is lossless, 23 its default."""

_LIBRARIES = {".mp4": {"av": "av", "PIL": "pillow"}, ".gif": {"PIL": "pillow"}}
"""What is imported where a video is made, and the package that has it, an extra of metarl's; by the video's suffix."""


def check_video_path(path: Path) -> None:
    """Refuse a path that no video can be written to.

    Raises:
        ConfigError: for a suffix other than ``.mp4`` and ``.gif``, a folder that does not exist or cannot be written
            to, or if the packages that draw and encode are not installed.
    """
    if path.suffix.lower() not in _LIBRARIES:
        raise ConfigError(
            f"a video is written as MP4 or GIF: expected a path that ends in .mp4 or .gif, got '{shown(path)}'."
        )
    for name, package in _LIBRARIES[path.suffix.lower()].items():
        if find_spec(name) is None:
            raise missing_extra(package, "video", "writing a video")
    if path.is_dir():
        raise ConfigError(f"cannot write the video {shown(path)}: it is a folder.")
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write the video {shown(path)}: there is no folder {shown(path.parent)}.")
    require_writable(path.parent, "Name another place for the video.")


def side_by_side(titles: Sequence[str], episodes: Sequence[Iterable[Moment]]) -> Iterator[Frame]:
    """One image per moment, an episode beside the other; one that ended earlier keeps its last image."""
    last: list[Frame] = []
    for moments in itertools.zip_longest(*episodes):
        panels = [
            _panel(title, moment) if moment is not None else last[index]
            for index, (title, moment) in enumerate(zip(titles, moments, strict=True))
        ]
        last = panels
        height = max(len(panel) for panel in panels)
        yield np.concatenate([_padded(panel, height, panel.shape[1]) for panel in panels], axis=1)


def write_video(path: Path, frames: Iterable[Frame], fps: Fraction, hold_seconds: float = 1.0) -> None:
    """Write a video in one step: whoever sees ``path`` sees a whole file.

    A GIF has 256 colours in each frame and knows time in hundredths of a second; its frames are held in memory.

    Args:
        path: ends in ``.mp4`` or ``.gif``.
        frames: images of one size, at least one.
        fps: frames per second.
        hold_seconds: how long the last frame stays.

    Raises:
        ConfigError: if the file cannot be written.
    """
    check_video_path(path)
    encode = _encode_gif if path.suffix.lower() == ".gif" else _encode_mp4
    try:
        with replacing(path) as temporary:
            encode(temporary, frames, fps, round(hold_seconds * fps))
    except OSError as error:
        raise ConfigError(f"cannot write the video {path}: {error.strerror or error}.") from error


def _encode_gif(path: Path, frames: Iterable[Frame], fps: Fraction, num_held: int) -> None:
    from PIL import Image

    first, *others = (Image.fromarray(frame).quantize(256) for frame in frames)
    # Rounding each end, not each length, keeps the whole as long as it should be.
    ends = [round(100 * number / fps) for number in range(len(others) + 2)]
    ends[-1] += round(100 * num_held / fps)
    milliseconds = [10 * (end - start) for start, end in itertools.pairwise(ends)]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)


def _encode_mp4(path: Path, frames: Iterable[Frame], fps: Fraction, num_held: int) -> None:
    import av

    # Moving the index to the front lets a browser begin before it has the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = None
        for frame in _with_held_end(frames, num_held):
            # H.264 with half the resolution of colour takes even sizes alone.
            image = _padded(frame, len(frame) + len(frame) % 2, frame.shape[1] + frame.shape[1] % 2)
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options={"crf": str(_CONSTANT_QUALITY)})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        assert stream is not None, "a video needs a frame"
        container.mux(stream.encode())


def _with_held_end(frames: Iterable[Frame], num_held: int) -> Iterator[Frame]:
    frame = None
    for frame in frames:
        yield frame
    if frame is not None:
        yield from itertools.repeat(frame, num_held)


def _panel(title: str, moment: Moment) -> Frame:
    """A frame below its caption."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (moment.frame.shape[1], _CAPTION_HEIGHT + moment.frame.shape[0]), _BACKGROUND)
    image.paste(Image.fromarray(moment.frame), (0, _CAPTION_HEIGHT))
    draw = ImageDraw.Draw(image)
    draw.text((10, 8), title, _TEXT, _font())
    draw.text((10, 34), f"step {moment.step}   return {number_text(moment.total)}", _TEXT, _font())
    right = image.width - 10
    if moment.invalid:
        draw.text((right, 34), "simulation diverged", _BAD, _font(), anchor="ra")
    elif moment.success_step is not None:
        draw.text((right, 34), f"success at step {moment.success_step}", _GOOD, _font(), anchor="ra")
        draw.rectangle((0, _CAPTION_HEIGHT, image.width - 1, image.height - 1), outline=_GOOD, width=4)
    return np.asarray(image)


@functools.cache
def _font() -> ImageFont | FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(_FONT_SIZE)


def _padded(frame: Frame, height: int, width: int) -> Frame:
    """``frame`` in the upper left corner of an image of that size."""
    padded = np.empty((height, width, 3), np.uint8)
    padded[:] = _BACKGROUND
    padded[: frame.shape[0], : frame.shape[1]] = frame
    return padded

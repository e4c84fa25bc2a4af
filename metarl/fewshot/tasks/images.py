"""Image files as arrays: decoded once, with a progress bar, and kept in a cache file."""

from __future__ import annotations

import collections
import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from metarl.errors import ConfigError
from metarl.runs.files import replacing

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
"""Names that image files end in."""

Damaged = Literal["refuse", "skip"]
"""What happens to files that cannot be read."""

_VERSION = 2
"""Rises when the same files are decoded to other arrays."""

_FOLDER = ".metarl"
"""Where caches lie beside the data."""


@dataclass(frozen=True)
class ImageFormat:
    """How an image file becomes an input.

    Attributes:
        size: height and width that images are resized to (Lanczos), whatever their proportions; None to take files
            that all have one size.
        channels: 1 for grey, 3 for red, green, blue; None for 1 if all files are grey, and 3 otherwise.
        ink: whether images are dark strokes on a light ground, whose ink becomes 1 and whose ground 0.
    """

    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    ink: bool = False


class _DamagedError(Exception):
    """A file that is no image, or half of one."""


def read_images(
    files: Sequence[Path], image_format: ImageFormat, *, damaged: Damaged = "refuse", what: str = "the data"
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode image files.

    Transparent parts become white, and what a camera says of how it was held is heeded.

    Args:
        files: at least one.
        image_format: what they become.
        damaged: refuse files that cannot be read, or skip them with a warning.
        what: whose files they are, for messages.

    Returns:
        Images ``[image, channel, height, width]``, and the index in ``files`` of each, ``[image]``.

    Raises:
        ConfigError: for files that cannot be read, naming them, and for sizes that differ where none is given.
    """
    problems: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    grey: set[Path] = set()

    def look(position: int, image: Image.Image) -> None:
        if image.mode.startswith(("I", "F")):
            raise _DamagedError(f"its pixels have the mode {image.mode}, expected 8 bits for each channel")
        lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        sizes[files[position]] = (image.width, image.height) if lies else (image.height, image.width)
        if image.mode in ("1", "L", "LA"):
            grey.add(files[position])

    _for_each(files, look, problems, f"Looking at {what}")
    height, width = image_format.size or _only_size(sizes, what)
    channels = image_format.channels or (1 if len(grey) == len(sizes) else 3)
    images = np.zeros((len(files), channels, height, width), np.uint8)

    def decode(position: int, image: Image.Image) -> None:
        images[position] = _pixels(image, (height, width), channels, image_format.ink)

    _for_each(files, decode, problems, f"Decoding {what}")
    if problems:
        _tell(problems, len(files), damaged, what)
    kept = np.asarray([position for position, file in enumerate(files) if file not in problems], np.int64)
    return (images[kept] if problems else images), kept


def cached_images(
    files: Sequence[Path], folder: Path, image_format: ImageFormat, *, damaged: Damaged = "refuse", what: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """As :func:`read_images`, from a cache file if the same files have been decoded before.

    The cache is found by a digest of names, sizes, times of change and inodes. It lies beside the data, or in the
    user's folder for caches where the data's folder cannot be written to.

    Args:
        files: inside ``folder``.
        folder: of the data.
        image_format: what they become.
        damaged: refuse files that cannot be read, or skip them with a warning.
        what: whose files they are, for messages.
    """
    digest = hashlib.sha256(f"{_VERSION} {asdict(image_format)} {damaged}".encode())
    for file in files:
        state = file.stat() if file.exists() else file.lstat()  # A link to nothing is told with the damaged files.
        # The inode tells files of one size and time apart that have changed places, as those out of an archive may.
        told = (file.relative_to(folder), state.st_size, state.st_mtime_ns, state.st_ino)
        digest.update("".join(f"\0{part}" for part in told).encode("utf-8", "replace"))
    name = f"{digest.hexdigest()[:20]}.npz"
    places = [folder / _FOLDER / name, _user_caches() / name]
    for place in places:
        found = _read_cache(place, len(files))
        if found is not None:
            left_out = sorted(set(range(len(files))) - set(found[1].tolist()))
            if left_out:
                _tell({files[row]: "when it was decoded" for row in left_out}, len(files), damaged, what)
            return found
    images, kept = read_images(files, image_format, damaged=damaged, what=what)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as temporary, open(temporary, "wb") as target:
                np.savez(target, images=images, kept=kept)
        except OSError:
            continue
        return images, kept
    warnings.warn(
        f"the images of {what} will be decoded again next time: could write neither {' nor '.join(map(str, places))}.",
        stacklevel=2,
    )
    return images, kept


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())


def _for_each(
    files: Sequence[Path], use: Callable[[int, Image.Image], None], problems: dict[Path, str], title: str
) -> None:
    """Hand every file that has no problem yet to ``use`` as an opened image, with its position; note new problems."""
    console = Console(stderr=True)
    bar = track(files, title, console=console, transient=True, disable=not console.is_terminal)
    for position, file in enumerate(bar):
        if file in problems:
            continue
        try:
            with Image.open(file) as image:
                use(position, image)
        except Exception as error:  # Pillow's parsers raise errors of nearly any type on damaged files.
            problems[file] = _problem(error)


def _problem(error: Exception) -> str:
    """What is wrong with a file, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format, or its beginning is damaged"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _user_caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarl"


def _read_cache(path: Path, num_files: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    """What a cache file holds; None if there is none, or a damaged one, which is written anew."""
    try:
        with np.load(path, allow_pickle=False) as held:
            images, kept = held["images"], held["kept"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    sound = images.dtype == np.uint8 and images.ndim == 4 and kept.dtype == np.int64 and len(images) == len(kept)
    return (images, kept) if sound and len(kept) <= num_files else None


def _only_size(sizes: dict[Path, tuple[int, int]], what: str) -> tuple[int, int]:
    """The size that all images share; any, where no image can be read."""
    counts = collections.Counter(sizes.values()).most_common()
    if len(counts) > 1:
        (height, width), number = counts[0]
        file, size = next((file, size) for file, size in sizes.items() if size != (height, width))
        raise ConfigError(
            f"the images of {what} have {len(counts)} sizes: {number} are of {height} x {width}, but {file} is of "
            f"{size[0]} x {size[1]}. Expected one size: give one that all are resized to, "
            "e.g. image_folder(FOLDER, size=(84, 84)) in a module of your own, named as module:attribute."
        )
    return counts[0][0] if counts else (1, 1)


def _pixels(image: Image.Image, size: tuple[int, int], channels: int, ink: bool) -> NDArray[np.uint8]:
    """``[channel, height, width]``."""
    mode = "L" if channels == 1 else "RGB"
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    # Bits and palettes could only be resized by the nearest pixel.
    image = image.convert(mode)
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(image, np.uint8)
    pixels = 255 - pixels if ink else pixels
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _tell(problems: dict[Path, str], num_files: int, damaged: Damaged, what: str) -> None:
    listed = "; ".join(f"{file} ({problem})" for file, problem in list(problems.items())[:3])
    listed += f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    if damaged == "refuse" or len(problems) == num_files:
        raise ConfigError(
            f"{len(problems)} of the {num_files} images of {what} cannot be read: {listed}. Expected whole image "
            "files: replace or remove these; tasks made in Python skip them with damaged='skip', if that leaves enough."
        )
    warnings.warn(f"skipped {len(problems)} of the {num_files} images of {what}: {listed}.", stacklevel=3)

"""Image files: how they become arrays, the cache, and files that cannot be read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from metarl.errors import ConfigError
from metarl.fewshot.tasks import images as image_files
from metarl.fewshot.tasks.images import ImageFormat, cached_images, read_images


def _write(path: Path, pixels: np.ndarray, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if image.mode == mode else image.convert(mode)).save(path)
    return path


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_grey_and_coloured_files_become_arrays_of_one_or_three_channels(tmp_path: Path) -> None:
    grey, colour = _noise(5, 4), _noise(5, 4, 3)
    files = [_write(tmp_path / "grey.png", grey), _write(tmp_path / "colour.png", colour, "RGB")]
    images, kept = read_images(files[:1], ImageFormat())
    assert images.shape == (1, 1, 5, 4) and np.array_equal(images[0, 0], grey) and kept.tolist() == [0]
    images, kept = read_images(files, ImageFormat())
    assert images.shape == (2, 3, 5, 4) and kept.tolist() == [0, 1]
    assert (images[0] == grey).all() and np.array_equal(images[1], colour.transpose(2, 0, 1))
    images, _ = read_images(files, ImageFormat(channels=1))
    assert images.shape == (2, 1, 5, 4)


def test_ink_is_1_and_transparent_ground_is_white(tmp_path: Path) -> None:
    stroke = np.full((4, 4), 255, np.uint8)
    stroke[1] = 0
    bits = _write(tmp_path / "bits.png", stroke, "1")
    clear = np.zeros((4, 4, 4), np.uint8)  # Black everywhere, and visible in one row.
    clear[1, :, 3] = 255
    transparent = _write(tmp_path / "clear.png", clear, "RGBA")
    images, _ = read_images([bits, transparent], ImageFormat(channels=1, ink=True))
    assert (images[:, 0] == 255 - stroke).all()


def test_images_are_resized_with_their_grey_levels(tmp_path: Path) -> None:
    half = np.zeros((8, 8), np.uint8)
    half[:, :3] = 255
    images, _ = read_images([_write(tmp_path / "a.png", half, "1")], ImageFormat((4, 2), 1))
    assert images.shape == (1, 1, 4, 2)
    assert 150 < images[0, 0, 0, 0] < 255 and images[0, 0, 0, 1] < 60


def test_sizes_that_differ_are_told_unless_one_is_given(tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{number}.png", _noise(side, 7)) for number, side in enumerate((7, 8, 8, 8))]
    with pytest.raises(ConfigError) as caught:
        read_images(files, ImageFormat(), what="mine")
    expected = f"the images of mine have 2 sizes: 3 are of 8 x 7, but {files[0]} is of 7 x 7. Expected one size: give"
    assert expected in str(caught.value)
    assert read_images(files, ImageFormat((8, 8)))[0].shape == (4, 1, 8, 8)


def _damaged(folder: Path) -> list[Path]:
    """A whole image between one cut short, a text and an empty file."""
    stream = io.BytesIO()
    Image.fromarray(_noise(40, 40, 3)).save(stream, "png")
    folder.mkdir()
    contents = {
        "cut.png": stream.getvalue()[:2000],
        "good.png": stream.getvalue(),
        "text.jpg": b"hello",
        "void.png": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


def test_damaged_files_are_named_and_counted_and_skipped_only_if_asked(tmp_path: Path) -> None:
    files = _damaged(tmp_path / "data")
    with pytest.raises(ConfigError) as caught:
        read_images(files, ImageFormat(), what="mine")
    message = str(caught.value)
    assert message.startswith("3 of the 4 images of mine cannot be read: ")
    assert all(str(file) in message for file in files if file.name != "good.png") and "damaged='skip'" in message
    assert message.count(str(files[0])) == 1 and "truncated" in message
    with pytest.warns(UserWarning, match=r"skipped 3 of the 4 images of mine: .*cut\.png"):
        images, kept = read_images(files, ImageFormat(), damaged="skip", what="mine")
    assert images.shape == (1, 3, 40, 40) and kept.tolist() == [1] and images.any()
    with pytest.raises(ConfigError, match="1 of the 1 images"):
        read_images(files[:1], ImageFormat(), damaged="skip")


def test_what_is_no_image_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError) as caught:
        read_images(sorted(tmp_path.iterdir()), ImageFormat(), what="mine")
    message = str(caught.value)
    assert message.startswith(f"2 of the 2 images of mine cannot be read: {tmp_path / 'folder.png'} (Is a directory); ")
    assert f"{tmp_path / 'text.png'} (it is no image of a known format, or its beginning is damaged). Exp" in message


def test_a_link_to_nothing_is_a_damaged_file(tmp_path: Path) -> None:
    _write(tmp_path / "data" / "good.png", _noise(4, 4))
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "nowhere.png")
    files = sorted((tmp_path / "data").iterdir())
    with pytest.raises(ConfigError, match=r"1 of the 2 images of mine cannot be read: .*link\.png \(.*No such file"):
        cached_images(files, tmp_path / "data", ImageFormat(), what="mine")


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match=r"deep\.png \(its pixels have the mode I;16, expected 8 bits"):
        read_images([tmp_path / "deep.png"], ImageFormat())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many files each decoding read; caches of the user lie in ``tmp_path / "user"``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    counts: list[int] = []

    def counted(files: list[Path], *rest: object, **more: object) -> object:
        counts.append(len(files))
        return read_images(files, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(image_files, "read_images", counted)
    return counts


def test_files_are_decoded_once_and_again_when_they_change(tmp_path: Path, decoded: list[int]) -> None:
    folder = tmp_path / "data"
    files = [_write(folder / f"{number}.png", _noise(6, 6, seed=number)) for number in range(3)]
    first, _ = cached_images(files, folder, ImageFormat(), what="mine")
    again, kept = cached_images(files, folder, ImageFormat(), what="mine")
    assert decoded == [3] and np.array_equal(first, again) and kept.tolist() == [0, 1, 2]
    assert len(list((folder / ".metarl").iterdir())) == 1 and not (tmp_path / "user").exists()
    cached_images(files, folder, ImageFormat(ink=True), what="mine")
    assert decoded == [3, 3]
    _write(files[0], _noise(6, 6, seed=9))
    os.utime(files[0], ns=(1, 1))
    changed, _ = cached_images(files, folder, ImageFormat(), what="mine")
    assert decoded == [3, 3, 3] and np.array_equal(changed[0, 0], _noise(6, 6, seed=9))


def test_files_of_one_size_and_time_that_changed_places_are_decoded_again(tmp_path: Path, decoded: list[int]) -> None:
    folder = tmp_path / "data"
    files = [_write(folder / name / "1.bmp", _noise(6, 6, seed=seed)) for seed, name in enumerate("ab")]
    for file in files:
        os.utime(file, ns=(1, 1))
    cached_images(files, folder, ImageFormat(), what="mine")
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (folder / old).rename(folder / new)
    images, _ = cached_images(files, folder, ImageFormat(), what="mine")
    assert decoded == [2, 2]
    assert all(np.array_equal(images[seed, 0], _noise(6, 6, seed=1 - seed)) for seed in (0, 1))


def test_photographs_stand_upright_however_the_camera_was_held(tmp_path: Path) -> None:
    pixels = _noise(4, 6)
    upright = _write(tmp_path / "upright.png", pixels)
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # To be turned by 90 degrees clockwise when shown.
    Image.fromarray(np.rot90(pixels).copy()).save(turned, exif=exif)
    images, _ = read_images([upright, turned], ImageFormat())
    assert images.shape == (2, 1, 4, 6)
    assert np.array_equal(images[0], images[1])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not quite", None])
def test_a_damaged_cache_is_made_again(tmp_path: Path, decoded: list[int], content: bytes | None) -> None:
    folder = tmp_path / "data"
    files = [_write(folder / "a.png", _noise(30, 30))]
    first, _ = cached_images(files, folder, ImageFormat(), what="mine")
    (cache,) = (folder / ".metarl").iterdir()
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2] if content is None else content)
    again, _ = cached_images(files, folder, ImageFormat(), what="mine")
    assert decoded == [1, 1] and np.array_equal(first, again)
    cached_images(files, folder, ImageFormat(), what="mine")
    assert decoded == [1, 1]


def test_data_that_cannot_be_written_to_is_cached_for_the_user(tmp_path: Path, decoded: list[int]) -> None:
    folder = tmp_path / "data"
    files = [_write(folder / "a.png", _noise(6, 6))]
    (folder / ".metarl").write_text("in the way of the folder")
    for _ in range(2):
        cached_images(files, folder, ImageFormat(), what="mine")
    assert decoded == [1] and len(list((tmp_path / "user" / "metarl").iterdir())) == 1


def test_images_that_can_be_kept_nowhere_are_used_with_a_warning(tmp_path: Path, decoded: list[int]) -> None:
    folder = tmp_path / "data"
    files = [_write(folder / "a.png", _noise(6, 6))]
    (folder / ".metarl").write_text("in the way")
    (tmp_path / "user").write_text("in the way")
    with pytest.warns(UserWarning, match="will be decoded again next time: could write neither"):
        images, _ = cached_images(files, folder, ImageFormat(), what="mine")
    assert np.array_equal(images[0, 0], _noise(6, 6))

"""Characters of a font as few-shot classes: Omniglot's kind of task without a download."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFont
from torch import Tensor

from metarl.fewshot.tasks.classes import Classes, ClassTasks
from metarl.fewshot.tasks.images import ImageFormat
from metarl.fewshot.types import EpisodeConfig, Split

_BLOCKS: dict[Split, tuple[tuple[int, int], ...]] = {
    "train": (
        (0x0021, 0x02FF),  # Latin with its extensions, phonetics, modifiers
        (0x0370, 0x052F),  # Greek, Cyrillic
        (0x0600, 0x06FF),  # Arabic
        (0x1D00, 0x1FFF),  # phonetics, more Latin and Greek
        (0x2010, 0x2BFF),  # punctuation, currencies, letter-like, arrows, mathematics, drawing, symbols, Braille
        (0x2C60, 0x2C7F),  # Latin C
        (0x2E00, 0x2E7F),  # more punctuation
        (0x4DC0, 0x4DFF),  # hexagrams
        (0xA640, 0xA7FF),  # more Cyrillic and Latin
        (0xFB00, 0xFB06),  # Latin ligatures
        (0xFB50, 0xFEFF),  # Arabic forms
        (0x1D300, 0x1D7FF),  # tetragrams, letters of mathematics
        (0x1EE00, 0x1EEFF),  # Arabic letters of mathematics
        (0x1F000, 0x1F6FF),  # dominoes, playing cards, faces
    ),
    "validation": (
        (0x0530, 0x05FF),  # Armenian, Hebrew
        (0x07C0, 0x07FF),  # N'Ko
        (0x0E80, 0x0EFF),  # Lao
        (0xFB13, 0xFB4F),  # Armenian and Hebrew forms
    ),
    "test": (
        (0x10A0, 0x10FF),  # Georgian
        (0x1400, 0x169F),  # Canadian syllabics, Ogham
        (0x2D00, 0x2D7F),  # more Georgian, Tifinagh
        (0xA4D0, 0xA4FF),  # Lisu
        (0x10300, 0x1032F),  # Old Italic
    ),
}
"""Unicode blocks of each split; those of one script are in one split, so that test alphabets are new."""

_EXAMPLES = 20
"""Drawings of each character, as in Omniglot."""

_SIDE, _INK = 28, 18
"""Pixels of an image, and of the longer side of a character in it."""

_ALIKE = 0.95
"""Cosine of two blurred characters above which they look alike."""

_ROTATION, _SHEAR, _SCALE, _SHIFT, _ELASTIC = 0.15, 0.15, 0.1, 1.0, 2.5
"""Standard deviations of a drawing's jitter: radians, slope, log of an axis, pixels, pixels of a control point."""


@functools.cache
def glyphs() -> ClassTasks:
    """Tasks of characters of DejaVu Sans, the font that Matplotlib ships, at 28 x 28 with ink 1 on 0.

    A class is a character: cut out, scaled to 18 pixels at its longer side, and drawn 20 times with random rotation,
    shear, scale, shift and elastic deformation. Blanks, combining marks and private characters are left out, and so is
    every character that looks like one with a lower code point in any split: the cosine of the two, cut out, scaled
    and blurred, exceeds 0.95 (so C and c, O and o, Latin A and Greek Alpha are one). The drawings are the same in every
    run, and take some five seconds to make. A task has 5 queries of each class unless told otherwise.

    Training classes are Latin, Greek, Cyrillic, Arabic and all symbols (2,133 classes); validation classes Armenian,
    Hebrew, N'Ko and Lao (187); test classes Georgian, Canadian syllabics, Ogham, Tifinagh, Lisu and Old Italic (495).
    Another version of the library that draws fonts may differ by a few.
    """
    characters, outlines = _characters()
    kept = _without_look_alikes(outlines)
    characters, outlines = [characters[row] for row in kept], outlines[kept]
    drawings = _jitter(outlines, np.random.default_rng(0))
    splits: dict[Split, Classes] = {}
    for split, blocks in _BLOCKS.items():
        rows = [row for row, character in enumerate(characters) if _is_in(character, blocks)]
        names = tuple(f"U+{ord(characters[row]):04X} {unicodedata.name(characters[row])}" for row in rows)
        examples = drawings[rows].reshape(-1, 1, _SIDE, _SIDE)
        splits[split] = Classes(examples, np.full(len(rows), _EXAMPLES), names)
    image_format = ImageFormat((_SIDE, _SIDE), 1, ink=True)
    return ClassTasks("glyphs", splits, image_format=image_format, default_episode=EpisodeConfig(queries=5))


def _is_in(character: str, blocks: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in blocks)


def _characters() -> tuple[list[str], Tensor]:
    """Characters of the font in the order of code points, and how they look, ``[character, 2 * 28, 2 * 28]``.

    Twice as fine as the drawings, which are made from these by sampling.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), 64, layout_engine=ImageFont.Layout.BASIC)
    # A private code point without a character shows what the font draws for all that it lacks.
    absent = _ink(font, "\U0010fffd")
    characters, outlines = [], []
    for character in _candidates():
        ink = _ink(font, character)
        if ink is not None and (absent is None or ink.tobytes() != absent.tobytes()):
            characters.append(character)
            outlines.append(_centred(ink))
    return characters, torch.from_numpy(np.stack(outlines)).float() / 255


def _candidates() -> Iterator[str]:
    blocks = sorted(block for of_split in _BLOCKS.values() for block in of_split)
    for first, last in blocks:
        for code in range(first, last + 1):
            # Marks that combine with a letter, control characters, private and unassigned ones, separators.
            if unicodedata.category(chr(code))[0] not in "MCZ":
                yield chr(code)


def _ink(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """The character cut out; None for a blank."""
    mask = font.getmask(character, mode="L")
    if 0 in mask.size:
        return None
    image = Image.frombytes("L", mask.size, bytes(mask))
    box = image.getbbox()
    return image.crop(box) if box else None


def _centred(ink: Image.Image) -> NDArray[np.uint8]:
    scale = 2 * _INK / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    canvas = Image.new("L", (2 * _SIDE, 2 * _SIDE))
    canvas.paste(ink.resize((width, height), Image.Resampling.BILINEAR), (_SIDE - width // 2, _SIDE - height // 2))
    return np.asarray(canvas)


def _without_look_alikes(outlines: Tensor) -> list[int]:
    """Rows of the characters that look like none kept before them."""
    # In float64, so that no other number of threads or other kernel moves a cosine across the threshold.
    offsets = torch.arange(-6, 7, dtype=torch.float64)
    bell = torch.exp(-0.5 * (offsets / 2).square())
    kernel = (bell[:, None] * bell).reshape(1, 1, 13, 13)
    flat = F.conv2d(outlines.double()[:, None], kernel, stride=4, padding=6).flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True)
    alike = (flat @ flat.T > _ALIKE).numpy()
    kept: list[int] = []
    for row in range(len(alike)):
        if not alike[row, kept].any():
            kept.append(row)
    return kept


def _jitter(outlines: Tensor, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Drawings ``[character, example, 28, 28]`` of outlines ``[character, 56, 56]``."""
    smooth = F.avg_pool2d(F.pad(outlines[:, None], (0, 1, 0, 1)), 2, stride=1)
    drawings = np.empty((len(outlines), _EXAMPLES, _SIDE, _SIDE), np.uint8)
    for start in range(0, len(outlines), 256):
        part = smooth[start : start + 256].repeat_interleave(_EXAMPLES, 0)
        drawn = F.grid_sample(part, _places(len(part), rng), align_corners=False)
        drawings[start : start + 256] = (drawn * 255).round().to(torch.uint8).reshape(-1, _EXAMPLES, _SIDE, _SIDE)
    return drawings


def _places(count: int, rng: np.random.Generator) -> Tensor:
    """Where in a character each pixel of its drawing is taken from, ``[drawing, 28, 28, (x, y)]`` in [-1, 1].

    A free-form deformation (Sederberg and Parry, 1986): polynomials of 5 x 5 control points, which are a regular grid
    after an affine map and noise. On the grid itself the polynomials are the identity.
    """
    angle, shear = rng.normal(0.0, (_ROTATION, _SHEAR), (count, 2)).T
    stretch = np.exp(rng.normal(0.0, _SCALE, (count, 2)))
    pixel = 2 / _SIDE
    shift = rng.normal(0.0, _SHIFT * pixel, (count, 2))
    noise = rng.normal(0.0, _ELASTIC * pixel, (count, 2, 5, 5))
    y, x = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5), indexing="ij")
    stretched = stretch[:, :, None, None] * np.stack([x, y])
    slanted = stretched[:, 0] + shear[:, None, None] * stretched[:, 1]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    turned = np.stack([cos * slanted - sin * stretched[:, 1], sin * slanted + cos * stretched[:, 1]], 1)
    points = turned + shift[:, :, None, None] + noise
    centres = (np.arange(_SIDE) + 0.5) / _SIDE
    weights = [math.comb(4, k) * centres**k * (1 - centres) ** (4 - k) for k in range(5)]
    basis = np.stack(weights, 1)
    return torch.from_numpy(basis @ points @ basis.T).float().permute(0, 2, 3, 1)

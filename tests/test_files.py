"""A file is replaced in one step, or it is as it was; names become file names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from metarl.plotting import save_figure
from metarl.runs.files import replacing, safe_name, write_atomically


def test_a_file_is_replaced_by_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"first", b"second"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    with replacing(path) as temporary:
        with temporary.open("wb") as stream:
            stream.write(b"in ")
            stream.write(b"parts")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"in parts" and os.listdir(tmp_path) == ["x"]


def _write_half(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError("half way")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError, match="half way"):
        _write_half(path)
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # Nothing was written.
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_a_link_is_replaced_and_not_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(b"precious")
    link = tmp_path / "learning.png"
    link.symlink_to(tmp_path / "elsewhere.png")
    save_figure(Figure(), link)
    assert not link.is_symlink() and link.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "elsewhere.png").read_bytes() == b"precious"


def test_a_new_file_may_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("locomotion/cheetah-direction", "locomotion-cheetah-direction"),
        ("my_tasks:rover", "my_tasks-rover"),
        ("../a b", "a-b"),
        ("x=1+2.5", "x=1+2.5"),
    ],
)
def test_a_name_becomes_a_file_s_name(name: str, expected: str) -> None:
    assert safe_name(name) == expected

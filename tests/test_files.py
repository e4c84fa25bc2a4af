"""A file is replaced in one step, or it is as it was; names become file names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from metarl.errors import CheckpointError
from metarl.plotting import save_figure
from metarl.runs.files import read_json, read_regular, replacing, safe_name, typed, write_atomically


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


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name, reason in (("pipe", "not a regular file"), ("endless", "not a regular file"), ("", "directory")):
        with pytest.raises(OSError, match=reason):
            read_regular(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": {"lr": NaN}}', "train.lr is nan; expected a finite number"),
        ('{"list": [1, {"x": -Infinity}]}', "list.1.x is -inf"),
        ('{"x": 1e999}', "x is inf"),
        ('{"seed": 9223372036854775808}', "seed is beyond 64 bits"),
        ('{"x": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("[1]", "expected a JSON object, got list"),
        ('{"x"', "is damaged"),
        ("\xff\x00", "is damaged"),
    ],
)
def test_json_that_nothing_can_use_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=rf"x\.json is damaged: .*{message}|x\.json {message}"):
        read_json(path)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("3", int, "'x' must be a whole number, got '3'"),
        (True, int, "'x' must be a whole number, got True"),
        (1.5, int, "'x' must be a whole number, got 1.5"),
        (None, float, "'x' must be a number, got None"),
        ([], dict, r"'x' must be an object, got \[\]"),
        ({}, str, "'x' must be text, got {}"),
    ],
)
def test_a_field_of_another_kind_is_named(value: Any, kind: type, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"FILE is damaged: {message}"):
        typed({"x": value}, "x", kind, "FILE")
    with pytest.raises(CheckpointError, match="it lacks 'y'"):
        typed({"x": value}, "y", kind, "FILE")
    assert typed({"x": 2}, "x", float, "FILE") == 2

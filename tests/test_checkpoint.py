"""Checkpoints survive crashes, find every damaged bit and never execute what they hold."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metarl.errors import CheckpointError, NonFiniteError
from metarl.runs import checkpoint
from metarl.runs.checkpoint import CheckpointStore, load, save

_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]


def _random_tensor(rng: random.Random) -> Tensor:
    shape = rng.choice([(), (1,), (0, 3), (2, 3), (4, 1, 2)])
    if rng.random() < 0.2:
        return torch.rand(shape) < 0.5
    values = torch.randint(0, 200, shape).to(rng.choice(_DTYPES))
    return values.T if values.dim() == 2 else values


def _random_state(rng: random.Random, depth: int = 4) -> Any:
    kind = rng.randrange(11 if depth else 7)
    if kind < 2:
        return _random_tensor(rng)
    if kind < 7:
        scalars = [rng.getrandbits(130), -3, rng.gauss(0, 1e9), -0.0, math.inf, True, None, 'käse "\\/\n', "", 1.0, 1]
        return rng.choice(scalars)
    entries = [_random_state(rng, depth - 1) for _ in range(rng.randrange(5))]
    if kind == 7:
        return entries
    if kind == 8:
        return tuple(entries)
    keys = rng.sample(["a", "a.b", "b", "1", 1, 0, -7, None, ("x", 2), "__metadata__", 0.5], len(entries))
    return dict(zip(keys, entries, strict=True))


def _assert_identical(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert [(type(key), key) for key in actual] == [(type(key), key) for key in expected]
        for key in expected:
            _assert_identical(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for left, right in zip(actual, expected, strict=True):
            _assert_identical(left, right)
    else:
        assert repr(actual) == repr(expected)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("seed", range(40))
def test_any_nested_state_comes_back_exactly(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    state = {"root": [_random_state(rng) for _ in range(6)], "a": {"b": torch.zeros(2)}, "a.b": torch.ones(3)}
    save(tmp_path / "x.safetensors", state)
    _assert_identical(load(tmp_path / "x.safetensors"), state)


def test_nan_comes_back_as_nan(tmp_path: Path) -> None:
    save(tmp_path / "x.safetensors", {"value": math.nan, "tensor": torch.tensor(math.nan)})
    state = load(tmp_path / "x.safetensors")
    assert math.isnan(state["value"])
    assert bool(state["tensor"].isnan())


def test_an_optimiser_continues_bit_for_bit_after_a_round_trip(tmp_path: Path) -> None:
    def make() -> tuple[nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.9))

    def step(model: nn.Linear, optimizer: torch.optim.Adam) -> None:
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer)
    save(tmp_path / "x.safetensors", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    restored_model, restored_optimizer = make()
    state = load(tmp_path / "x.safetensors")
    assert list(state["optimizer"]["state"]) == [0, 1]
    restored_model.load_state_dict(state["model"])
    restored_optimizer.load_state_dict(state["optimizer"])
    for _ in range(3):
        step(model, optimizer)
        step(restored_model, restored_optimizer)
    assert torch.equal(model.weight, restored_model.weight)


def test_random_generators_continue_after_a_round_trip(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    save(tmp_path / "x.safetensors", {"generator": generator.get_state()})
    expected = torch.rand(5, generator=generator)
    generator.set_state(load(tmp_path / "x.safetensors")["generator"])
    assert torch.equal(torch.rand(5, generator=generator), expected)


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    save(tmp_path / "x.safetensors", {"all": base, "part": base[2:4], "wide": base[:1].expand(3)})
    state = load(tmp_path / "x.safetensors")
    state["all"].zero_()
    assert state["part"].tolist() == [2.0, 3.0]
    assert state["wide"].tolist() == [0.0] * 3


@pytest.mark.cuda
def test_tensors_of_a_gpu_come_back_on_the_cpu(tmp_path: Path) -> None:
    save(tmp_path / "x.safetensors", {"x": torch.arange(3, device="cuda")})
    _assert_identical(load(tmp_path / "x.safetensors"), {"x": torch.arange(3)})


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, torch.zeros(2).to_sparse(), {b"key": 1}])
def test_what_a_checkpoint_cannot_hold_is_refused_with_its_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state\.agent\.1"):
        save(tmp_path / "x.safetensors", {"agent": [0, value]})
    assert _files(tmp_path) == []


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_old_file_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"value": 1, "tensor": torch.ones(3)})

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
            save(path, {"value": 2, "tensor": torch.zeros(3)})
    assert load(path)["value"] == 1
    assert _files(tmp_path) == ["x.safetensors"]


def test_a_full_disk_is_named_and_leaves_the_previous_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"value": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"iteration-00000002.*disk is full.*No space left.*are intact"):
            store.save(2, {"value": 2})
    assert store.load_latest() == (1, {"value": 1})
    assert _files(tmp_path) == ["iteration-00000001.safetensors"]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: the folder cannot be written"):
        save(blocker / "x.safetensors", {})
    with pytest.raises(CheckpointError, match=r"could not make the folder .*file"):
        CheckpointStore(blocker / "checkpoints").save(0, {})


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, kind: str | int) -> None:
    proof, path = tmp_path / "executed", tmp_path / "x.pt"
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps(_Malicious(proof), protocol=kind))
    else:
        torch.save(_Malicious(proof), path, _use_new_zipfile_serialization=kind == "torch zip")
    with pytest.raises(CheckpointError, match="is not a metarl checkpoint: it is a pickle, which could run code"):
        load(path)
    assert not proof.exists()
    if isinstance(kind, int):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert proof.exists(), "the crafted pickle must be able to run code, else this test proves nothing"


def test_checkpoint_code_cannot_unpickle() -> None:
    source = Path(checkpoint.__file__).read_text()
    assert "import pickle" not in source
    assert "torch.load" not in source.replace("safetensors.torch.load", "")


def _example(path: Path) -> bytes:
    save(
        path, {"iteration": 3, "tensor": torch.arange(10), "mask": torch.tensor([True, False]), "x": [1.5, (None, "ü")]}
    )
    return path.read_bytes()


def test_truncation_at_any_length_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = _example(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors is truncated"):
            load(path)


def test_appended_bytes_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(_example(path) + b"\0")
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load(path)


def test_every_single_flipped_bit_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = _example(path)
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError, match=r"x\.safetensors is"):
                load(path)


def test_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    foreign = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(3)}, foreign)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not a metarl checkpoint: it is a safetensors"):
        load(foreign)
    foreign.write_text("Dear diary, today I trained an agent.")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not a metarl checkpoint: it is no safetensors"):
        load(foreign)
    with pytest.raises(CheckpointError, match=r"could not read .*absent\.safetensors: No such file"):
        load(tmp_path / "absent.safetensors")


def test_the_store_keeps_the_last_few_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for iteration, score in enumerate([1.0, 5.0, None, 4.0, 5.0]):
        store.save(iteration, {"value": iteration}, score)
    assert store.iterations() == [3, 4]
    assert store.latest().name == "iteration-00000004.safetensors"
    assert store.load_latest() == (4, {"value": 4})
    assert store.load(store.best_path) == (1, {"value": 1})
    assert len(_files(tmp_path)) == 3


def test_the_best_score_is_known_after_a_restart(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(1, {}, score=-2.0)
    store = CheckpointStore(tmp_path)
    store.save(2, {}, score=-3.0)
    assert store.load(store.best_path)[0] == 1
    store.save(3, {}, score=-1.0)
    assert store.load(store.best_path)[0] == 3


def test_a_damaged_best_is_replaced_with_a_warning(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.best_path.write_bytes(b"damaged")
    with pytest.warns(RuntimeWarning, match=r"best\.safetensors is truncated.*chosen anew"):
        store.save(1, {}, score=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.best_score() == 0.0


def test_rewinding_a_run_drops_the_abandoned_future(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=3)
    for iteration in (1, 2, 3, 4):
        store.save(iteration, {})
    store.save(3, {"rewound": True})
    assert store.iterations() == [2, 3]
    assert store.load_latest() == (3, {"rewound": True})


def test_a_damaged_newest_checkpoint_offers_the_previous_good_one(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    store = CheckpointStore(tmp_path / "my run" / "checkpoints")
    for iteration in (1, 2, 3):
        store.save(iteration, {"value": iteration})
    for iteration in (2, 3):
        store.path(iteration).write_bytes(store.path(iteration).read_bytes()[:-4])
    with pytest.raises(CheckpointError) as raised:
        store.load_latest()
    message = str(raised.value)
    run, good = tmp_path / "my run", store.path(1)
    assert message.startswith(f"{store.path(3)} is ")
    assert message.endswith(f"metarl train --resume '{run}' --checkpoint '{good}'")


def test_a_store_without_an_intact_checkpoint_says_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        store.load_latest()
    store.path(5).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"iteration-00000005.*truncated.*No earlier checkpoint"):
        store.load_latest()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".iteration-00000001.safetensors.123.tmp").write_bytes(b"half")
    CheckpointStore(tmp_path).save(2, {})
    assert _files(tmp_path) == ["iteration-00000002.safetensors"]


def test_a_file_of_plain_save_is_not_the_checkpoint_of_a_run(tmp_path: Path) -> None:
    save(tmp_path / "x.safetensors", {"weights": 1})
    with pytest.raises(CheckpointError, match=r"not the checkpoint of a run.*got \['weights'\]"):
        CheckpointStore(tmp_path).load(tmp_path / "x.safetensors")


def test_impossible_counts_and_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep_last must be 1 or more, got 0"):
        CheckpointStore(tmp_path, keep_last=0)
    with pytest.raises(CheckpointError, match="iteration must be 0 or more, got -1"):
        CheckpointStore(tmp_path).save(-1, {})
    with pytest.raises(NonFiniteError, match="score of iteration 1 is nan"):
        CheckpointStore(tmp_path).save(1, {}, score=math.nan)


@pytest.mark.parametrize(
    "content",
    [
        {"iteration": "4", "score": None, "state": {}},
        {"iteration": True, "score": None, "state": {}},
        {"iteration": -1, "score": None, "state": {}},
        {"iteration": 4, "score": "high", "state": {}},
        {"iteration": 4, "score": math.nan, "state": {}},
        {"iteration": 4, "score": None, "state": []},
    ],
)
def test_content_of_another_kind_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    save(tmp_path / "x.safetensors", content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged: .*(must be|expected)"):
        CheckpointStore(tmp_path).load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000 + "]" * 5000,
        "[]",
        "3",
        '{"dict":null}',
        '{"dict":[[[],1]]}',
        '{"dict":[["a",{"tensor":["b"]}]]}',
        '{"dict":[["a",{"float":null}]]}',
        '{"tuple":3}',
        '{"a":1,"b":2}',
    ],
)
def test_a_state_of_another_form_is_refused_even_with_its_digest(tmp_path: Path, text: str) -> None:
    metadata = {"format": "metarl-checkpoint-1", "state": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save({}, metadata))
    with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
        load(path)


@pytest.mark.parametrize(
    "header",
    [
        "[" * 5000,
        '{"__metadata__":[]}',
        '{"__metadata__":{"format":"metarl-checkpoint-1","state":3,"sha256":"x"}}',
        '{"__metadata__":{"format":"metarl-checkpoint-1","state":"{}","sha256":null}}',
        '{"__metadata__":{"format":"metarl-checkpoint-1","state":"{}","sha256":"x"},"a":{"data_offsets":[0,"1"]}}',
        '{"__metadata__":{"format":"metarl-checkpoint-1","state":"{}","sha256":"x"},"a":3}',
        '{"__metadata__":{"format":"metarl-checkpoint-1","state":"{}","sha256":"x"},"a":{"data_offsets":[0,1e999]}}',
    ],
)
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(CheckpointError, match=r"x\.safetensors is "):
        load(path)


def test_pipes_and_devices_are_no_checkpoints(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="it is not a regular file"):
            load(path)

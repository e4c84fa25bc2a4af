"""Instances of the pool can be looked at, and what is seen is their state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.divergence import unchecked_actions
from helpers.graphics import missing_library

from metarl.envs import make_vec
from metarl.envs.metaworld.rendering import SIZE, RenderedVectorEnv, render_env
from metarl.envs.metaworld.upstream import upstream_env
from metarl.envs.metaworld.vector_env import MetaWorldVectorEnv
from metarl.errors import ConfigError
from metarl.types import Task

REACH: Task = {"env_name": "reach-v3", "rand_vec": np.array([0.0, 0.6, 0.02, 0.05, 0.85, 0.2])}
DRAWER: Task = {"env_name": "drawer-close-v3", "rand_vec": np.array([0.05, 0.9, 0.0])}
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 2, 4)).astype(np.float32)


@pytest.fixture
def pool() -> Iterator[RenderedVectorEnv]:
    if missing_library():
        with pytest.raises(ConfigError, match="apt-get install libegl1 libgl1"):
            make_vec("ml1/reach-v3", 2, render_mode="rgb_array")
        pytest.skip("no library renders here; that is what the error says")
    pool = RenderedVectorEnv(MetaWorldVectorEnv(2, num_workers=1), "v2")
    pool.reset(options={"tasks": [REACH, DRAWER]})
    yield pool
    pool.close()


def expected(task: Task, actions: np.ndarray) -> np.ndarray:
    """What upstream's environment shows after these actions."""
    env = render_env(task)
    env.reset()
    for action in actions:
        env.step(action)
    frame = env.render()
    env.close()
    assert isinstance(frame, np.ndarray)
    return frame


def test_every_instance_shows_its_own_state(pool: RenderedVectorEnv) -> None:
    for actions in ACTIONS[:5]:
        pool.step(actions)
    early = pool.render_instance(1)
    for actions in ACTIONS[5:]:
        pool.step(actions)
    frames = pool.render()
    assert len(frames) == 2 and frames[0].shape == (SIZE, SIZE, 3) and frames[0].dtype == np.uint8
    assert np.array_equal(frames[0], expected(REACH, ACTIONS[:, 0]))
    assert np.array_equal(frames[1], expected(DRAWER, ACTIONS[:, 1]))
    assert (early != frames[1]).any()


def test_a_reset_instance_shows_its_new_task_and_a_diverged_one_its_last_valid_state(pool: RenderedVectorEnv) -> None:
    pool.step(ACTIONS[0])
    bad = ACTIONS[1].copy()
    bad[1] = np.nan
    with unchecked_actions():
        assert pool.step(bad)[4]["invalid"].tolist() == [False, True]
    pool.step(ACTIONS[2])
    assert np.array_equal(pool.render_instance(1), expected(DRAWER, ACTIONS[:1, 1]))
    pool.reset(options={"tasks": [REACH, REACH], "reset_mask": np.array([False, True])})
    pool.step(ACTIONS[3])
    assert np.array_equal(pool.render_instance(1), expected(REACH, ACTIONS[3:4, 1]))


def test_gymnasiums_conventions_hold_and_bad_requests_are_refused(pool: RenderedVectorEnv) -> None:
    assert pool.render_mode == "rgb_array" and pool.metadata["render_modes"] == ["rgb_array"]
    with pytest.raises(ConfigError, match="there is no instance 2: expected 0 to 1"):
        pool.render_instance(2)
    fresh = make_vec("ml1/reach-v3", 1, num_workers=1, render_mode="rgb_array")
    assert isinstance(fresh, RenderedVectorEnv)
    with pytest.raises(ConfigError, match="call reset before render"):
        fresh.render()
    fresh.close()


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown render mode 'rgb'\. Did you mean 'rgb_array'"):
        make_vec("ml1/reach-v3", 1, render_mode="rgb")  # type: ignore[arg-type]


def test_rendering_changes_no_state(pool: RenderedVectorEnv) -> None:
    """Neither the pool's nor, which would spoil later frames, that of upstream's environment."""
    seen, plain = render_env(REACH), upstream_env(REACH)
    seen.reset(), plain.reset()
    for actions in ACTIONS:
        seen.render()
        assert np.array_equal(seen.step(actions[0])[0], plain.step(actions[0])[0])
    seen.close()


def test_environments_draw_side_by_side_and_closing_one_leaves_the_others_alone(pool: RenderedVectorEnv) -> None:
    """Gymnasium alone draws, and frees textures, in whichever graphics context was used last."""
    reach, drawer = render_env(REACH), render_env(DRAWER)
    reach.reset(), drawer.reset()
    first, second = reach.render(), drawer.render()
    assert np.array_equal(reach.render(), first) and np.array_equal(drawer.render(), second)
    reach.render()
    drawer.close()
    del drawer
    assert np.array_equal(reach.render(), first)
    reach.close()

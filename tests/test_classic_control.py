"""The array families against Gymnasium's own environments, and the promises of their task distributions."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, MountainCarEnv, PendulumEnv

from metarl.digest import task_digest
from metarl.envs.classic_control import DISTRIBUTIONS, Acrobot, CartPole, MountainCar, Pendulum
from metarl.tasks.distribution import TaskDistribution
from metarl.vector.array_env import Array

Task = Mapping[str, float]
Reference = Callable[[Task], Any]
Policy = Callable[[Array, np.random.Generator], Array]

BY_ID = {distribution.id: distribution for distribution in DISTRIBUTIONS}
NUM_EPISODES = 1000


def family_of(task_id: str) -> str:
    """The family's D variant, whose id starts the others'."""
    return next(name for name in ("cartpole", "pendulum", "acrobot", "mountain-car") if task_id.startswith(name))


def reference_cartpole(task: Task) -> Any:
    env = CartPoleEnv()
    env.force_mag, env.length, env.masspole = task["force"] * task["mirrored"], task["length"], task["masspole"]
    env.masscart, env.gravity = task["masscart"], task["gravity"]
    env.total_mass, env.polemass_length = env.masspole + env.masscart, env.masspole * env.length
    return env


def reference_pendulum(task: Task) -> Any:
    env = PendulumEnv(g=task["g"])
    env.m, env.l = task["mass"], task["length"]
    return env


def reference_acrobot(task: Task) -> Any:
    env = AcrobotEnv()
    env.LINK_LENGTH_1 = env.LINK_LENGTH_2 = task["length"]
    env.LINK_COM_POS_1 = env.LINK_COM_POS_2 = task["length"] / 2
    env.LINK_MASS_1 = env.LINK_MASS_2 = task["mass"]
    env.LINK_MOI = task["moi"]
    return env


def reference_off_centre(task: Task) -> Any:
    env = reference_acrobot(task)
    env.LINK_COM_POS_1 = env.LINK_COM_POS_2 = 0.5
    return env


def reference_mountain_car(task: Task) -> Any:
    env = MountainCarEnv()
    env.force, env.gravity = task["force"], task["gravity"]
    return env


def random_or_pumping(num_actions: int, velocity_index: int) -> Policy:
    """Random actions in even instances; odd ones push along one velocity, which pumps energy in, mostly."""

    def act(state: Array, rng: np.random.Generator) -> Array:
        action = rng.integers(0, num_actions, len(state))
        pump = np.where(state[:, velocity_index] > 0, num_actions - 1, 0)
        pumping = (np.arange(len(state)) % 2 == 1) & (rng.random(len(state)) < 0.9)
        return np.where(pumping, pump, action)

    return act


def random_or_balancing(state: Array, rng: np.random.Generator) -> Array:
    """Random pushes in even instances; odd ones mostly balance, so that long episodes are compared too."""
    action = rng.integers(0, 2, len(state))
    balance = (state @ np.array([0.03, 0.1, 1.0, 0.3]) > 0).astype(np.int64)
    balancing = (np.arange(len(state)) % 2 == 1) & (rng.random(len(state)) < 0.9)
    return np.where(balancing, balance, action)


def random_torque(state: Array, rng: np.random.Generator) -> Array:
    """Torques in and somewhat beyond the bounds, in float64: Gymnasium computes in the action's precision."""
    return rng.uniform(-2.5, 2.5, (len(state), 1))


def assert_equals_reference(
    dynamics: Any, reference: Reference, tasks: list[dict[str, float]], state: Array, policy: Policy, steps: int
) -> Array:
    """Step both sides from ``state`` until each episode ends, at most ``steps`` times; returns which ones ended."""
    rng = np.random.default_rng(1)
    params = {name: np.array([task[name] for task in tasks]) for name in tasks[0]}
    references = [reference(task) for task in tasks]
    for env, row in zip(references, state, strict=True):
        env.reset()
        env.state = np.array(row)
    ended = np.zeros(len(tasks), bool)
    for _ in range(steps):
        action = policy(state, rng)
        state, reward, terminated, _ = dynamics.step(state, action, params, rng)
        obs = dynamics.observe(state, params).astype(np.float32)
        for i in np.flatnonzero(~ended):
            expected_obs, expected_reward, expected_terminated, _, _ = references[i].step(action[i])
            assert np.abs(state[i] - references[i].state).max() <= 1e-6
            assert abs(reward[i] - expected_reward) <= 1e-6
            assert terminated[i] == expected_terminated
            # Float32 spacing near 28 rad/s, acrobot's top speed, is 2e-6.
            assert np.abs(obs[i] - expected_obs).max() <= 4e-6
        ended |= terminated
    return ended


def random_tasks(family: str, rng: np.random.Generator) -> list[dict[str, float]]:
    """Half from the R ranges and half from E, with the parameters that those keep fixed drawn too."""
    fixed = {
        "cartpole": {"masscart": (0.5, 2.0), "gravity": (5.0, 15.0)},
        "pendulum": {"g": (5.0, 15.0)},
    }.get(family, {})
    tasks = []
    for i in range(NUM_EPISODES):
        task = BY_ID[f"{family}-{('random', 'extreme')[i % 4 // 2]}"].sample(rng)
        task |= {name: rng.uniform(*interval) for name, interval in fixed.items()}
        tasks.append(task | ({"mirrored": rng.choice([-1.0, 1.0])} if family == "cartpole" else {}))
    return tasks


FAMILIES = [
    # family, dynamics, reference, policy, compared steps per episode, least share of episodes that terminate
    ("cartpole", CartPole(), reference_cartpole, random_or_balancing, 200, 0.5),
    ("pendulum", Pendulum(), reference_pendulum, random_torque, 200, 0.0),
    # Capped below the horizon of 500: Gymnasium's step is slow, and the double pendulum's chaos amplifies the last bit
    # to 1e-10 in 80 steps, to 1e-2 in 150.
    ("acrobot", Acrobot(), reference_acrobot, random_or_pumping(3, 3), 80, 0.05),
    ("acrobot", Acrobot(fixed_centre=True), reference_off_centre, random_or_pumping(3, 3), 80, 0.05),
    ("mountain-car", MountainCar(), reference_mountain_car, random_or_pumping(3, 1), 200, 0.3),
]


@pytest.mark.parametrize(("family", "dynamics", "reference", "policy", "steps", "least_ended"), FAMILIES)
def test_every_step_equals_gymnasiums_own_env(
    family: str, dynamics: Any, reference: Reference, policy: Policy, steps: int, least_ended: float
) -> None:
    """1,000 episodes with random tasks: state, reward, termination and observation agree to 1e-6 at every step."""
    rng = np.random.default_rng(0)
    state = dynamics.reset({}, rng, NUM_EPISODES)
    ended = assert_equals_reference(dynamics, reference, random_tasks(family, rng), state, policy, steps)
    assert least_ended <= ended.mean() < 1, "the comparison must see terminations as well as full episodes"


def test_fast_acrobots_equal_gymnasiums() -> None:
    """Also from states at any angle and near the top speeds, where angles wrap and velocities are clipped."""
    rng = np.random.default_rng(0)
    state = rng.uniform(-1, 1, (NUM_EPISODES, 4)) * np.array([3.1, 3.1, 12.5, 28.0])
    tasks = random_tasks("acrobot", rng)
    assert_equals_reference(Acrobot(), reference_acrobot, tasks, state, random_or_pumping(3, 3), 4)


@pytest.mark.parametrize(
    ("dynamics", "env"),
    [
        (CartPole(), CartPoleEnv()),
        (Pendulum(), PendulumEnv()),
        (Acrobot(), AcrobotEnv()),
        (MountainCar(), MountainCarEnv()),
    ],
)
def test_spaces_and_initial_states_are_gymnasiums(dynamics: Any, env: Any) -> None:
    """Spaces are equal, and so are the extremes of 4,000 initial states, to 1 % of their range."""
    assert dynamics.observation_space == env.observation_space
    assert dynamics.action_space == env.action_space
    states = dynamics.reset({}, np.random.default_rng(0), 4000)
    env.reset(seed=0)
    expected = []
    for _ in range(4000):
        env.reset()
        expected.append(np.array(env.state))
    low, high = np.min(expected, axis=0), np.max(expected, axis=0)
    np.testing.assert_array_less(np.abs(states.min(0) - low), 0.01 * (high - low) + 1e-12)
    np.testing.assert_array_less(np.abs(states.max(0) - high), 0.01 * (high - low) + 1e-12)
    np.testing.assert_allclose(states.mean(0), np.mean(expected, axis=0), atol=0.05 * float((high - low).max()))


@pytest.mark.parametrize(("family", "reference"), [(row[0], row[2]) for row in FAMILIES])
def test_default_tasks_are_gymnasiums_defaults(family: str, reference: Reference) -> None:
    """Setting a D task on Gymnasium's environment changes none of its attributes."""
    env = reference(BY_ID[family].sample(np.random.default_rng(0)))
    fresh = type(env)()
    numbers = {name: value for name, value in vars(env).items() if isinstance(value, float)}
    assert numbers == {name: getattr(fresh, name) for name in numbers}


CARTPOLE = {"force": [(5.0, 15.0)], "length": [(0.25, 0.75)], "masspole": [(0.05, 0.5)]}
FORCE, LENGTH, MASS = [(1.0, 5.0), (15.0, 20.0)], [(0.05, 0.25), (0.75, 1.0)], [(0.01, 0.05), (0.5, 1.0)]
BAND, OUTSIDE = [(0.75, 1.25)], [(0.5, 0.75), (1.25, 1.5)]
CAR_FORCE, CAR_GRAVITY = [(0.0001, 0.0005), (0.005, 0.01)], [(0.0005, 0.001), (0.005, 0.01)]
DECLARED: dict[str, dict[str, list[tuple[float, float]]]] = {
    "cartpole-random": CARTPOLE,
    "cartpole-extreme": {"force": FORCE, "length": LENGTH, "masspole": MASS},
    "cartpole-goal": {"target": [(-1.5, -0.5), (0.5, 1.5)]},
    "cartpole-mirrored": {**CARTPOLE, "mirrored": [(-1.0, -1.0), (1.0, 1.0)]},
    "pendulum-random": {"length": BAND, "mass": BAND},
    "pendulum-extreme": {"length": OUTSIDE, "mass": OUTSIDE},
    "acrobot-random": {"length": BAND, "mass": BAND, "moi": BAND},
    "acrobot-extreme": {"length": OUTSIDE, "mass": OUTSIDE, "moi": OUTSIDE},
    "acrobot-off-centre-random": {"length": BAND, "mass": BAND, "moi": BAND},
    "acrobot-off-centre-extreme": {"length": OUTSIDE, "mass": OUTSIDE, "moi": OUTSIDE},
    "mountain-car-random": {"force": [(0.0005, 0.005)], "gravity": [(0.001, 0.005)]},
    "mountain-car-extreme": {"force": CAR_FORCE, "gravity": CAR_GRAVITY},
}


@pytest.mark.parametrize("task_id", sorted(DECLARED))
def test_tasks_fill_their_declared_ranges_and_splits_are_disjoint(task_id: str) -> None:
    """Train and test share no task; each parameter visits every interval and leaves none; others keep defaults."""
    distribution, declared = BY_ID[task_id], DECLARED[task_id]
    rng = np.random.default_rng(0)
    train, test = distribution.train.sample(400, rng), distribution.test.sample(400, rng)
    assert not {task_digest(task) for task in train} & {task_digest(task) for task in test}
    defaults = BY_ID[family_of(task_id)].sample(rng)
    for split in (train, test):
        for name, default in defaults.items():
            values = np.array([task[name] for task in split])
            if name not in declared:
                assert (values == default).all()
                continue
            inside = [(low <= values) & (values <= high) for low, high in declared[name]]
            assert all(part.any() for part in inside)
            assert np.any(inside, axis=0).all()
            for (low, high), part in zip(declared[name], inside, strict=True):
                if part.sum() > 100 and high > low:
                    assert np.ptp(values[part]) > 0.9 * (high - low)


def test_an_extreme_parameter_is_uniform_over_its_union() -> None:
    """Force lies in [1, 5] with probability 4/9 and in [15, 20] with 5/9, as with Packer et al.'s rejection."""
    rng = np.random.default_rng(0)
    force = np.array([BY_ID["cartpole-extreme"].sample(rng)["force"] for _ in range(4000)])
    assert abs((force <= 5).mean() - 4 / 9) < 0.03


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: d.id)
def test_same_seed_same_bits_and_the_factory_survives_pickling(distribution: TaskDistribution) -> None:
    """Two runs of one seed agree bit for bit, the second one on an environment from a pickled factory."""
    runs = []
    assert distribution.make_vector is not None
    for make_vector in (distribution.make_vector, pickle.loads(pickle.dumps(distribution.make_vector))):
        rng = np.random.default_rng(1)
        env = make_vector(16)
        obs, _ = env.reset(seed=3, options={"tasks": distribution.train.sample(16, rng)})
        env.action_space.seed(4)
        trace = [obs]
        for _ in range(20):
            obs, reward, *_ = env.step(env.action_space.sample())
            trace += [obs, reward]
        runs.append(trace)
    assert all(np.array_equal(one, other) for one, other in zip(*runs, strict=True))
    assert runs[0][0].dtype == np.float32
    assert runs[0][0].shape == (16, distribution.spec.obs_dim)


@pytest.mark.parametrize("task_id", ["cartpole-random", "pendulum-random", "acrobot-random", "mountain-car-random"])
def test_reset_mask_resets_only_the_chosen_instances(task_id: str) -> None:
    """After a masked reset the chosen instances start anew, with their old tasks, and the others have not moved."""
    distribution = BY_ID[task_id]
    tasks = distribution.train.sample(6, np.random.default_rng(0))
    env = distribution.make_vector_env(6)
    env.reset(seed=0, options={"tasks": tasks})
    env.action_space.seed(0)
    for _ in range(5):
        before, *_ = env.step(env.action_space.sample())
    mask = np.array([True, False, False, True, False, True])
    after, _ = env.reset(options={"reset_mask": mask})
    assert np.array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).any(axis=1).all()
    truncated = np.zeros(6, bool)
    for _ in range(distribution.spec.horizon - 5):
        truncated = env.step(env.action_space.sample())[3]
    assert np.array_equal(truncated, ~mask)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: d.id)
def test_an_episode_is_truncated_at_the_horizon_and_not_before(distribution: TaskDistribution) -> None:
    """Truncation comes with step number ``horizon``: 500 for acrobot, else 200."""
    horizon = 500 if distribution.id.startswith("acrobot") else 200
    assert distribution.spec.horizon == horizon
    env = distribution.make_vector_env(2)
    env.reset(seed=0, options={"tasks": distribution.train.sample(2, np.random.default_rng(0))})
    action = np.zeros_like(env.action_space.sample())
    flags = [env.step(action)[3] for _ in range(horizon)]
    assert not np.any(flags[:-1])
    assert flags[-1].all()


def one_step(dynamics: CartPole, state: list[float], action: int, **task: float) -> tuple[Array, float, bool]:
    params = {name: np.array([value]) for name, value in {**CartPole.DEFAULTS, **task}.items()}
    new, reward, terminated, _ = dynamics.step(np.array([state]), np.array([action]), params, np.random.default_rng())
    return new[0], float(reward[0]), bool(terminated[0])


def test_a_mirrored_cart_moves_as_the_other_action_does() -> None:
    """Action 1 pushes right by default and left when mirrored; both actions are exactly exchanged."""
    state = [0.1, 0.2, 0.03, -0.1]
    left, right = (one_step(CartPole(), state, action)[0] for action in (0, 1))
    assert left[1] < state[1] < right[1]
    assert np.array_equal(one_step(CartPole(), state, 0, mirrored=-1.0)[0], right)
    assert np.array_equal(one_step(CartPole(), state, 1, mirrored=-1.0)[0], left)


def test_goal_reward_is_closeness_after_the_step_and_zero_when_the_pole_falls() -> None:
    """By hand: x = 0.3 + 0.02 * 5 = 0.4, target 1.4: exp(-1); target 0.4: 1; a fallen pole: 0, though at the target."""
    state = [0.3, 5.0, 0.0, 0.0]
    assert one_step(CartPole(goal=True), state, 1, target=1.4)[1] == pytest.approx(0.36787944117144233, abs=1e-12)
    assert one_step(CartPole(goal=True), state, 0, target=-0.6)[1] == pytest.approx(0.36787944117144233, abs=1e-12)
    assert one_step(CartPole(goal=True), state, 1, target=0.4)[1] == pytest.approx(1.0, abs=1e-12)
    _, reward, terminated = one_step(CartPole(goal=True), [0.4, 0.0, 0.2, 1.0], 1, target=0.4)
    assert (reward, terminated) == (0.0, True)


def test_going_to_the_goal_beats_staying_at_the_centre() -> None:
    """A controller told the target earns at least 1.5 times what the same controller earns around the centre."""
    distribution = BY_ID["cartpole-goal"]
    tasks = distribution.test.sample(100, np.random.default_rng(0))
    target = np.array([task["target"] for task in tasks])
    returns = []
    for aim in (target, np.zeros(100)):
        env = distribution.make_vector_env(100)
        obs, _ = env.reset(seed=0, options={"tasks": tasks})
        alive, total = np.ones(100, bool), np.zeros(100)
        for _ in range(200):
            error = np.clip(obs[:, 0] - aim, -0.5, 0.5)
            action = (0.2 * error + 0.3 * obs[:, 1] + obs[:, 2] + 0.3 * obs[:, 3] > 0).astype(np.int64)
            obs, reward, terminated, _, _ = env.step(action)
            total += reward * alive
            alive &= ~terminated
        assert alive.all()
        returns.append(total.mean())
    assert returns[0] > 1.5 * returns[1]


@pytest.mark.parametrize("task_id", [d.id for d in DISTRIBUTIONS if not d.shared_split])
def test_the_first_observation_does_not_depend_on_the_task(task_id: str) -> None:
    """The same seed shows other tasks the same first observation: no hidden parameter leaks into it."""
    distribution = BY_ID[task_id]
    env = distribution.make_vector_env(8)
    first, second = (
        env.reset(seed=0, options={"tasks": split.sample(8, np.random.default_rng(0))})[0]
        for split in (distribution.train, distribution.test)
    )
    assert np.array_equal(first, second)


def test_every_task_carries_all_parameters_of_its_family() -> None:
    """Whatever the variant, a task has its family's keys and plain floats: it can be stacked, and kept as JSON."""
    rng = np.random.default_rng(0)
    for distribution in DISTRIBUTIONS:
        task = distribution.sample(rng)
        assert set(task) == set(BY_ID[family_of(distribution.id)].sample(rng))
        assert all(type(value) is float for value in task.values())


def after_one_step(dynamics: Any, defaults: Any, state: list[float], action: Any, **task: float) -> list[float]:
    """The next state under parameters of which only those given are not the default."""
    params = {name: np.array([value]) for name, value in {**defaults, **task}.items()}
    new, *_ = dynamics.step(np.array([state]), np.array([action]), params, np.random.default_rng())
    return [float(value) for value in new[0]]


@pytest.mark.parametrize(
    "task", [{}, {"force": 7.0}, {"length": 0.8}, {"masspole": 0.4}, {"masscart": 2.0}, {"gravity": 5.0}], ids=str
)
def test_each_parameter_of_a_cart_acts_as_in_its_equations(task: dict[str, float]) -> None:
    """Cart and pole obey Newton: the two equations of motion, solved for the accelerations as a linear system."""
    p = {**CartPole.DEFAULTS, **task}
    x, x_dot, angle, angle_dot = state = [0.1, -0.4, 0.15, 0.7]
    new = after_one_step(CartPole(), CartPole.DEFAULTS, state, 1, **task)
    m, half = p["masspole"], p["length"]
    # (M + m) x'' + m l a'' cos a = F + m l a'^2 sin a, and m l x'' cos a + 4/3 m l^2 a'' = m g l sin a.
    matrix = [[p["masscart"] + m, m * half * math.cos(angle)], [m * half * math.cos(angle), 4 / 3 * m * half**2]]
    right = [p["force"] + m * half * angle_dot**2 * math.sin(angle), m * p["gravity"] * half * math.sin(angle)]
    x_acc, angle_acc = np.linalg.solve(matrix, right)
    expected = [x + 0.02 * x_dot, x_dot + 0.02 * x_acc, angle + 0.02 * angle_dot, angle_dot + 0.02 * angle_acc]
    assert new == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("task", [{}, {"mass": 1.4}, {"length": 0.6}, {"g": 7.0}], ids=str)
def test_each_parameter_of_a_pendulum_acts_as_in_its_equation(task: dict[str, float]) -> None:
    """A rod about its end: (m l^2 / 3) a'' = m g (l / 2) sin a + torque."""
    p = {**Pendulum.DEFAULTS, **task}
    new = after_one_step(Pendulum(), Pendulum.DEFAULTS, [0.7, 0.3], [1.3], **task)
    moment = p["mass"] * p["g"] * p["length"] / 2 * math.sin(0.7) + 1.3
    velocity = 0.3 + 0.05 * moment / (p["mass"] * p["length"] ** 2 / 3)
    assert new == pytest.approx([0.7 + 0.05 * velocity, velocity], abs=1e-6)


@pytest.mark.parametrize("task", [{}, {"force": 0.004}, {"gravity": 0.0007}], ids=str)
def test_each_parameter_of_a_mountain_car_acts_as_in_its_equation(task: dict[str, float]) -> None:
    p = {**MountainCar.DEFAULTS, **task}
    velocity = 0.01 + p["force"] - p["gravity"] * math.cos(3 * -0.3)
    new = after_one_step(MountainCar(), MountainCar.DEFAULTS, [-0.3, 0.01], 2, **task)
    assert new == pytest.approx([-0.3 + velocity, velocity], abs=1e-12)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("task", [{}, {"length": 1.4}, {"mass": 0.6}, {"moi": 0.55}], ids=str)
def test_each_parameter_of_an_acrobot_acts_as_in_its_equations(fixed: bool, task: dict[str, float]) -> None:
    """The manipulator's equations M(q) q'' + C(q, q') + G(q) = torque, in one step of Runge and Kutta."""
    p = {**Acrobot.DEFAULTS, **task}
    length, mass, moi = p["length"], p["mass"], p["moi"]
    centre = 0.5 if fixed else length / 2

    def slope(state: Array) -> Array:
        a1, a2, v1, v2 = state
        coupling = mass * length * centre
        m22 = mass * centre**2 + moi
        m12 = m22 + coupling * math.cos(a2)
        m11 = 2 * m22 + mass * length**2 + 2 * coupling * math.cos(a2)
        whirl = coupling * math.sin(a2)
        lower = mass * 9.8 * centre * math.sin(a1 + a2)
        upper = mass * 9.8 * (centre + length) * math.sin(a1) + lower
        right = [whirl * (2 * v1 * v2 + v2**2) - upper, 1.0 - whirl * v1**2 - lower]
        return np.concatenate([[v1, v2], np.linalg.solve([[m11, m12], [m12, m22]], right)])

    state = [0.4, -0.3, 0.5, -0.2]
    k1 = slope(np.array(state))
    k2 = slope(state + 0.1 * k1)
    k3 = slope(state + 0.1 * k2)
    expected = state + 0.2 / 6 * (k1 + 2 * k2 + 2 * k3 + slope(state + 0.2 * k3))
    new = after_one_step(Acrobot(fixed), Acrobot.DEFAULTS, state, 2, **task)
    assert new == pytest.approx(list(expected), abs=1e-9)
    if task:
        default = after_one_step(Acrobot(fixed), Acrobot.DEFAULTS, state, 2)
        assert np.abs(np.array(new) - default).max() > 3e-3

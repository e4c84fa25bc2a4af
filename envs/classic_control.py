"""CartPole, Pendulum, Acrobot and MountainCar with task-dependent physics, all instances in one array operation.

The dynamics are those of ``gymnasium.envs.classic_control`` in float64, with one set of parameters per instance; a
test holds them to Gymnasium's own environments. The variants ``<family>`` (D), ``<family>-random`` (R) and
``<family>-extreme`` (E) follow Packer et al., "Assessing Generalization in Deep Reinforcement Learning" (2018,
arXiv:1810.12282, Table 1 and the code sunblaze-ucb/rl-generalization): D holds the one default task, R draws every
parameter uniformly from an interval, E from what an outer interval leaves beside R's.

A robust policy nearly solves CartPole's R and E without adapting; ``cartpole-goal`` and ``cartpole-mirrored`` hide
something that no single policy can guess. No family shows its task parameters in the observation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import gymnasium as gym
import numpy as np

from metarl.tasks.distribution import TaskDistribution
from metarl.vector.array_env import Array, ArrayVectorEnv, Dynamics, TaskParams
from metarl.vector.streams import RowStreams

Intervals = tuple[tuple[float, float], ...]
"""A union of disjoint intervals (low, high)."""

NO_INFO: Mapping[str, Array] = {}


class CartPole:
    """Balance a pole on a cart (Barto, Sutton and Anderson, 1983), explicit Euler steps of 0.02 s.

    Observation: cart position [m] and velocity, pole angle [rad] and velocity. Actions: push one way or the other.
    The episode terminates beyond 2.4 m or 12 degrees. Reward: 1 for every step, the last one included.

    With ``goal`` the reward is exp(-abs(x - target)), in (0, 1], and 0 on the step that terminates. Staying at the
    centre then earns 0.22 to 0.61 a step on targets 0.5 to 1.5 m away, and standing on the target earns 1. The
    slope points to the target from everywhere on the track, which a narrower peak would not offer.

    Task parameters: ``force`` [N], ``length`` [m] (half the pole's), ``masspole`` and ``masscart`` [kg], ``gravity``
    [m/s²], ``target`` [m] (used with ``goal`` only) and ``mirrored``, a factor of the push: 1 as in Gymnasium
    (action 1 pushes right), -1 the other way round.
    """

    DEFAULTS: Mapping[str, float] = {
        "force": 10.0,
        "length": 0.5,
        "masspole": 0.1,
        "masscart": 1.0,
        "gravity": 9.8,
        "target": 0.0,
        "mirrored": 1.0,
    }
    TIME_STEP = 0.02
    MAX_POSITION = 2.4
    MAX_ANGLE = 12 * 2 * math.pi / 360

    def __init__(self, goal: bool = False) -> None:
        self.goal = goal
        high = np.array([2 * self.MAX_POSITION, np.inf, 2 * self.MAX_ANGLE, np.inf], np.float32)
        self.observation_space = gym.spaces.Box(-high, high)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """States ``[num, 4]``, uniform in ±0.05."""
        return rng.uniform(-0.05, 0.05, (num, 4))

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """One Euler step; equations of Florian (2007), "Correct equations for the dynamics of the cart-pole system"."""
        x, x_dot, theta, theta_dot = state.T
        masspole, length = params["masspole"], params["length"]
        total_mass = masspole + params["masscart"]
        moment = masspole * length
        sin, cos = np.sin(theta), np.cos(theta)
        push = params["force"] * params["mirrored"] * (2 * action - 1)
        # In Gymnasium's order of operations: an upright pole amplifies a rounding error beyond 1e-6 within an episode.
        acc = (push + moment * np.square(theta_dot) * sin) / total_mass
        inertia = length * (4.0 / 3.0 - masspole * np.square(cos) / total_mass)
        theta_acc = (params["gravity"] * sin - cos * acc) / inertia
        # Filled row by row and handed out transposed: each coordinate stays contiguous for the next step.
        new = np.empty((4, len(state)))
        np.add(x, self.TIME_STEP * x_dot, out=new[0])
        np.add(x_dot, self.TIME_STEP * (acc - moment * theta_acc * cos / total_mass), out=new[1])
        np.add(theta, self.TIME_STEP * theta_dot, out=new[2])
        np.add(theta_dot, self.TIME_STEP * theta_acc, out=new[3])
        terminated = (np.abs(new[0]) > self.MAX_POSITION) | (np.abs(new[2]) > self.MAX_ANGLE)
        reward = np.exp(-np.abs(new[0] - params["target"])) * ~terminated if self.goal else np.ones(len(state))
        return new.T, reward, terminated, NO_INFO

    def observe(self, state: Array, params: TaskParams) -> Array:
        """The state itself, ``[num, 4]``."""
        return state


class Pendulum:
    """Swing a pendulum up and hold it with a limited torque, semi-implicit Euler steps of 0.05 s; never terminates.

    Observation: cosine and sine of the angle (0 is upright), angular velocity [rad/s]. Action: torque in ±2 N m.
    Reward: -(angle² + 0.1 velocity² + 0.001 torque²).

    Task parameters: ``g`` [m/s²], ``mass`` [kg], ``length`` [m]. Packer et al. keep g at 10 and vary the others.
    Their code moves the angle by the velocity before clipping it; Gymnasium, and so this class, by the clipped one.
    """

    DEFAULTS: Mapping[str, float] = {"g": 10.0, "mass": 1.0, "length": 1.0}
    TIME_STEP = 0.05
    MAX_TORQUE = 2.0
    MAX_VELOCITY = 8.0

    def __init__(self) -> None:
        high = np.array([1.0, 1.0, self.MAX_VELOCITY], np.float32)
        self.observation_space = gym.spaces.Box(-high, high)
        self.action_space = gym.spaces.Box(-self.MAX_TORQUE, self.MAX_TORQUE, (1,))

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """States ``[num, 2]``: any angle, velocity in ±1."""
        high = np.array([np.pi, 1.0])
        return rng.uniform(-high, high, (num, 2))

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """One step; ``action`` is ``[num, 1]``. The reward is of the state before it, as in Gymnasium."""
        angle, velocity = state.T
        torque = np.clip(action[:, 0].astype(np.float64), -self.MAX_TORQUE, self.MAX_TORQUE)
        normalised = (angle + np.pi) % (2 * np.pi) - np.pi
        cost = normalised**2 + 0.1 * velocity**2 + 0.001 * torque**2
        length = params["length"]
        acc = 1.5 * params["g"] / length * np.sin(angle) + 3.0 / (params["mass"] * length**2) * torque
        new_velocity = np.clip(velocity + self.TIME_STEP * acc, -self.MAX_VELOCITY, self.MAX_VELOCITY)
        new_state = np.stack([angle + self.TIME_STEP * new_velocity, new_velocity], axis=-1)
        return new_state, -cost, np.zeros(len(state), bool), NO_INFO

    def observe(self, state: Array, params: TaskParams) -> Array:
        """Cosine, sine, velocity, ``[num, 3]``."""
        return np.stack([np.cos(state[:, 0]), np.sin(state[:, 0]), state[:, 1]], axis=-1)


class Acrobot:
    """Swing the tip of a two-link arm above one link length by a torque on the middle joint (Sutton, 1996).

    Observation: cosine and sine of both angles, both angular velocities [rad/s]. Actions: torque -1, 0 or 1 N m.
    Terminates when -cos(a1) - cos(a1 + a2) > 1. Reward: -1 a step, 0 on the step that terminates. One step is one
    Runge-Kutta step of 0.2 s on the equations of Sutton and Barto's book (Gymnasium's ``book_or_nips = "book"``).

    Task parameters, shared by both links as in Packer et al.: ``length`` [m], ``mass`` [kg], ``moi`` [kg m²], the
    moment of inertia. The centre of mass lies at half the length. Packer et al.'s code changes the length alone and
    leaves the centre 0.5 m from the joint, off the middle; with ``fixed_centre`` so does this class.
    """

    DEFAULTS: Mapping[str, float] = {"length": 1.0, "mass": 1.0, "moi": 1.0}
    TIME_STEP = 0.2
    GRAVITY = 9.8
    CENTRE = 0.5
    MAX_VELOCITIES = np.array([[4 * np.pi], [9 * np.pi]])

    def __init__(self, fixed_centre: bool = False) -> None:
        self.fixed_centre = fixed_centre
        high = np.array([1.0, 1.0, 1.0, 1.0, 4 * np.pi, 9 * np.pi], np.float32)
        self.observation_space = gym.spaces.Box(-high, high)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """States ``[num, 4]`` (two angles, two velocities), uniform in ±0.1: hanging down."""
        return rng.uniform(-0.1, 0.1, (num, 4))

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """One Runge-Kutta step of order 4, then angles wrapped to ±pi and velocities clipped."""
        dt = self.TIME_STEP
        torque = action - 1.0
        old = np.ascontiguousarray(state.T)
        k1 = self._derivatives(old, torque, params)
        k2 = self._derivatives(old + dt / 2 * k1, torque, params)
        k3 = self._derivatives(old + dt / 2 * k2, torque, params)
        k4 = self._derivatives(old + dt * k3, torque, params)
        new = old + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        new[:2] -= 2 * np.pi * np.rint(new[:2] / (2 * np.pi))
        new[2:] = np.clip(new[2:], -self.MAX_VELOCITIES, self.MAX_VELOCITIES)
        terminated = -np.cos(new[0]) - np.cos(new[0] + new[1]) > 1.0
        return new.T, np.where(terminated, 0.0, -1.0), terminated, NO_INFO

    def observe(self, state: Array, params: TaskParams) -> Array:
        """Cosines and sines of the angles and the velocities, ``[num, 6]``."""
        cos, sin = np.cos(state[:, :2]), np.sin(state[:, :2])
        return np.concatenate([cos[:, :1], sin[:, :1], cos[:, 1:], sin[:, 1:], state[:, 2:]], axis=1)

    def _derivatives(self, state: Array, torque: Array, params: TaskParams) -> Array:
        """Time derivative ``[4, num]`` of ``state`` ``[4, num]``; Sutton and Barto (1998), section 11.3."""
        angle1, angle2, velocity1, velocity2 = state
        mass, moi, length = params["mass"], params["moi"], params["length"]
        centre = self.CENTRE if self.fixed_centre else length / 2
        # Gymnasium writes cos(a - pi/2) for what is sin(a) here.
        coupling = mass * length * centre
        coupling_cos, coupling_sin = coupling * np.cos(angle2), coupling * np.sin(angle2)
        own = mass * centre**2 + moi
        d1 = 2 * own + mass * length**2 + 2 * coupling_cos
        d2 = own + coupling_cos
        phi2 = mass * centre * self.GRAVITY * np.sin(angle1 + angle2)
        phi1 = (
            -coupling_sin * velocity2 * (velocity2 + 2 * velocity1)
            + mass * (centre + length) * self.GRAVITY * np.sin(angle1)
            + phi2
        )
        acc2 = (torque + d2 / d1 * phi1 - coupling_sin * velocity1**2 - phi2) / (own - d2**2 / d1)
        acc1 = -(d2 * acc2 + phi1) / d1
        return np.stack([velocity1, velocity2, acc1, acc2])


class MountainCar:
    """Rock an underpowered car out of a valley (Moore, 1990), with discrete actions.

    Observation: position and velocity. Actions: push left, none, right. Terminates at position 0.5 with a velocity
    of 0 or more. Reward: -1 a step.

    Task parameters: ``force`` of the engine and ``gravity``, the pull of the slope: velocity += force (action - 1)
    - gravity cos(3 position). What Packer et al. call "mass" is this ``gravity``: their code multiplies
    -cos(3 position) by ``mass`` (0.0025 by default), and nothing else.
    """

    DEFAULTS: Mapping[str, float] = {"force": 0.001, "gravity": 0.0025}
    MIN_POSITION = -1.2
    MAX_POSITION = 0.6
    GOAL_POSITION = 0.5
    MAX_SPEED = 0.07

    def __init__(self) -> None:
        low = np.array([self.MIN_POSITION, -self.MAX_SPEED], np.float32)
        high = np.array([self.MAX_POSITION, self.MAX_SPEED], np.float32)
        self.observation_space = gym.spaces.Box(low, high)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, params: TaskParams, rng: RowStreams, num: int) -> Array:
        """States ``[num, 2]``: position uniform in [-0.6, -0.4], at rest."""
        return np.stack([rng.uniform(-0.6, -0.4, num), np.zeros(num)], axis=-1)

    def step(
        self, state: Array, action: Array, params: TaskParams, rng: RowStreams
    ) -> tuple[Array, Array, Array, Mapping[str, Array]]:
        """One step; the left wall stops the car."""
        position, velocity = state.T
        velocity = velocity + (action - 1) * params["force"] - params["gravity"] * np.cos(3 * position)
        velocity = np.clip(velocity, -self.MAX_SPEED, self.MAX_SPEED)
        position = np.clip(position + velocity, self.MIN_POSITION, self.MAX_POSITION)
        velocity = np.where((position == self.MIN_POSITION) & (velocity < 0), 0.0, velocity)
        terminated = (position >= self.GOAL_POSITION) & (velocity >= 0)
        return np.stack([position, velocity], axis=-1), np.full(len(state), -1.0), terminated, NO_INFO

    def observe(self, state: Array, params: TaskParams) -> Array:
        """The state itself, ``[num, 2]``."""
        return state


CARTPOLE_RANDOM: Mapping[str, Intervals] = {
    "force": ((5.0, 15.0),),
    "length": ((0.25, 0.75),),
    "masspole": ((0.05, 0.5),),
}
CARTPOLE_EXTREME: Mapping[str, Intervals] = {
    "force": ((1.0, 5.0), (15.0, 20.0)),
    "length": ((0.05, 0.25), (0.75, 1.0)),
    "masspole": ((0.01, 0.05), (0.5, 1.0)),
}
CARTPOLE_GOAL: Mapping[str, Intervals] = {"target": ((-1.5, -0.5), (0.5, 1.5))}
PENDULUM_RANDOM: Mapping[str, Intervals] = dict.fromkeys(("mass", "length"), ((0.75, 1.25),))
PENDULUM_EXTREME: Mapping[str, Intervals] = dict.fromkeys(("mass", "length"), ((0.5, 0.75), (1.25, 1.5)))
ACROBOT_RANDOM: Mapping[str, Intervals] = dict.fromkeys(("length", "mass", "moi"), ((0.75, 1.25),))
ACROBOT_EXTREME: Mapping[str, Intervals] = dict.fromkeys(("length", "mass", "moi"), ((0.5, 0.75), (1.25, 1.5)))
MOUNTAIN_CAR_RANDOM: Mapping[str, Intervals] = {"force": ((0.0005, 0.005),), "gravity": ((0.001, 0.005),)}
MOUNTAIN_CAR_EXTREME: Mapping[str, Intervals] = {
    "force": ((0.0001, 0.0005), (0.005, 0.01)),
    "gravity": ((0.0005, 0.001), (0.005, 0.01)),
}


def sample_task(
    defaults: Mapping[str, float], ranges: Mapping[str, Intervals], rng: np.random.Generator
) -> dict[str, float]:
    """``defaults`` with each parameter of ``ranges`` drawn uniformly from its union of intervals."""
    return {**defaults, **{name: _uniform(intervals, rng) for name, intervals in ranges.items()}}


def sample_mirrored(rng: np.random.Generator) -> dict[str, float]:
    """CartPole's R parameters, and a coin for which action pushes left."""
    return {**sample_task(CartPole.DEFAULTS, CARTPOLE_RANDOM, rng), "mirrored": float(rng.choice([-1.0, 1.0]))}


def _uniform(intervals: Intervals, rng: np.random.Generator) -> float:
    """Uniform over the whole union, so a longer interval gets more; Packer et al. reach the same law by rejection."""
    lengths = [high - low for low, high in intervals]
    low, high = intervals[rng.choice(len(intervals), p=np.array(lengths) / sum(lengths))]
    return float(rng.uniform(low, high))


def _make_vector(dynamics: Dynamics, horizon: int, num_envs: int) -> ArrayVectorEnv:
    return ArrayVectorEnv(dynamics, num_envs, horizon)


def _variants(
    family: str,
    dynamics: CartPole | Pendulum | Acrobot | MountainCar,
    horizon: int,
    random: Mapping[str, Intervals],
    extreme: Mapping[str, Intervals],
) -> tuple[TaskDistribution, ...]:
    """Packer et al.'s D, R and E. D is one task, which train and test share on purpose."""
    kind, names = type(dynamics).__name__, ", ".join(random)
    rows: tuple[tuple[str, Mapping[str, Intervals], str], ...] = (
        (family, {}, f"{kind} with Gymnasium's default physics: a single task (Packer et al. D)"),
        (f"{family}-random", random, f"{kind} with random {names} (Packer et al. R)"),
        (f"{family}-extreme", extreme, f"{kind} with extreme {names} (Packer et al. E)"),
    )
    return tuple(
        TaskDistribution(
            id=task_id,
            sample=partial(sample_task, dynamics.DEFAULTS, ranges),
            make_vector=partial(_make_vector, dynamics, horizon),
            horizon=horizon,
            shared_split=not ranges,
            description=description,
        )
        for task_id, ranges, description in rows
    )


DISTRIBUTIONS: tuple[TaskDistribution, ...] = (
    *_variants("cartpole", CartPole(), 200, CARTPOLE_RANDOM, CARTPOLE_EXTREME),
    TaskDistribution(
        id="cartpole-goal",
        sample=partial(sample_task, CartPole.DEFAULTS, CARTPOLE_GOAL),
        make_vector=partial(_make_vector, CartPole(goal=True), 200),
        horizon=200,
        description="CartPole rewarded for closeness to a hidden target, 0.5 to 1.5 m left or right",
    ),
    TaskDistribution(
        id="cartpole-mirrored",
        sample=sample_mirrored,
        make_vector=partial(_make_vector, CartPole(), 200),
        horizon=200,
        description="CartPole where it is hidden which action pushes left, with random force, length and masspole",
    ),
    *_variants("pendulum", Pendulum(), 200, PENDULUM_RANDOM, PENDULUM_EXTREME),
    *_variants("acrobot", Acrobot(), 500, ACROBOT_RANDOM, ACROBOT_EXTREME),
    *(
        TaskDistribution(
            id=f"acrobot-off-centre-{name}",
            sample=partial(sample_task, Acrobot.DEFAULTS, ranges),
            make_vector=partial(_make_vector, Acrobot(fixed_centre=True), 500),
            horizon=500,
            description=f"acrobot-{name} whose links' centres stay 0.5 m from the joint, as in Packer et al.'s code",
        )
        for name, ranges in (("random", ACROBOT_RANDOM), ("extreme", ACROBOT_EXTREME))
    ),
    *_variants("mountain-car", MountainCar(), 200, MOUNTAIN_CAR_RANDOM, MOUNTAIN_CAR_EXTREME),
)

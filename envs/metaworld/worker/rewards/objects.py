"""Upstream's v2 rewards of reaching, pushing, and picking and placing, on floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from metarl.envs.metaworld.worker.rewards.terms import (
    Evaluate,
    Evaluation,
    Grasp,
    Number,
    above,
    caging,
    caging_by_pads,
    distance,
    fingertips,
    funnel,
    hamacher,
    length,
    long_tail,
    norm,
)


def reach(env: Any) -> Evaluate:
    """Reward for reach."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = norm(env.hand_init_pos - env._target_pos)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        to_target = distance(tip(), target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        return to_target <= 0.05, to_target, 1.0, to_target, in_place, to_target, 10 * in_place

    return evaluate


def reach_wall(env: Any) -> Evaluate:
    """Reward for reach-wall, which differs in its ``info`` alone."""
    reached = reach(env)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        success, _, _, to_target, in_place, _, reward = reached(frame, grip)
        return success, 0.0, 0.0, 0.0, in_place, to_target, reward

    return evaluate


_Score = Callable[[list[float], float, float, float, Number], Number]
"""Maps the frame to the object's distances to the hand and to the target, and how well it is placed and grasped."""


def _carry(env: Any, success_radius: float, grasp: Grasp, score: _Score) -> Evaluate:
    """What the tasks have in common in which the hand brings an object to a place."""
    target, init_z, tip = env._target_pos.tolist(), env.obj_init_pos.item(2), fingertips(env)
    margin = norm(env.obj_init_pos - env._target_pos)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj, tcp = frame[4:7], tip()
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        grasped = grasp(obj, tcp, grip)
        reward = 10.0 if to_target < 0.05 else score(frame, to_obj, to_target, in_place, grasped)
        lifted = frame[3] > 0 and obj[2] - 0.02 > init_z and env.touching_main_object
        return to_target <= success_radius, to_obj <= 0.03, lifted, grasped, in_place, to_target, reward

    return evaluate


def push(env: Any) -> Evaluate:
    """Reward for push."""

    def score(frame: list[float], to_obj: float, to_target: float, in_place: float, grasped: Number) -> Number:
        reward = 2 * grasped
        if to_obj < 0.02 and frame[3] > 0:
            reward += 1.0 + reward + 5.0 * in_place
        return reward

    return _carry(env, 0.05, caging(env, obj_radius=0.015, pad_thresh=0.05, xz_thresh=0.005), score)


def push_wall(env: Any) -> Evaluate:
    """Reward for push-wall."""
    init_x, init_y, init_z = env.obj_init_pos.tolist()

    def score(frame: list[float], to_obj: float, to_target: float, in_place: float, grasped: Number) -> Number:
        x, y, z = frame[4:7]
        if not (to_obj < 0.02 and frame[3] > 0):
            return 2 * grasped
        if y > 0.75:
            return 2 * grasped + 1.0 + 4.0 + 3.0 * in_place
        # The place beside the wall is as high as the object now.
        to_midpoint = length((x - -0.05) * 3.0, y - 0.77)
        margin = length((init_x - -0.05) * 3.0, init_y - 0.77, init_z - z)
        return 2.0 * grasped + 1.0 + 4.0 * long_tail(to_midpoint, 0, 0.05, margin)

    return _carry(env, 0.07, caging(env, obj_radius=0.015, pad_thresh=0.05, xz_thresh=0.005), score)


def push_back(env: Any) -> Evaluate:
    """Reward for push-back."""
    margin = norm(env.obj_init_pos - env._target_pos)

    def score(frame: list[float], to_obj: float, to_target: float, in_place: float, grasped: Number) -> Number:
        reward = hamacher(grasped, in_place)
        if to_obj < 0.01 and 0 < frame[3] < 0.55 and margin - to_target > 0.01:
            reward += 1.0 + 5.0 * in_place
        return reward

    return _carry(env, 0.07, caging_by_pads(env, env.OBJ_RADIUS, xz_thresh=0.01, grip_width=0.003), score)


def coffee_push(env: Any) -> Evaluate:
    """Reward for coffee-push and coffee-pull."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = norm((env.obj_init_pos - env._target_pos) * np.array([2.0, 2.0, 1.0]))
    grasp = caging(
        env, obj_radius=0.02, pad_thresh=0.05, xz_thresh=0.05, density="medium", reach_radius=0.04, full_effort=0.7
    )

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        x, y, z = obj[0] - target[0], obj[1] - target[1], obj[2] - target[2]
        to_obj, to_target, scaled = distance(obj, tcp), length(x, y, z), length(x * 2.0, y * 2.0, z)
        in_place = long_tail(scaled, 0, 0.05, margin)
        grasped = grasp(obj, tcp, grip)
        reward = hamacher(grasped, in_place)
        if to_obj < 0.04 and opened > 0:
            reward += 1.0 + 5.0 * in_place
        if scaled < 0.05:
            reward = 10.0
        touched = opened > 0 and env.touching_main_object
        return to_target <= 0.07, to_obj <= 0.03, touched, grasped, in_place, to_target, reward

    return evaluate


def plate_slide(env: Any) -> Evaluate:
    """Reward for plate-slide."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = norm(env.obj_init_pos - env._target_pos)
    reach_margin = norm(env.init_tcp - env.obj_init_pos)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_obj, to_target = distance(tip(), obj), distance(obj, target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        reached = long_tail(to_obj, 0, 0.05, reach_margin)
        reward = 10.0 if to_target < 0.05 else 8 * hamacher(reached, in_place)
        return to_target <= 0.07, to_obj <= 0.03, 0.0, reached, in_place, to_target, reward

    return evaluate


def plate_slide_back(env: Any) -> Evaluate:
    """Reward for plate-slide-back, plate-slide-side and plate-slide-back-side."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = norm(env.obj_init_pos - env._target_pos) - 0.05
    reach_margin = norm(env.init_tcp - env.obj_init_pos) - 0.05

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj, tcp = frame[4:7], tip()
        to_obj, to_target = distance(tcp, obj), distance(obj, target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        reached = long_tail(to_obj, 0, 0.05, reach_margin)
        reward = 2.0 + 7.0 * in_place if tcp[2] <= 0.03 and to_obj < 0.07 else 1.5 * reached
        if to_target < 0.05:
            reward = 10.0
        return to_target <= 0.07, to_obj <= 0.03, 0.0, reached, in_place, to_target, reward

    return evaluate


def soccer(env: Any) -> Evaluate:
    """Reward for soccer."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    init_x, init_y, init_z = env.obj_init_pos.tolist()
    target_x, target_y, target_z = target
    goal_line = target_y - 0.1
    grasp = caging_by_pads(env, env.OBJ_RADIUS, xz_thresh=0.005, grip_width=0.01)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        x, y, z = obj
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        scaled = length((x - target_x) * 3.0, y - target_y, z - target_z)
        in_place = long_tail(scaled, 0, 0.07, length((x - init_x) * 3.0, y - init_y, z - init_z))
        if y > goal_line and abs(x - target_x) > 0.1:
            in_place = min(max(in_place - 2 * ((y - goal_line) / (1 - goal_line)), 0.0), 1.0)
        grasped = grasp(obj, tcp, grip)
        reward = 10.0 if scaled < 0.07 else 3 * grasped + 6.5 * in_place
        lifted = opened > 0 and z - 0.02 > init_z and env.touching_main_object
        return to_target <= 0.07, to_obj <= 0.03, lifted, grasped, in_place, to_target, reward

    return evaluate


def pick_place(env: Any) -> Evaluate:
    """Reward for pick-place."""
    init_z = env.obj_init_pos.item(2)

    def score(frame: list[float], to_obj: float, to_target: float, in_place: float, grasped: Number) -> Number:
        reward = hamacher(grasped, in_place)
        if to_obj < 0.02 and frame[3] > 0 and frame[6] - 0.01 > init_z:
            reward += 1.0 + 5.0 * in_place
        return reward

    return _carry(env, 0.07, caging_by_pads(env, obj_radius=0.015, xz_thresh=0.005), score)


def pick_place_wall(env: Any) -> Evaluate:
    """Reward for pick-place-wall."""
    target_x, init_z = env._target_pos.item(0), env.obj_init_pos.item(2)
    midpoint = np.array([target_x, 0.77, 0.25])
    midpoint_margin = norm((env.obj_init_pos - midpoint) * np.array([1.0, 1.0, 3.0]))

    def score(frame: list[float], to_obj: float, to_target: float, in_place: float, grasped: Number) -> Number:
        x, y, z = frame[4:7]
        over_wall = long_tail(length(x - target_x, y - 0.77, (z - 0.25) * 3.0), 0, 0.05, midpoint_margin)
        reward = hamacher(grasped, over_wall)
        if to_obj < 0.02 and frame[3] > 0 and z - 0.015 > init_z:
            reward = reward + 1.0 + 4.0 + 3.0 * in_place if y > 0.75 else reward + 1.0 + 4.0 * over_wall
        return reward

    return _carry(env, 0.07, caging(env, obj_radius=0.015, pad_thresh=0.05, xz_thresh=0.005, density="low"), score)


def bin_picking(env: Any) -> Evaluate:
    """Reward for bin-picking."""
    # A live view in upstream.
    bin_goal, tip = env._target_pos, fingertips(env)
    init_x, init_y, init_z = env.obj_init_pos.tolist()
    grasp = caging(env, obj_radius=0.015, pad_thresh=0.05, xz_thresh=0.01, full_effort=0.7)
    margin: float | None = None

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        nonlocal margin
        opened, hand, obj, target = frame[3], frame[:3], frame[4:7], bin_goal.tolist()
        to_obj, to_target = distance(obj, hand), distance(obj, target)
        if margin is None:
            margin = to_target
        in_place = long_tail(to_target, 0, 0.05, margin)
        # From one bin to the other the hand must stay above two funnels.
        floor = min(
            funnel(length(hand[0] - init_x, hand[1] - init_y), 0.03, 0.02, 0.2),
            funnel(length(hand[0] - target[0], hand[1] - target[1]), 0.03, 0.02, 0.2),
        )
        grasped = grasp(obj, tip(), grip)
        reward = hamacher(grasped, in_place)
        near = to_obj < 0.04
        held = near and obj[2] - 0.02 > init_z and not opened < 0.43
        if held:
            reward += 1.0 + 5.0 * hamacher(above(hand[2], floor, 0.05), in_place)
        if to_target < 0.05:
            reward = 10.0
        return to_target <= 0.05, near, held, grasped, in_place, to_target, reward

    return evaluate


def pick_out_of_hole(env: Any) -> Evaluate:
    """Reward for pick-out-of-hole."""
    target, radius, tip = env._target_pos.tolist(), env.TARGET_RADIUS, fingertips(env)
    init_x, init_y, init_z = env.obj_init_pos.tolist()
    margin = norm(env.obj_init_pos - env._target_pos)
    grasp = caging(env, obj_radius=0.015, pad_thresh=0.02, xz_thresh=0.03, full_effort=0.1)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        floor = funnel(length(tcp[0] - init_x, tcp[1] - init_y), 0.03, 0.015, 0.15)
        in_place = long_tail(to_target, 0, 0.02, margin)
        grasped = grasp(obj, tcp, grip)
        reward = hamacher(grasped, in_place)
        held = to_obj < 0.04 and obj[2] - 0.02 > init_z and not opened < 0.33
        if held:
            reward += 1.0 + 5.0 * hamacher(in_place, above(tcp[2], floor, 0.02))
        if to_target < radius:
            reward = 10.0
        return to_target <= 0.07, to_obj <= 0.03, held, grasped, in_place, to_target, reward

    return evaluate


def hand_insert(env: Any) -> Evaluate:
    """Reward for hand-insert."""

    def score(frame: list[float], to_obj: float, to_target: float, in_place: float, grasped: Number) -> Number:
        reward = hamacher(grasped, in_place)
        if to_obj < 0.02 and frame[3] > 0:
            reward += 1.0 + 7.0 * in_place
        return reward

    return _carry(env, 0.05, caging(env, obj_radius=0.015, pad_thresh=0.05, xz_thresh=0.005), score)


def basketball(env: Any) -> Evaluate:
    """Reward for basketball."""
    # A live view in upstream.
    hoop, tip = env._target_pos, fingertips(env)
    init_x, init_y, init_z = env.obj_init_pos.tolist()
    grasp = caging(env, obj_radius=0.025, pad_thresh=0.06, xz_thresh=0.005)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        x, y, _ = hoop.tolist()
        to_obj = distance(obj, tcp)
        to_target = length(obj[0] - x, obj[1] - y, (obj[2] - 0.3) * 2.0)
        margin = length(init_x - x, init_y - y, (init_z - 0.3) * 2.0)
        in_place = long_tail(to_target, 0, 0.08, margin)
        grasped = grasp(obj, tcp, grip)
        held = to_obj < 0.035 and opened > 0 and obj[2] - 0.01 > init_z
        if held:
            grasped = 1.0
        reward = hamacher(grasped, in_place)
        if held:
            reward += 1.0 + 5.0 * in_place
        if to_target < 0.08:
            reward = 10.0
        lifted = opened > 0 and obj[2] - 0.03 > init_z
        return to_target <= 0.08, to_obj <= 0.05, lifted, grasped, in_place, to_target, reward

    return evaluate


def sweep(env: Any, xz_thresh: float = 0.005, grip_width: float = 0.01, level: bool = False) -> Evaluate:
    """Reward for sweep; with ``level`` the goal is as high as the object."""
    target_x, target_y, target_z = env._target_pos.tolist()
    init, tip = env.obj_init_pos.tolist(), fingertips(env)
    grasp = caging_by_pads(env, env.OBJ_RADIUS, xz_thresh, grip_width)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj, tcp = frame[4:7], tip()
        target = target_x, target_y, obj[2] if level else target_z
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        in_place = long_tail(to_target, 0, 0.05, distance(init, target))
        grasped = grasp(obj, tcp, grip)
        reward = 10.0 if to_target < 0.05 else 2 * grasped + 6 * hamacher(grasped, in_place)
        touched = frame[3] > 0 and env.touching_main_object
        return to_target <= 0.05, to_obj <= 0.03, touched, grasped, in_place, to_target, reward

    return evaluate


def sweep_into(env: Any) -> Evaluate:
    """Reward for sweep-into."""
    return sweep(env, xz_thresh=0.01, grip_width=0.005, level=True)


def shelf_place(env: Any) -> Evaluate:
    """Reward for shelf-place."""
    target, init_z, tip = env._target_pos.tolist(), env.obj_init_pos.item(2), fingertips(env)
    left, right, front, back = target[0] - 0.15, target[0] + 0.15, target[1] - 3 * 0.05, target[1]
    margin = norm(env.obj_init_pos - env._target_pos)
    grasp = caging(env, obj_radius=0.02, pad_thresh=0.05, xz_thresh=0.01, density="low")

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        in_place: Number = long_tail(to_target, 0, 0.05, margin)
        grasped = grasp(obj, tcp, grip)
        reward = hamacher(grasped, in_place)
        if 0.0 < obj[2] < 0.24 and left < obj[0] < right:
            if front < obj[1] < back:
                loss = hamacher((obj[1] - front) / (3 * 0.05), (0.24 - obj[2]) / 0.24)
                in_place = np.float64(min(max(in_place - loss, 0.0), 1.0))
            elif obj[1] > back:
                in_place = 0.0
        if to_obj < 0.025 and opened > 0 and obj[2] - 0.01 > init_z:
            reward += 1.0 + 5.0 * in_place
        if to_target < 0.05:
            reward = 10.0
        lifted = opened > 0 and obj[2] - 0.02 > init_z and env.touching_main_object
        return to_target <= 0.07, to_obj <= 0.03, lifted, grasped, in_place, to_target, reward

    return evaluate

"""Upstream's v2 rewards of ML10's tasks on Python floats, value-identical to its ``evaluate_state``.

Each function takes upstream's environment right after a reset and returns what evaluates a step of this episode, with
all that stays constant computed once. ``tests/test_metaworld_pool.py`` holds the proof; tasks that are not here go
through upstream's own code.

This module is imported by workers: it must not import torch, nor anything of metarl that does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from metarl.envs.metaworld_reward_terms import (
    Number,
    caging,
    caging_by_pads,
    distance,
    fingertips,
    gaussian,
    hamacher,
    length,
    long_tail,
    prism,
)

Evaluation = tuple[Number, ...]
"""Upstream's ``info`` in the order of ``INFO_KEYS``; its last number is the reward."""

Evaluate = Callable[[list[float], np.float32], Evaluation]
"""From the observation (clipped, as upstream's) and the action's grip."""

_norm = np.linalg.norm


def reach(env: Any) -> Evaluate:
    """Of reach."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = float(_norm(env.hand_init_pos - env._target_pos))

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        to_target = distance(tip(), target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        return to_target <= 0.05, to_target, 1.0, to_target, in_place, to_target, 10 * in_place

    return evaluate


def push(env: Any) -> Evaluate:
    """Of push."""
    target, init_z, tip = env._target_pos.tolist(), env.obj_init_pos.item(2), fingertips(env)
    margin = float(_norm(env.obj_init_pos - env._target_pos))
    grasp = caging(env, obj_radius=0.015, pad_thresh=0.05, xz_thresh=0.005)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        grasped = grasp(obj, tcp, grip)
        reward = 2 * grasped
        if to_obj < 0.02 and opened > 0:
            reward += 1.0 + reward + 5.0 * in_place
        if to_target < 0.05:
            reward = 10.0
        lifted = opened > 0 and obj[2] - 0.02 > init_z and env.touching_main_object
        return to_target <= 0.05, to_obj <= 0.03, lifted, grasped, in_place, to_target, reward

    return evaluate


def pick_place(env: Any) -> Evaluate:
    """Of pick-place."""
    target, init_z, tip = env._target_pos.tolist(), env.obj_init_pos.item(2), fingertips(env)
    margin = float(_norm(env.obj_init_pos - env._target_pos))
    grasp = caging_by_pads(env, obj_radius=0.015, xz_thresh=0.005)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        grasped = grasp(obj, tcp, grip)
        reward = hamacher(grasped, in_place)
        if to_obj < 0.02 and opened > 0 and obj[2] - 0.01 > init_z:
            reward += 1.0 + 5.0 * in_place
        if to_target < 0.05:
            reward = 10.0
        lifted = opened > 0 and obj[2] - 0.02 > init_z and env.touching_main_object
        return to_target <= 0.07, to_obj <= 0.03, lifted, grasped, in_place, to_target, reward

    return evaluate


def door_open(env: Any) -> Evaluate:
    """Of door-open."""
    target_x, hinge = env._target_pos.item(0), env.data.joint("doorjoint").qpos
    angle_sought, angle_margin, ajar = np.pi / 2.0 + np.pi / 6, np.pi / 3.0, -np.pi / 90.0

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        hand_x, hand_y, hand_z = frame[:3]
        door_x, door_y, door_z = frame[4] + -0.05, frame[5], frame[6]
        theta = hinge.item()
        grabbing = float((np.float32(min(max(float(grip), -1.0), 1.0)) + 1.0) / 2.0)
        radius = length(hand_x - door_x, hand_y - door_y, 0.0)
        floor = 0.0 if radius <= 0.12 else float(0.04 * np.log(radius - 0.12) + 0.4)
        above_floor = 1.0 if hand_z >= floor else long_tail(floor - hand_z, 0.0, 0.01, floor / 2.0)
        to_handle = length(hand_x - door_x - 0.05, hand_y - door_y - 0.03, hand_z - door_z - -0.01)
        ready = hamacher(above_floor, long_tail(to_handle, 0, 0.12 / 2.0, 0.5))
        opened = 0.2 * float(theta < ajar) + 0.8 * long_tail(angle_sought - -theta, 0, 0.5, angle_margin)
        reward = 2.0 * hamacher(ready, grabbing) + 8.0 * opened
        success = abs(frame[4] - target_x) <= 0.08
        return success, ready, grabbing >= 0.5, grabbing, opened, 0.0, 10.0 if success else reward

    return evaluate


def door_close(env: Any) -> Evaluate:
    """Of door-close."""
    target, hand_init, tip = env._target_pos.tolist(), env.hand_init_pos.tolist(), fingertips(env)
    margin = float(_norm(env.obj_init_pos - env._target_pos))

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_target = distance(obj, target)
        in_place = gaussian(to_target, 0.05, margin)
        hand_in_place = gaussian(distance(tip(), target), 0.25 * 0.05, distance(hand_init, obj) + 0.1)
        reward = 10.0 if to_target < 0.05 else 3 * hand_in_place + 6 * in_place
        return to_target <= 0.08, 0.0, 1.0, 1.0, hand_in_place, to_target, reward

    return evaluate


def drawer_open(env: Any) -> Evaluate:
    """Of drawer-open."""
    target, max_dist = env._target_pos.tolist(), env.maxDist
    handle_init = env._target_pos + np.array([0.0, max_dist, 0.0])
    margin = float(_norm((handle_init - env.init_tcp) * np.array([3.0, 3.0, 1.0])))

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        handle = frame[4:7]
        error = distance(handle, target)
        x, y, z = handle[0] - frame[0], handle[1] - frame[1], handle[2] - frame[2]
        opening = long_tail(error, 0, 0.02, max_dist)
        near = long_tail(length(x * 3.0, y * 3.0, z), 0, 0.01, margin)
        return error <= 0.03, length(x, y, z) <= 0.03, frame[3] > 0, near, opening, error, (near + opening) * 5.0

    return evaluate


def drawer_close(env: Any) -> Evaluate:
    """Of drawer-close."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = float(abs(_norm(env.obj_init_pos - env._target_pos) - 0.05))
    reach_margin = float(abs(_norm(env.obj_init_pos - env.init_tcp) - 0.005))

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_target, to_obj = distance(obj, target), distance(obj, tip())
        in_place = long_tail(to_target, 0, 0.05, margin)
        reached = hamacher(gaussian(to_obj, 0.005, reach_margin), min(max(0, grip), 1))
        closed = to_target <= 0.05 + 0.015
        reward = 1.0 if closed else hamacher(reached, in_place)
        return closed, to_obj <= 0.01, 1.0, reached, in_place, to_target, reward * 10

    return evaluate


def button_press_topdown(env: Any) -> Evaluate:
    """Of button-press-topdown."""
    target_z, init_tcp, tip = env._target_pos.item(2), env.init_tcp.tolist(), fingertips(env)
    margin = float(env._obj_to_target_init)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj = frame[3], frame[4:7]
        to_obj, to_target = distance(obj, tip()), abs(target_z - obj[2])
        near = long_tail(to_obj, 0, 0.01, distance(obj, init_tcp))
        pressed = long_tail(to_target, 0, 0.005, margin)
        reward = 5 * hamacher(1 - opened, near)
        if to_obj <= 0.03:
            reward += 5 * pressed
        return to_target <= 0.024, to_obj <= 0.05, opened > 0, near, pressed, to_target, reward

    return evaluate


def peg_insert_side(env: Any) -> Evaluate:
    """Of peg-insert-side."""
    site = env.data.site
    head, tip = site("pegHead").xpos, fingertips(env)
    boxes = [
        (site(f"bottom_right_corner_collision_box_{n}").xpos, site(f"top_left_corner_collision_box_{n}").xpos)
        for n in (1, 2)
    ]
    target, init_z = env._target_pos.tolist(), env.obj_init_pos.item(2)
    margin = float(_norm((env.peg_head_pos_init - env._target_pos) * np.array([1.0, 2.0, 2.0])))
    grasp = caging(env, obj_radius=0.0075, pad_thresh=0.03, xz_thresh=0.005)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp, at = frame[3], frame[4:7], tip(), head.tolist()
        to_obj = distance(obj, tcp)
        to_target = length(at[0] - target[0], (at[1] - target[1]) * 2.0, (at[2] - target[2]) * 2.0)
        first, second = (prism(at, low.tolist(), high.tolist()) for low, high in boxes)
        in_place = hamacher(long_tail(to_target, 0, 0.07, margin), hamacher(second, first))
        grasped = grasp(obj, tcp, grip)
        lifted = opened > 0 and obj[2] - 0.01 > init_z
        held = to_obj < 0.08 and lifted
        if held:
            grasped = 1.0
        reward = hamacher(grasped, in_place)
        if held:
            reward += 1.0 + 5 * in_place
        if to_target <= 0.07:
            reward = 10.0
        return to_target <= 0.07, to_obj <= 0.03, to_obj < 0.02 and lifted, grasped, in_place, to_target, reward

    return evaluate


def window_open(env: Any) -> Evaluate:
    """Of window-open."""
    target_x, tip = env._target_pos.item(0), fingertips(env)
    margin = abs(abs(env.obj_init_pos.item(0) - target_x) - 0.05)
    reach_margin = abs(float(_norm(env.window_handle_pos_init - env.init_tcp)) - 0.02)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_target, to_obj = abs(obj[0] - target_x), distance(obj, tip())
        in_place = long_tail(to_target, 0, 0.05, margin)
        reached = long_tail(to_obj, 0, 0.02, reach_margin)
        reward = 10 * hamacher(reached, in_place)
        return to_target <= 0.05, to_obj <= 0.05, 1.0, reached, in_place, to_target, reward

    return evaluate


def basketball(env: Any) -> Evaluate:
    """Of basketball."""
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
    """Of sweep; with ``level`` the goal is as high as the object."""
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
    """Of sweep-into."""
    return sweep(env, xz_thresh=0.01, grip_width=0.005, level=True)


def shelf_place(env: Any) -> Evaluate:
    """Of shelf-place."""
    target, init_z, tip = env._target_pos.tolist(), env.obj_init_pos.item(2), fingertips(env)
    left, right, front, back = target[0] - 0.15, target[0] + 0.15, target[1] - 3 * 0.05, target[1]
    margin = float(_norm(env.obj_init_pos - env._target_pos))
    grasp = caging(env, obj_radius=0.02, pad_thresh=0.05, xz_thresh=0.01, high_density=False)

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


def lever_pull(env: Any) -> Evaluate:
    """Of lever-pull."""
    target, hinge = env._target_pos.tolist(), env.data.joint("LeverAxis").qpos
    scale, offset = np.array([4.0, 1.0, 4.0]), np.array([0.0, 0.055, 0.07])
    shoulder_margin = float(_norm((env.init_tcp + offset - env._lever_pos_init) * scale))
    margin = float(_norm(env._lever_pos_init - env._target_pos))
    success_error, full_error, error_margin = np.pi / 24, np.pi / 48.0, (np.pi / 2.0) - (np.pi / 12.0)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        lever = frame[4:7]
        x, y, z = frame[0] - lever[0], frame[1] + 0.055 - lever[1], frame[2] + 0.07 - lever[2]
        to_lever = length(x * 4.0, y, z * 4.0)
        ready = long_tail(to_lever, 0, 0.02, shoulder_margin)
        error = abs(-hinge.item() - np.pi / 2.0)
        engaged = long_tail(error, 0, full_error, error_margin)
        in_place = long_tail(distance(lever, target), 0, 0.04, margin)
        reward = 10.0 * hamacher(ready, in_place)
        return error <= success_error, to_lever < 0.03, ready > 0.9, ready, engaged, to_lever, reward

    return evaluate


REWARDS: dict[str, Callable[[Any], Evaluate]] = {
    f"{function.__name__.replace('_', '-')}-v3": function
    for function in (
        *(reach, push, pick_place, door_open, drawer_close, button_press_topdown, peg_insert_side, window_open, sweep),
        *(basketball, drawer_open, door_close, shelf_place, sweep_into, lever_pull),
    )
}
"""By task name."""

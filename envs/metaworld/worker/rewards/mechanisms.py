"""Upstream's v2 rewards of what is pressed, turned or slid where it stands, on floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from metarl.envs.metaworld.worker.rewards.terms import (
    Array,
    Evaluate,
    Evaluation,
    Grasp,
    above,
    caging,
    distance,
    effort,
    fingertips,
    funnel,
    gaussian,
    hamacher,
    length,
    long_tail,
    norm,
)


def button_press(env: Any) -> Evaluate:
    """Reward for button-press."""
    return _press_from_the_front(env, float(env._obj_to_target_init))


def coffee_button(env: Any) -> Evaluate:
    """Reward for coffee-button."""
    return _press_from_the_front(env, float(env.max_dist))


def _press_from_the_front(env: Any, margin: float) -> Evaluate:
    target_y, init_tcp, tip = env._target_pos.item(1), env.init_tcp.tolist(), fingertips(env)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj = frame[3], frame[4:7]
        to_obj, to_target = distance(obj, tip()), abs(target_y - obj[1])
        near = long_tail(to_obj, 0, 0.05, distance(obj, init_tcp))
        pressed = long_tail(to_target, 0, 0.005, margin)
        reward = 2 * hamacher(max(opened, 0.0), near)
        if to_obj <= 0.05:
            reward += 8 * pressed
        return to_target <= 0.02, to_obj <= 0.05, opened > 0, near, pressed, to_target, reward

    return evaluate


def button_press_wall(env: Any) -> Evaluate:
    """Reward for button-press-wall."""
    target_y, init_tcp, tip = env._target_pos.item(1), env.init_tcp.tolist(), fingertips(env)
    margin = float(env._obj_to_target_init)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj = frame[3], frame[4:7]
        to_obj, to_target = distance(obj, tip()), abs(target_y - obj[1])
        near = long_tail(to_obj, 0, 0.01, distance(obj, init_tcp))
        pressed = long_tail(to_target, 0, 0.005, margin)
        reward = 2 + 2 * (1 + opened) + 4 * pressed**2
        if to_obj > 0.07:
            reward = 2 * hamacher((1 - opened) / 2.0, near)
        return to_target <= 0.03, to_obj <= 0.05, opened > 0, near, pressed, to_target, reward

    return evaluate


def button_press_topdown(env: Any, shut: bool = True) -> Evaluate:
    """Reward for button-press-topdown; without ``shut`` an open hand is rewarded in place of a closed one."""
    target_z, init_tcp, tip = env._target_pos.item(2), env.init_tcp.tolist(), fingertips(env)
    margin = float(env._obj_to_target_init)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj = frame[3], frame[4:7]
        to_obj, to_target = distance(obj, tip()), abs(target_z - obj[2])
        near = long_tail(to_obj, 0, 0.01, distance(obj, init_tcp))
        pressed = long_tail(to_target, 0, 0.005, margin)
        reward = 5 * hamacher(1 - opened if shut else max(opened, 0.0), near)
        if to_obj <= 0.03:
            reward += 5 * pressed
        return to_target <= 0.024, to_obj <= 0.05, opened > 0, near, pressed, to_target, reward

    return evaluate


def button_press_topdown_wall(env: Any) -> Evaluate:
    """Reward for button-press-topdown-wall."""
    return button_press_topdown(env, shut=False)


def door_open(env: Any) -> Evaluate:
    """Reward for door-open."""
    target_x, hinge = env._target_pos.item(0), env.data.joint("doorjoint").qpos
    angle_sought, angle_margin, ajar = np.pi / 2.0 + np.pi / 6, np.pi / 3.0, -np.pi / 90.0

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        hand_x, hand_y, hand_z = frame[:3]
        door_x, door_y, door_z = frame[4] + -0.05, frame[5], frame[6]
        theta, grabbing = hinge.item(), effort(grip)
        floor = funnel(length(hand_x - door_x, hand_y - door_y), 0.12, 0.04, 0.4)
        to_handle = length(hand_x - door_x - 0.05, hand_y - door_y - 0.03, hand_z - door_z - -0.01)
        ready = hamacher(above(hand_z, floor, floor / 2.0), long_tail(to_handle, 0, 0.12 / 2.0, 0.5))
        opened = 0.2 * float(theta < ajar) + 0.8 * long_tail(angle_sought - -theta, 0, 0.5, angle_margin)
        reward = 2.0 * hamacher(ready, grabbing) + 8.0 * opened
        success = abs(frame[4] - target_x) <= 0.08
        return success, ready, grabbing >= 0.5, grabbing, opened, 0.0, 10.0 if success else reward

    return evaluate


def door_close(env: Any) -> Evaluate:
    """Reward for door-close."""
    target, hand_init, tip = env._target_pos.tolist(), env.hand_init_pos.tolist(), fingertips(env)
    margin = norm(env.obj_init_pos - env._target_pos)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_target = distance(obj, target)
        in_place = gaussian(to_target, 0.05, margin)
        hand_in_place = gaussian(distance(tip(), target), 0.25 * 0.05, distance(hand_init, obj) + 0.1)
        reward = 10.0 if to_target < 0.05 else 3 * hand_in_place + 6 * in_place
        return to_target <= 0.08, 0.0, 1.0, 1.0, hand_in_place, to_target, reward

    return evaluate


def door_lock(env: Any) -> Evaluate:
    """Reward for door-lock."""
    # The pad's first place is a live view in upstream: it is where the pad is now.
    target_z, pad, init = env._target_pos.item(2), env.data.body("leftpad").xpos, env.init_left_pad

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, (x, y, z) = frame[3], frame[4:7]
        (pad_x, pad_y, pad_z), (init_x, init_y, init_z) = pad.tolist(), init.tolist()
        to_obj = length((x - pad_x) * 0.25, y - pad_y, (z - pad_z) * 0.5)
        margin = length((x - init_x) * 0.25, y - init_y, (z - init_z) * 0.5)
        to_target = abs(target_z - z)
        near = long_tail(to_obj, 0, 0.01, margin)
        pressed = long_tail(to_target, 0, 0.005, env._lock_length)
        reward = 2 * hamacher(max(opened, 0.0), near) + 8 * pressed
        return to_target <= 0.02, to_obj <= 0.05, opened > 0, near, pressed, to_target, reward

    return evaluate


def door_unlock(env: Any) -> Evaluate:
    """Reward for door-unlock."""
    # The lock's first place is a live view in upstream.
    target_x, init, (tcp_x, tcp_y, tcp_z) = env._target_pos.item(0), env.obj_init_pos, env.init_tcp.tolist()

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        (x, y, z), (init_x, init_y, init_z) = frame[4:7], init.tolist()
        to_obj = length((frame[0] - x) * 0.25, frame[1] + 0.055 - y, (frame[2] + 0.07 - z) * 0.5)
        margin = length((tcp_x - init_x) * 0.25, tcp_y + 0.055 - init_y, (tcp_z + 0.07 - init_z) * 0.5)
        to_target = abs(target_x - x)
        ready = long_tail(to_obj, 0, 0.02, margin)
        pushed = long_tail(to_target, 0, 0.005, env._lock_length)
        return to_target <= 0.02, to_obj <= 0.05, frame[3] > 0, ready, pushed, to_target, 2 * ready + 8 * pushed

    return evaluate


def drawer_open(env: Any) -> Evaluate:
    """Reward for drawer-open."""
    target, max_dist = env._target_pos.tolist(), env.maxDist
    handle_init = env._target_pos + np.array([0.0, max_dist, 0.0])
    margin = norm((handle_init - env.init_tcp) * np.array([3.0, 3.0, 1.0]))

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        handle = frame[4:7]
        error = distance(handle, target)
        x, y, z = handle[0] - frame[0], handle[1] - frame[1], handle[2] - frame[2]
        opening = long_tail(error, 0, 0.02, max_dist)
        near = long_tail(length(x * 3.0, y * 3.0, z), 0, 0.01, margin)
        return error <= 0.03, length(x, y, z) <= 0.03, frame[3] > 0, near, opening, error, (near + opening) * 5.0

    return evaluate


def drawer_close(env: Any) -> Evaluate:
    """Reward for drawer-close."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = abs(norm(env.obj_init_pos - env._target_pos) - 0.05)
    reach_margin = abs(norm(env.obj_init_pos - env.init_tcp) - 0.005)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_target, to_obj = distance(obj, target), distance(obj, tip())
        in_place = long_tail(to_target, 0, 0.05, margin)
        reached = hamacher(gaussian(to_obj, 0.005, reach_margin), min(max(0, grip), 1))
        closed = to_target <= 0.05 + 0.015
        reward = 1.0 if closed else hamacher(reached, in_place)
        return closed, to_obj <= 0.01, 1.0, reached, in_place, to_target, reward * 10

    return evaluate


def window_open(env: Any) -> Evaluate:
    """Reward for window-open."""
    return _slide(env, 0, env.obj_init_pos, env.window_handle_pos_init, 0.05)


def window_close(env: Any) -> Evaluate:
    """Reward for window-close."""
    return _slide(env, 0, env.window_handle_pos_init, env.window_handle_pos_init, 0.05, steep=True)


def handle_press(env: Any) -> Evaluate:
    """Reward for handle-press and handle-press-side."""
    return _slide(env, 2, env._handle_init_pos, env._handle_init_pos, 0.02, full=True)


def _slide(
    env: Any, axis: int, start: Array, handle: Array, radius: float, *, steep: bool = False, full: bool = False
) -> Evaluate:
    """A handle that moves along one axis; ``full``: the highest reward within the radius, wherever the hand is."""
    target, tip = env._target_pos.item(axis), fingertips(env)
    margin = abs(abs(start.item(axis) - target) - radius)
    reach_margin = abs(norm(handle - env.init_tcp) - 0.02)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_target, to_obj = abs(obj[axis] - target), distance(obj, tip())
        in_place = long_tail(to_target, 0, radius, margin)
        reached = gaussian(to_obj, 0.02, reach_margin) if steep else long_tail(to_obj, 0, 0.02, reach_margin)
        success = to_target <= radius
        reward = 10.0 if full and success else 10 * hamacher(reached, in_place)
        return success, to_obj <= 0.05, 1.0, reached, in_place, to_target, reward

    return evaluate


def handle_pull(env: Any) -> Evaluate:
    """Reward for handle-pull."""
    grasp = caging(env, obj_radius=0.022, pad_thresh=0.05, xz_thresh=0.01)
    # Upstream compares the second coordinate with a height.
    return _pull(env, grasp, env.TARGET_RADIUS, upwards=True, raised_axis=1)


def handle_pull_side(env: Any) -> Evaluate:
    """Reward for handle-pull-side."""
    grasp = caging(env, obj_radius=0.032, pad_thresh=0.06, xz_thresh=0.01)
    return _pull(env, grasp, 0.08, upwards=False, raised_axis=2)


def _pull(env: Any, grasp: Grasp, success_radius: float, *, upwards: bool, raised_axis: int) -> Evaluate:
    """A handle that is lifted; ``upwards``: its height alone tells how far it is from the target."""
    target, init_z, radius, tip = env._target_pos.tolist(), env.obj_init_pos.item(2), env.TARGET_RADIUS, fingertips(env)
    margin = abs(target[2] - init_z) if upwards else norm(env.obj_init_pos - env._target_pos)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        to_obj, to_target = distance(obj, tcp), abs(target[2] - obj[2]) if upwards else distance(obj, target)
        in_place = long_tail(to_target, 0, radius, margin)
        grasped = grasp(obj, tcp, grip)
        reward = hamacher(grasped, in_place)
        if to_obj < 0.035 and opened > 0 and obj[raised_axis] - 0.01 > init_z:
            reward += 1.0 + 5.0 * in_place
        if to_target < radius:
            reward = 10.0
        lifted = opened > 0 and obj[2] - 0.03 > init_z
        return to_target <= success_radius, to_obj <= 0.05, lifted, grasped, in_place, to_target, reward

    return evaluate


def lever_pull(env: Any) -> Evaluate:
    """Reward for lever-pull."""
    target, hinge = env._target_pos.tolist(), env.data.joint("LeverAxis").qpos
    scale, offset = np.array([4.0, 1.0, 4.0]), np.array([0.0, 0.055, 0.07])
    shoulder_margin = norm((env.init_tcp + offset - env._lever_pos_init) * scale)
    margin = norm(env._lever_pos_init - env._target_pos)
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


def faucet_open(env: Any) -> Evaluate:
    """Reward for faucet-open."""
    return _faucet(env, -0.04, 0.03)


def faucet_close(env: Any) -> Evaluate:
    """Reward for faucet-close."""
    return _faucet(env, 0.0, 0.0)


def _faucet(env: Any, offset_x: float, offset_z: float) -> Evaluate:
    target, radius, tip = env._target_pos.tolist(), env._target_radius, fingertips(env)
    margin = abs(norm(env.obj_init_pos - env._target_pos) - radius)
    reach_margin = abs(norm(env.obj_init_pos - env.init_tcp) - 0.01)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4] + offset_x, frame[5], frame[6] + offset_z
        to_target, to_obj = distance(obj, target), distance(obj, tip())
        in_place = long_tail(to_target, 0, radius, margin)
        reached = gaussian(to_obj, 0.01, reach_margin)
        reward = 10.0 if to_target <= radius else (2 * reached + 3 * in_place) * 2
        return to_target <= 0.07, to_obj <= 0.01, 1.0, reached, in_place, to_target, reward

    return evaluate


def dial_turn(env: Any) -> Evaluate:
    """Reward for dial-turn."""
    target, tip = env._target_pos.tolist(), fingertips(env)
    margin = abs(norm(env.dial_push_position - env._target_pos) - 0.07)
    reach_margin = abs(norm(env.dial_push_position - env.init_tcp) - 0.005)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        obj = frame[4:7]
        to_target = distance(obj, target)
        to_obj = distance((obj[0] + 0.05, obj[1] + 0.02, obj[2] + 0.09), tip())
        in_place = long_tail(to_target, 0, 0.07, margin)
        reached = hamacher(gaussian(to_obj, 0.005, reach_margin), min(max(0, grip), 1))
        reward = 10 * hamacher(reached, in_place)
        return to_target <= 0.07, to_obj <= 0.01, 1.0, reached, in_place, to_target, reward

    return evaluate

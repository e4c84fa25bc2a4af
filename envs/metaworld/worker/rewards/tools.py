"""Upstream's v2 rewards of pegs, nuts, a hammer, a lid and sticks, on floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from metarl.envs.metaworld.worker.rewards.terms import (
    Evaluate,
    Evaluation,
    Point,
    above,
    caging,
    distance,
    effort,
    fingertips,
    funnel,
    hamacher,
    length,
    long_tail,
    norm,
    prism,
    upright,
)


def peg_insert_side(env: Any) -> Evaluate:
    """Reward for peg-insert-side."""
    site = env.data.site
    head, tip = site("pegHead").xpos, fingertips(env)
    boxes = [
        (site(f"bottom_right_corner_collision_box_{n}").xpos, site(f"top_left_corner_collision_box_{n}").xpos)
        for n in (1, 2)
    ]
    target, init_z = env._target_pos.tolist(), env.obj_init_pos.item(2)
    margin = norm((env.peg_head_pos_init - env._target_pos) * np.array([1.0, 2.0, 2.0]))
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


def peg_unplug_side(env: Any) -> Evaluate:
    """Reward for peg-unplug-side."""
    target, init_x, tip = env._target_pos.tolist(), env.obj_init_pos.item(0), fingertips(env)
    margin = norm(env.obj_init_pos - env._target_pos)
    grasp = caging(env, obj_radius=0.025, pad_thresh=0.05, xz_thresh=0.005, full_effort=0.8)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, obj, tcp = frame[3], frame[4:7], tip()
        to_obj, to_target = distance(obj, tcp), distance(obj, target)
        in_place = long_tail(to_target, 0, 0.05, margin)
        grasped = grasp(obj, tcp, grip)
        pulled = opened > 0.5 and obj[0] - init_x > 0.015
        reward = 2 * grasped
        if pulled and to_obj < 0.035:
            reward = 1 + 2 * grasped + 5 * in_place
        if to_target <= 0.05:
            reward = 10.0
        return to_target <= 0.07, to_obj <= 0.03, pulled, grasped, in_place, to_target, reward

    return evaluate


def assembly(env: Any) -> Evaluate:
    """Reward for assembly."""
    target_x, target_y, target_z = env._target_pos.tolist()
    nut, tip = env.data.site("RoundNut").xpos, fingertips(env)
    grasp = caging(env, obj_radius=0.015, pad_thresh=0.02, xz_thresh=0.01, density="medium")

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        x, y, z = nut.tolist()
        radius = length(target_x - x, target_y - y)
        success = radius < 0.02 and target_z - z > 0.0
        threshold = 0.02 if success else 0.01
        height = funnel(radius, threshold, 0.02, 0.2)
        lifted = z > 0.02 or radius < threshold
        to_target = length(target_x - x, target_y - y, (height - z) * 3.0)
        in_place = 0.1 * float(lifted) + 0.9 * long_tail(to_target, 0, 0.02, 0.4)
        grasped, turned = grasp(_beside(frame, 0.01), tip(), grip), upright(frame, 0.4)
        reward = 10.0 if success else (2.0 * grasped + 6.0 * in_place) * turned
        return success, turned, grasped >= 0.5, grasped, in_place, 0.0, reward

    return evaluate


def disassemble(env: Any) -> Evaluate:
    """Reward for disassemble."""
    target_x, target_y, target_z = env._target_pos.tolist()
    nut, tip = env.data.site("RoundNut").xpos, fingertips(env)
    grasp = caging(env, obj_radius=0.015, pad_thresh=0.02, xz_thresh=0.01)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        x, y, z = nut.tolist()
        to_target = length(target_x - x, target_y - y, target_z + 0.1 - z)
        in_place = 0.1 * float(z > 0.02) + 0.9 * long_tail(to_target, 0, 0.02, 0.2)
        grasped, turned = grasp(_beside(frame, 0.01), tip(), grip), upright(frame, 0.4)
        success = frame[6] > target_z
        reward = 10.0 if success else (2.0 * grasped + 6.0 * in_place) * turned
        return success, turned, grasped >= 0.5, grasped, in_place, 0.0, reward

    return evaluate


def hammer(env: Any) -> Evaluate:
    """Reward for hammer."""
    target_x, target_y, target_z = env._target_pos.tolist()
    nail, tip = env.data.joint("NailSlideJoint").qpos, fingertips(env)
    grasp = caging(env, obj_radius=0.015, pad_thresh=0.02, xz_thresh=0.01)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        to_target = length(target_x - (frame[4] + 0.16), target_y - (frame[5] + 0.06), target_z - frame[6])
        in_place = 0.1 * float(frame[6] > 0.02) + 0.9 * long_tail(to_target, 0, 0.02, 0.2)
        grasped, turned = grasp(_beside(frame, 0.07), tip(), grip), upright(frame, 0.4, (1.0, 0.0, 0.0, 0.0))
        success = nail.item() > 0.09
        reward = (2.0 * grasped + 6.0 * in_place) * turned
        if success and reward > 5.0:
            reward = 10.0
        return success, turned, grasped >= 0.5, grasped, in_place, 0.0, reward

    return evaluate


def _beside(frame: list[float], threshold: float) -> Point:
    """Where along its handle a tool would be grasped: by the hand, if the hand is no further off than its ends."""
    hand_x, (x, y, z) = frame[0], frame[4:7]
    return hand_x if abs(x - hand_x) < threshold else x, y, z


def box_close(env: Any) -> Evaluate:
    """Reward for box-close."""
    target = env._target_pos.tolist()

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        hand, (x, y, z), grabbing = frame[:3], frame[4:7], effort(grip)
        lid = x, y, z + 0.02
        floor = funnel(length(hand[0] - x, hand[1] - y), 0.02, 0.04, 0.4)
        ready = hamacher(above(hand[2], floor, floor / 2.0), long_tail(distance(hand, lid), 0, 0.02, 0.5))
        to_target = length(target[0] - x, target[1] - y, (target[2] - lid[2]) * 3.0)
        lifted = 0.2 * float(lid[2] > 0.04) + 0.8 * long_tail(to_target, 0, 0.05, 0.25)
        success = distance((x, y, z), target) < 0.08
        reward = 10.0 if success else 2.0 * hamacher(grabbing, ready) + 8.0 * lifted
        return success, ready, grabbing >= 0.5, grabbing, lifted, 0.0, reward * upright(frame, 0.2)

    return evaluate


def stick_push(env: Any) -> Evaluate:
    """Reward for stick-push."""
    target, init_z, tip = env._target_pos.tolist(), env.stick_init_pos.item(2), fingertips(env)
    margin = norm(env.stick_init_pos - env._target_pos) - 0.12
    container_margin = norm(env.obj_init_pos - env._target_pos) - 0.12
    grasp = caging(env, obj_radius=0.04, pad_thresh=0.05, xz_thresh=0.01, init=env.stick_init_pos)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, tcp = frame[3], tip()
        stick = frame[4] + 0.015, frame[5], frame[6]
        to_stick, to_target = distance(stick, tcp), distance(frame[11:14], target)
        in_place = long_tail(distance(stick, target), 0, 0.12, margin)
        grasped = grasp(stick, tcp, grip)
        reward = grasped
        lifted = opened > 0 and stick[2] - 0.01 > init_z
        if to_stick < 0.02 and lifted:
            grasped = 1
            reward = 2.0 + 5.0 * in_place + 3.0 * long_tail(to_target, 0, 0.12, container_margin)
            if to_target <= 0.12:
                reward = 10.0
        held = lifted and env.touching_main_object
        return held and to_target <= 0.12, to_stick <= 0.03, held, grasped, in_place, to_target, reward

    return evaluate


def stick_pull(env: Any) -> Evaluate:
    """Reward for stick-pull."""
    target, init_z, stick_init_z = env._target_pos.tolist(), env.obj_init_pos.item(2), env.stick_init_pos.item(2)
    tip, end = fingertips(env), env.data.site("stick_end").xpos
    container_init = env.obj_init_pos + np.array([0.05, 0.0, 0.0])
    margin = norm((env.stick_init_pos - container_init) * np.array([1.0, 1.0, 2.0]))
    stick_margin = norm(env.stick_init_pos - env._target_pos)
    container_margin = norm(env.obj_init_pos - env._target_pos)
    grasp = caging(env, obj_radius=0.014, pad_thresh=0.05, xz_thresh=0.01)

    def evaluate(frame: list[float], grip: np.float32) -> Evaluation:
        opened, stick, handle, tcp = frame[3], frame[4:7], frame[11:14], tip()
        container = handle[0] + 0.05, handle[1], handle[2]
        to_stick, to_target = distance(stick, tcp), distance(handle, target)
        x, y, z = stick[0] - container[0], stick[1] - container[1], stick[2] - container[2]
        in_place = long_tail(length(x, y, z * 2.0), 0, 0.05, margin)
        end_x, end_y, end_z = end.tolist()
        inserted = end_x >= handle[0] and abs(end_y - handle[1]) <= 0.04 and abs(end_z - handle[2]) <= 0.06
        held = to_stick < 0.02 and opened > 0 and stick[2] - 0.01 > stick_init_z
        grasped = 1 if held else grasp(stick, tcp, grip)
        reward = hamacher(grasped, in_place)
        if held and not inserted:
            reward = 1.0 + reward + 5.0 * in_place
        elif held:
            stick_in_place = long_tail(distance(stick, target), 0, 0.05, stick_margin)
            container_in_place = long_tail(distance(container, target), 0, 0.05, container_margin)
            reward = 1.0 + reward + 5.0 + 2.0 * stick_in_place + 1.0 * container_in_place
            if to_target <= 0.12:
                reward = 10.0
        lifted = opened > 0 and stick[2] - 0.02 > init_z and env.touching_main_object
        return to_target <= 0.12 and inserted, to_stick <= 0.03, lifted, grasped, in_place, to_target, reward

    return evaluate

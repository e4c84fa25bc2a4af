"""Which function evaluates which task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metarl.envs.metaworld.worker.rewards import mechanisms, objects, tools
from metarl.envs.metaworld.worker.rewards.terms import Evaluate

REWARDS: dict[str, Callable[[Any], Evaluate]] = {
    "assembly-v3": tools.assembly,
    "basketball-v3": objects.basketball,
    "bin-picking-v3": objects.bin_picking,
    "box-close-v3": tools.box_close,
    "button-press-v3": mechanisms.button_press,
    "button-press-topdown-v3": mechanisms.button_press_topdown,
    "button-press-topdown-wall-v3": mechanisms.button_press_topdown_wall,
    "button-press-wall-v3": mechanisms.button_press_wall,
    "coffee-button-v3": mechanisms.coffee_button,
    "coffee-pull-v3": objects.coffee_push,
    "coffee-push-v3": objects.coffee_push,
    "dial-turn-v3": mechanisms.dial_turn,
    "disassemble-v3": tools.disassemble,
    "door-close-v3": mechanisms.door_close,
    "door-lock-v3": mechanisms.door_lock,
    "door-open-v3": mechanisms.door_open,
    "door-unlock-v3": mechanisms.door_unlock,
    "drawer-close-v3": mechanisms.drawer_close,
    "drawer-open-v3": mechanisms.drawer_open,
    "faucet-close-v3": mechanisms.faucet_close,
    "faucet-open-v3": mechanisms.faucet_open,
    "hammer-v3": tools.hammer,
    "hand-insert-v3": objects.hand_insert,
    "handle-press-v3": mechanisms.handle_press,
    "handle-press-side-v3": mechanisms.handle_press,
    "handle-pull-v3": mechanisms.handle_pull,
    "handle-pull-side-v3": mechanisms.handle_pull_side,
    "lever-pull-v3": mechanisms.lever_pull,
    "peg-insert-side-v3": tools.peg_insert_side,
    "peg-unplug-side-v3": tools.peg_unplug_side,
    "pick-out-of-hole-v3": objects.pick_out_of_hole,
    "pick-place-v3": objects.pick_place,
    "pick-place-wall-v3": objects.pick_place_wall,
    "plate-slide-v3": objects.plate_slide,
    "plate-slide-back-v3": objects.plate_slide_back,
    "plate-slide-back-side-v3": objects.plate_slide_back,
    "plate-slide-side-v3": objects.plate_slide_back,
    "push-v3": objects.push,
    "push-back-v3": objects.push_back,
    "push-wall-v3": objects.push_wall,
    "reach-v3": objects.reach,
    "reach-wall-v3": objects.reach_wall,
    "shelf-place-v3": objects.shelf_place,
    "soccer-v3": objects.soccer,
    "stick-pull-v3": tools.stick_pull,
    "stick-push-v3": tools.stick_push,
    "sweep-v3": objects.sweep,
    "sweep-into-v3": objects.sweep_into,
    "window-close-v3": mechanisms.window_close,
    "window-open-v3": mechanisms.window_open,
}
"""Makers of reward functions by task name."""

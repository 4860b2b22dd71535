"""Atari's protocols: how published scores let a game be played, and what the agent sees of it."""

from __future__ import annotations

# What each protocol says of the fields of `fastac.config.EnvConfig` below `atari_protocol`.
PROTOCOLS: dict[str, dict[str, bool | int | float]] = {
    # As most published scores are trained: Mnih et al. 2015, Nature 518, with OpenAI Baselines' FIRE at a reset (but
    # Baselines press it after every lost life too; here the agent has to).
    "dqn": {
        "sticky_actions": 0.0,
        "noop_max": 30,
        "fire_reset": True,
        "frame_skip": 4,
        "max_pool": True,
        "screen_size": 84,
        "frame_stack": 4,
        "episodic_life": True,
        "full_action_space": False,
        "max_frames": 108_000,
        "clip_rewards": True,
    },
}
# Machado et al. 2018, arXiv 1709.06009: randomness by sticky actions alone, all 18 actions, games of 5 minutes.
PROTOCOLS["machado"] = PROTOCOLS["dqn"] | {
    "sticky_actions": 0.25,
    "noop_max": 0,
    "fire_reset": False,
    "episodic_life": False,
    "full_action_space": True,
    "max_frames": 18_000,
}
# Mnih et al. 2016, arXiv 1602.01783; no-ops stand for its human starts, which are not public.
PROTOCOLS["a3c"] = PROTOCOLS["dqn"] | {"fire_reset": False, "episodic_life": False}

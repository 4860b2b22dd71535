"""Atari protocols: the rules under which published scores were obtained, and the agent's observations."""

from __future__ import annotations

# Values of the fields of `fastac.config.EnvConfig` below `atari_protocol`, by protocol.
PROTOCOLS: dict[str, dict[str, bool | int | float]] = {
    # Used for most published scores: Mnih et al. 2015, Nature 518, with the FIRE reset of OpenAI Baselines. (Baselines
    # also press FIRE after every lost life; here the agent has to do it.)
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
# Machado et al. 2018, arXiv 1709.06009: randomness only from sticky actions, all 18 actions, games of 5 minutes.
PROTOCOLS["machado"] = PROTOCOLS["dqn"] | {
    "sticky_actions": 0.25,
    "noop_max": 0,
    "fire_reset": False,
    "episodic_life": False,
    "full_action_space": True,
    "max_frames": 18_000,
}
# Mnih et al. 2016, arXiv 1602.01783; no-ops replace its human starts, which are not public.
PROTOCOLS["a3c"] = PROTOCOLS["dqn"] | {"fire_reset": False, "episodic_life": False}

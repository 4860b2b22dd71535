"""Atari's protocols: what ALE is made to play under each."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from atari_support import BREAKOUT, FIRE, INVADERS, NOOP, PONG, Spy, ale_py, build, repeat, roms
from env_rows import begin, draw_actions, exit_with_parent
from gymnasium.vector import AutoresetMode

from fastac.config import EnvConfig
from fastac.envs import film_game

PROTOCOLS = ["dqn", "machado", "a3c"]
COMMON = {
    "batch_size": 2,
    "num_threads": 1,
    "thread_affinity_offset": -1,
    "autoreset_mode": AutoresetMode.NEXT_STEP,
    "frameskip": 4,
    "maxpool": True,
    "img_height": 84,
    "img_width": 84,
    "grayscale": True,
    "stack_num": 4,
    "continuous": False,
    "continuous_action_threshold": 0.5,
    # Never what the protocol says: lives are marked here, and rewards clipped by the learner.
    "episodic_life": False,
    "life_loss_info": False,
    "reward_clipping": False,
}
EXPECTED = {
    "dqn": {"repeat_action_probability": 0.0, "noop_max": 30, "use_fire_reset": True, "full_action_space": False,
            "max_num_frames_per_episode": 108_000},
    "machado": {"repeat_action_probability": 0.25, "noop_max": 0, "use_fire_reset": False, "full_action_space": True,
                "max_num_frames_per_episode": 18_000},
    "a3c": {"repeat_action_probability": 0.0, "noop_max": 30, "use_fire_reset": False, "full_action_space": False,
            "max_num_frames_per_episode": 108_000},
}  # fmt: skip
DESCRIPTIONS = {
    "dqn": "ALE (dqn: sticky 0, no-ops < 30, FIRE reset, skip 4 max-pooled, 84x84 gray, stack 4, life loss ends, "
    "4 actions, cap 108000 frames, rewards clipped; 1 thread)",
    "machado": "ALE (machado: sticky 0.25, no no-ops, no FIRE reset, skip 4 max-pooled, 84x84 gray, stack 4, "
    "full games, 18 actions, cap 18000 frames, rewards clipped; 1 thread)",
    "a3c": "ALE (a3c: sticky 0, no-ops < 30, no FIRE reset, skip 4 max-pooled, 84x84 gray, stack 4, full games, "
    "4 actions, cap 108000 frames, rewards clipped; 1 thread)",
}


def watch_construction(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    made: dict[str, object] = {}

    class Watched(ale_py.vector_env.AtariVectorEnv):
        def __init__(self, game: str, num_envs: int, **settings) -> None:
            made.update(game=game, num_envs=num_envs, **settings)
            super().__init__(game, num_envs, **settings)

    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", Watched)
    return made


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ale_is_built_with_every_field_of_the_protocol(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = set(ale_py.vector_env.AtariVectorEnv.__init__.__kwdefaults__)
    made = watch_construction(monkeypatch)
    env = build(BREAKOUT, 2, atari_protocol=protocol)
    assert made == {"game": "breakout", "num_envs": 2, **COMMON, **EXPECTED[protocol]}
    assert set(made) - {"game", "num_envs"} == signature  # nothing is left to ALE's defaults
    assert env.description == DESCRIPTIONS[protocol]
    assert env.single_action_space == gym.spaces.Discrete(18 if protocol == "machado" else 4)
    assert env.single_observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert (env.num_envs, env.frame_skip, env.frame_stack) == (2, 4, 4)


def test_fields_beside_the_protocol_reach_ale_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = watch_construction(monkeypatch)
    fields = {"sticky_actions": 0.5, "noop_max": 7, "fire_reset": False, "frame_skip": 3, "max_pool": False,
              "screen_size": 42, "frame_stack": 2, "full_action_space": True, "max_frames": 600}  # fmt: skip
    env = build(**fields, clip_rewards=False, episodic_life=False)
    names = ("repeat_action_probability", "noop_max", "use_fire_reset", "frameskip", "maxpool", "img_height",
             "stack_num", "full_action_space", "max_num_frames_per_episode")  # fmt: skip
    assert [made[name] for name in names] == list(fields.values())
    assert "skip 3, 42x42 gray, stack 2, full games, 18 actions, cap 600 frames, rewards raw" in env.description
    assert (env.frame_skip, env.frame_stack, begin(env).shape) == (3, 2, (1, 42, 42))


@pytest.mark.parametrize(("protocol", "frames"), [("dqn", {1, 2, 3}), ("machado", {0}), ("a3c", {0, 1, 2, 3})])
def test_games_begin_after_the_protocols_frames(protocol: str, frames: set[int]) -> None:
    """No-ops are fewer than noop_max; pressing FIRE is a frame, and counts as one of them."""
    fewer = {} if protocol == "machado" else {"noop_max": 4}
    env = build(BREAKOUT, 2, atari_protocol=protocol, **fewer)
    spy = Spy(env)
    for _ in range(20):
        begin(env)
    assert set(spy["episode_frame_number"].ravel().tolist()) == frames


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_step_is_four_frames_and_not_sixteen(protocol: str) -> None:
    env = build(PONG, 2, atari_protocol=protocol)
    spy = Spy(env)
    begin(env)
    exit_with_parent(env, draw_actions(env, 10))
    assert (np.diff(spy["episode_frame_number"], axis=0) == 4).all()


@pytest.mark.parametrize("max_pool", [True, False])
def test_a_step_shows_the_maximum_of_its_last_two_frames(max_pool: bool) -> None:
    """As an emulator shows that is stepped frame by frame by hand, in colours so that nothing is scaled."""
    env = film_game(EnvConfig(PONG, 1, sticky_actions=0.0, noop_max=0, fire_reset=False, max_pool=max_pool))
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path("pong"))
    env.reset(seed=0)
    emulator.reset_game()
    np.testing.assert_array_equal(env.render(), emulator.getScreenRGB())
    pooled = 0
    for index in draw_actions(build(PONG), 40)[:, 0]:
        env.step(index)
        frames = []
        for _ in range(4):
            emulator.act(emulator.getMinimalActionSet()[index])
            frames.append(emulator.getScreenRGB())
        pooled += bool((frames[2] > frames[3]).any())
        expected = np.maximum(frames[2], frames[3]) if max_pool else frames[3]
        np.testing.assert_array_equal(env.render(), expected)
    assert pooled > 5  # the two differ


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_sticky_actions_are_what_sets_two_games_apart(sticky: float) -> None:
    """Without no-ops two games under the same actions are one, whatever their seeds."""
    env = build(PONG, 2, atari_protocol="machado", sticky_actions=sticky)
    begin(env)
    obs = exit_with_parent(env, np.repeat(draw_actions(env, 40)[:, :1], 2, axis=1)).obs
    assert np.array_equal(obs[:, 0], obs[:, 1]) == (sticky == 0.0)


@pytest.mark.parametrize("fire_reset", [True, False])
def test_fire_reset_launches_the_first_ball(fire_reset: bool) -> None:
    env = build(BREAKOUT, 1, fire_reset=fire_reset)
    begin(env)
    lost = exit_with_parent(env, repeat(env, NOOP, 120)).life_lost
    assert lost.sum() == fire_reset  # and nobody launches a second one


def test_a_game_is_cut_after_max_frames_and_then_another_begins() -> None:
    env = build(PONG, 1, max_frames=42, noop_max=0)
    spy = Spy(env)
    begin(env)
    trace = exit_with_parent(env, draw_actions(env, 14))
    assert np.flatnonzero(trace.truncated[:, 0]).tolist() == [10]  # 10 steps of 4 frames, and one of 2
    frames = spy["episode_frame_number"][:, 0]
    assert frames[11] - frames[0] == 42
    assert not trace.terminated.any()
    assert np.flatnonzero(~trace.valid[:, 0]).tolist() == [11]
    assert np.flatnonzero(trace.start[:, 0]).tolist() == [11]
    assert frames[12:].tolist() == [frames[0], frames[0] + 4, frames[0] + 8]


def test_rewards_are_raw() -> None:
    env = build(INVADERS, 1)
    begin(env)
    reward = exit_with_parent(env, repeat(env, FIRE, 100)).reward
    assert reward.dtype == np.float32
    assert reward.max() >= 5  # the cheapest invader

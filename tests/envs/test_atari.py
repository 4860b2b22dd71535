"""Atari: frames, lives and seeds in the rows, evaluations, what is refused, and films."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from atari_support import BREAKOUT, FIRE, PONG, Spy, ale_py, build, repeat, roms
from env_rows import Trace, begin, draw_actions, exit_with_parent, make_row

from fastac.build import build_evaluation_envs, environments, evaluation_width, resolve_workers, shard_config, shares
from fastac.config import Config, EnvConfig
from fastac.contract import EnvFailure
from fastac.envs import film_game, has_native, make_vec, picks_own_batch
from fastac.envs import make as make_module
from fastac.envs.atari import AtariEnvs, draw_seeds

# --------------------------------------------------------------------------------------------------- frames and lives


class Game:
    """Whole games of Breakout in which only FIRE is pressed: frames, stacks, and what ALE tells besides."""

    STEPS = 330

    def __init__(self) -> None:
        frames, stacks = build(BREAKOUT, 2, noop_max=3), build(BREAKOUT, 2, noop_max=3, whole_stacks=True)
        spy = Spy(frames)
        self.frame_stacks = frames.frame_stack, stacks.frame_stack
        self.first, self.first_stack = begin(frames), begin(stacks)
        actions = repeat(frames, FIRE, self.STEPS)
        self.trace, self.stacks = exit_with_parent(frames, actions), exit_with_parent(stacks, actions)
        # And a reset in the middle of a game.
        self.again, self.again_stack = begin(frames), begin(stacks)
        self.after, self.after_stacks = exit_with_parent(frames, actions[:5]), exit_with_parent(stacks, actions[:5])
        self.lives = spy["lives"][: self.STEPS + 1]


@pytest.fixture(scope="module")
def game() -> Game:
    return Game()


def stack_by_hand(first: np.ndarray, trace: Trace) -> np.ndarray:
    """Return the stacks of all rows, `[T + 1, N, 4, H, W]`, by the contract's word alone."""
    frames, starts = [first, *trace.obs], [np.ones(len(first), bool), *trace.start]
    stack = np.zeros((len(first), 4, *first.shape[1:]), np.uint8)
    stacks = []
    for frame, start in zip(frames, starts, strict=True):
        stack = np.concatenate([stack[:, 1:], frame[:, None]], axis=1)
        stack[start, :-1] = 0
        stacks.append(stack)
    return np.stack(stacks)


def test_stacks_of_single_frames_are_the_envs_own(game: Game) -> None:
    assert game.frame_stacks == (4, 1)
    assert game.trace.obs.dtype == np.uint8 and game.trace.obs.shape == (game.STEPS, 2, 84, 84)
    assert game.trace.start.sum() >= 2  # over resets
    whole = np.concatenate([game.first_stack[None], game.stacks.obs])
    np.testing.assert_array_equal(stack_by_hand(game.first, game.trace), whole)
    whole = np.concatenate([game.again_stack[None], game.after_stacks.obs])
    np.testing.assert_array_equal(stack_by_hand(game.again, game.after), whole)
    for name in ("reward", "terminated", "truncated", "valid", "start", "life_lost"):
        np.testing.assert_array_equal(getattr(game.trace, name), getattr(game.stacks, name), err_msg=name)


def test_a_lost_life_is_terminal_and_the_game_goes_on(game: Game) -> None:
    trace, lives = game.trace, game.lives
    lost = trace.life_lost
    np.testing.assert_array_equal(lost, (np.diff(lives, axis=0) < 0) & (lives[1:] > 0))
    assert trace.terminated[lost].all() and not trace.truncated.any()
    after = np.roll(lost, 1, axis=0)
    after[0] = False
    assert after.sum() >= 8
    assert trace.valid[after].all() and not trace.start[after].any()
    assert set(lives[1:][lost].tolist()) == {4, 3, 2, 1}  # ALE's own episodic_life would begin another game of 5


def test_the_end_of_a_game_is_terminal_and_the_next_step_only_resets(game: Game) -> None:
    trace, lives = game.trace, game.lives
    over = trace.terminated & ~trace.life_lost
    assert over.sum() >= 2
    assert (lives[1:][over] == 0).all()
    reset = np.roll(over, 1, axis=0)
    reset[0] = False
    np.testing.assert_array_equal(~trace.valid, reset)
    np.testing.assert_array_equal(trace.start, reset)
    assert (lives[1:][reset] == 5).all()
    assert not trace.reward[reset].any() and not trace.terminated[reset].any()


def test_without_episodic_life_only_the_game_ends(game: Game) -> None:
    env = build(BREAKOUT, 2, noop_max=3, episodic_life=False)
    np.testing.assert_array_equal(begin(env), game.first)
    trace = exit_with_parent(env, repeat(env, FIRE, game.STEPS))
    assert not trace.life_lost.any()
    np.testing.assert_array_equal(trace.terminated, game.trace.terminated & ~game.trace.life_lost)
    np.testing.assert_array_equal(trace.obs, game.trace.obs)


def test_a_life_lost_in_the_step_that_cuts_the_game_does_not_end_it(game: Game) -> None:
    first = int(np.flatnonzero(game.trace.life_lost[:, 0])[0]) + 1
    env = build(BREAKOUT, 2, noop_max=3, max_frames=4 * first)
    spy = Spy(env)
    begin(env)
    trace = exit_with_parent(env, repeat(env, FIRE, first + 1))
    assert spy["lives"][:, 0].tolist()[-3:] == [5, 4, 5]
    assert trace.truncated[first - 1, 0] and not trace.terminated[:, 0].any() and not trace.life_lost[:, 0].any()


@pytest.mark.parametrize(
    ("before", "lives", "terminated", "truncated", "is_lost"),
    [
        (3, 2, False, False, True),
        (2, 3, False, False, False),  # an extra life
        (3, 3, False, False, False),
        (1, 0, True, False, False),
        (3, 2, True, False, False),
        (3, 2, False, True, False),
        (1, 0, False, False, False),  # some games go on for some frames without a life
    ],
)
def test_when_a_life_is_lost(
    before: int, lives: int, terminated: bool, truncated: bool, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = build()
    begin(env)

    def answer(lives: int, terminated: bool = False, truncated: bool = False) -> None:
        """Let ALE say so at the next step."""
        values = (
            np.zeros((1, 4, 84, 84), np.uint8),
            np.zeros(1, np.int32),
            np.array([terminated]),
            np.array([truncated]),
        )
        infos = {"lives": np.array([lives], np.int32)}
        monkeypatch.setattr(env._env, "step", lambda action: (*values, infos))

    answer(before)
    exit_with_parent(env, draw_actions(env, 1))
    answer(lives, terminated, truncated)
    trace = exit_with_parent(env, draw_actions(env, 1))
    assert trace.life_lost.item() == is_lost
    assert trace.terminated.item() == (is_lost or terminated) and trace.truncated.item() == truncated
    answer(1)  # a new game with fewer lives, where that was the end
    trace = exit_with_parent(env, draw_actions(env, 1))
    assert trace.valid.item() == (not (terminated or truncated))
    assert trace.life_lost.item() == (trace.valid.item() and lives > 1)


def test_a_stack_of_one_is_a_row() -> None:
    env = build(frame_stack=1)
    assert env.frame_stack == 1 and env.single_observation_space.shape == (1, 84, 84)
    assert begin(env).shape == (1, 1, 84, 84)
    assert exit_with_parent(env, draw_actions(env, 2)).obs.shape == (2, 1, 1, 84, 84)


# -------------------------------------------------------------------------------------------------------------- seeds


def test_runs_share_no_stream() -> None:
    seeds = np.array([draw_seeds(np.random.SeedSequence(seed), 16) for seed in range(50)])
    assert len(np.unique(seeds)) == seeds.size
    assert seeds.min() >= 0 and 2**30 < seeds.max() < 2**31


def test_the_drawn_seeds_are_what_ale_is_seeded_with(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[np.ndarray | None] = []
    reset = ale_py.vector_env.AtariVectorEnv.reset
    monkeypatch.setattr(
        ale_py.vector_env.AtariVectorEnv, "reset", lambda self, seed: given.append(seed) or reset(self, seed=seed)
    )
    env = build(PONG, 3, seed=5)
    begin(env)
    begin(env)
    assert given[0].tolist() == draw_seeds(np.random.SeedSequence(5), 3) and given[1] is None


def test_the_same_seed_is_the_same_trajectory_and_another_is_not() -> None:
    def play(seed: int, threads: int) -> tuple[np.ndarray, Trace, np.ndarray]:
        env = build(PONG, 2, seed, sticky_actions=0.25, max_frames=80, env_threads=threads)
        first = begin(env)
        trace = exit_with_parent(env, draw_actions(env, 25))
        return first, trace, begin(env)

    first, trace, again = play(3, threads=1)
    assert trace.truncated.any()
    same = play(3, threads=2)
    np.testing.assert_array_equal(first, same[0])
    trace.assert_equal(same[1])
    np.testing.assert_array_equal(again, same[2])
    assert not np.array_equal(trace.obs, play(4, threads=1)[1].obs)


# -------------------------------------------------------------------------------------------- around: build, evaluate


def test_evaluation_plays_full_games_in_whole_stacks(game: Game) -> None:
    config = EnvConfig(BREAKOUT, 16, env_threads=1, noop_max=3, episodic_life=True)
    env = build_evaluation_envs(config, 1, np.random.SeedSequence(0))
    assert (env.num_envs, env.frame_stack) == (1, 1)
    assert env.description == build(BREAKOUT, 1, noop_max=3).description.replace("life loss ends", "full games")
    np.testing.assert_array_equal(begin(env)[0], game.first_stack[0])  # the same stream gives the same game
    trace = exit_with_parent(env, repeat(env, FIRE, int(np.flatnonzero(game.trace.start[:, 0])[0])))
    assert trace.terminated.sum() == 1 and trace.terminated[-1]
    assert not trace.life_lost.any() and trace.valid.all()


def test_evaluation_keeps_the_protocol_and_takes_at_most_25_games(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr(environments, "make_vec", lambda config, seed, **kwargs: asked.append((config, kwargs)))
    config = EnvConfig(BREAKOUT, 16, env_threads=3, envs_per_worker=8, sticky_actions=0.125, noop_max=9)
    for episodes in (100, 7):
        build_evaluation_envs(config, evaluation_width(config, episodes), np.random.SeedSequence(0))
    expected = replace(config, envs_per_worker=None, episodic_life=False)
    assert asked == [(replace(expected, num_envs=n), {"whole_stacks": True}) for n in (25, 7)]


def test_several_workers_have_a_thread_each() -> None:
    config = Config().replace(env_id=BREAKOUT, num_envs=16, workers=2)
    share = shard_config(config, None).env
    assert (share.num_envs, share.env_threads, share.vectorization) == (8, 1, "auto")
    assert shard_config(config.replace(env_threads=2), None).env.env_threads == 2
    assert shard_config(config.replace(workers=1), None).env.env_threads is None


@pytest.mark.parametrize(("num_envs", "workers"), [(32, 4), (24, 3), (16, 2), (8, 2), (12, 2), (4, 1), (2, 1)])
def test_auto_gives_two_workers_four_games_and_more_of_them_eight(
    num_envs: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "count_physical_cores", lambda: 4)
    config = Config().replace(env_id=BREAKOUT, num_envs=num_envs, workers="auto")
    assert resolve_workers(config).run.workers == workers


def test_threads_are_the_cores_unless_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_module, "count_cores", lambda: 2)
    monkeypatch.setattr(make_module.os, "cpu_count", lambda: 3)
    for num_envs, asked, threads in [(4, None, 2), (1, None, 1), (4, 1, 1), (4, 64, 3)]:
        words = build(PONG, num_envs, env_threads=asked).description.split("; ")[1]
        assert words == ("1 thread)" if threads == 1 else f"{threads} threads)")


def test_games_are_always_batched_by_ale() -> None:
    for vectorization in ("auto", "native"):
        assert picks_own_batch(EnvConfig(PONG, 1, vectorization), 1)
    assert has_native(EnvConfig(f"ale_py:{PONG}"))
    assert isinstance(build(f"ale_py:{PONG}"), AtariEnvs)
    with pytest.raises(ValueError, match="is filmed by film_game"):
        make_vec(EnvConfig(PONG), np.random.SeedSequence(0), render_mode="rgb_array")


def test_every_game_of_ale_has_its_rom() -> None:
    has_native(EnvConfig(PONG))  # imports ale-py
    games = {env_id: make_module._find_game(gym.spec(env_id)) for env_id in gym.registry if env_id.startswith("ALE/")}
    assert len(games) > 100 and games["ALE/SpaceInvaders-v5"] == "space_invaders"
    assert all(Path(roms.get_rom_path(game)).is_file() for game in games.values())


def test_an_unknown_game_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'ALE/Pung-v5', which Gymnasium does not know: did you mean ALE/Pong-v5"):
        has_native(EnvConfig("ALE/Pung-v5"))


def test_an_id_without_a_game_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "ALE/Mine-v5", gym.envs.registration.EnvSpec("ALE/Mine-v5", "x:X"))
    with pytest.raises(ValueError, match="'ALE/Mine-v5', which is registered without a game of ALE"):
        build("ALE/Mine-v5")


def test_without_ale_py_a_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
    for call in (build, lambda: film_game(EnvConfig(PONG)), lambda: has_native(EnvConfig(PONG))):
        with pytest.raises(ValueError, match=r"^env_id is 'ALE/Pong-v5', which needs a package .*ale-py>=0\.12'\.$"):
            call()


def test_what_ale_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("no such ROM\nand more")

    env = build()
    monkeypatch.setattr(env._env, "reset", fail)
    with pytest.raises(EnvFailure, match=r"^ALE raised RuntimeError: no such ROM in reset\.$"):
        begin(env)
    monkeypatch.setattr(env._env, "step", fail)
    with pytest.raises(EnvFailure, match=r"^ALE raised RuntimeError: no such ROM in step\.$"):
        env.step(np.zeros(1, np.int64), make_row(env))
    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", fail)
    for call in (build, lambda: film_game(EnvConfig(PONG))):
        with pytest.raises(EnvFailure, match=r"^ALE/Pong-v5 could not be built \(RuntimeError: no such ROM\)\.$"):
            call()


def test_state_is_not_saved() -> None:
    env = build()
    assert env.get_state() is None
    with pytest.raises(ValueError, match="cannot continue from a saved state"):
        env.set_state({})


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads where Linux lists them")
def test_close_ends_the_threads() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    gc.collect()  # others' emulators that are still around
    before = count()
    env = build(PONG, 2, env_threads=2)
    begin(env)
    assert count() > before
    env.close()
    env.close()
    assert count() == before


# ------------------------------------------------------------------------------------------------------------ filming


def test_a_filmed_game_is_the_one_that_is_evaluated_and_shows_its_colours() -> None:
    config = EnvConfig(BREAKOUT, 8, sticky_actions=0.25, env_threads=1)
    film, seen = film_game(config), build_evaluation_envs(config, 1, np.random.SeedSequence(11))
    assert film.metadata["render_fps"] == 15.0
    obs, _ = film.reset(seed=11)
    np.testing.assert_array_equal(obs, begin(seen)[0])
    pictures = [film.render()]
    for action in draw_actions(seen, 40):
        obs, reward, terminated, truncated, _ = film.step(action[0])
        row = make_row(seen)
        seen.step(action, row)
        np.testing.assert_array_equal(obs, row.obs[0])
        assert (reward, terminated, truncated) == (row.reward[0], row.terminated[0], row.truncated[0])
        pictures.append(film.render())
    assert all(picture.shape == (210, 160, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) > 30  # it moves
    assert (pictures[0][..., 0] != pictures[0][..., 2]).any()  # and is not gray


def test_a_taller_screen_is_filmed_as_it_is() -> None:
    film = film_game(EnvConfig("ALE/AirRaid-v5"))
    film.reset(seed=0)
    assert film.render().shape == (250, 160, 3)


def test_emulators_that_go_apart_are_told() -> None:
    film = film_game(EnvConfig(PONG, noop_max=0))
    film.reset(seed=0)
    film._colour.step(np.zeros(1, np.int64))
    with pytest.raises(RuntimeError, match="the emulator in colours is elsewhere"):
        film.step(np.int64(0))

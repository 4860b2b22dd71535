"""fastac: A2C, A3C and PPO, its advantage kernel and the kernel's reference, and environments behind its adapter.

An iteration is the trainer's, as a session runs it, less the session's logs, evaluations and checkpoints.
Rows that only reset an environment are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from benchmarks.peers import settings as s
from benchmarks.peers.nets import count_parameters
from benchmarks.peers.settings import Part, Task
from fastac.build import EnvFactory, allocate_rollout, assemble, build_envs
from fastac.config import Config, EnvConfig
from fastac.contract import Phases, StepRow
from fastac.kernels import compute_gae
from fastac.kernels import gae as gae_kernel
from fastac.workers import Training

# Which phases of an iteration are which part of it.
_PARTS: dict[Part, Callable[[Phases], float]] = {
    "collect": lambda phases: phases.env_s + phases.act_s,
    "update": lambda phases: phases.advantage_s + phases.update_s,
}


@contextmanager
def a2c(num_envs: int, net: str, part: Part = "all", envpool: bool = False, **changes: Any) -> Iterator[Task]:
    config = make_config("a2c", num_envs, net).replace(**changes)
    with _assemble(config, _envpool if envpool else None) as training:
        yield _task(training, part)


@contextmanager
def ppo(num_envs: int, net: str, **changes: Any) -> Iterator[Task]:
    config = make_config("ppo", num_envs, net).replace(
        num_epochs=s.PPO_EPOCHS, num_minibatches=s.PPO_MINIBATCHES, clip_coef=s.PPO_CLIP, normalize_advantage=True
    )
    with _assemble(config.replace(**changes)) as training:
        yield _task(training, "all")


@contextmanager
def recurrent_ppo(num_envs: int, num_steps: int = 128, **changes: Any) -> Iterator[Task]:
    """With an LSTM on CartPole without velocities; minibatches are whole sequences."""
    config = make_config("ppo", num_envs, "separate").replace(
        env_id=s.MASKED_ID,
        num_steps=num_steps,
        hidden_sizes=s.RECURRENT_NET.hidden_sizes,
        activation=s.RECURRENT_NET.activation,
        shared_trunk=s.RECURRENT_NET.shared,
        core="lstm",
        lstm_size=s.RECURRENT_SIZE,
        num_epochs=s.PPO_EPOCHS,
        num_minibatches=s.PPO_MINIBATCHES,
        clip_coef=s.PPO_CLIP,
        normalize_advantage=True,
    )
    with _assemble(config.replace(**changes)) as training:
        yield _task(training, "all")


@contextmanager
def a3c(num_envs: int, net: str, **changes: Any) -> Iterator[Task]:
    """A3C's workers, each with `num_envs` environments, and the process that watches and reports."""
    config = make_config("a3c", num_envs, net).replace(envs_per_worker=num_envs, **changes)
    with _assemble(config) as training:
        yield _task_of_workers(training)


@contextmanager
def atari_a2c(num_envs: int, encoder: str, num_steps: int = 5, **changes: Any) -> Iterator[Task]:
    with _assemble(make_atari_config("a2c", num_envs, encoder, num_steps).replace(**changes)) as training:
        yield _task(training, "all")


@contextmanager
def atari_ppo(num_envs: int, encoder: str, num_steps: int = 128, **changes: Any) -> Iterator[Task]:
    config = make_atari_config("ppo", num_envs, encoder, num_steps).replace(
        num_epochs=s.PPO_EPOCHS,
        num_minibatches=s.PPO_MINIBATCHES,
        clip_coef=s.ATARI_PPO_CLIP,
        normalize_advantage=True,
        optimizer="adam",
    )
    with _assemble(config.replace(**changes)) as training:
        yield _task(training, "all")


@contextmanager
def atari_a3c(num_envs: int, encoder: str, num_steps: int = 5, **changes: Any) -> Iterator[Task]:
    """A3C's workers, each with `num_envs` emulators."""
    config = make_atari_config("a3c", num_envs, encoder, num_steps)
    with _assemble(config.replace(envs_per_worker=num_envs, **changes)) as training:
        yield _task_of_workers(training)


@contextmanager
def mujoco_a2c(num_envs: int, num_steps: int, **changes: Any) -> Iterator[Task]:
    """By the optimiser that stable-baselines3's A2C has, observations and rewards normalised."""
    config = make_config("a2c", num_envs, "separate").replace(
        env_id=s.MUJOCO_ID,
        vectorization="sync",
        num_steps=num_steps,
        optimizer="rmsprop",
        normalize_obs=True,
        normalize_reward=True,
    )
    with _assemble(config.replace(**changes)) as training:
        yield _task(training, "all")


def make_config(algo: str, num_envs: int, net: str) -> Config:
    shape = s.NETS[net]
    return Config().replace(
        env_id=s.ENV_ID,
        algo=algo,
        num_envs=num_envs,
        num_steps=16,
        hidden_sizes=shape.hidden_sizes,
        activation=shape.activation,
        shared_trunk=shape.shared,
        gamma=s.GAMMA,
        gae_lambda=s.GAE_LAMBDA,
        ent_coef=s.ENT_COEF,
        vf_coef=s.VF_COEF,
        max_grad_norm=s.MAX_GRAD_NORM,
        optimizer="adam",
        optimizer_eps=s.ADAM_EPS,
        learning_rate=s.FROZEN,
        total_env_steps=10**12,
    )


def make_atari_config(algo: str, num_envs: int, encoder: str, num_steps: int) -> Config:
    """With the optimiser that stable-baselines3's A2C has, torch's RMSprop."""
    config = make_config(algo, num_envs, "lecture").replace(
        env_id=s.ATARI_ID,
        atari_protocol="dqn",
        encoder=encoder,
        num_steps=num_steps,
        optimizer="rmsprop",
    )
    env = config.env
    protocol = (env.screen_size, env.frame_stack, env.frame_skip, env.noop_max, env.max_frames)
    assert protocol == (s.SCREEN_SIZE, s.FRAME_STACK, s.FRAME_SKIP, s.NOOP_MAX, s.MAX_FRAMES)
    return config


def _assemble(config: Config, factory: EnvFactory | None = None) -> closing[Training]:
    return closing(assemble(config, np.random.SeedSequence(0), factory))


def _envpool(num_envs: int) -> VectorEnv[np.ndarray, np.ndarray, np.ndarray]:
    import envpool  # takes a second

    return envpool.make_gymnasium(s.ENV_ID, num_envs=num_envs, seed=0, num_threads=1)


def _task(training: Training, part: Part) -> Task:
    reports = training.trainer.run()
    report = next(reports)

    def work() -> int:
        nonlocal report
        before = report.env_steps
        report = next(reports)
        return report.env_steps - before

    clock = perf_counter if part == "all" else lambda: _PARTS[part](report.phases)
    return Task(work, clock, lambda: _facts(training))


def _task_of_workers(training: Training) -> Task:
    """A unit is what workers that wait for nobody have done from one report to the next."""
    reports = training.trainer.run()
    report, is_open = next(reports), False

    def work() -> int:
        nonlocal report
        before = report.env_steps
        report = next(reports)
        return report.env_steps - before

    def clock() -> float:
        """Seconds at the last report; a round begins with one, since steps before it are not its own."""
        nonlocal report, is_open
        is_open = not is_open
        if is_open:
            report = next(reports)
        return report.train_wall_s

    return Task(work, clock, lambda: _facts(training))


def _facts(training: Training) -> dict[str, float]:
    """Bytes are those of one worker."""
    facts = {
        "rollout_bytes": float(training.info.rollout_nbytes),
        "activations_bytes": float(training.info.activations_nbytes),
        **count_parameters(training.model.parameters()),
    }
    skip = training.envs.frame_skip
    return facts if skip == 1 else {**facts, "frames_per_step": float(skip)}


@contextmanager
def env(num_envs: int, vec: str, num_steps: int = 16) -> Iterator[Task]:
    """Step the environments behind the adapter, into the rows of a rollout."""
    config = EnvConfig(s.ENV_ID, num_envs, vec if vec != "envpool" else "auto")
    envs = build_envs(config, np.random.SeedSequence(0), _envpool if vec == "envpool" else None)
    with closing(envs):
        obs = np.zeros((num_steps + 1, num_envs, 4), np.float32)
        start, flags = np.zeros((num_steps + 1, num_envs), np.bool_), np.zeros((4, num_steps, num_envs), np.bool_)
        reward = np.zeros((num_steps, num_envs), np.float32)
        rows = [StepRow(obs[t + 1], start[t + 1], reward[t], *flags[:, t]) for t in range(num_steps)]
        actions = s.random_actions(num_steps, num_envs)
        envs.reset(obs[0], start[0])

        def work() -> int:
            for action, row in zip(actions, rows, strict=True):
                envs.step(action, row)
            return int(np.count_nonzero(flags[2]))  # valid

        yield Task(work)


@contextmanager
def atari_env(num_envs: int, num_steps: int = 16) -> Iterator[Task]:
    """Step emulators behind the adapter, by as many threads as a run has, into the rows of a rollout."""
    config = make_atari_config("a2c", num_envs, "nature", num_steps)
    with closing(build_envs(config.env, np.random.SeedSequence(0))) as envs:
        rollout = allocate_rollout(config, envs, state_size=0)
        rows = rollout.step_rows()
        actions = s.random_actions(num_steps, num_envs, s.NUM_ATARI_ACTIONS)
        envs.reset(rollout.obs[0].numpy(), rollout.start[0].numpy())

        def work() -> int:
            for action, row in zip(actions, rows, strict=True):
                envs.step(action, row)
            return int(rollout.valid.sum())

        yield Task(work, facts=lambda: {"frames_per_step": float(envs.frame_skip)})


@contextmanager
def gae(num_steps: int, num_envs: int) -> Iterator[Task]:
    inputs = s.gae_inputs(num_steps, num_envs)
    reward, value, terminated, truncated = map(torch.from_numpy, inputs)
    valid = torch.ones(num_steps, num_envs, dtype=torch.bool)
    advantage, return_ = torch.zeros(2, num_steps, num_envs)
    moments = torch.zeros(5, dtype=torch.float64)
    # Prepared once, as the learner does.
    estimate = gae_kernel.prepare(
        reward, value, terminated, truncated, valid, s.GAMMA, s.GAE_LAMBDA, advantage, return_, moments
    )

    def work() -> int:
        estimate()
        return num_steps * num_envs

    yield Task(work)


@contextmanager
def gae_reference(num_steps: int, num_envs: int) -> Iterator[Task]:
    reward, value, terminated, truncated = map(torch.from_numpy, s.gae_inputs(num_steps, num_envs))

    def work() -> int:
        compute_gae(reward, value, terminated, truncated, s.GAMMA, s.GAE_LAMBDA)
        return num_steps * num_envs

    yield Task(work)

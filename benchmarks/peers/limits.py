"""What others are seen against: memory copied, environments stepped bare, and the parts of A2C timed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice

import gymnasium as gym
import numpy as np

from benchmarks.peers import settings as s
from benchmarks.peers.fastac import make_config
from benchmarks.peers.settings import Task
from fastac.build import assemble
from fastac.tools.efficiency import measure

# What GAE moves per element: reward, value, three flags in, advantage and return out.
_GAE_BYTES = 4 + 4 + 3 + 4 + 4
_ITERATIONS = 30  # from which the share of valid rows is taken


@contextmanager
def copy(num_steps: int, num_envs: int) -> Iterator[Task]:
    """Copy memory until as many bytes were read and written as GAE does; a step is one of its elements."""
    size = num_steps * num_envs
    source = np.ones(size * _GAE_BYTES // 2, np.uint8)
    target = np.empty_like(source)

    def work() -> int:
        np.copyto(target, source)
        return size

    yield Task(work)


@contextmanager
def env(num_envs: int, vec: str, num_steps: int = 16, num_threads: int = 1) -> Iterator[Task]:
    """Step environments alone, in Gymnasium's own batch or EnvPool's."""
    if vec == "envpool":
        import envpool  # takes a second

        envs = envpool.make_gymnasium(s.ENV_ID, num_envs=num_envs, seed=0, num_threads=num_threads)
    else:
        envs = gym.make_vec(s.ENV_ID, num_envs, vectorization_mode="vector_entry_point")
    envs.reset()
    actions = s.random_actions(num_steps, num_envs)

    def work() -> int:
        ended = [envs.step(action)[2] for action in actions]
        # An end is followed by a step that only resets; random actions end no episode by the time limit.
        return num_steps * num_envs - int(np.count_nonzero(np.concatenate(ended)))

    yield Task(work)
    envs.close()


@contextmanager
def bound(num_envs: int, net: str, num_steps: int = 16) -> Iterator[Task]:
    """Time fastac's parts alone, in one process; the clock is what an iteration of nothing else would take.

    A step of the environments, a forward and a backward, each at the sizes that a run has them in: the
    rate is 1 / (t_env + t_forward + t_backward), counting as many rows valid as a run of the same.
    """
    config = make_config("a2c", num_envs, net).replace(num_steps=num_steps)
    seconds = 0.0
    with closing(assemble(config, np.random.SeedSequence(0))) as parts:
        *_, report = islice(parts.trainer.run(), _ITERATIONS)

        def work() -> int:
            nonlocal seconds
            seconds += measure(config, parts, num_steps).row_s * num_steps * _ITERATIONS
            return report.env_steps

        yield Task(work, clock=lambda: seconds)

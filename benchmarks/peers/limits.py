"""What others are seen against: memory copied, environments stepped bare, and the parts of A2C timed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from benchmarks.peers import settings as s
from benchmarks.peers.fastac import make_config
from benchmarks.peers.nets import conv_layers
from benchmarks.peers.settings import Task
from fastac.build import assemble
from fastac.runs.efficiency import measure

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
def atari_env(num_envs: int, num_threads: int, num_steps: int = 16) -> Iterator[Task]:
    """Step ALE's own batch of emulators, in so many threads."""
    from ale_py.vector_env import AtariVectorEnv

    envs = AtariVectorEnv(
        s.ATARI_ID.removeprefix("ALE/").removesuffix("-v5").lower(),
        num_envs,
        num_threads=num_threads,
        max_num_frames_per_episode=s.MAX_FRAMES,
        repeat_action_probability=0.0,
        full_action_space=False,
        img_height=s.SCREEN_SIZE,
        img_width=s.SCREEN_SIZE,
        grayscale=True,
        stack_num=s.FRAME_STACK,
        frameskip=s.FRAME_SKIP,
        maxpool=True,
        noop_max=s.NOOP_MAX,
        episodic_life=False,
        reward_clipping=False,
        use_fire_reset=True,
    )
    envs.reset(seed=np.arange(num_envs))
    actions = s.random_actions(num_steps, num_envs, s.NUM_ATARI_ACTIONS)

    def work() -> int:
        steps = actions.size
        for action in actions:
            _, _, terminated, truncated, _ = envs.step(action)
            steps -= int(np.count_nonzero(terminated | truncated))  # an end is followed by a step that only resets
        return steps

    yield Task(work, facts=s.frames)
    envs.close()


@contextmanager
def atari_forward(num_envs: int, encoder: str, num_steps: int = 5) -> Iterator[Task]:
    """Run plain torch forward as acting needs it, on N stacks at a time, from bytes on and without a graph.

    Channels last. The scaling by 1/255 costs nothing: it could be in the weights of the first layer.
    """
    net, stacks = _atari_net(encoder), _stacks(num_envs)

    def work() -> int:
        with torch.inference_mode():
            for _ in range(num_steps):
                net(stacks.to(torch.float32, memory_format=torch.channels_last))
        return num_steps * num_envs

    yield Task(work)


@contextmanager
def atari_backward(num_envs: int, encoder: str, num_steps: int = 5) -> Iterator[Task]:
    """Go back through the same network, all rows of an update at once, from given gradients of its outputs."""
    net, stacks = _atari_net(encoder), _stacks(num_steps * num_envs)
    outputs = net(stacks.to(torch.float32, memory_format=torch.channels_last))
    gradients = torch.ones_like(outputs)

    def work() -> int:
        net.zero_grad()
        outputs.backward(gradients, retain_graph=True)
        return num_steps * num_envs

    yield Task(work)


def _atari_net(encoder: str) -> nn.Module:
    cnn = s.CNNS[encoder]
    heads = nn.Linear(cnn.hidden_size, s.NUM_ATARI_ACTIONS + 1)  # logits and a value
    return nn.Sequential(conv_layers(cnn), heads).to(memory_format=torch.channels_last)


def _stacks(num: int) -> torch.Tensor:
    return torch.randint(256, (num, s.FRAME_STACK, s.SCREEN_SIZE, s.SCREEN_SIZE), dtype=torch.uint8)


@contextmanager
def bound(num_envs: int, net: str, num_steps: int = 16) -> Iterator[Task]:
    """Time fastac's parts alone, in one process; the clock is what an iteration of nothing else would take.

    A step of the environments, a forward and a backward, each at the sizes that a run has them in: the
    rate is 1 / (t_env + t_forward + t_backward), counting as many rows valid as a run of the same.
    """
    config = make_config("a2c", num_envs, net).replace(num_steps=num_steps)
    seconds = 0.0
    with closing(assemble(config, np.random.SeedSequence(0))) as training:
        *_, report = islice(training.trainer.run(), _ITERATIONS)

        def work() -> int:
            nonlocal seconds
            seconds += measure(config, training, num_steps).row_s * num_steps * _ITERATIONS
            return report.env_steps

        yield Task(work, clock=lambda: seconds)

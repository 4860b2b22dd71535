"""Holds the contestants to what they stand for: they learn, and the work that they are given is what it says."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import APART, settings

ROOT = Path(__file__).parents[2]

# Trains and prints the mean length of the episodes in the second half; random play lasts 22 steps, and what
# learns from mixed-up observations ends near 9.
LEARN = """
import sys
from importlib import import_module
import torch
from gymnasium.envs.classic_control import CartPoleEnv

torch.set_num_threads(1)
reset, episodes = CartPoleEnv.reset, 0

def counted(self, **options):
    global episodes
    episodes += 1
    return reset(self, **options)

CartPoleEnv.reset = counted
build = getattr(import_module(f"benchmarks.peers.{sys.argv[1]}"), sys.argv[2])
with build(num_envs=16, num_steps=8, net="separate", lr=3e-3) as task:
    for _ in range(2):
        episodes, steps = 0, 0
        while steps < 16_000:
            steps += task()
print(steps / episodes)
"""


FACTS = """
import sys
from importlib import import_module

with import_module(f"benchmarks.peers.{sys.argv[1]}").a2c(num_envs=2, net=sys.argv[2]) as task:
    print(task.facts()["parameters"])
"""


def installed(module):
    name = {"sb3": "stable_baselines3"}.get(module, module)
    place = APART.get(module)
    found = (place / name).exists() if place else find_spec(name)
    missing = pytest.mark.skipif(not found, reason=f"{name} is not installed: run `make bench`")
    return pytest.param(module, marks=missing)


def run(script, module, *words):
    environment = {**os.environ, "PYTHONPATH": str(APART.get(module, "")), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", script, module, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.split()[-1])


PEERS = [installed("sb3"), installed("torchrl"), installed("tianshou")]


@pytest.mark.slow
@pytest.mark.parametrize("module", PEERS)
def test_peers_learn(module):
    assert run(LEARN, module, "a2c") > 40


@pytest.mark.slow
def test_the_other_peer_learns_too():
    pytest.importorskip("stable_baselines3")
    assert run(LEARN, "sb3", "ppo") > 40


# Hidden layers, two logits, a value.
PARAMETERS = {
    "lecture": (4 * 128 + 128) + (128 * 128 + 128) + (128 * 2 + 2) + (128 + 1),
    "separate": 2 * ((4 * 64 + 64) + (64 * 64 + 64)) + (64 * 2 + 2) + (64 + 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("net", list(settings.NETS))
@pytest.mark.parametrize("module", [pytest.param("fastac"), *PEERS])
def test_all_have_the_same_network(module, net):
    assert run(FACTS, module, net) == PARAMETERS[net]


RECURRENT_FACTS = FACTS.replace("a2c(num_envs=2, net=sys.argv[2])", "recurrent_ppo(num_envs=4, num_steps=16)")
# A hidden layer, an LSTM's input and recurrent weights with a bias each, two logits, a value.
RECURRENT_PARAMETERS = (2 * 64 + 64) + 4 * 64 * (64 + 1) * 2 + (64 * 2 + 2) + (64 + 1)
needs_contrib = pytest.mark.skipif(find_spec("sb3_contrib") is None, reason="needs sb3-contrib: run `make bench`")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["fastac", pytest.param("sb3", marks=needs_contrib)])
def test_recurrent_ones_have_the_same_network(module):
    assert run(RECURRENT_FACTS, module) == RECURRENT_PARAMETERS


ATARI_FACTS = """
import sys
from importlib import import_module

with import_module(f"benchmarks.peers.{sys.argv[1]}").atari_a2c(num_envs=2, encoder=sys.argv[2]) as task:
    print(task.facts()["parameters"])
"""

# Convolutions, a hidden layer, six logits, a value.
ATARI_PARAMETERS = {
    "nature": (4 * 64 * 32 + 32) + (32 * 16 * 64 + 64) + (64 * 9 * 64 + 64) + (3136 * 512 + 512) + (512 * 7 + 7),
    "a3c": (4 * 64 * 16 + 16) + (16 * 16 * 32 + 32) + (2592 * 256 + 256) + (256 * 7 + 7),
}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list(settings.CNNS))
@pytest.mark.parametrize("module", ["fastac", "sb3"])
def test_all_have_the_same_network_on_atari(module, encoder):
    for name in ATARI_NEEDS:
        pytest.importorskip(name)
    assert run(ATARI_FACTS, module, encoder) == ATARI_PARAMETERS[encoder]


MUJOCO_FACTS = """
import sys
from importlib import import_module

with import_module(f"benchmarks.peers.{sys.argv[1]}").mujoco_a2c(num_envs=2, num_steps=5) as task:
    assert task() == 10
    print(task.facts()["parameters"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["fastac", "sb3"])
def test_all_have_the_same_network_on_a_robot(module):
    for name in ("mujoco", "stable_baselines3"):
        pytest.importorskip(name)
    trunks = 2 * ((17 * 64 + 64) + (64 * 64 + 64))
    assert run(MUJOCO_FACTS, module) == trunks + (64 * 6 + 6) + 6 + (64 + 1)  # means, deviations, a value


ATARI_NEEDS = ("ale_py", "cv2", "stable_baselines3")
# Frames of the emulator per step, counted by the emulators; the ids and the wrappers of either could skip both.
FRAMES = """
import sys
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from benchmarks.peers import limits, sb3

if sys.argv[1] == "sb3":
    with sb3._atari_envs(2) as envs:
        envs.reset()
        count = lambda: sum(env.unwrapped.ale.getFrameNumber() for env in envs.venv.envs)
        before = count()
        for _ in range(10):
            envs.step(np.zeros(2, np.int64))
        print((count() - before) / 20)
else:
    seen, step = [], AtariVectorEnv.step

    def noted(self, actions):
        result = step(self, actions)
        seen.append(result[-1]["frame_number"].sum())
        return result

    AtariVectorEnv.step = noted
    with limits.atari_env(num_envs=2, num_threads=1, num_steps=11) as task:
        assert task() == 22
    print((int(seen[-1]) - int(seen[0])) / 20)
"""


@pytest.mark.parametrize("module", ["sb3", "limits"])
def test_a_step_is_four_frames_whoever_skips_them(module):
    for name in ATARI_NEEDS:
        pytest.importorskip(name)
    assert run(FRAMES, module) == settings.FRAME_SKIP == settings.frames()["frames_per_step"]


def test_the_inputs_of_gae_have_both_ends_and_one_row_of_values_more():
    inputs = settings.gae_inputs(40, 50)
    assert inputs.value.shape == (41, 50) and inputs.reward.shape == (40, 50)
    assert inputs.reward.dtype == inputs.value.dtype == np.float32
    for flags in (inputs.terminated, inputs.truncated):
        assert 0.02 < flags.mean() < 0.08
    assert np.array_equal(inputs.done, inputs.terminated | inputs.truncated)

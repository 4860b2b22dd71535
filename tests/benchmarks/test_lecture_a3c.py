"""Holds the lecture's A3C to its corrections, and to ending whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import torch.multiprocessing as mp

from benchmarks.peers import lecture_a3c
from benchmarks.peers.lecture_a3c import T_MAX, A3CWorker, ActorCritic, a3c, collect_trajectory, shared_adam, update

ROOT = Path(__file__).parents[2]


@pytest.fixture
def env():
    with gym.make("CartPole-v1") as env:
        yield env


def pushes_left(state):
    """A policy under which the pole falls within some ten steps."""
    return 0, None, torch.full((1, 1), 7.0)


def constant(action_of):
    model = ActorCritic()
    model.select_action = action_of
    with torch.no_grad():
        model.critic.weight.zero_()
        model.critic.bias.fill_(7.0)
    return model


def balances(state):
    return int(state[2] + 0.5 * state[3] > 0), None, torch.full((1, 1), 7.0)


def test_an_episode_goes_on_over_trajectories_and_the_last_value_is_bootstrapped(env):
    state, _ = env.reset(seed=0)
    for part in range(1, 4):
        last, states, actions, returns, values = collect_trajectory(env, constant(balances), state)
        assert len(states) == len(actions) == T_MAX and values.tolist() == [7.0] * T_MAX
        assert (states[0] == state).all() and env.unwrapped.steps_beyond_terminated is None
        assert env.get_wrapper_attr("_elapsed_steps") == part * T_MAX
        assert returns[-1].item() == pytest.approx(1 + 0.99 * 7)
        assert returns[-2].item() == pytest.approx(1 + 0.99 * returns[-1].item())
        state = last


def test_a_terminated_episode_has_no_value_after_it_and_a_new_one_begins(env):
    state, _ = env.reset(seed=0)
    last, states, *_, returns, _ = collect_trajectory(env, constant(pushes_left), state)
    assert len(states) < T_MAX and returns[-1].item() == 1.0
    assert abs(last).max() < 0.05  # a state to begin with


def test_a_truncated_episode_is_bootstrapped_and_a_new_one_begins():
    with gym.make("CartPole-v1", max_episode_steps=5) as env:
        state, _ = env.reset(seed=0)
        last, states, *_, returns, _ = collect_trajectory(env, constant(balances), state)
    assert len(states) == 5 and returns[-1].item() == pytest.approx(1 + 0.99 * 7)
    assert abs(last).max() < 0.05


def test_a_constant_gradient_stays_constant_and_adam_is_shared(env):
    local, shared = ActorCritic(), ActorCritic().share_memory()
    optimizer = shared_adam(shared.parameters(), lr=0.0)
    assert all(value.is_shared() for statistics in optimizer.state.values() for value in statistics.values())
    _, *trajectory = collect_trajectory(env, local, env.reset(seed=0)[0])
    gradients = []
    for _ in range(3):
        update(local, shared, optimizer, *trajectory)
        gradients.append(torch.cat([p.grad.flatten() for p in shared.parameters()]).clone())
    assert gradients[0].any() and all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def workers():
    others = [child for child in mp.active_children() if isinstance(child, A3CWorker)]
    return sorted(others, key=lambda worker: worker.worker_id)


def test_two_workers_step_one_network_with_one_adam_and_end_when_told(monkeypatch):
    adams = []
    monkeypatch.setattr(lecture_a3c, "shared_adam", lambda *args: adams.append(shared_adam(*args)) or adams[0])
    monkeypatch.setattr(lecture_a3c, "_STEPS_PER_CALL", 100)
    model = ActorCritic()
    before = [p.clone() for p in model.parameters()]
    with a3c(workers=2, lr=1e-3, model=model) as task:
        others = workers()
        assert len(others) == 2
        stepped = task() + task()
        assert stepped >= 200 and all(worker.is_alive() for worker in others)
        assert task.facts()["parameters"] == sum(p.numel() for p in before)
    assert [worker.exitcode for worker in others] == [0, 0]
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert len(adams[0].state) == len(before)
    for statistics in adams[0].state.values():
        assert statistics["step"].item() > stepped / T_MAX / 2 and statistics["exp_avg_sq"].any()


@pytest.mark.slow
def test_a_dead_worker_is_an_error_and_takes_the_others_along():
    with pytest.raises(RuntimeError, match="A3C worker 0 ended with exit code -9"), a3c() as task:
        others = workers()
        others[0].kill()
        others[0].join()
        task()
    assert not any(worker.is_alive() for worker in others)


PARENT = """
import time
import torch.multiprocessing as mp
from benchmarks.peers.lecture_a3c import a3c

if __name__ == "__main__":
    with a3c():
        print(*(worker.pid for worker in mp.active_children()), flush=True)
        time.sleep(100)
"""


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_workers_end_when_the_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(runs(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
    give_up = time.monotonic() + 30
    while (left := list(filter(runs, pids))) and time.monotonic() < give_up:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left

"""The plain A3C of the lecture: one environment per process, one observation at a time, torch and nothing else.

Network, loss, clipping, t_max and Adam are the lecture's. Corrected is what kept it from learning or ending:

- The episode goes on where the last trajectory left it; with the lecture's resets none passes step 20.
- Returns begin with the value of the last state, and with 0 only where the episode terminated. The lecture's
  always begin with 0, as if the pole fell at the end of every trajectory.
- The local gradient is zeroed before each backward. The lecture zeroes the shared one, which merely lets go
  of the local tensor since `zero_grad` sets to None: old gradients add up in there for ever.
- Adam's statistics, step count included, are in shared memory before a worker starts. The lecture's are made
  at the first step, by each worker for itself.
- A trajectory's values become a tensor before they are subtracted; the lecture subtracts a list.
- Workers are spawned, as torch may hang in a forked process, with one thread and a seed each, and end when
  told to or when the parent is gone; the lecture's run for ever.

`python -m benchmarks.peers.lecture_a3c --workers 2 --seed 0` trains with Adam at 1e-3 until the greedy policy
returns 475. Seen on 2 cores, twice for each of the seeds 0 to 2: solved every time, after 75k to 100k steps with
2 workers (up to 5,800 steps/s) and 75k to 150k with one (up to 3,000 steps/s).
"""

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn, optim

from benchmarks.peers import settings as s
from benchmarks.peers.nets import count_parameters
from benchmarks.peers.settings import Task

T_MAX, CLIP, LR = 20, 40.0, 1e-3
SOLVED, EVAL_EVERY, EVAL_EPISODES = 475.0, 25_000, 100
_STEPS_PER_CALL, _POLL_S, _CLOSE_S = 1000, 0.002, 10.0


class ActorCritic(nn.Module):
    def __init__(self, state_dim=4, action_dim=2, hidden_dim=128):
        super().__init__()
        first, second = nn.Linear(state_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.shared = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.actor, self.critic = nn.Linear(hidden_dim, action_dim), nn.Linear(hidden_dim, 1)

    def forward(self, state):
        features = self.shared(state)
        return self.actor(features), self.critic(features)

    def select_action(self, state):
        logits, value = self(torch.tensor(state, dtype=torch.float32).unsqueeze(0))
        dist = torch.distributions.Categorical(F.softmax(logits, dim=-1))
        action = dist.sample()
        return action.item(), dist.log_prob(action), value


class A3CWorker(mp.get_context("spawn").Process):
    """Collects with a local copy of the network, and applies its gradients to the shared one without a lock."""

    def __init__(self, worker_id, global_model, optimizer, steps, stop, seed):
        super().__init__(daemon=True)
        self.worker_id, self.global_model, self.optimizer = worker_id, global_model, optimizer
        self.steps, self.stop, self.seed = steps, stop, 1000 * seed + worker_id

    def run(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent tells when to stop
        torch.set_num_threads(1)
        torch.manual_seed(self.seed)
        env, local_model = gym.make(s.ENV_ID), ActorCritic()
        state, _ = env.reset(seed=self.seed)
        while not self.stop.item() and mp.parent_process().is_alive():
            local_model.load_state_dict(self.global_model.state_dict())
            state, *trajectory = collect_trajectory(env, local_model, state)
            update(local_model, self.global_model, self.optimizer, *trajectory)
            self.steps[self.worker_id] += len(trajectory[0])


def collect_trajectory(env, model, state):
    """Go on from `state` for `T_MAX` steps or to the end of the episode; return the state to go on from first."""
    trajectory = []
    for _ in range(T_MAX):
        action, _, value = model.select_action(state)
        next_state, reward, terminated, truncated, _ = env.step(action)
        trajectory.append((state, action, reward, value))
        state = next_state
        if terminated or truncated:
            break
    states, actions, rewards, values = zip(*trajectory, strict=True)
    returns, R = [], 0.0 if terminated else model(torch.tensor(state))[1].item()
    for reward in reversed(rewards):
        R = reward + s.GAMMA * R
        returns.insert(0, R)
    if terminated or truncated:
        state, _ = env.reset()
    return state, states, actions, torch.tensor(returns), torch.cat(values).squeeze(-1)


def compute_loss(model, states, actions, returns, advantages):
    logits, values = model(torch.tensor(np.array(states), dtype=torch.float32))
    dist = torch.distributions.Categorical(F.softmax(logits, dim=-1))
    actor_loss = -(dist.log_prob(torch.tensor(actions)) * advantages.detach()).mean()
    critic_loss = F.mse_loss(values.squeeze(-1), returns)
    return actor_loss + s.VF_COEF * critic_loss - s.ENT_COEF * dist.entropy().mean()


def update(local_model, global_model, optimizer, states, actions, returns, values):
    loss = compute_loss(local_model, states, actions, returns, returns - values)
    local_model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(local_model.parameters(), CLIP)
    for local_param, global_param in zip(local_model.parameters(), global_model.parameters(), strict=True):
        global_param.grad = local_param.grad  # this process's own: the parameter is shared, its gradient is not
    optimizer.step()


def shared_adam(parameters, lr):
    optimizer = optim.Adam(parameters, lr=lr)
    for parameter in optimizer.param_groups[0]["params"]:
        shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        optimizer.state[parameter] = {name: torch.zeros(shape).share_memory_() for name, shape in shapes.items()}
    return optimizer


@contextmanager
def a3c(workers: int = 2, lr: float = s.FROZEN, seed: int = 0, model: ActorCritic | None = None) -> Iterator[Task]:
    """Yield the task once all workers step. They go on beside the caller, who only reads how far they are."""
    torch.manual_seed(seed)
    model = (model or ActorCritic()).share_memory()
    optimizer = shared_adam(model.parameters(), lr)
    # A counter for each worker, so that none writes where another does, and a flag.
    steps, stop = torch.zeros(workers, dtype=torch.int64).share_memory_(), torch.zeros(1).share_memory_()
    others = [A3CWorker(worker_id, model, optimizer, steps, stop, seed) for worker_id in range(workers)]

    def work():
        nonlocal seen
        before = seen
        while seen - before < _STEPS_PER_CALL or not steps.all():
            time.sleep(_POLL_S)
            for worker in others:
                if not worker.is_alive():
                    raise RuntimeError(f"A3C worker {worker.worker_id} ended with exit code {worker.exitcode}.")
            seen = int(steps.sum())
        return seen - before

    seen = 0
    try:
        for worker in others:
            worker.start()
        work()
        yield Task(work, facts=lambda: count_parameters(model.parameters()))
    finally:
        stop.fill_(1)
        for worker in filter(A3CWorker.is_alive, others):
            worker.join(_CLOSE_S)
            worker.kill()
            worker.join()


@torch.no_grad()
def greedy_return(shared_model, episodes=EVAL_EPISODES):
    """Mean return of the most likely actions, all episodes at once: the evaluator is not what is compared."""
    envs = gym.make_vec(s.ENV_ID, episodes, vectorization_mode="vector_entry_point")
    model = ActorCritic()
    model.load_state_dict(shared_model.state_dict())
    states, _ = envs.reset(seed=10**6)
    returns, alive = np.zeros(episodes), np.ones(episodes, bool)
    while alive.any():
        states, rewards, terminated, truncated, _ = envs.step(model(torch.as_tensor(states))[0].argmax(-1).numpy())
        returns += rewards * alive
        alive &= ~(terminated | truncated)
    return returns.mean()


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.lecture_a3c")
    for name, default in {"--workers": 2, "--seed": 0, "--max-steps": 300_000}.items():
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    with a3c(options.workers, LR, options.seed, model := ActorCritic()) as task:
        total, goal, began = 0, EVAL_EVERY, time.perf_counter()
        while total < options.max_steps:
            total += task()
            if total >= goal:
                seconds, mean = time.perf_counter() - began, greedy_return(model)
                print(f"{total} steps, {seconds:.1f} s, {total / seconds:.0f} steps/s, return {mean:.1f}", flush=True)
                if mean >= SOLVED:
                    return 0
                goal += EVAL_EVERY
    return 1


if __name__ == "__main__":
    raise SystemExit(main())

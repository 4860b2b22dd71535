"""TorchRL: its collector, advantage module and A2C loss in the loop of its A2C example, and its two GAEs.

Its replay buffer is left out: with one full batch per update it would only copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, GymWrapper, ParallelEnv
from torchrl.modules import ActorValueOperator, ProbabilisticActor, ValueOperator
from torchrl.objectives import A2CLoss
from torchrl.objectives.value import GAE
from torchrl.objectives.value.functional import generalized_advantage_estimate, vec_generalized_advantage_estimate

from benchmarks.peers import settings as s
from benchmarks.peers.nets import count_parameters, hidden_layers
from benchmarks.peers.settings import Part, Task

_GAES = {"plain": generalized_advantage_estimate, "vectorized": vec_generalized_advantage_estimate}


@contextmanager
def a2c(
    num_envs: int, net: str, num_steps: int = 16, vec: str = "sync", part: Part = "all", lr: float = s.FROZEN
) -> Iterator[Task]:
    torch.manual_seed(0)
    batch = num_envs * num_steps
    actor, critic = _networks(net)
    collector = Collector(
        partial(_envs, num_envs, vec), actor, frames_per_batch=batch, total_frames=-1, device="cpu", trust_policy=True
    )
    advantage = GAE(gamma=s.GAMMA, lmbda=s.GAE_LAMBDA, value_network=critic, average_gae=False, vectorized=True)
    loss = A2CLoss(actor, critic, entropy_coeff=s.ENT_COEF, critic_coeff=s.VF_COEF, loss_critic_type="l2")
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr, eps=s.ADAM_EPS)
    batches = iter(collector)

    def collect() -> int:
        next(batches)
        return batch

    def update(data: object) -> int:
        with torch.no_grad():
            data = advantage(data)
        terms = loss(data.reshape(-1))
        (terms["loss_objective"] + terms["loss_entropy"] + terms["loss_critic"]).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), s.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch

    data = next(batches)
    work = {"collect": collect, "update": lambda: update(data.copy()), "all": lambda: update(next(batches))}[part]
    yield Task(work, facts=lambda: count_parameters([*actor.parameters(), *critic.parameters()]))
    collector.shutdown()


def _networks(net: str) -> tuple[ProbabilisticActor, ValueOperator]:
    shape = s.NETS[net]
    width = shape.hidden_sizes[-1]
    if shape.shared:
        trunk = TensorDictModule(hidden_layers(4, shape), in_keys=["observation"], out_keys=["features"])
        logits = TensorDictModule(nn.Linear(width, 2), in_keys=["features"], out_keys=["logits"])
        both = ActorValueOperator(trunk, _sample(logits), ValueOperator(nn.Linear(width, 1), in_keys=["features"]))
        return both.get_policy_operator(), both.get_value_operator()
    logits = TensorDictModule(
        nn.Sequential(hidden_layers(4, shape), nn.Linear(width, 2)), in_keys=["observation"], out_keys=["logits"]
    )
    value = nn.Sequential(hidden_layers(4, shape), nn.Linear(width, 1))
    return _sample(logits), ValueOperator(value, in_keys=["observation"])


def _sample(logits: TensorDictModule) -> ProbabilisticActor:
    return ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)


def _envs(num_envs: int, vec: str) -> EnvBase:
    if vec == "parallel":  # two processes, half of the environments each
        return ParallelEnv(2, partial(_envs, num_envs // 2, "sync"))
    # Reset by TorchRL, which is faster here than unpacking SAME_STEP's final observations.
    mode = AutoresetMode.DISABLED
    envs = SyncVectorEnv([partial(gym.make, s.ENV_ID)] * num_envs, autoreset_mode=mode)
    return GymWrapper(envs, categorical_action_encoding=True, device="cpu")


@contextmanager
def gae(num_steps: int, num_envs: int, form: str) -> Iterator[Task]:
    inputs = s.gae_inputs(num_steps, num_envs)
    value = torch.from_numpy(inputs.value)
    reward, done, terminated = map(torch.from_numpy, (inputs.reward, inputs.done, inputs.terminated))
    # [T, N], the environments as features: rows are contiguous, which is faster than its own [N, T, 1].
    estimate = partial(_GAES[form], s.GAMMA, s.GAE_LAMBDA, value[:-1], value[1:], reward, done, terminated)

    def work() -> int:
        estimate()
        return num_steps * num_envs

    yield Task(work)

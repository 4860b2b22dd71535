"""Times A2C on CartPole-v1 with the lecture's network: collecting, updating, and the two end to end.

One call is one rollout of 16 steps in all envs, or one update on it, or one iteration of the trainer.
End to end is the trainer's stream; logs, evaluations and checkpoints of a session are not in it. The
policy is fixed (see `workloads`), so this says nothing of how fast anything is learned: `solve` does.
"""

import pytest

from benchmarks.workloads import NUM_ENVS, Measure, count_valid, lecture_net, split, whole_run
from fastac.contract import Phases

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("num_envs", NUM_ENVS)
def test_collect(measure: Measure, num_envs: int) -> None:
    parts = whole_run(lecture_net(num_envs))
    collector, _ = split(parts)
    measure(f"collect, {num_envs} envs", lambda: count_valid(collector.collect(Phases())))
    parts.envs.close()


@pytest.mark.parametrize("num_envs", NUM_ENVS)
def test_update(measure: Measure, num_envs: int) -> None:
    parts = whole_run(lecture_net(num_envs))
    collector, learner = split(parts)
    collector.collect(Phases())
    rollout = collector.collect(Phases())  # the first one holds hardly any end of an episode
    steps = count_valid(rollout)

    def work() -> int:
        learner.learn(rollout, rollout.reward, 0.0, Phases())
        return steps

    measure(f"update, {num_envs} envs", work)
    parts.envs.close()


@pytest.mark.parametrize("num_envs", NUM_ENVS)
def test_end_to_end(measure: Measure, num_envs: int) -> None:
    parts = whole_run(lecture_net(num_envs))
    reports = parts.trainer.run()
    seen = 0

    def work() -> int:
        nonlocal seen
        before, seen = seen, next(reports).env_steps
        return seen - before

    measure(f"a2c end to end, {num_envs} envs", work)
    parts.envs.close()

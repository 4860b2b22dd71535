"""Times stepping CartPole-v1 alone, batched, through the adapter, into a rollout's rows.

One call is 16 steps of all envs with random actions drawn before. It times no policy and no learning,
and not the first reset; the resets after each episode are in it, and 22 steps apart on average.
"""

import pytest

from benchmarks.workloads import NUM_ENVS, Measure, count_valid, lecture_net, random_actions, whole_run

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("num_envs", NUM_ENVS)
def test_step(measure: Measure, num_envs: int) -> None:
    parts = whole_run(lecture_net(num_envs))
    envs, rollout = parts.envs, parts.rollout
    rows, actions = rollout.step_rows(), random_actions(rollout.num_steps, num_envs)
    envs.reset(rollout.obs[0].numpy(), rollout.start[0].numpy())

    def work() -> int:
        for t, row in enumerate(rows):
            envs.step(actions[t], row)
        return count_valid(rollout)

    measure(f"env alone, {num_envs} envs", work)
    envs.close()

"""Running statistics of observations and rewards that workers share."""

from __future__ import annotations

from fastac.models import ActorCritic, ObsNormalizer, RewardNormalizer, RewardScaler, RunningMoments, merge_moments
from fastac.workers.shared_counters import SharedCounters, merge_all_statistics


def find_moments(model: ActorCritic, reward_normalizer: RewardScaler) -> dict[str, RunningMoments]:
    """Return the running statistics of the model and the rewards, if any, by their names in a `Group`."""
    normalizers = {"obs": model.obs_normalizer, "reward": reward_normalizer}
    return {
        name: normalizer.moments
        for name, normalizer in normalizers.items()
        if isinstance(normalizer, ObsNormalizer | RewardNormalizer)
    }


def copy_statistics(counters: SharedCounters, model: ActorCritic, reward_normalizer: RewardScaler) -> None:
    """Load the merged statistics of all workers into the normalisers."""
    for name, moments in find_moments(model, reward_normalizer).items():
        pooled = merge_all_statistics(
            counters.statistics[name].view(), counters.versions[name].view()[:, 0], merge_moments
        )
        if pooled[0]:  # 0 before the first rollout: keep the initial values
            moments.load(pooled)

"""What a run logs when it starts."""

from __future__ import annotations

import logging
from pathlib import Path

from fastac.config import Config
from fastac.runs.evaluations import LONGEST_TIMES
from fastac.workers import Training

log = logging.getLogger("fastac")


def log_start(config: Config, training: Training, directory: Path) -> None:
    """Log the algorithm and its environments, the memory, and how long an evaluation's episode may last."""
    arguments = ", ".join(f"{name}={value!r:.60}" for name, value in config.env.env_kwargs.items())
    log.info(
        "%s on %s%s: %d envs x %d steps%s, %s",
        config.algo.algo,
        config.env.env_id,
        f" ({arguments})" if arguments else "",
        config.env.num_envs,
        config.algo.num_steps,
        f" in {config.num_shards} shards" if config.num_shards > 1 and not config.is_one_shard_per_worker else "",
        training.info.description,
    )
    log.info(
        "rollout %.2f MB, activations %.2f MB%s, device %s, run directory %s",
        training.info.rollout_nbytes / 1e6,
        training.info.activations_nbytes / 1e6,
        f" in each of {config.run.workers} workers" if config.run.workers != 1 else "",
        config.run.device,
        directory,
    )
    if config.run.eval and config.run.eval_max_steps is None and training.envs.max_episode_steps is None:
        log.info(
            "%s names no time limit: an evaluation's episode is cut after %d times the longest training episode "
            "(--eval-max-steps sets another limit)",
            config.env.env_id,
            LONGEST_TIMES,
        )

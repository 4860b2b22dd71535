"""Synchronous training with one worker or several in-step workers: collect, learn, report."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, fields, replace
from time import perf_counter

from fastac.config import Config
from fastac.contract import (
    EnvFailure,
    Episodes,
    Phases,
    Report,
    StateLeaf,
    StateTree,
    VecEnv,
    WorkerFailure,
    read_amount,
    read_branch,
    read_count,
)
from fastac.models import ActorCritic
from fastac.rollout import Rollout, join_episodes
from fastac.workers.hosts import Hosts
from fastac.workers.sync_workers import NoOtherWorkers, SyncWorkers
from fastac.workers.worker import Worker, WorkerInfo


class SyncTrainer:
    """Runs one iteration in all in-step workers and reports it. This process is worker 0.

    Attributes:
        iteration: iterations so far.
        env_steps: valid transitions so far, of all workers.
    """

    def __init__(
        self,
        config: Config,
        frame_skip: int,
        worker: Worker,
        others: SyncWorkers | NoOtherWorkers,
        hosts: Hosts | None = None,
    ) -> None:
        """Take the parts; see `fastac.build`. Only settings of the whole run are read from `config`."""
        self._budget, self._rows, self._frame_skip = config.run.total_env_steps, config.batch_size, frame_skip
        self._worker, self._others, self._hosts = worker, others, hosts
        self.iteration = self._episodes = self.env_steps = 0
        self._phases = Phases()
        self._train_wall_s = self._before_s = 0.0  # total, and in earlier processes of this run

    @property
    def trained_s(self) -> float:
        """Training wall-clock of this process, in seconds."""
        return self._train_wall_s - self._before_s

    def run(self) -> Generator[Report, None, None]:
        """Yield one report per iteration until the budget of environment steps is spent.

        Time between `yield` and the next call is not counted as training. The state is consistent then, so this is
        the time to save it.

        Raises:
            EnvFailure: an environment failed or returned a number that is not finite.
            WorkerFailure: a worker raised, died or hung; the parameters are the last good ones. If a worker was
                killed inside an optimiser step, parameters that workers share are partly updated and are not saved.
            NonFiniteError: a loss or gradient is not finite; the parameters are the last good ones.
        """
        while self.env_steps < self._budget:
            begin = perf_counter()
            finished, losses = self._iterate(self.env_steps / self._budget)
            self.iteration += 1
            self._episodes += len(finished)
            self.env_steps += self._worker.learner.rows
            self._train_wall_s += perf_counter() - begin
            yield Report(
                iteration=self.iteration,
                env_steps=self.env_steps,
                frames=self.env_steps * self._frame_skip,
                updates=self._worker.learner.updates,
                episodes=self._episodes,
                finished=finished,
                train_wall_s=self._train_wall_s,
                phases=self._timed_phases(),
                losses=losses,
            )

    def halt(self) -> Report | None:
        """Return None: in-step workers do nothing between reports."""
        return None

    def _iterate(self, done_fraction: float) -> tuple[Episodes, dict[str, float]]:
        try:
            self._others.begin(done_fraction)
            own = self._worker.collect(self._phases)
            if self._hosts is not None:
                self._hosts.begin(self.env_steps + self._rows, lambda: self._find_episodes(own))
            losses = self._worker.learn(done_fraction, self._phases)
            return self._find_episodes(own) if self._hosts is None else self._hosts.finished_episodes, losses
        except (EnvFailure, WorkerFailure) as error:
            where = f"in iteration {self.iteration + 1}, after {self.env_steps} environment steps"
            raise type(error)(f"{str(error).removesuffix('.')}, {where}") from error.__cause__ or error

    def _find_episodes(self, own: Episodes) -> Episodes:
        return join_episodes([own, *self._others.finished()])

    def _timed_phases(self) -> Phases:
        known = self._phases.env_s + self._phases.act_s + self._phases.advantage_s + self._phases.update_s
        return replace(self._phases, other_s=self._train_wall_s - known)

    def get_state(self) -> StateTree:
        """Return the counters, and the state of the learner."""
        return {
            "learner": self._worker.learner.get_state(),
            "phases": asdict(self._phases),
            "train_wall_s": self._train_wall_s,
            "iteration": self.iteration,
            "episodes": self._episodes,
            "env_steps": self.env_steps,
        }

    def set_state(self, state: StateTree) -> None:
        """Continue the counters from `get_state`; the worker's learner is restored with the worker."""
        phases = read_branch(state, "phases")
        self._phases = Phases(**{field.name: read_amount(phases, field.name) for field in fields(Phases)})
        self._train_wall_s = self._before_s = read_amount(state, "train_wall_s")
        self.iteration = read_count(state, "iteration")
        self._episodes = read_count(state, "episodes")
        self.env_steps = read_count(state, "env_steps")


@dataclass(slots=True)
class SyncTraining:
    """In-step training as worker 0 (this process) sees it; see `Training`."""

    worker: Worker
    others: SyncWorkers | NoOtherWorkers
    trainer: SyncTrainer
    num_shards: int
    hosts: Hosts | None = None
    asynchrony: None = None

    @property
    def envs(self) -> VecEnv:
        """The environments of the first shard."""
        return self.worker.shards[0].envs

    @property
    def model(self) -> ActorCritic:
        """The policy."""
        return self.worker.model

    @property
    def rollouts(self) -> list[Rollout]:
        """The latest rollouts of worker 0."""
        return [shard.rollout for shard in self.worker.shards]

    @property
    def info(self) -> WorkerInfo:
        """How the environments of worker 0 are batched, and its memory."""
        return self.worker.info

    @property
    def waiting(self) -> list[float]:
        """See `Training`."""
        return [waited_s / max(self.trainer.trained_s, 1e-9) for waited_s in self.others.waited_s]

    def action_std(self) -> float | None:
        """See `ActorCritic.action_std`."""
        return self.model.action_std()

    def pause(self) -> None:
        """Do nothing: workers in step wait between reports."""

    def begin_with(self, model: StateTree, reward_moments: StateTree) -> None:
        """See `Training`; every host calls it."""
        normalizer = {**self.worker.shards[0].reward_normalizer.state_dict(), **reward_moments}
        # As if all shards were lost with their workers: each keeps its own streams.
        lost: StateTree = {"0": {"envs": None, "reward_normalizer": normalizer}}
        self.set_state({"model": model, "trainer": self.trainer.get_state(), "shards": lost})

    def get_state(self) -> StateTree:
        """Return everything needed to continue training; the first host's, while the others wait for its order."""
        shards = self.get_shards()
        if self.hosts is not None and self.hosts.is_paused:
            self.hosts.give_order("shards")
            for others in self.hosts.collect(shards)[1:]:
                shards.update(others)
        return {"model": self.model.state_dict(), "trainer": self.trainer.get_state(), "shards": shards}

    def get_shards(self) -> dict[str, StateTree | StateLeaf]:
        """Return the states of this host's shards, by their numbers."""
        others = self.others.get_shards()
        # If worker env states are lost, skip ours too: all environments restart, and ours may be broken.
        own = self.worker.get_shards(with_envs=others is not None)
        return {**own, **(others or {})}

    def set_state(self, state: StateTree) -> bool:
        """Continue from `get_state`; return whether the environments of worker 0 continue too."""
        trainer, saved = read_branch(state, "trainer"), read_branch(state, "shards")
        lost = {"envs": None, "reward_normalizer": read_branch(saved, "0")["reward_normalizer"]}
        shards = {str(number): saved.get(str(number), lost) for number in range(self.num_shards)}
        whole = {"model": state["model"], "learner": trainer["learner"], "shards": shards}
        self.others.set_states(whole)
        self.trainer.set_state(trainer)
        return self.worker.set_state(whole)

    def rest(self) -> bool:
        """End the workers; return whether there were any."""
        return self.others.rest()

    def drop_workers(self) -> None:
        """Kill the workers without a final state; they cannot finish their iteration. Environment states are lost."""
        self.others.close()

    def close(self) -> None:
        """End the workers and close the environments."""
        self.others.close()
        self.worker.close()

"""Begins a run with the policy of another one: what fits of its network, and its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from fastac.build import EncoderFactory, Spaces, Training, build_model, load_spaces
from fastac.config import Config, ModelConfig
from fastac.contract import StateTree, read_branch
from fastac.envs.importing import is_unnamed
from fastac.envs.rows import FlatBox
from fastac.envs.spaces import ArraySpace
from fastac.models import ActorCritic, load_module
from fastac.runs.checkpoint import Checkpoint
from fastac.runs.files import one_sentence
from fastac.runs.run_dir import RunDirectory

# Parts of a network, and what is saved beside it, in a log's words.
_ACTORS, _CRITICS = "actor's ", "critic's "
_HEAD, _ENCODER, _STATISTICS = "policy head", "encoder", "observation statistics"
_REWARDS = "reward statistics"


def load_model(
    directory: RunDirectory, which: Literal["best", "last"], encoder: EncoderFactory | None = None
) -> tuple[Checkpoint, Spaces, ActorCritic]:
    """Load a run's policy on the CPU: its checkpoint, the spaces that it was trained for, and its network.

    Args:
        directory: the run's.
        which: the policy of the best evaluation (the last one if none was evaluated), or of the last checkpoint.
        encoder: the encoder function, if the run's cannot be imported.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    saved = directory.load_checkpoint(which)
    with one_sentence(f"the {which} checkpoint in {directory.path} cannot be loaded"):
        spaces = load_spaces(read_branch(saved.state, "spaces"))
        model = build_model(saved.config.model, spaces, encoder=encoder)
        load_module(model, read_branch(read_branch(saved.state, "training"), "model"))
    return saved, spaces, model


@dataclass(frozen=True, slots=True)
class Origin:
    """A trained policy to begin with.

    Attributes:
        path: the directory of its run.
        env_steps: how long it was trained.
        model: its network.
        reward_moments: the statistics of its reward normaliser; empty without one.
        layout: see `_lay_out`.
    """

    path: Path
    env_steps: int
    model: ActorCritic
    reward_moments: StateTree
    layout: tuple[object, ...]


def read_origin(config: Config, encoder: EncoderFactory | None) -> Origin | None:
    """Read the best policy of the run in `init_from`; None if the configuration names none.

    Args:
        config: of the run that begins.
        encoder: its encoder function; also that of the earlier run, if that one cannot be imported.

    Raises:
        ValueError: there is no run or no checkpoint, or the checkpoint is damaged.
    """
    if config.run.init_from is None:
        return None
    directory = RunDirectory.open(Path(config.run.init_from))
    own = encoder if is_unnamed(directory.read_config().model.encoder) else None
    saved, spaces, model = load_model(directory, "best", own)
    with one_sentence(f"the best checkpoint in {directory.path} cannot be loaded"):
        training = read_branch(saved.state, "training")
        layout = _lay_out(spaces.single_observation_space)
        return Origin(directory.path, saved.env_steps, model, _moments_of(training), layout)


def _lay_out(row: ArraySpace) -> tuple[object, ...]:
    """Return what the columns of rows mean; nothing where the shape says all."""
    if not isinstance(row, FlatBox):
        return ()
    return tuple((part.leaf.key, part.kind, part.begin, part.end, part.is_critics) for part in row.parts)


def begin_with(training: Training, origin: Origin, config: ModelConfig) -> str:
    """Give a new training the parts of a trained policy that fit; return a line that says which.

    A part fits if it is built in the same way: an encoder for observations of the same shape, a head for the same
    kind of actions. The rest keeps its new weights. The optimiser begins anew.

    Raises:
        ValueError: no part fits.
    """
    old, new = _find_parts(origin.model), _find_parts(training.model)
    taken = [name for name, part in new.items() if name in old and _is_alike(part, old[name])]
    if _lay_out(training.envs.single_observation_space) != origin.layout:
        taken = [name for name in taken if name != _STATISTICS and not name.endswith(_ENCODER)]
    if not taken:
        raise ValueError(
            f"init_from is {str(origin.path)!r}, but no part of its network fits this run: both its spaces and its "
            "layers are others."
        )
    model = dict(training.model.state_dict())
    for name in taken:
        prefix = new[name].prefix
        model.update({f"{prefix}.{key}": value for key, value in old[name].module.state_dict().items()})
    # The critic's values are in units of these statistics.
    has_critic = all(name in taken for name in new if name != _HEAD and not name.startswith(_ACTORS))
    moments = origin.reward_moments if has_critic and config.normalize_reward else {}
    taken += [_REWARDS] if moments else []
    training.begin_with(model, moments)
    return _tell(origin, taken, [name for name in new if name not in taken], [name for name in old if name not in new])


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a network, and where its tensors are."""

    module: nn.Module
    prefix: str


def _find_parts(model: ActorCritic) -> dict[str, _Part]:
    """Return the parts that have tensors, by the names that a log shows."""
    whose = [""] if len(model.trunks) == 1 else [_ACTORS, _CRITICS]
    parts = {_STATISTICS: _Part(model.obs_normalizer, "obs_normalizer")}
    for number, owner in enumerate(whose):
        for kind in (_ENCODER, "core"):
            parts[owner + kind] = _Part(getattr(model.trunks[number], kind), f"trunks.{number}.{kind}")
    parts |= {_HEAD: _Part(model.head, "head"), "value head": _Part(model.value_head, "value_head")}
    return {name: part for name, part in parts.items() if part.module.state_dict()}


def _is_alike(one: _Part, other: _Part) -> bool:
    """Return whether two parts compute the same with the same tensors, as far as can be seen."""
    return _describe(one.module) == _describe(other.module)


def _describe(module: nn.Module) -> tuple[object, ...]:
    plain = {name: value for name, value in vars(module).items() if isinstance(value, str | int | float | tuple)}
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    return type(module).__qualname__, repr(module), plain, shapes


def _moments_of(training: StateTree) -> StateTree:
    """Return the statistics of a saved training's reward normaliser, which all shards have alike; a3c has them once."""
    shards = read_branch(training, "shards") if "shards" in training else {"0": training}
    normalizer = read_branch(read_branch(shards, "0"), "reward_normalizer")
    return {name: value for name, value in normalizer.items() if name.startswith("moments.")}


def _tell(origin: Origin, taken: list[str], made: list[str], unused: list[str]) -> str:
    told = [f"taken: {', '.join(taken)}"]
    told += [f"new: {', '.join(made)}"] if made else []
    told += [f"not used: {', '.join(unused)}"] if unused else []
    return f"beginning with the policy of {origin.path} after {origin.env_steps:,} env steps; {'; '.join(told)}"

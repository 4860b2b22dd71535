"""The file of a trained policy: safetensors, with JSON in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save as dump_arrays

from fastac.build import EncoderFactory, build_model, load_spaces
from fastac.config import Config, JsonValue, ModelConfig
from fastac.contract import HasSpaces, read_branch
from fastac.envs.saved_spaces import save_spaces
from fastac.models import ActorCritic, load_module
from fastac.runs.files import one_sentence, replace_file, write_durably
from fastac.runs.provenance import versions
from fastac.runs.trees import join_tree, read_tree, split_tree

SCHEMA = 1
_KEY = "fastac_policy"


@dataclass(frozen=True, slots=True)
class SavedPolicy:
    """What such a file holds.

    Attributes:
        model: the network, on the CPU.
        config: what it was built from.
        spaces: of one environment.
    """

    model: ActorCritic
    config: ModelConfig
    spaces: HasSpaces


def write_policy(path: Path, model: ActorCritic, config: ModelConfig, spaces: HasSpaces) -> None:
    """Write a policy, in place of an older one only if all went well.

    Raises:
        RecordError: the disk is full, or the location is not writable.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    state = split_tree({"model": dict(model.state_dict()), "spaces": save_spaces(spaces)}, "", arrays)
    settings: JsonValue = dataclasses.asdict(config)
    body: dict[str, JsonValue] = {"schema": SCHEMA, "versions": dict(versions()), "config": settings, "state": state}
    body["sha256"] = _digest(body, arrays)
    with replace_file(path) as temporary:
        write_durably(temporary, dump_arrays(arrays, {_KEY: json.dumps(body)}))


def read_policy(path: Path, encoder: EncoderFactory | None) -> SavedPolicy:
    """Read a policy and verify its digest; `encoder` is the function, if it cannot be imported by its name.

    Raises:
        ValueError: it is no such file, or is damaged, or its encoder cannot be imported.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}, expected one that policy.save has written.")
    with one_sentence(f"{path} is not a policy that can be loaded"):
        with safe_open(path, "numpy") as file:
            body = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        _check(body, arrays)
        config = Config.from_dict({"model": body["config"]}).model
        state = join_tree(read_tree(body["state"], "state"), arrays)
        spaces = load_spaces(read_branch(state, "spaces"))
        model = build_model(config, spaces, encoder=encoder)
        load_module(model, read_branch(state, "model"))
    return SavedPolicy(model, config, spaces)


def _check(body: dict[str, JsonValue], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    schema, digest = body.get("schema"), body.pop("sha256", None)
    if not isinstance(schema, int):
        raise ValueError("it was not written by policy.save")
    if schema > SCHEMA:
        raise ValueError(f"it was written by a newer fastac (schema {schema}, this one reads {SCHEMA}): upgrade fastac")
    if digest != _digest(body, arrays):
        raise ValueError("it is damaged: its sha256 is wrong")


def _digest(body: Mapping[str, JsonValue], arrays: Mapping[str, NDArray[np.generic]]) -> str:
    return hashlib.sha256(json.dumps(body).encode() + dump_arrays(dict(arrays))).hexdigest()

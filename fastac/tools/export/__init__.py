"""Writes a trained policy as a file that needs no fastac, and refuses one that does not say what the policy says."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, get_args

import numpy as np

from fastac import __version__
from fastac.build import EnvFactory, name_env, torch_threads
from fastac.config import Config
from fastac.envs.spaces import SquashedBox
from fastac.runs.files import replace_file, write_durably
from fastac.text import tell_us
from fastac.tools.export.formats import FORMATS, FormatName
from fastac.tools.export.parity import LIMIT, Opened, Parity, compare, measure_us
from fastac.tools.export.recording import Recording, record_steps
from fastac.tools.export.signature import START, STATE, Arrays, Signature
from fastac.tools.policy import TrainedPolicy

__all__ = ["Exported", "FormatName", "export"]

STEPS = 1_000
_BATCHES = (1, 64)


class TrainedRun(Protocol):
    """What is needed of a run; see `Run`."""

    @property
    def config(self) -> Config:
        """Its configuration."""

    @property
    def directory(self) -> Path:
        """Its directory."""

    @property
    def policy(self) -> TrainedPolicy:
        """Its policy."""

    @property
    def env(self) -> EnvFactory | None:
        """Its environments, if their name is not enough."""

    @property
    def checkpoint(self) -> str:
        """Which policy it is."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the file.
        manifest_path: the JSON beside it.
        runtime: what ran the file, in words.
        manifest: its content.
        signature: inputs and outputs.
        parity: how it compares with the policy.
        latencies_us: median microseconds of a call by the number of observations: of the file, and of `policy.decide`.
    """

    path: Path
    manifest_path: Path
    runtime: str
    manifest: Mapping[str, object]
    signature: Signature
    parity: Parity
    latencies_us: Mapping[int, tuple[float, float]]

    def tell(self) -> Iterator[tuple[str, str]]:
        """Yield what was written as pairs of a word and a text."""
        kb = self.path.stat().st_size / 1e3
        yield "file", f"{self.path} ({kb:,.0f} kB), told by {self.manifest_path.name} beside it"
        for name, ports in (("inputs", self.signature.inputs), ("outputs", self.signature.outputs)):
            yield name, ", ".join(port.tell() for port in ports)
        yield "compared", self.parity.tell()
        file, policy = (
            ", ".join(f"{tell_us(us[i])} for {num}" for num, us in self.latencies_us.items()) for i in (0, 1)
        )
        text = f"{file} observations by {self.runtime}; policy.decide takes {policy}"
        yield "per call", f"{text}; medians on this machine, as busy as it is"


def export(run: TrainedRun, path: Path | str | None = None, *, format: FormatName = "onnx") -> Exported:
    """Write a run's policy as a file that needs no fastac, with a manifest beside it.

    The file is compared with the policy before it is kept: on 1,000 steps of the run's own environment, or on random
    observations where that cannot be built.

    Args:
        run: from `train`, `finish` or `load`.
        path: the file; by default `policy` in the run's directory. Its suffix is the format's.
        format: onnx, torchscript or npz.

    Raises:
        ValueError: an unknown format or another suffix, a package is missing, the policy cannot be written in this
            format, or the file differs from the policy by more than 1e-5; nothing is written.
        RecordError: the file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected {', '.join(get_args(FormatName))}.")
    kind, policy = FORMATS[format], copy.deepcopy(run.policy)
    policy.model.cpu()  # where the file runs, too
    target = run.directory / f"policy{kind.suffix}" if path is None else Path(path)
    if target.suffix != kind.suffix:
        raise ValueError(f"the file is {str(target)!r}, expected one that ends with {kind.suffix} for {format}.")
    signature = Signature(policy)
    manifest = _make_manifest(run, format, signature)
    beside = target.with_suffix(".json")
    with torch_threads(1), replace_file(target) as temporary, replace_file(beside) as temporary_beside:
        kind.write(temporary, policy, signature, manifest)
        recording = record_steps(policy, run.config.env, run.env or name_env(run.config.env.env_id).given, STEPS)
        opened = kind.open(temporary, signature)
        parity = compare(policy, opened, recording, signature)
        if not parity.holds:
            raise ValueError(
                f"the {format} file does not say what the policy says ({parity.tell()}; at most {LIMIT:g} is "
                "expected), so it is not kept: an encoder of your own must not depend on the number of observations."
            )
        latencies = {num: _measure(policy, opened, recording, signature, num) for num in _BATCHES}
        compared = {"steps": parity.steps, "source": parity.source, "largest_difference": parity.largest}
        manifest["compared"] = compared
        write_durably(temporary_beside, json.dumps(manifest, indent=2).encode() + b"\n")
    return Exported(target, beside, kind.runtime, manifest, signature, parity, latencies)


def _make_manifest(run: TrainedRun, format: FormatName, signature: Signature) -> dict[str, object]:
    """Return what a program needs to know, without the machine's paths."""
    space = run.policy.action_space
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()} if isinstance(space, SquashedBox) else None
    return {
        "fastac": __version__,
        "format": format,
        "env_id": run.config.env.env_id,
        "run": run.directory.name,
        "checkpoint": run.checkpoint,
        "algo": run.config.algo.algo,
        "inputs": signature.to_json(signature.inputs),
        "outputs": signature.to_json(signature.outputs),
        "action_space": str(space),
        "squashed_to": bounds,
    }


def _measure(
    policy: TrainedPolicy, opened: Opened, recording: Recording, signature: Signature, num: int
) -> tuple[float, float]:
    """Return microseconds of a call for `num` observations: of the file, and of the policy."""
    flat = recording.rows.reshape(-1, *recording.rows.shape[2:])
    inputs: Arrays = signature.read_rows(np.resize(flat, (num, *flat.shape[1:])))
    obs, mask = signature.rebuild(inputs)
    state, start = np.zeros((num, policy.model.state_size), np.float32), np.zeros(num, np.bool_)
    given = inputs | ({STATE: state, START: start} if policy.model.state_size else {})
    return measure_us(partial(opened, given)), measure_us(partial(policy.decide, obs, state, start, mask))

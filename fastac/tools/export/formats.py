"""The formats: how each is written, and run for the comparison."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fastac.envs.failure import describe
from fastac.install import INSTALL
from fastac.tools.export.graph import example_inputs, trace, without_warnings
from fastac.tools.export.layers import describe_layers
from fastac.tools.export.numpy_policy import NumpyPolicy
from fastac.tools.export.parity import Opened
from fastac.tools.export.signature import Signature
from fastac.tools.policy import TrainedPolicy

FormatName: TypeAlias = Literal["onnx", "torchscript", "npz"]

MANIFEST = "fastac_manifest"  # where each format holds it
_OPSET = 17


class Format(Protocol):
    """One format.

    Attributes:
        suffix: of its files.
        runtime: what runs them in the comparison, in words.
    """

    suffix: str
    runtime: str

    def write(self, path: Path, policy: TrainedPolicy, signature: Signature, manifest: Mapping[str, object]) -> None:
        """Write a file.

        Raises:
            ValueError: a package is missing, or the policy cannot be written in this format.
        """

    def open(self, path: Path, signature: Signature) -> Opened:
        """Return what runs a file."""


class Onnx:
    """ONNX, by torch's exporter of traced modules: it needs no package but onnx, and takes a second."""

    suffix, runtime = ".onnx", "onnxruntime, one thread"

    def write(self, path: Path, policy: TrainedPolicy, signature: Signature, manifest: Mapping[str, object]) -> None:
        """See `Format`."""
        onnx = _import("onnx")
        _import("onnxruntime")
        names = [port.name for port in signature.inputs], [port.name for port in signature.outputs]
        traced = trace(policy, signature)
        try:
            with without_warnings(), torch.no_grad():
                torch.onnx.export(
                    traced,
                    example_inputs(signature),
                    path,
                    input_names=names[0],
                    output_names=names[1],
                    dynamic_axes={name: {0: "N"} for part in names for name in part},
                    opset_version=_OPSET,
                    dynamo=False,
                )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:  # an operation that ONNX does not have
            raise ValueError(f"the policy cannot be written as ONNX ({_shorten(error)}): try torchscript.") from error
        model = onnx.load(path)
        for key, text in {MANIFEST: json.dumps(manifest), "fastac": str(manifest["fastac"])}.items():
            model.metadata_props.add(key=key, value=text)
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def open(self, path: Path, signature: Signature) -> Opened:
        """See `Format`."""
        runtime = _import("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        names = [port.name for port in signature.outputs]
        return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


class TorchScript:
    """A traced module, for programs that have torch (also C++) and not fastac."""

    suffix, runtime = ".pt", "torch.jit, one thread"

    def write(self, path: Path, policy: TrainedPolicy, signature: Signature, manifest: Mapping[str, object]) -> None:
        """See `Format`."""
        with without_warnings():
            torch.jit.save(trace(policy, signature), path, _extra_files={MANIFEST: json.dumps(manifest)})

    def open(self, path: Path, signature: Signature) -> Opened:
        """See `Format`."""
        with without_warnings():
            module = torch.jit.load(path, map_location="cpu")
        names, given = [port.name for port in signature.outputs], [port.name for port in signature.inputs]

        def run(inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
            with torch.no_grad():
                outputs = module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in given))
            return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

        return run


class Npz:
    """Arrays, and a list of layers for a reader of NumPy: `numpy_policy.py`."""

    suffix, runtime = ".npz", "numpy_policy.py"

    def write(self, path: Path, policy: TrainedPolicy, signature: Signature, manifest: Mapping[str, object]) -> None:
        """See `Format`."""
        layers, arrays = describe_layers(policy, signature)
        whole = {**manifest, "layers": layers}
        np.savez(path, **{MANIFEST: np.array(json.dumps(whole))}, **arrays)  # type: ignore[arg-type]  # an array

    def open(self, path: Path, signature: Signature) -> Opened:
        """See `Format`."""
        return NumpyPolicy(path)


FORMATS: dict[FormatName, Format] = {"onnx": Onnx(), "torchscript": TorchScript(), "npz": Npz()}


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"an export to ONNX needs a package that is not installed ({describe(error)}): {INSTALL['export']}."
        ) from error


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

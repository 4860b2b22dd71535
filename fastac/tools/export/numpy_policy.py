"""Runs a policy from an .npz file with NumPy alone: copy this file, it needs nothing of fastac.

    policy = NumpyPolicy("policy.npz")
    outputs = policy({"obs": observations})  # every array has a batch dimension
    action = outputs["action"]

`policy.manifest` tells the inputs and outputs. With memory, give `state` (zeros at first, then `next_state` of the call
before) and `start` (True where an episode begins).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class NumpyPolicy:
    """The policy.

    Attributes:
        manifest: inputs, outputs, where the policy comes from, and its layers.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the file."""
        with np.load(path) as file:
            self._arrays: dict[str, Array] = {name: file[name] for name in file.files}
        self.manifest: dict[str, Any] = json.loads(str(self._arrays.pop("fastac_manifest")))
        self._layers = self.manifest["layers"]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name."""
        layers, row = self._layers, self._make_row(inputs)
        states = inputs.get("state", np.zeros((len(row), 0), np.float32))
        if "start" in inputs:
            states = states * ~np.asarray(inputs["start"])[:, None]
        features, after = [], []
        for trunk in layers["trunks"]:
            x, size = self._encode(trunk["encoders"], row), 0
            if trunk["core"] is not None:
                size = trunk["core"]["state_size"]
                x, state = self._remember(trunk["core"], x, states[:, :size])
                after.append(state)
            features.append(x)
            states = states[:, size:]
        params = self._layer(layers["head"], features[0])
        if layers["mask_size"]:
            params = np.where(inputs["action_mask"] != 0, params, np.float32(-np.inf))
        value = self._layer(layers["value"], features[-1])[:, 0]
        outputs = {"value": value, **self._act(layers["action"], params)}
        return outputs | ({"next_state": np.concatenate(after, axis=1)} if after else {})

    def _make_row(self, inputs: Mapping[str, Array]) -> Array:
        """Return all parts of the observations side by side, `[N, D]`: numbers standardised, categories one-hot."""
        parts = []
        for part in self._layers["inputs"]:
            given = np.asarray(inputs[part["name"]])
            flat = given.reshape(len(given), -1)
            if part["one_hot"] is not None:
                which, values = (self._arrays[part["one_hot"][name]] for name in ("which", "values"))
                flat = flat[:, which] == values
            parts.append(flat.astype(np.float32))
        row = np.concatenate(parts, axis=1)
        if self._layers["normalizer"] is None:
            return row
        mean, scale, limit = (self._arrays[self._layers["normalizer"][name]] for name in ("mean", "scale", "limit"))
        return np.clip((row - mean) * scale, -limit, limit)

    def _encode(self, encoders: list[dict[str, Any]], row: Array) -> Array:
        features = []
        for encoder in encoders:
            x = row[:, encoder["begin"] : encoder["end"]].reshape(len(row), *encoder["shape"])
            for layer in encoder["layers"]:
                x = self._layer(layer, x)
            features.append(x)
        return np.concatenate(features, axis=1)

    def _layer(self, layer: dict[str, Any], x: Array) -> Array:
        kind = layer["kind"]
        if kind == "linear":
            return x @ self._arrays[layer["weight"]].T + self._arrays[layer["bias"]]
        if kind == "image":  # [N, H, W, C] from here on
            return np.float32(layer["scale"]) * (x.transpose(0, 2, 3, 1) if layer["is_planar"] else x)
        if kind == "conv":
            weight, stride = self._arrays[layer["weight"]], layer["stride"]  # [O, C, k, k]
            views = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
            return np.tensordot(views, weight, axes=((3, 4, 5), (1, 2, 3))) + self._arrays[layer["bias"]]
        if kind == "flatten":
            return x.reshape(len(x), -1)
        return _activate(kind, x)

    def _remember(self, core: dict[str, Any], x: Array, state: Array) -> tuple[Array, Array]:
        """Return the output and the next state of a cell with torch's order of gates."""
        weights = [self._arrays[core[name]] for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
        if core["kind"] == "lstm":
            h, c = np.split(state, 2, axis=1)
            i, f, g, o = np.split(x @ weights[0].T + weights[1] + h @ weights[2].T + weights[3], 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            return h, np.concatenate([h, c], axis=1)
        from_x, from_h = x @ weights[0].T + weights[1], state @ weights[2].T + weights[3]
        (r, z, n), (r_h, z_h, n_h) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
        z = _sigmoid(z + z_h)
        h = (1 - z) * np.tanh(n + _sigmoid(r + r_h) * n_h) + z * state
        return h, h

    def _act(self, action: dict[str, Any], params: Array) -> dict[str, Array]:
        """Return the most likely action, and the parameters of the distribution."""
        if action["kind"] == "choices":
            start = self._arrays[action["start"]]
            parts = np.split(params, np.cumsum(action["sizes"])[:-1], axis=1)
            best = np.stack([part.argmax(axis=1) for part in parts], axis=1)
            chosen = best if len(self._port("action")["shape"]) > 1 else best[:, 0]
            return {"action": (chosen + start).astype(self._port("action")["dtype"]), "logits": params}
        low, high = self._arrays[action["low"]], self._arrays[action["high"]]
        if action["log_std"] is not None:
            mean, log_std = params, np.broadcast_to(self._arrays[action["log_std"]], params.shape)
        else:
            mean, free = np.split(params, 2, axis=1)
            middle, reach = action["middle"], action["reach"]
            log_std = middle + reach * np.tanh((free - middle) / reach)
        x = mean.astype(low.dtype)
        if action["kind"] == "squashed":
            x = (np.tanh(x) + 1) * (0.5 * (high - low)) + low
        return {"action": np.clip(x, low, high), "mean": mean, "log_std": log_std}

    def _port(self, name: str) -> dict[str, Any]:
        return next(port for port in self.manifest["outputs"] if port["name"] == name)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (np.tanh(0.5 * x) + 1)


def _erf(x: Array) -> Array:
    return np.array([math.erf(number) for number in x.ravel()], np.float32).reshape(x.shape)


def _activate(kind: str, x: Array) -> Array:
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "tanh":
        return np.tanh(x)
    if kind == "elu":
        return np.asarray(np.maximum(x, 0) + np.expm1(np.minimum(x, 0)))
    if kind == "gelu":
        return x * (0.5 * (1 + _erf(x / np.float32(math.sqrt(2)))))
    assert kind == "silu", f"an unknown layer {kind!r}"
    return x * _sigmoid(x)

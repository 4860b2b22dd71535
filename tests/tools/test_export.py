"""Exported policies: they say what the policy says, in every format, for every kind of network and space."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import dict_envs
import masked_envs
import numpy as np
import probes
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Tuple
from torch import nn

import fastac
from fastac.build import build_model
from fastac.cli import main
from fastac.config import Config
from fastac.envs.rows import FlatBox, Reading
from fastac.envs.spaces import SquashedBox
from fastac.models import ImageNormalizer
from fastac.tools import export as exporting
from fastac.tools.export import formats, parity
from fastac.tools.export.numpy_policy import NumpyPolicy
from fastac.tools.export.parity import LIMIT, Parity, measure_us
from fastac.tools.policy import TrainedPolicy

ONNX = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
IMAGE = Box(0, 255, (36, 36, 2), np.uint8)
MASKED = Reading(mask_source="info", mask_size=5)
BY_KEY = Reading(mask_source="observation", mask_size=7)
SIGNS = Reading(drop_keys=("mission",), critic_keys=("nested",))
TWO = Box(np.float32([-2.0, 0.0]), np.float32([4.0, 0.5]))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Measure no times, and compare few steps."""
    monkeypatch.setattr(exporting, "STEPS", 80)
    monkeypatch.setattr(exporting, "measure_us", lambda call: (call(), 1.0)[1])


def make_run(path, row_space, action_space, env_id="", env=None, own=None, **settings):
    """A run whose network was not trained, but says something else for every observation."""
    config = Config().replace(env_id=env_id or "nowhere:Nothing", hidden_sizes=(8,), lstm_size=6, **settings)
    spaces = SimpleNamespace(single_observation_space=row_space, single_action_space=action_space)
    model = build_model(config.model, spaces, seed=1, encoder=own)
    with torch.no_grad():
        model.head.layer.weight.mul_(300.0)
        model.head.layer.bias.normal_(generator=torch.Generator().manual_seed(1))
        moments = getattr(model.obs_normalizer, "moments", None)
        if moments is not None:
            unit = 255.0 if isinstance(model.obs_normalizer, ImageNormalizer) else 1.0
            ramp = torch.linspace(0.5, 1.5, moments.mean.numel()).view(moments.mean.shape)  # another for every number
            moments.mean.copy_(0.3 * unit * ramp)
            moments.var.copy_(2.0 * unit**2 * ramp)
    policy = TrainedPolicy(model, row_space, action_space, config=config.model)
    return SimpleNamespace(config=config, directory=path, policy=policy, env=env, checkpoint="best")


VECTOR = Box(-np.inf, np.inf, (3,), np.float64)
CASES = {
    "mlp": (VECTOR, Discrete(3, start=-1), {"normalize_obs": True}),
    "lstm": (probes.Memory.observation_space, probes.Memory.action_space, {"core": "lstm", "env": probes.Memory}),
    "gru, two trunks": (VECTOR, TWO, {"core": "gru", "shared_trunk": False, "activation": "silu"}),
    "nature": (IMAGE, Discrete(4), {"encoder": "nature"}),
    "nature, standardised": (IMAGE, Discrete(4), {"encoder": "nature", "normalize_obs": True}),
    "channels last, standardised": (Box(0, 255, (36, 36, 3), np.uint8), Discrete(4), {"normalize_obs": True}),
    "dict": (
        FlatBox(dict_envs.Signs.observation_space, SIGNS),
        dict_envs.Signs.action_space,
        {"env": dict_envs.Signs, "normalize_obs": True, "shared_trunk": False},
    ),
    "bytes": (
        FlatBox(dict_envs.Bytes.observation_space, Reading(drop_keys=("mission",))),
        dict_envs.Bytes.action_space,
        {"env": dict_envs.Bytes},
    ),
    "several": (FlatBox(MultiDiscrete([3, 2], start=[1, -1])), MultiDiscrete([2, 3], start=[5, 0]), {}),
    "masked": (
        FlatBox(masked_envs.Masked().observation_space, MASKED),
        masked_envs.ACTIONS["discrete"],
        {"env": masked_envs.Masked},
    ),
    "masked, lstm": (
        FlatBox(masked_envs.Masked("observation", "several").observation_space, BY_KEY),
        masked_envs.ACTIONS["several"],
        {"core": "lstm"},
    ),
    "tuple": (
        FlatBox(Tuple((Discrete(3, start=1), Tuple((MultiBinary(2), Box(-1.0, 1.0, (2, 2), np.float32)))))),
        Discrete(3),
        {"normalize_obs": True},
    ),
    "squashed": (VECTOR, SquashedBox(TWO), {"activation": "elu"}),
    "dependent": (VECTOR, TWO, {"dependent_std": True, "activation": "gelu"}),
    "double": (VECTOR, SquashedBox(Box(-0.2, 0.2, (1,), np.float64)), {"activation": "tanh"}),
}


def make_case(name, path):
    space, actions, settings = CASES[name]
    others = dict(settings)
    env = others.pop("env", None)
    if isinstance(space, FlatBox):
        others |= {key: getattr(space.reading, key) for key in ("drop_keys", "critic_keys")}
    return make_run(path, space, actions, f"{env.__module__}:{env.__name__}" if env else "", env, **others)


@pytest.mark.parametrize("format", ["onnx", "torchscript", "npz"])
@pytest.mark.parametrize("name", CASES)
def test_a_file_says_what_the_policy_says(tmp_path, monkeypatch, name, format):
    steps = 1_000 if format == "onnx" else 160
    monkeypatch.setattr(exporting, "STEPS", steps)
    done = fastac.export(make_case(name, tmp_path), format=format)
    assert done.parity.largest <= 1e-5 and done.parity.wrong_actions == 0 and done.parity.steps == steps
    is_played = "env" in CASES[name][2]
    assert done.parity.source.startswith("steps of" if is_played else "random observations")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([done.path.name, "policy.json"])


def test_inputs_are_what_the_environment_gives(tmp_path):
    done = fastac.export(make_case("dict", tmp_path))
    told = json.loads(done.manifest_path.read_text())
    assert {port["name"]: (port["shape"], port["dtype"]) for port in told["inputs"]} == {
        "obs/kind": (["N"], "int64"),
        "obs/number": (["N", 1], "float32"),
        "obs/nested/secret": (["N"], "int64"),
        "obs/image": (["N", 4, 4, 3], "uint8"),
    }
    assert [port["name"] for port in told["outputs"]] == ["action", "value", "logits"]
    assert (told["env_id"], told["fastac"]) == ("dict_envs:Signs", fastac.__version__)
    session = ONNX.InferenceSession(done.path)
    inside = json.loads(session.get_modelmeta().custom_metadata_map["fastac_manifest"])
    assert inside["inputs"] == told["inputs"]
    assert [(port.name, port.shape[1:]) for port in session.get_inputs()] == [
        (port["name"], port["shape"][1:]) for port in told["inputs"]
    ]
    given = {
        "obs/kind": np.array([1]),
        "obs/number": np.float32([[50.0]]),
        "obs/nested/secret": np.array([0]),
        "obs/image": np.full((1, 4, 4, 3), 200, np.uint8),
    }
    action, value, logits = session.run(["action", "value", "logits"], given)
    policy = make_case("dict", tmp_path).policy
    obs = {"kind": 1, "number": np.float32([50.0]), "nested": {"secret": 0}, "image": given["obs/image"][0]}
    np.testing.assert_array_equal(action[0], policy.act(obs))
    np.testing.assert_allclose(value[0], policy.value(obs), rtol=1e-5)
    assert action.dtype == np.int8 and logits.shape == (1, 6)


def test_the_memory_goes_in_and_out_and_starts_anew(tmp_path):
    run = make_case("lstm", tmp_path)
    opened = NumpyPolicy(fastac.export(run, format="npz").path)
    obs, state = np.float32([[0.4], [-0.7]]), np.zeros((2, 12), np.float32)
    first = opened({"obs": obs, "state": state, "start": np.array([True, True])})
    second = opened({"obs": obs, "state": first["next_state"], "start": np.array([False, True])})
    assert np.abs(second["logits"][0] - first["logits"][0]).max() > 1e-3
    np.testing.assert_allclose(second["logits"][1], first["logits"][1], rtol=1e-6)


def test_torchscript_has_its_manifest_inside(tmp_path):
    done = fastac.export(make_case("squashed", tmp_path), tmp_path / "mine.pt", format="torchscript")
    extra = {"fastac_manifest": ""}
    with formats.without_warnings():
        torch.jit.load(done.path, _extra_files=extra)
    told = json.loads(extra["fastac_manifest"])
    assert told["squashed_to"] == {"low": [-2.0, 0.0], "high": [4.0, 0.5]}
    assert [port["name"] for port in told["outputs"]] == ["action", "value", "mean", "log_std"]
    assert done.manifest_path == tmp_path / "mine.json"


class Own(nn.Module):
    """An encoder of a user's, that knows how many rows there are if it is told to."""

    def __init__(self, is_bad: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.is_bad = nn.Linear(3, 8), nn.LayerNorm(8), is_bad

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.layer(obs.float())))
        return x * float(len(x) + 1) if self.is_bad else x


def test_an_encoder_of_ones_own_is_exported_if_it_traces(tmp_path):
    run = make_run(tmp_path, VECTOR, Discrete(2), own=lambda _: Own())
    assert fastac.export(run).parity.holds and fastac.export(run, format="torchscript").parity.holds
    with pytest.raises(ValueError, match="the encoder is a Own, expected one of fastac's own for npz"):
        fastac.export(run, format="npz")


def test_a_file_that_differs_is_not_kept(tmp_path):
    run = make_run(tmp_path, VECTOR, Discrete(2), own=lambda _: Own(is_bad=True))
    (tmp_path / "policy.onnx").write_text("an older one")
    with pytest.raises(ValueError, match=r"the onnx file does not say what the policy says \(80 random obs"):
        fastac.export(run)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
    assert (tmp_path / "policy.onnx").read_text() == "an older one"


class Untraceable(nn.Linear):
    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("no graph of this")
        return super().forward(obs.float())


class Eigenvalues(nn.Linear):
    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = super().forward(obs.float())
        return torch.linalg.eigvalsh(x.unsqueeze(-1) * x.unsqueeze(-2))


class Branches(nn.Linear):
    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = super().forward(obs.float())
        return x if x.sum() < 1e9 else -x


def test_what_onnx_does_not_have_is_a_sentence(tmp_path, capsys):
    run = make_run(tmp_path, VECTOR, Discrete(2), own=lambda _: Eigenvalues(3, 8))
    with pytest.raises(ValueError, match=r"cannot be written as ONNX \(.*linalg_eigvalsh.*\): try torchscript"):
        fastac.export(run)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_a_branch_that_a_trace_cannot_hold_is_told(tmp_path, caplog):
    fastac.export(make_case("dict", tmp_path), format="torchscript")
    assert not caplog.records
    fastac.export(make_run(tmp_path, VECTOR, Discrete(2), own=lambda _: Branches(3, 8)), format="torchscript")
    (record,) = caplog.records
    assert "may differ from the encoder at" in record.getMessage() and "Python boolean" in record.getMessage()


def test_an_encoder_that_cannot_be_traced_is_a_sentence(tmp_path):
    run = make_run(tmp_path, VECTOR, Discrete(2), own=lambda _: Untraceable(3, 8))
    with pytest.raises(ValueError, match=r"the policy cannot be traced \(.*no graph of this"):
        fastac.export(run, format="torchscript")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite', expected onnx, torchscript, npz"),
        ({"path": "x.pt"}, "the file is 'x.pt', expected one that ends with .onnx for onnx"),
    ],
)
def test_wrong_input_is_a_sentence(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        fastac.export(make_case("mlp", tmp_path), **arguments)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"needs a package that is not installed .*: pip install 'onnx>="):
        fastac.export(make_case("mlp", tmp_path))
    assert not list(tmp_path.iterdir())


def tampered(monkeypatch, change):
    """Make npz files say something else."""
    whole = NumpyPolicy.__call__
    monkeypatch.setattr(NumpyPolicy, "__call__", lambda self, inputs: change(whole(self, inputs)))


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out | {"value": out["value"] + 3e-5},
        lambda out: out | {"value": out["value"] * np.nan},
        lambda out: out | {"value": out["value"][:, None]},
        lambda out: out | {"logits": out["logits"] + np.float32([0, 3e-3, 0])},
        lambda out: out | {"action": -1 + (out["action"] + 2) % 3},
        lambda out: out | {"action": out["action"] + 10},
    ],
    ids=["value", "nan", "shape", "logits", "action", "unknown action"],
)
def test_every_difference_is_seen(tmp_path, monkeypatch, change):
    tampered(monkeypatch, change)
    with pytest.raises(ValueError, match="the npz file does not say what the policy says"):
        fastac.export(make_case("mlp", tmp_path), format="npz")


def test_a_tie_may_be_broken_either_way():
    policy = SimpleNamespace(action_space=Discrete(3, start=4))
    expected = SimpleNamespace(params={"logits": np.float32([[1.0, 1.000001, 0.0], [2.0, 1.0, 0.0]])})
    assert parity._count_wrong(policy, expected, np.array([4, 4])) == 0
    assert parity._count_wrong(policy, expected, np.array([6, 5])) == 2
    assert Parity(1, "steps", LIMIT, "value", 0).holds and not Parity(1, "steps", 0.0, "value", 1).holds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_policy_on_the_gpu_is_exported_for_the_cpu(tmp_path):
    run = make_case("lstm", tmp_path)
    run.policy.model.to("cuda")
    assert fastac.export(run).parity.holds and run.policy.device.type == "cuda"


def test_export_leaves_the_policys_memory_and_random_stream_alone(tmp_path):
    run, other = make_case("lstm", tmp_path), make_case("lstm", tmp_path)
    obs = np.float32([0.4])
    for policy in (run.policy, other.policy):
        policy.act(obs)
    fastac.export(run, format="npz")
    assert run.policy.value(obs) == other.policy.value(obs)
    assert [run.policy.act(obs, greedy=False) for _ in range(20)] == [
        other.policy.act(obs, greedy=False) for _ in range(20)
    ]


def test_the_time_of_a_call_is_a_median():
    calls = []
    assert measure_us(lambda: calls.append(1)) >= 0.0 and len(calls) > 20


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = fastac.train("CartPole-v1", num_envs=2, total_env_steps=20, eval_episodes=1, run_dir=tmp_path / "run")
    assert main(["export", str(run.directory), "--format", "npz", "--output", str(tmp_path / "a.npz")]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == ["file", "inputs", "outputs", "compared", "per"]
    assert "obs [N, 4] float32" in told and "80 steps of CartPole-v1" in told
    obs = np.float32([[0.1, 0.2, -0.1, 0.3]])
    assert NumpyPolicy(tmp_path / "a.npz")({"obs": obs})["action"] == run.policy.act(obs)
    assert main(["export", str(tmp_path / "nowhere")]) == 2
    assert main(["export"]) == 2

"""The doctor finds every planted fault, and nothing in environments that have none."""

from __future__ import annotations

import gc
import io
import json
import random
import re
import sys
from array import array
from functools import partial

import dict_envs
import gymnasium as gym
import masked_envs
import numpy as np
import pytest
import sick_envs
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode

import fastac
from fastac.cli import main
from fastac.config import EnvConfig
from fastac.envs import name_env
from fastac.envs.masks import MaskReader
from fastac.tools.doctor import Diagnosis, examine
from fastac.tools.doctor.findings import Finding
from fastac.tools.doctor.leak import Growth, find_resident_growth, judge_growth
from fastac.tools.doctor.machine import Cost, judge_time
from fastac.tools.doctor.masks import Masks
from fastac.tools.doctor.patient import Clock, build_patient
from fastac.tools.doctor.report import format_diagnosis

STEPS = 300  # enough for ten episodes, and a leak


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Take what is imported for permanent, as the command does: garbage is collected three times per examination."""
    gc.freeze()
    yield
    gc.unfreeze()


def look_at(env: object, steps: int = STEPS, seconds: float = 60.0) -> Diagnosis:
    named = name_env(env)
    return examine(EnvConfig(named.env_id, 1, env_kwargs=named.kwargs), named.given, seconds, steps)


def tell(diagnosis: Diagnosis) -> str:
    return "\n".join(f"{finding.severity} {finding.check}: {finding.text}" for finding in diagnosis.findings)


FAULTS = [
    (sick_envs.NanReward, "error rewards: .* of 300 rewards are NaN or infinite \\(first nan at step 7"),
    (sick_envs.RewardOfArray, "error rewards: 300 of 300 rewards are no number"),
    (sick_envs.HugeReward, "warning rewards: rewards are huge, about [0-9.]+e\\+05"),
    (sick_envs.TinyReward, "warning rewards: rewards are tiny, about [0-9.]+e-07"),
    (sick_envs.NoReward, "note rewards: all 300 rewards are 0"),
    (sick_envs.InfiniteObs, "error observations: .* hold NaN or infinity \\(first inf in element 1 at step 7"),
    (sick_envs.Outside, "warning observations: .* lie outside their space \\(first .* in element [01], above 0.5"),
    (sick_envs.OutsideDiscrete, "error observations: .* are not in their space \\(8 is not in Discrete\\(8\\)"),
    (sick_envs.WrongDtype, "warning observations: .* another dtype than their space \\(float64 for float32"),
    (sick_envs.WrongShape, "error observations: .* another shape than their space \\(\\(1, 2\\) for \\(2,\\)"),
    (sick_envs.LargeObs, "note observations: number [01] of the observation is about .* normalize_obs=True"),
    (sick_envs.Reused, "warning observations: .* were changed by the call after"),
    (sick_envs.Blind, "warning observations: all 3.. observations are equal"),
    (sick_envs.SeedIgnored, "warning seeds: .* in an environment that had run before, from step 0 on"),
    (sick_envs.Entropy, "warning seeds: .* in another new environment, from step 0 on"),
    (sick_envs.GlobalNumpy, "warning seeds: .* use NumPy's global random stream, so .* from step 0 on"),
    (sick_envs.GlobalPython, "warning seeds: .* use Python's global random stream"),
    (sick_envs.NoRandomness, "note seeds: another seed gives the same 200 steps"),
    (
        sick_envs.LimitAsEnd,
        "error ends: 10 of 10 episodes were terminated at the very step of .* limit, 30",
    ),
    (sick_envs.HiddenLimitAsEnd, "warning ends: 10 of 10 episodes were terminated after exactly 30 steps"),
    (sick_envs.PastLimit, "warning ends: an episode went on for .* past the declared time limit of 5"),
    (sick_envs.BothFlags, "warning ends: all .* ends have both flags set"),
    (sick_envs.Endless, "warning ends: no episode ended in 300 steps, and there is no time limit"),
    (sick_envs.NeverBegins, "error ends: all .* episodes after the first ones ended at their first step"),
    (sick_envs.ResetsItself, "error ends: .* final observations look like the first ones"),
    (sick_envs.GoesOn, "note ends: 10 of 10 steps after an end say that nothing has ended"),
    (sick_envs.Leaks, "error memory: memory grows by [45].. bytes per step .* at .*sick_envs.py:"),
    (sick_envs.BadState, "error state: after set_state\\(\\) step .* was another one"),
    (sick_envs.RaisingState, "error state: the state cannot be saved and restored \\(KeyError: 'place'\\)"),
    (sick_envs.NoState, "note state: fastac cannot save the state"),
    (sick_envs.Afraid, "error actions: the action \\[-1.\\], at the border of its space, failed .*ZeroDivisionError"),
    (sick_envs.Falls, "error failure: .*Falls raised RuntimeError: the simulator fell over when it was examined"),
    (sick_envs.OldReset, "error failure: .*reset\\(\\) does not take seed and options"),
    (sick_envs.OldStep, "error failure: .*step\\(\\) returned 4 values"),
    (sick_envs.CannotClose, "error failure: .* raised OSError: no such window in close"),
    (partial(sick_envs.make_with, sys.stderr), "warning processes: other processes cannot build it"),
    (sick_envs.Draws, "warning time: render_mode is 'human'"),
    (sick_envs.Texts, "error spaces: fastac cannot train with these spaces: the observation space is Text"),
    (sick_envs.Warns, "note warnings: RuntimeWarning at .*sick_envs.py:[0-9]+: divide by zero"),
    (lambda: sick_envs.Healthy(), "warning processes: other processes cannot build it"),
    (sick_envs.make_same_as_next, "error autoreset: .* steps after an end were no mere resets .* NextStep promises"),
    (sick_envs.make_same_as_next, "error ends: .* final observations look like the first ones"),
    (sick_envs.make_next_as_same, "error autoreset: .* ends came without infos\\['final_obs'\\]"),
    (sick_envs.make_first_as_final, "error autoreset: .* ends have the first observation of the next episode"),
    (sick_envs.make_undeclared, "error autoreset: metadata\\['autoreset_mode'\\] is None"),
    (sick_envs.make_without_mask, "error autoreset: .* environments were reset though options\\['reset_mask'\\]"),
]


@pytest.mark.parametrize(("env", "says"), FAULTS, ids=lambda value: getattr(value, "__name__", "").strip("<>"))
def test_a_fault_is_found(env, says):
    diagnosis = look_at(env)
    assert re.search(f"^{says}", tell(diagnosis), re.M), tell(diagnosis)


@pytest.mark.parametrize(
    "env",
    [
        sick_envs.Healthy,
        sick_envs.make_limited,
        partial(sick_envs.Healthy, level=2),
        *(partial(sick_envs.make_healthy_batch, mode=mode) for mode in AutoresetMode),
    ],
    ids=["class", "function", "partial", *(mode.value for mode in AutoresetMode)],
)
def test_nothing_is_found_in_a_healthy_one(env):
    diagnosis = look_at(env)
    unnamed = [finding for finding in diagnosis.warnings if finding.check == "processes"]  # of a partial with a mode
    assert not diagnosis.errors and list(diagnosis.warnings) == unnamed, tell(diagnosis)


def make_masked_batch(told, num_envs):
    return gym.vector.SyncVectorEnv([partial(masked_envs.Masked, told, "several")] * num_envs)


PLACES = {
    "observation": "the observation's key 'action_mask'",
    "method": "the method action_masks\\(\\)",
    "info": "info\\['action_mask'\\]",
}


@pytest.mark.parametrize(
    ("told", "kind"),
    [*zip(PLACES, ("discrete", "several", "bits"), strict=True), *((told, "batch") for told in PLACES)],
)
def test_only_legal_actions_are_taken(told, kind):
    """An illegal one raises."""
    env = partial(make_masked_batch, told) if kind == "batch" else partial(masked_envs.Masked, told, kind)
    diagnosis = look_at(env, 50)
    assert not diagnosis.errors, tell(diagnosis)
    assert re.search(f"^ok masks: in {PLACES[told]}; all .* only legal ones were taken$", tell(diagnosis), re.M)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (masked_envs.Stuck, "1 of 2 action masks are wrong \\(first: the action mask of env 0 allows no action"),
        (masked_envs.Narrow, "action masks are wrong \\(first: the action mask has shape \\[4\\], expected \\[5\\]"),
        (sick_envs.NoMaskLater, "action masks are wrong \\(first: the info has no 'action_mask'"),
    ],
)
def test_a_wrong_mask_is_found(env, says):
    assert re.search(f"^error masks: .*{says}", tell(look_at(env, 50)), re.M), tell(look_at(env, 50))


def test_masks_that_are_not_wanted_are_not_looked_at():
    diagnosis = examine(EnvConfig("Taxi-v4", 1, mask_actions=False), None, 60.0, 50)
    assert not diagnosis.errors and "masks:" not in tell(diagnosis)
    assert not look_at("Taxi-v4", 50).errors


def test_a_text_is_one_finding_unless_it_is_dropped(monkeypatch):
    monkeypatch.setattr("fastac.tools.doctor.examination.STEPS", 50)
    (error,) = look_at(dict_envs.Signs, 50).errors
    assert error.check == "spaces" and "leave it out with --drop-keys mission" in error.text
    assert not fastac.doctor(dict_envs.Signs, drop_keys=["mission"], seconds=60.0).errors


@pytest.mark.parametrize("space", [Discrete(3, start=4), MultiDiscrete([2, 3], start=[1, -1]), MultiBinary(2)], ids=str)
def test_a_legal_action_stays_and_an_illegal_one_becomes_legal(space):
    rng, masks = np.random.default_rng(0), Masks(space, 1)
    masks.source = "info"
    reader = MaskReader(masks.choices)
    space.seed(0)
    for _ in range(50):
        legal = reader.complete(rng.random((1, reader.size)) < 0.4, np.array([True]))
        masks.see(lambda reader, legal=legal: legal, np.array([False]))
        action = space.sample()
        made = masks.make_legal(action)
        assert space.contains(made) and np.array_equal(masks.make_legal(action), made)
        hot = np.concatenate([np.arange(n) == at for n, at in zip(masks.choices, shift(space, made), strict=True)])
        assert legal[0][hot].all()
        was = np.concatenate([np.arange(n) == at for n, at in zip(masks.choices, shift(space, action), strict=True)])
        assert not legal[0][was].all() or made is action or np.array_equal(made, action)


def shift(space, action):
    return np.atleast_1d(action) - np.atleast_1d(getattr(space, "start", 0))


# Gymnasium's families, each environment in its newest version.
FAMILIES = ("gymnasium.envs.classic_control", "gymnasium.envs.box2d", "gymnasium.envs.mujoco")
CHEAP = {"CartPole-v1", "MountainCarContinuous-v0", "Acrobot-v1", "InvertedPendulum-v5"}


def newest() -> list[str]:
    found: dict[str, int] = {}
    for spec in gym.registry.values():
        if str(spec.entry_point).startswith(FAMILIES):
            found[spec.name] = max(spec.version, found.get(spec.name, 0))
    return [f"{name}-v{version}" for name, version in found.items()]


def test_all_families_are_looked_at():
    assert {"CartPole-v1", "BipedalWalkerHardcore-v3", "Humanoid-v5"} | CHEAP <= set(newest())


def assert_nothing_is_wrong(env_id: str, steps: int) -> None:
    try:
        diagnosis = look_at(env_id, steps)
    except ValueError as error:
        pytest.skip(str(error))  # an extra that is not installed
    assert not diagnosis.errors and not diagnosis.warnings, tell(diagnosis)


@pytest.mark.parametrize("env_id", sorted(CHEAP))
def test_nothing_is_found_in_a_cheap_one_of_gymnasium(env_id):
    assert_nothing_is_wrong(env_id, 300)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", newest())
def test_nothing_is_found_in_any_of_gymnasium(env_id):
    assert_nothing_is_wrong(env_id, 1_000 if "CarRacing" in env_id else 10_000)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("fastac.tools.doctor.budget.time", sick_envs.CLOCK)
    return sick_envs.CLOCK


def test_a_slow_one_makes_fewer_steps(clock):
    began = clock.now
    diagnosis = look_at(sick_envs.Slow, 10_000, seconds=2.0)
    assert diagnosis.is_cut and 50 <= diagnosis.env_steps <= 100  # 45 % of 200
    assert clock.now - began < 2.5 and "no time was left" not in tell(diagnosis)


def test_what_there_is_no_time_for_is_named(clock):
    diagnosis = look_at(sick_envs.SlowReset, 10_000, seconds=0.06)
    assert diagnosis.env_steps == 1
    assert "no time was left for these checks: actions, memory, time, gymnasium, seeds, state" in tell(diagnosis)


def test_what_a_step_costs_is_told(monkeypatch):
    monkeypatch.setattr("fastac.tools.doctor.machine.count_cores", lambda: 4)
    patient = build_patient(EnvConfig("sick_envs:Healthy"), None)
    clock = Clock(array("d", [0.002] * 3), array("d", [0.02]))
    findings = [
        *judge_time(patient, clock, Cost("physics (simulator.py:3)", 0.6), EnvConfig("sick_envs:Healthy"), None)
    ]
    assert [finding.severity for finding in findings] == ["ok", "note", "note"]
    assert findings[0].text == (
        "a step takes 2 ms, resets are 77% of the time, and physics (simulator.py:3) is 60% of a step"
    )
    assert "20 ms each" in findings[1].text and "uses 4 of them" in findings[2].text


@pytest.mark.parametrize(
    ("growth", "says"),
    [
        (Growth(200, 9_000, 9_000, "env.py:3", (0, 0)), "memory grows by 90 bytes per step (200 steps), most of it"),
        (Growth(200, 9_000, 0, "env.py:3", (0, 0)), "does not grow"),  # a cache that is full
        (Growth(200, 1_500, 1_500, "env.py:3", (0, 0)), "does not grow"),  # the interpreter's own
        (Growth(200, 0, 0, "", (20_000_000, 20_000_000)), "the process grows by 40 kB per step (1,000 steps)"),
        (Growth(200, 0, 0, "", (20_000_000, 0)), "does not grow"),
    ],
)
def test_growth_in_both_halves_is_a_leak(growth, says):
    (finding,) = judge_growth(growth, 1_000)
    assert finding.text.startswith(says) and (finding.severity == "error") == ("grows by" in says)


def test_the_first_quarter_of_the_memorys_readings_is_no_growth():
    assert find_resident_growth([0, 50, 60, 60, 60, 70, 80, 90]) == (10, 20)
    assert find_resident_growth([0, 50]) == (0, 0)


def test_numbers_in_infos_are_named():
    assert "ok info: a run records these numbers of an episode's last info: is_success (as success_rate), dist" in tell(
        look_at(sick_envs.Telling)
    )


def test_global_streams_are_left_as_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist()
    look_at(sick_envs.GlobalNumpy), look_at(sick_envs.GlobalPython)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_python_face(monkeypatch):
    monkeypatch.setattr("fastac.tools.doctor.examination.STEPS", 50)
    diagnosis = fastac.doctor(sick_envs.HugeReward, env_kwargs={"level": 2}, seconds=20)
    assert isinstance(diagnosis, fastac.Diagnosis) and diagnosis.env_id == "sick_envs:HugeReward"
    assert [finding.check for finding in diagnosis.warnings] == ["rewards"]
    assert isinstance(diagnosis.warnings[0], fastac.Finding) and not diagnosis.errors
    with pytest.raises(ValueError, match="seconds is 0, expected a number above 0"):
        fastac.doctor("CartPole-v1", seconds=0)


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("fastac.tools.doctor.examination.STEPS", 300)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sick_envs:Healthy", "--env-kwargs", "level=3"], 0),
        (["sick_envs:HugeReward"], 0),
        (["sick_envs:HugeReward", "--strict"], 1),
        (["sick_envs:NanReward"], 1),
        (["sick_envs:Healthy", "--env-kwargs", "size=3"], 2),
        (["sick_envs:Healty"], 2),
        (["ALE/Pong-v5"], 2),
        (["CartPole-v1", "--seconds", "-1"], 2),
        (["CartPole-v1", "--num-envs", "3"], 2),
        ([], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_exit_code(short, capsys, words, code):
    assert main(["doctor", *words]) == code
    out, err = capsys.readouterr()
    assert (out == "") == (code == 2) and (err.splitlines()[-1:] == []) == (code != 2)


def test_json_is_one_line(short, capsys):
    assert main(["doctor", "sick_envs:NanReward", "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["env_id"], told["env_steps"], told["errors"], told["warnings"]) == ("sick_envs:NanReward", 300, 1, 0)
    assert {"severity", "check", "text"} == set(told["findings"][0])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_report_reads_from_fine_to_wrong_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = "2 of 50 rewards are NaN (first nan at step 3): find what divides by zero or overflows in the simulator."
    findings = (
        Finding("error", "rewards", text),
        Finding("ok", "seeds", "the same seed and actions give the same 200 steps"),
        Finding("warning", "observations", text),
        Finding("note", "state", text),
    )
    lines = format_diagnosis(Diagnosis("a:B", 50, 3, 1.25, True, findings), Terminal()).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "a:B: 50 random steps, 3 episodes, 1.2 s; the time was up, --seconds gives more"
    assert [line.split()[0] for line in lines[2:] if line[:1].strip()][:4] == ["ok", "note", "WARNING", "ERROR"]
    assert lines[-1] == "1 error and 1 warning: correct the errors before you train."
    assert " ".join(text.split()) in " ".join("\n".join(lines).split())

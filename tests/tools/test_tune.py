"""`fastac tune`: what is measured and in which order, when it stops, what is kept, and which flag wins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from fastac.cli import main
from fastac.config import Config
from fastac.contract import EnvFailure
from fastac.presets.classic import cartpole_a2c_fast
from fastac.runs.files import RecordError
from fastac.runs.run_dir import RunDirectory
from fastac.tools.tune import Measurement, Search, Setting, cache_path, load_tuned, measure_sps, save_tuned

NATIVE = cartpole_a2c_fast()
ATARI = Config().replace(env_id="ALE/Pong-v5", num_envs=8, num_steps=16)
SYNC = Config().replace(env_id="Acrobot-v1", algo="ppo", num_envs=8, num_steps=16, num_minibatches=4)
FLAGS = ("--num-steps", "8", "--eval-every", "0", "--eval-episodes", "2", "--no-tensorboard")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _four_cores_and_few_vectorizations(monkeypatch):
    monkeypatch.setattr("fastac.envs.offers.has_pool", lambda env_id: False)
    monkeypatch.setattr("fastac.envs.offers.has_compiled", lambda config, given: False)
    monkeypatch.setattr("fastac.tools.tune.count_cores", lambda: 4)
    monkeypatch.setattr("fastac.tools.tune.count_physical_cores", lambda: 4)


def setting_of(config: Config) -> Setting:
    return Setting(config.env.num_envs, config.run.workers, config.env.vectorization, config.run.reuse_forward)


def search(config: Config, rate: Callable[[Setting], float], cores: int = 4, seconds: float = 1.0) -> Search:
    return Search(config, lambda config: rate(setting_of(config)), seconds, cores)


def settings(trials) -> list[Setting]:
    return [trial.setting for trial in trials]


# --- what is measured --------------------------------------------------------------------------------


def test_one_thing_at_a_time_is_varied_from_the_plainest():
    found = search(NATIVE, lambda setting: 1000.0 * setting.workers * (setting.vectorization == "native"))
    assert settings(found.run()) == [
        Setting(64, 1, "native", True),
        Setting(64, 1, "sync", True),
        Setting(64, 1, "process", True),
        Setting(64, 2, "native", True),
        Setting(64, 4, "native", True),
        Setting(64, 4, "native", False),  # of the best so far
    ]
    assert found.best == Measurement(Setting(64, 4, "native", True), 4000.0, found.best.took_s)


def test_without_a_batch_of_its_own_processes_compete_with_workers():
    found = search(SYNC, lambda setting: 3000.0 if setting.vectorization == "process" else 1000.0 * setting.workers)
    assert settings(found.run()) == [
        Setting(8, 1, "sync", True),
        Setting(8, 1, "process", True),
        Setting(8, 2, "sync", True),
        Setting(8, 4, "sync", True),  # and no forwards that could be reused: four minibatches
    ]
    assert found.best.setting == Setting(8, 4, "sync", True)


def test_all_that_the_id_has_are_measured_and_workers_share_the_fastest(monkeypatch):
    monkeypatch.setattr("fastac.envs.offers.has_pool", lambda env_id: env_id == "Acrobot-v1")
    monkeypatch.setattr("fastac.envs.offers.has_compiled", lambda config, given: True)
    rates = {"compiled": 500.0, "sync": 1000.0, "process": 1500.0, "envpool": 3000.0}
    found = search(SYNC, lambda setting: rates[setting.vectorization] - setting.workers, cores=2)
    assert settings(found.run()) == [
        Setting(8, 1, "compiled", True),
        Setting(8, 1, "sync", True),
        Setting(8, 1, "process", True),
        Setting(8, 1, "envpool", True),
        Setting(8, 2, "envpool", True),
    ]
    assert found.best.setting == Setting(8, 1, "envpool", True)
    assert settings(found.grow()) == [  # with more environments, the batch that comes first gets another chance
        Setting(32, 1, "envpool", True),
        Setting(32, 2, "envpool", True),
        Setting(32, 2, "compiled", True),
    ]


@pytest.mark.parametrize("asked", ["sync", "process", "envpool"])
def test_a_vectorization_that_was_asked_for_is_kept(asked):
    found = search(SYNC.replace(vectorization=asked), lambda setting: 1000.0 * setting.workers, cores=2)
    workers = (1,) if asked == "process" else (1, 2)  # which cannot be shared
    assert settings(found.run()) == [Setting(8, number, asked, True) for number in workers]
    assert {setting.vectorization for setting in settings(found.grow())} == {asked}


def test_what_the_configuration_refuses_is_left_out():
    found = search(ATARI, lambda setting: 1000.0 * setting.workers)  # Atari games have one way to be batched
    assert settings(found.run()) == [
        Setting(8, 1, "native", True),
        Setting(8, 2, "native", True),
        Setting(8, 4, "native", True),
        Setting(8, 4, "native", False),
    ]
    assert all(not trial.failure for trial in [*found.own, *found.grow()])
    assert {trial.setting.vectorization for trial in found.larger} == {"native"}


def test_more_workers_are_tried_until_they_are_slower():
    found = search(NATIVE, lambda setting: 1000.0 - setting.workers, cores=64)
    assert [setting.workers for setting in settings(found.run())] == [1, 1, 1, 2, 1]


def test_worker_counts_are_powers_of_two_and_all_cores():
    found = search(NATIVE.replace(num_envs=60), lambda setting: setting.workers, cores=12)
    assert [setting.workers for setting in settings(found.run())][3:-1] == [2, 4, 12]  # 60 envs are no multiple of 8


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        (NATIVE.replace(num_envs=1), 3),
        (SYNC.replace(num_envs=1), 1),
        (NATIVE.replace(device="cuda"), 3),
    ],
)
def test_what_cannot_differ_is_left_out(config, lines):
    assert len(list(search(config, lambda setting: 1.0).run())) == lines


def test_of_nearly_equal_ones_the_plainest_is_best():
    found = search(NATIVE, lambda setting: 1000.0 + 9.0 * setting.workers - setting.reuse_forward)
    list(found.run())
    assert found.best.setting == Setting(64, 1, "native", True)
    found.own[3] = replace(found.own[3], sps=1040.0)
    assert found.best.setting.workers == 2


def test_a_setting_that_does_not_work_is_told_and_passed_over():
    def rate(setting: Setting) -> float:
        if setting.vectorization == "process":
            raise ValueError("vectorization 'process' cannot send the environment.")
        return 1000.0

    found = search(SYNC, rate)
    failed = list(found.run())[1]
    assert (failed.sps, failed.failure) == (0.0, "vectorization 'process' cannot send the environment.")
    assert found.best.setting.vectorization == "sync"


def test_an_environment_that_does_not_work_at_all_ends_it():
    def rate(setting: Setting) -> float:
        raise EnvFailure("env 0 raised an error in reset.")

    with pytest.raises(EnvFailure, match="env 0 raised"):
        next(search(SYNC, rate).run())


# --- more environments -------------------------------------------------------------------------------


def test_environments_grow_until_that_gains_no_more():
    rates = {64: 1e5, 256: 3e5, 1024: 6e5, 4096: 6.5e5}
    found = search(NATIVE, lambda setting: rates[setting.num_envs] - setting.workers, cores=1)
    list(found.run())
    assert settings(found.grow()) == [Setting(num, 1, "native", True) for num in (256, 1024, 4096)]
    assert found.best.setting.num_envs == 64
    assert found.fastest.setting.num_envs == 4096  # slightly, but beyond noise


def test_with_more_environments_all_cores_get_another_chance():
    def rate(setting: Setting) -> float:
        return 1e5 / (1.0 / setting.workers + (100.0 + 500.0 * (setting.workers > 1)) / setting.num_envs)

    found = search(NATIVE, rate)
    list(found.run())
    assert found.best.setting.workers == 1
    assert [(s.num_envs, s.workers) for s in settings(found.grow())][:3] == [(256, 1), (256, 4), (1024, 1)]
    assert found.fastest.setting.workers == 4


def test_no_iteration_longer_than_a_measurement_is_begun():
    found = search(SYNC, lambda setting: 1000.0 * setting.num_envs / 8, cores=1, seconds=0.5)
    list(found.run())
    assert settings(found.grow()) == []  # 32 envs * 16 steps take 0.512 s at the rate of 8
    found.seconds = 0.52
    assert [setting.num_envs for setting in settings(found.grow())] == [32, 128, 512, 2048, 8192, 32768]


def test_measuring_trains_and_counts_steps_per_second():
    config = NATIVE.replace(num_envs=4, hidden_sizes=(8,), learning_rate=1.0, learning_rate_schedule="linear")
    assert measure_sps(config, 0.01) > 0.0


# --- what is kept ------------------------------------------------------------------------------------

BEST = Measurement(Setting(64, 4, "sync", False), 1234.5, 1.0)


def test_what_is_kept_comes_back(cache):
    assert load_tuned(NATIVE) is None
    path = save_tuned(NATIVE, BEST)
    assert path.is_relative_to(cache / "fastac")
    assert load_tuned(NATIVE) == BEST.setting
    assert json.loads(path.read_text())["sps"] == 1234.5
    assert load_tuned(NATIVE.replace(gamma=0.9, learning_rate=1e-3, seed=3, workers=2)) == BEST.setting


@pytest.mark.parametrize(
    "changes",
    [
        {"env_id": "Acrobot-v1"},
        {"algo": "ppo"},
        {"num_envs": 128},
        {"num_steps": 16},
        {"hidden_sizes": (64,)},
        {"activation": "relu"},
        {"shared_trunk": True},
        {"normalize_obs": True},
    ],
)
def test_what_was_tuned_for_something_else_is_not_taken(changes):
    save_tuned(NATIVE, BEST)
    assert load_tuned(NATIVE.replace(**changes)) is None


OTHER_ENV = {
    "env_id": "ALE/Breakout-v5",
    "num_envs": 16,
    "envs_per_worker": 8,
    "start_timeout_s": 60.0,
    "env_timeout_s": 60.0,
    "env_threads": 2,
    "atari_protocol": "a3c",
    "sticky_actions": 0.25,
    "noop_max": 1,
    "fire_reset": False,
    "frame_skip": 2,
    "max_pool": False,
    "screen_size": 64,
    "frame_stack": 3,
    "episodic_life": False,
    "full_action_space": True,
    "max_frames": 1000,
    "clip_rewards": False,
    "mask_actions": False,
}


def test_every_setting_of_the_environments_counts():
    save_tuned(ATARI, replace(BEST, setting=Setting(8, 2, "native", False)))
    assert load_tuned(ATARI.replace(seed=3)) == Setting(8, 2, "native", False)
    # All but what is tuned, and what no game of Atari can have.
    others = {"vectorization", "squash_actions", "env_kwargs", "wrappers", "drop_keys", "critic_keys"}
    assert OTHER_ENV.keys() == asdict(ATARI.env).keys() - others
    for name, value in OTHER_ENV.items():
        other = replace(ATARI, env=replace(ATARI.env, **{name: value}))  # alone, the protocol's name too
        assert other != ATARI
        assert load_tuned(other) is None, name
    pendulum = Config().replace(env_id="Pendulum-v1", num_envs=64)
    save_tuned(pendulum, BEST)
    assert load_tuned(pendulum) == BEST.setting
    assert load_tuned(pendulum.replace(squash_actions=True)) is None
    assert load_tuned(pendulum.replace(env_kwargs={"g": 9.81})) is None
    assert load_tuned(pendulum.replace(wrappers=["mymodule:MyWrapper"])) is None


@pytest.mark.parametrize("what", ["count_cores", "cpu_model", "versions"])
def test_what_was_tuned_elsewhere_is_not_taken(monkeypatch, what):
    save_tuned(NATIVE, BEST)
    other = {"count_cores": 8, "cpu_model": "Z80", "versions": {"fastac": "0.0.1"}}[what]
    monkeypatch.setattr(f"fastac.tools.tune.{what}", lambda: other)
    assert load_tuned(NATIVE) is None


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"setting": {}}',
        '{"setting": {"workers": "auto", "vectorization": "sync", "reuse_forward": true}}',
        '{"setting": {"workers": 3, "vectorization": "sync", "reuse_forward": true}}',
        '{"setting": {"workers": 2, "vectorization": "warp", "reuse_forward": true}}',
        '{"setting": {"workers": 2, "vectorization": "sync", "reuse_forward": []}}',
    ],
)
def test_a_damaged_file_is_as_none(content):
    path = save_tuned(NATIVE, BEST)
    path.write_text(content)
    assert load_tuned(NATIVE) is None
    assert save_tuned(NATIVE, BEST) == path
    assert load_tuned(NATIVE) == BEST.setting


def test_the_cache_is_where_xdg_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache_path(NATIVE).is_relative_to(tmp_path / ".cache" / "fastac")


def test_without_a_home_nothing_is_kept(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert load_tuned(NATIVE) is None
    with pytest.raises(RecordError, match="set XDG_CACHE_HOME"):
        save_tuned(NATIVE, BEST)


# --- the command line --------------------------------------------------------------------------------


def use_rates(monkeypatch, rate: Callable[[Setting], float]) -> list[Setting]:
    """Make up what is measured; return the list of what was."""
    measured = []

    def measure(config: Config, seconds: float) -> float:
        measured.append(setting_of(config))
        return rate(measured[-1])

    monkeypatch.setattr("fastac.tools.tune.measure_sps", measure)
    return measured


def pair_up(setting: Setting) -> float:
    """Two workers without reuse are best for few environments; four times the environments bring 5% more."""
    return 1e5 * (1 + (setting.workers == 2)) * (2 - setting.reuse_forward) * (1.05 if setting.num_envs > 64 else 1)


def test_tune_prints_a_table_and_lines_to_paste(capsys, monkeypatch):
    use_rates(monkeypatch, pair_up)
    assert main(["tune", "CartPole-v1", "--preset", "a2c-fast", "--gamma", "0.9", "--seconds", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    title, _, *rows = out[: out.index("\n\nFastest vectorization")].splitlines()
    assert title.startswith("CartPole-v1, a2c, ") and title.endswith(": 0.5 s each, untrained policy")
    assert rows[0].split() == ["envs", "workers", "vectorization", "reuse-forward", "steps/s", "took"]
    assert [row.split()[:5] for row in rows[1:]] == [
        ["64", "1", "native", "yes", "100,000"],
        ["64", "1", "sync", "yes", "100,000"],
        ["64", "1", "process", "yes", "100,000"],
        ["64", "2", "native", "yes", "200,000"],
        ["64", "4", "native", "yes", "100,000"],
        ["64", "2", "native", "no", "400,000"],
        ["256", "2", "native", "no", "420,000"],
        ["256", "4", "native", "no", "210,000"],
    ]
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) <= 80
    flags = "--workers 2 --vectorization native --no-reuse-forward"
    assert re.findall(r"^  (fastac .*)$", out, re.M) == [
        f"fastac train CartPole-v1 --preset a2c-fast --gamma 0.9 {flags}",
        "fastac train CartPole-v1 --preset a2c-fast --gamma 0.9 --tuned",
        f"fastac train CartPole-v1 --preset a2c-fast --gamma 0.9 --num-envs 256 {flags}",
    ]
    assert "\nFastest vectorization here, of native, sync, process: native.\n" in out
    assert "every update then learns from 4 times the rows" in out
    assert f"Kept in {cache_path(NATIVE)}" in out
    assert load_tuned(NATIVE) == Setting(64, 2, "native", False)


def test_what_does_not_work_stands_below_its_line(capsys, monkeypatch):
    def rate(setting: Setting) -> float:
        if setting.vectorization == "sync":
            raise EnvFailure("env 3 could not be built.")
        return 1000.0

    use_rates(monkeypatch, rate)
    assert main(["tune", "CartPole-v1", "--preset", "a2c-fast"]) == 0
    row, below = capsys.readouterr().out.splitlines()[4:6]
    assert row.split()[2:5] == ["sync", "yes", "-"]
    assert below.strip() == "which does not work here: env 3 could not be built."


def train(tmp_path, *flags: str) -> Config:
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", "--preset", "a2c-fast", *FLAGS, "--total-env-steps", "100", *flags]
    assert main([*words, "--run-dir", str(run_dir)]) == 0
    return RunDirectory.open(run_dir).read_config()


def test_train_takes_what_was_tuned(tmp_path, capsys, monkeypatch):
    save_tuned(NATIVE, replace(BEST, setting=Setting(64, 1, "sync", False)))
    monkeypatch.setattr("fastac.tools.tune.measure_sps", lambda *_: pytest.fail("nothing is to be measured"))
    config = train(tmp_path, "--tuned")
    assert setting_of(config) == Setting(64, 1, "sync", False)
    says = capsys.readouterr().err.splitlines()[0]
    assert says == "tuned: --workers 1 --vectorization sync --no-reuse-forward"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--workers", "2"), Setting(64, 2, "sync", False)),
        (("--reuse_forward",), Setting(64, 1, "sync", True)),
        (("--workers=2", "--reuse-forward"), Setting(64, 2, "sync", True)),
    ],
)
def test_flags_win_over_what_was_tuned(tmp_path, capsys, flags, expected):
    save_tuned(NATIVE, replace(BEST, setting=Setting(64, 1, "sync", False)))
    assert setting_of(train(tmp_path, "--tuned", *flags)) == expected
    assert capsys.readouterr().err.splitlines()[0].endswith("(but for what is given)")


def test_a_vectorization_that_was_asked_for_is_tuned_by_itself(tmp_path, capsys, monkeypatch):
    measured = use_rates(monkeypatch, lambda setting: 1000.0)
    save_tuned(NATIVE, replace(BEST, setting=Setting(64, 1, "sync", False)))
    assert setting_of(train(tmp_path, "--tuned", "--vectorization", "native")) == Setting(64, 1, "native", True)
    assert {setting.vectorization for setting in measured} == {"native"}
    assert load_tuned(NATIVE.replace(vectorization="native")) == Setting(64, 1, "native", True)
    assert load_tuned(NATIVE) == Setting(64, 1, "sync", False)


def test_tune_keeps_the_vectorization_in_the_lines_to_paste(capsys, monkeypatch):
    use_rates(monkeypatch, lambda setting: 1000.0)
    assert main(["tune", "CartPole-v1", "--preset", "a2c-fast", "--vectorization=native"]) == 0
    out = capsys.readouterr().out
    assert "Fastest vectorization here, of native: native." in out
    assert re.findall(r"^  (fastac .*)$", out, re.M) == [
        "fastac train CartPole-v1 --preset a2c-fast --workers 1 --vectorization native --reuse-forward",
        "fastac train CartPole-v1 --preset a2c-fast --vectorization=native --tuned",
    ]


def test_nothing_is_tuned_unless_asked(tmp_path):
    save_tuned(NATIVE, replace(BEST, setting=Setting(64, 1, "sync", False)))
    assert setting_of(train(tmp_path)) == Setting(64, 1, "auto", True)


def test_train_measures_first_where_nothing_is_kept(tmp_path, capsys, monkeypatch):
    measured = use_rates(monkeypatch, lambda setting: 1000.0 * (2 - setting.reuse_forward))
    assert setting_of(train(tmp_path, "--tuned")) == Setting(64, 1, "native", False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Nothing is tuned for this on this machine yet, so that comes first.\n")
    assert f"Kept in {cache_path(NATIVE)}" in err
    assert {setting.num_envs for setting in measured} == {64}  # the algorithm's own, which is not to change
    assert load_tuned(NATIVE) == Setting(64, 1, "native", False)


def test_what_cannot_be_kept_is_said_and_used(tmp_path, capsys, monkeypatch, cache):
    use_rates(monkeypatch, lambda setting: 1000.0 * (2 - setting.reuse_forward))
    cache.write_text("")  # a file, so that no directory can be made
    assert setting_of(train(tmp_path, "--tuned")) == Setting(64, 1, "native", False)
    assert "It is not kept for next time: cannot write " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("tune", "tune needs an environment id first, such as: fastac tune CartPole-v1"),
        ("tune CartPol-v1", "did you mean CartPole-v1"),
        ("tune CartPole-v1 --workers 2", "--workers is what fastac tune finds: leave it out"),
        ("tune CartPole-v1 --no-reuse-forward", "--reuse-forward is what fastac tune finds"),
        ("tune CartPole-v1 --vectorization=gpu", "--vectorization: 'gpu' is not known: expected one of auto"),
        ("tune CartPole-v1 --seconds 0", r"seconds is 0\.0, expected a number above 0"),
        ("tune CartPole-v1 --seconds nan", "seconds is nan, expected a number above 0"),
        ("tune CartPole-v1 --num-envs 0", "num_envs is 0, expected a whole number from 1"),
        ("tune CartPole-v1 --run-dir x", "'--run-dir' is not an option of fastac tune ENV_ID"),
        ("tune CartPole-v1 --env-id Acrobot-v1", "named twice"),
        ("tune CartPole-v1 --algo dqn", "--algo: 'dqn' is not known: expected one of a2c"),
        ("train CartPole-v1 --tuned --gamma 2", r"gamma is 2\.0, expected"),
        ("train CartPol-v1 --tuned", "did you mean CartPole-v1"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastac.tools.tune.measure_sps", lambda *_, **__: pytest.fail("nothing is to be measured"))
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastac: ") and err.count("\n") == 1
    assert re.search(says, err), err
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_wait_for_torch():
    script = (
        "import sys\nfrom fastac.cli import main\n"
        "try:\n    main(['tune', '--help-all'])\n"
        "finally:\n    assert not {'torch', 'gymnasium'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--seconds FLOAT" in done.stdout and "--num-envs INT" in done.stdout

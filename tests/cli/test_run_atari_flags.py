"""An Atari game's settings by flags: a protocol's word is taken whole, booleans have every spelling, and flags win."""

from __future__ import annotations

import pytest

from fastac.cli import main
from fastac.config import Config, EnvConfig

PONG = "ALE/Pong-v5"


class Parsed(Exception):
    """Ends a command where it would begin to train or to measure."""


@pytest.fixture(autouse=True)
def _parse_only(monkeypatch):
    def stop(config: Config, *_: object, **__: object) -> None:
        raise Parsed(config)

    monkeypatch.setattr("fastac.api.start_config", stop)
    monkeypatch.setattr("fastac.tools.tune.Search", stop)


def parse(command: str, *words: str, env_id: str = PONG) -> Config:
    with pytest.raises(Parsed) as parsed:
        main([command, env_id, *words])
    (config,) = parsed.value.args
    return config


def protocol_of(env: EnvConfig) -> dict[str, object]:
    """Return what a protocol has a word for."""
    others = {"env_id", "num_envs", "vectorization", "envs_per_worker", "env_threads", "squash_actions"}
    return {name: getattr(env, name) for name in env.__dataclass_fields__ if name not in others}


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("preset", ["ppo", "a3c"])
@pytest.mark.parametrize("protocol", ["dqn", "machado", "a3c"])
def test_a_protocol_is_taken_with_all_it_says(command, preset, protocol):
    expected = protocol_of(EnvConfig(PONG, atari_protocol=protocol))
    for words in (["--atari-protocol", protocol], ["--atari_protocol", protocol], [f"--atari_protocol={protocol}"]):
        config = parse(command, *words, "--preset", preset)
        assert protocol_of(config.env) == expected
        assert config.env.env_id == PONG


def test_protocols_differ_and_a_preset_may_have_its_own():
    sticky = [parse("train", "--atari-protocol", name).env.sticky_actions for name in ("dqn", "machado")]
    assert sticky == [0.0, 0.25]
    assert parse("train", "--preset", "a3c").env.atari_protocol == "a3c"
    assert parse("train", "--preset", "a3c").env.episodic_life is False
    over = parse("train", "--preset", "a3c", "--atari-protocol", "dqn").env
    assert (over.fire_reset, over.episodic_life) == (True, True)


def test_a_game_without_a_preset_has_protocols_too():
    env = parse("train", "--atari-protocol", "machado", env_id="ALE/Tennis-v5").env
    assert protocol_of(env) == protocol_of(EnvConfig(PONG, atari_protocol="machado"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_beside_the_protocol_wins(order):
    pairs = [("--atari-protocol", "machado"), ("--noop-max", "1"), ("--episodic-life",), ("--num-envs", "24")]
    env = parse("train", *(word for pair in pairs[::order] for word in pair)).env
    assert (env.noop_max, env.episodic_life, env.num_envs) == (1, True, 24)
    assert (env.sticky_actions, env.full_action_space, env.max_frames) == (0.25, True, 18_000)


def test_no_protocol_is_the_default_one():
    env = parse("train", "--preset", "a3c", "--atari-protocol", "None").env
    assert protocol_of(env) == protocol_of(EnvConfig(PONG))


@pytest.mark.parametrize("command", ["train", "tune"])
def test_help_shows_the_protocols_values(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "ALE/Tennis-v5", "--atari-protocol", "machado", "--help-all"])
    assert stop.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "or a3c. (default: machado)" in told
    assert "frame by frame. (default: 0.25)" in told
    assert "--[no-]fire-reset Atari: press FIRE" in told and "has a --no- too" in told


BOOLEANS = ("fire_reset", "max_pool", "episodic_life", "full_action_space", "clip_rewards")


def test_these_are_the_booleans_that_may_be_none():
    always = {"mask_actions"}
    found = {name for name, value in protocol_of(EnvConfig(PONG)).items() if isinstance(value, bool)}
    assert found - always == set(BOOLEANS)


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize(
    ("value", "spellings"),
    [
        (True, "--x; --x True; --x true; --x=True; --x=true"),
        (False, "--no-x; --x False; --x false; --x=False; --x=false"),
    ],
)
def test_a_boolean_has_every_spelling(name, value, spellings):
    for at, spelling in enumerate(spellings.split("; ")):
        flag = name if at % 2 else name.replace("_", "-")
        words = spelling.replace("x", flag).split()
        for line in ([*words, "--seed", "3"], ["--seed", "3", *words]):
            config = parse("train", "--preset", "a3c", *line)
            assert getattr(config.env, name) is value, line
            assert config.run.seed == 3


def test_none_is_the_protocols_word_for_a_boolean():
    assert parse("train", "--preset", "a3c", "--fire-reset", "None").env.fire_reset is False
    assert parse("train", "--no-fire-reset", "--fire-reset", "None").env.fire_reset is True


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--atari-protocol sabber", "--atari-protocol: 'sabber' is not known: expected one of dqn, machado, a3c."),
        ("--atari_protocol=sabber", "--atari-protocol: 'sabber' is not known: expected one of dqn, machado, a3c."),
        ("--atari-protocol", "--atari-protocol needs a value."),
        ("--atari-protocol --seed 3", "--atari-protocol needs a value."),
        ("--fire-reset yes", "--fire-reset: 'yes' is neither True nor False."),
        ("--max_pool=1", "--max-pool: '1' is neither True nor False."),
        ("--no-fire-reset False", "'False' is one word too many for fastac train ENV_ID"),
        ("--no-fire-reset=False", "'--no-fire-reset=False' is one word too many"),
        ("--no-noop-max", "'--no-noop-max' is one word too many"),
        ("--fire-resets", "'--fire-resets' is not an option of fastac train ENV_ID: did you mean --fire-reset"),
        ("--vectorization sync", "vectorization is 'sync', expected 'auto' or 'native': Atari games are batched by"),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(capsys, words, says):
    assert main(["train", PONG, *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastac: {says}") and err.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("words", ["--atari-protocol machado", "--no-fire-reset", "--clip-rewards"])
def test_other_environments_have_none_of_it(capsys, command, words):
    assert main([command, "CartPole-v1", *words.split()]) == 2
    err = capsys.readouterr().err
    assert err.endswith("expected None: CartPole-v1 is no Atari game of ALE/.\n") and err.count("\n") == 1


def test_the_last_of_several_values_counts():
    words = ["--atari_protocol", "dqn", "--seed", "1", "--atari-protocol=a3c"]
    assert parse("train", *words).env.atari_protocol == "a3c"

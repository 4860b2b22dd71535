"""Configuration: round trips, unknown names, and every range."""

import json
import math
from dataclasses import fields

import pytest

from fastac.config import AlgoConfig, Config, EnvConfig, ModelConfig, OptimConfig, RunConfig

SECTIONS = (EnvConfig, ModelConfig, AlgoConfig, OptimConfig, RunConfig)

EVERY_FIELD = {
    "env_id": "Acrobot-v1",
    "num_envs": 6,
    "vectorization": "sync",
    "envs_per_worker": 6,
    "env_kwargs": {"level": 3, "sizes": [1, 2], "deep": {"x": None}},
    "wrappers": ("gymnasium.wrappers:TimeLimit max_episode_steps=9", "mymodule:Other"),
    "start_timeout_s": 30.0,
    "env_timeout_s": 90.0,
    "squash_actions": True,
    "mask_actions": False,
    "drop_keys": ("mission", "goal/colour"),
    "critic_keys": ("state",),
    "encoder": "mlp",
    "hidden_sizes": (32, 16, 8),
    "actor_sizes": (16,),
    "critic_sizes": (64, 32),
    "activation": "elu",
    "shared_trunk": False,
    "core": "lstm",
    "lstm_size": 24,
    "log_std_init": -0.5,
    "dependent_std": True,
    "normalize_obs": True,
    "normalize_reward": True,
    "pixel_scale": 0.1,
    "algo": "ppo",
    "collect": "steps",
    "num_steps": 9,
    "gamma": 0.97,
    "gae_lambda": 0.9,
    "baseline": True,
    "normalize_advantage": True,
    "advantage_scope": "rollout",
    "vf_coef": 0.25,
    "ent_coef": 0.0,
    "num_epochs": 4,
    "num_minibatches": 3,
    "clip_coef": 0.1,
    "clip_value_coef": 0.3,
    "target_kl": 0.02,
    "optimizer": "rmsprop_tf",
    "learning_rate": 1e-3,
    "critic_learning_rate": 2e-3,
    "optimizer_eps": 1e-8,
    "max_grad_norm": None,
    "learning_rate_schedule": "adaptive",
    "ent_coef_schedule": "linear",
    "clip_coef_schedule": "linear",
    "seed": 2**62,
    "device": "cuda:1",
    "total_env_steps": 123,
    "budget_minutes": 0.5,
    "until_return": 475.0,
    "eval_every": 0,
    "eval_from_return": 400.0,
    "eval_episodes": 3,
    "eval_actions": "sampled",
    "checkpoint_every": 0,
    "checkpoint_minutes": 2.5,
    "host_timeout_s": 10.0,
    "keep_checkpoints": 1,
    "tensorboard": False,
    "log": ("csv", "wandb"),
    "init_from": "runs/x",
    "eval": True,
    "eval_max_steps": 77,
    "workers": 1,
    "shards": 2,
    "exchange": "exact",
    "sync_every": 1,  # target_kl needs all hosts
    "torch_threads": 2,
    "lock": False,
    "max_restarts": 3,
    "reuse_forward": False,
}

# Only for Atari games, and None elsewhere.
ATARI = {
    "env_threads": 2,
    "atari_protocol": "machado",
    "sticky_actions": 0.1,
    "noop_max": 7,
    "fire_reset": True,
    "frame_skip": 3,
    "max_pool": False,
    "screen_size": 64,
    "frame_stack": 2,
    "episodic_life": True,
    "full_action_space": False,
    "max_frames": 1000,
    "clip_rewards": False,
}
PONG = {"env_id": "ALE/Pong-v5"}

KL = {"algo": "ppo", "num_epochs": 2, "target_kl": 0.01}
ADAPTIVE = {"learning_rate_schedule": "adaptive"}

A3C = {"algo": "a3c", "workers": 3, "envs_per_worker": 2, "lock": True}

NAN, INF = math.nan, math.inf
OUT_OF_RANGE = {
    "env_id": [""],
    "num_envs": [0, -1, NAN],
    "vectorization": ["threads", ""],
    "envs_per_worker": [0, -1, NAN],
    "env_kwargs": [3, {3: 4}, {"level": NAN}, {"level": object}, {"render_mode": "human"}, {"num_envs": 3}],
    "wrappers": [("TimeLimit",), ("gymnasium.wrappers:TimeLimit 9",), ("a:b 'level=3",), (":b",), ("",)],
    "start_timeout_s": [0.0, -1.0, NAN, INF],
    "env_timeout_s": [0.0, -1.0, NAN, INF],
    "encoder": ["cnn"],
    "hidden_sizes": [(0,), (64, -1), (NAN,)],
    "actor_sizes": [(0,), (64, -1), (NAN,), (64,)],  # the last with a shared trunk
    "critic_sizes": [(0,), (64, -1), (NAN,), (64,)],
    "activation": ["Tanh"],
    "core": ["rnn"],
    "lstm_size": [0, NAN],
    "log_std_init": [-20.5, 2.5, NAN, INF],
    "pixel_scale": [0.0, -1.0, NAN, INF],
    "drop_keys": [(3,), "mission"],
    "critic_keys": [(3,), "state", ("state",)],  # the last with a shared trunk
    "algo": ["A2C", "dqn"],
    "collect": ["rows"],
    "num_steps": [0, NAN],
    "gamma": [-0.1, 1.1, NAN, INF],
    "gae_lambda": [-0.1, 1.1, NAN],
    "vf_coef": [-0.1, NAN, INF],
    "ent_coef": [-0.1, NAN, INF],
    "num_epochs": [0, NAN],
    "num_minibatches": [0, NAN],
    "clip_coef": [0.0, -0.2, NAN, INF],
    "advantage_scope": ["epoch", "rollout"],  # the last without normalize_advantage
    "clip_value_coef": [0.0, -0.2, NAN, INF, 0.2],  # the last with a2c
    "target_kl": [0.0, -0.1, NAN, INF, 0.01],
    "optimizer": ["sgd"],
    "learning_rate": [0.0, -1e-3, NAN, INF],
    "critic_learning_rate": [0.0, -1e-3, NAN, INF, 1e-3],  # the last with a shared trunk
    "optimizer_eps": [0.0, NAN, INF],
    "max_grad_norm": [0.0, -1.0, NAN, INF],
    "learning_rate_schedule": ["cosine", "adaptive"],  # the last without target_kl
    "ent_coef_schedule": ["cosine"],
    "clip_coef_schedule": ["cosine"],
    "seed": [-1, 2**63, NAN],
    "total_env_steps": [0, NAN],
    "budget_minutes": [0.0, -1.0, NAN, INF],
    "until_return": [NAN, INF, -INF],
    "eval_from_return": [NAN, INF, -INF],
    "eval_actions": ["random"],
    "eval_every": [-1, NAN],
    "eval_episodes": [0, NAN],
    "eval_max_steps": [0, NAN],
    "checkpoint_every": [-1, NAN],
    "checkpoint_minutes": [0.0, -1.0],
    "host_timeout_s": [0.5, NAN],
    "exchange": ["fast"],
    "sync_every": [0, 10**7],
    "keep_checkpoints": [0, NAN],
    "workers": [0, -1, NAN, "two"],
    "torch_threads": [0, -1, 1025, NAN],
    "shards": [0, -1, 1025, NAN, "two"],
    "max_restarts": [-1, NAN],
    "log": [("mongo",), ("csv", "csv"), "csv", (3,)],
    "init_from": [""],
}

ATARI_OUT_OF_RANGE = {
    "wrappers": [("mymodule:Other",)],
    "vectorization": ["sync", "process"],
    "env_threads": [0, 1025],
    "atari_protocol": ["DQN", "v5"],
    "sticky_actions": [-0.1, 1.0, NAN],
    "noop_max": [-1, NAN],
    "frame_skip": [0, NAN],
    "screen_size": [0, 35],
    "frame_stack": [0, 84, 256],
    "max_frames": [0, 2**31],
}


def test_the_tables_above_name_every_field():
    assert set(EVERY_FIELD) | set(ATARI) == {f.name for section in SECTIONS for f in fields(section)}


def test_dict_and_json_round_trip():
    for settings in ({}, EVERY_FIELD, A3C, PONG, {**PONG, **ATARI}):
        config = Config().replace(**settings)
        assert Config.from_dict(config.to_dict()) == config
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_replace_sets_every_field_by_its_flat_name():
    config = Config().replace(**EVERY_FIELD)
    found = {name: value for section in vars(config).values() for name, value in vars(section).items()}
    assert found == EVERY_FIELD | dict.fromkeys(ATARI)
    assert all(found[name] != value for name, value in _flat(Config()).items() if name not in _SAME_AS_DEFAULT)


# Which other fields above would not go with; and what is of Atari games.
_SAME_AS_DEFAULT = {"collect", "baseline", "lock", "eval", "exchange", "sync_every", *ATARI}


def _flat(config):
    return {name: value for section in vars(config).values() for name, value in vars(section).items()}


def test_absent_fields_keep_their_defaults():
    assert Config.from_dict({}) == Config()
    assert Config.from_dict({"algo": {"gamma": 0.5}}) == Config().replace(gamma=0.5)


@pytest.mark.parametrize(("name", "near"), [("num_env", "num_envs"), ("gama", "gamma"), ("lr_schedule", "schedule")])
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    for build in (lambda: Config().replace(**{name: 1}), lambda: Config.from_dict({"algo": {name: 1}})):
        with pytest.raises(ValueError, match=rf"'{name}' is not a fastac setting.*{near}"):
            build()


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ValueError, match=r"'xyzzy' is not a fastac setting\.$"):
        Config().replace(xyzzy=1)


def test_unknown_sections_and_misplaced_keys_are_refused():
    with pytest.raises(ValueError, match=r"'algorithm' is not a section.*env, model, algo, optim, run"):
        Config.from_dict({"algorithm": {}})
    with pytest.raises(ValueError, match="'env' is not a section"):
        Config.from_dict({"env": "CartPole-v1"})
    with pytest.raises(ValueError, match="'gamma' stands in 'optim', expected in 'algo'"):
        Config.from_dict({"optim": {"gamma": 0.9}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wrappers", "gymnasium.wrappers:FlattenObservation"),
        ("wrappers", [3]),
        ("num_envs", "16"),
        ("num_envs", True),
        ("num_envs", None),
        ("envs_per_worker", "4"),
        ("envs_per_worker", True),
        ("lock", 1),
        ("max_restarts", None),
        ("gamma", "0.9"),
        ("gamma", False),
        ("baseline", 1),
        ("baseline", "no"),
        ("algo", 3),
        ("hidden_sizes", 64),
        ("hidden_sizes", "64"),
        ("hidden_sizes", [64, 1.5]),
        ("until_return", "475"),
    ],
)
def test_a_value_of_another_kind_is_refused(name, value):
    section = next(section for section, values in Config().to_dict().items() if name in values)
    for build in (lambda: Config().replace(**{name: value}), lambda: Config.from_dict({section: {name: value}})):
        with pytest.raises(ValueError) as caught:
            build()
        assert str(caught.value).startswith(f"{name} is {value!r}, expected ")


def test_numbers_and_lists_become_what_their_field_holds():
    config = Config().replace(total_env_steps=1e6, gamma=1, until_return=475, hidden_sizes=[32, 16])
    assert config == Config().replace(total_env_steps=10**6, gamma=1.0, until_return=475.0, hidden_sizes=(32, 16))
    kinds = (config.run.total_env_steps, config.algo.gamma, config.run.until_return, config.model.hidden_sizes)
    assert [type(value) for value in kinds] == [int, float, float, tuple]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in OUT_OF_RANGE.items() for value in bad])
def test_a_value_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError) as caught:
        Config().replace(**{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}, expected ")


def test_every_field_with_a_range_is_in_the_table_of_ranges():
    free = {"eval", "shared_trunk", "normalize_obs", "normalize_reward", "baseline", "normalize_advantage"}
    free |= {"tensorboard", "reuse_forward", "lock", "squash_actions", "dependent_std", "mask_actions"}
    assert set(EVERY_FIELD) - set(OUT_OF_RANGE) == free | {"device"}  # the machine tells which devices there are


def test_atari_fields_are_the_protocols_word_where_not_given():
    dqn, machado, a3c = (vars(Config().replace(**PONG, atari_protocol=name).env) for name in ("dqn", "machado", "a3c"))
    assert vars(Config().replace(**PONG).env) == dqn
    differ = {name: (dqn[name], machado[name]) for name in ATARI if dqn[name] != machado[name]}
    assert differ == {
        "atari_protocol": ("dqn", "machado"),
        "sticky_actions": (0.0, 0.25),
        "noop_max": (30, 0),
        "fire_reset": (True, False),
        "episodic_life": (True, False),
        "full_action_space": (False, True),
        "max_frames": (108_000, 18_000),
    }
    assert {name for name in ATARI if dqn[name] != a3c[name]} == {"atari_protocol", "fire_reset", "episodic_life"}
    shared = ("frame_skip", "max_pool", "screen_size", "frame_stack", "clip_rewards")
    assert [dqn[name] for name in shared] == [4, True, 84, 4, True]
    found = vars(Config().replace(**PONG, **ATARI).env)
    assert {name: found[name] for name in ATARI} == ATARI


def test_another_protocol_replaces_what_the_first_one_said():
    config = Config().replace(**PONG, noop_max=5)
    assert (config.env.noop_max, config.replace(seed=1).env.noop_max) == (5, 5)
    changed = config.replace(atari_protocol="machado", fire_reset=True).env
    assert (changed.noop_max, changed.fire_reset, changed.sticky_actions) == (0, True, 0.25)


@pytest.mark.parametrize("name", ATARI)
def test_atari_fields_are_refused_elsewhere(name):
    with pytest.raises(ValueError, match=f"{name} is .*, expected None: CartPole-v1 is no Atari game of ALE/"):
        EnvConfig(**{name: ATARI[name]})


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, bad in ATARI_OUT_OF_RANGE.items() for value in bad]
)
def test_an_atari_value_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError) as caught:
        Config().replace(**PONG, **{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}, expected ")


def test_an_id_with_its_module_is_an_atari_game_too():
    assert Config().replace(env_id="ale_py:ALE/Pong-v5").env.frame_stack == 4


@pytest.mark.parametrize(
    "settings", [{"gamma": 0.0}, {"gamma": 1.0}, {"gae_lambda": 0.0}, {"vf_coef": 0.0}, {"seed": 0}]
)
def test_the_ends_of_a_range_belong_to_it(settings):
    assert _flat(Config().replace(**settings)).items() >= settings.items()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 3, "num_steps": 5, "num_minibatches": 2}, "num_minibatches is 2, expected a divisor of 15"),
        ({"num_envs": 6, "num_minibatches": 4, "core": "lstm"}, "num_minibatches is 4, expected a divisor of 6"),
        ({"collect": "episodes", "num_minibatches": 2}, "num_minibatches is 2, expected 1 with collect episodes"),
        ({"algo": "reinforce", "num_epochs": 2}, "num_epochs is 2"),
        ({"algo": "reinforce", "num_minibatches": 2}, "num_minibatches is 2"),
        ({"algo": "ppo", "baseline": False}, "baseline is False"),
        ({"algo": "a3c", "device": "cuda"}, "device is 'cuda' with algo a3c, expected 'cpu'"),
        ({"algo": "a3c", "device": "cuda:1", "workers": 2}, "device is 'cuda:1' with algo a3c, expected 'cpu'"),
        ({"algo": "a3c", "vectorization": "process"}, "workers is 1 with vectorization process"),
        ({"algo": "a2c", "vectorization": "process", "workers": 2}, "workers is 2 with vectorization process"),
        ({**PONG, "squash_actions": True}, "squash_actions is True, expected False: a game's actions are discrete"),
        ({**PONG, "normalize_reward": True}, "clip_rewards and normalize_reward are both True"),
        ({"algo": "a2c", "lock": True}, "lock is True with algo a2c, expected False"),
        ({"algo": "ppo", "lock": True}, "lock is True with algo ppo, expected False"),
        ({"algo": "ppo", "target_kl": 0.01}, "target_kl is 0.01, expected None with num_epochs 1"),
        (
            {"log": ("tensorboard",), "tensorboard": False},
            "log is .*, expected some of csv, wandb, mlflow with tensorboard False, each once",
        ),
        ({**KL, "sync_every": 2}, "sync_every is 2, expected 1 with target_kl"),
        ({**KL, "num_epochs": 1, **ADAPTIVE}, "learning_rate_schedule is 'adaptive', expected more num_epochs"),
        ({**KL, **ADAPTIVE, "learning_rate": 0.1}, "learning_rate is 0.1, expected a number from 1e-5 to 1e-2 with"),
        ({"num_envs": 9, "envs_per_worker": 4, "workers": 2}, "num_envs is 9, but envs_per_worker times workers is 8"),
        ({"num_envs": 8, "envs_per_worker": 4}, "num_envs is 8, but envs_per_worker times workers is 4"),
        (
            {"envs_per_worker": 1_000_000, "workers": 2},
            "num_envs is 2000000, expected a whole number from 1 to 1,000,000",
        ),
        ({"envs_per_worker": 3, "workers": 2, "num_steps": 5, "num_minibatches": 2}, "expected a divisor of 15"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config().replace(**settings)


def test_an_adaptive_learning_rate_needs_a_second_update_or_epoch():
    for settings in ({"num_epochs": 2}, {"num_epochs": 1, "num_minibatches": 2}):
        assert Config().replace(**KL | ADAPTIVE | settings).algo.target_kl == 0.01


def test_what_only_goes_with_a3c_goes_with_it():
    assert Config().replace(**A3C).run.lock is True
    assert Config().replace(vectorization="process").env.vectorization == "process"


def test_derived_sizes():
    config = Config().replace(num_envs=6, num_steps=10, num_minibatches=4)
    assert config.batch_size == 60


def test_environments_per_worker_say_how_many_there_are():
    config = Config().replace(envs_per_worker=4, workers=3, num_steps=10)
    assert (config.env.num_envs, config.batch_size) == (12, 120)
    assert config.replace(num_envs=12, envs_per_worker=4, workers=3) == config
    assert config.replace(workers=2).env.num_envs == 8
    assert config.replace(envs_per_worker=5).env.num_envs == 15
    assert config.replace(workers="auto").env.num_envs == 4  # of one; how many there are is not known yet


def test_whoever_says_how_many_environments_there_are_is_not_overruled():
    config = Config().replace(envs_per_worker=4, workers=3).replace(num_envs=6)
    assert (config.env.num_envs, config.env.envs_per_worker) == (6, None)
    assert config.replace(workers=2).env.num_envs == 6
    with pytest.raises(ValueError, match="num_envs is 6, expected a multiple of workers, which is 4"):
        config.replace(workers=4)


def test_as_many_environments_per_worker_as_there_were_in_all():
    config = Config().replace(num_envs=6, workers=2).replace(envs_per_worker=3)
    assert (config.env.num_envs, config.env.envs_per_worker) == (6, 3)
    assert config.replace(envs_per_worker=None).env.num_envs == 6


@pytest.mark.parametrize(
    "name",
    [
        "num_envs",
        "envs_per_worker",
        "num_steps",
        "num_epochs",
        "lstm_size",
        "total_env_steps",
        "eval_episodes",
        "max_restarts",
    ],
)
@pytest.mark.parametrize("value", [2.5, math.inf])
def test_whole_numbers_must_be_whole(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {value}"):
        Config().replace(**{name: value})


def test_a_target_needs_evaluations():
    with pytest.raises(ValueError, match="until_return is 5 without evaluations"):
        Config().replace(until_return=5.0, eval=False)

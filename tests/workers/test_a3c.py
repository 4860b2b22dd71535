"""A3C with one worker is A2C, bit for bit."""

import pytest
from async_support import assembled, train
from core_support import assert_same

LINEAR = {"learning_rate_schedule": "linear", "ent_coef": 0.01, "ent_coef_schedule": "linear"}
CASES = {
    "plain": {},
    "linear": LINEAR,
    "normalized": {"normalize_obs": True, "normalize_reward": True, "normalize_advantage": True},
    "lstm": {"core": "lstm", "lstm_size": 8, "normalize_obs": True, **LINEAR},
    "gru": {"core": "gru", "lstm_size": 8},
    "rmsprop": {"optimizer": "rmsprop"},
    "rmsprop_tf": {"optimizer": "rmsprop_tf", "normalize_reward": True, "max_grad_norm": None},
    "continuous": {"env_id": "Pendulum-v1", "vectorization": "sync", "normalize_obs": True, "shared_trunk": False},
    "pixels": {
        **{"env_id": "dict_envs:Signs", "drop_keys": ("mission", "number", "kind", "nested"), "vectorization": "sync"},
        "normalize_obs": True,
    },
    "episodes": {"collect": "episodes", "num_steps": 500},
    "forwards not kept": {"reuse_forward": False},
    "locked": {"lock": True},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_one_worker_is_synchronous_a2c_bit_for_bit(settings):
    states = []
    for algo in ("a2c", "a3c"):
        own = {**settings, "lock": False} if algo == "a2c" else settings
        with assembled(**{**own, "algo": algo, "workers": 1, "seed": 3}) as training:
            reports = train(training)
            states.append((training.get_state(), sum(len(report.finished) for report in reports)))
    (a2c, found), (a3c, also_found) = states
    assert a3c["trainer"]["updates"] == a2c["trainer"]["learner"]["updates"] > 10
    assert a3c["trainer"]["learner"]["updates"] == a2c["trainer"]["learner"]["updates"]
    for counter in ("iteration", "env_steps", "episodes"):
        assert a3c["trainer"][counter] == a2c["trainer"][counter], counter
    assert found == also_found == a3c["trainer"]["episodes"]
    assert_same(dict(a3c["model"]), dict(a2c["model"]))
    assert_same(a3c["trainer"]["learner"]["optimizer"], a2c["trainer"]["learner"]["optimizer"])
    of_rewards = a3c["reward_normalizer"], a2c["shards"]["0"]["reward_normalizer"]
    assert_same(*({name: value for name, value in each.items() if "moments" in name} for each in of_rewards))

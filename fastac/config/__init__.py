"""Settings: frozen dataclasses, validated once, and the same settings as typed keyword arguments."""

from fastac.config.config import (
    ActionChoice,
    ActivationName,
    AlgoConfig,
    AlgoName,
    CollectMode,
    Config,
    EncoderName,
    ExchangeName,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Schedule,
    setting_names,
)
from fastac.config.environments import EnvConfig, Vectorization, is_atari
from fastac.config.settings import TrainSettings
from fastac.config.values import (
    OTHER_NAMES,
    OWN_ENVS,
    ConfigValue,
    EnvArguments,
    JsonValue,
    is_json,
    read_word,
    with_home,
)
from fastac.config.wrappers import WrapperFactory, read_wrapper

__all__ = [
    "OTHER_NAMES",
    "OWN_ENVS",
    "ActionChoice",
    "ActivationName",
    "AlgoConfig",
    "AlgoName",
    "CollectMode",
    "Config",
    "ConfigValue",
    "EncoderName",
    "EnvArguments",
    "EnvConfig",
    "ExchangeName",
    "JsonValue",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "Schedule",
    "TrainSettings",
    "Vectorization",
    "WrapperFactory",
    "is_atari",
    "is_json",
    "read_word",
    "read_wrapper",
    "setting_names",
    "with_home",
]

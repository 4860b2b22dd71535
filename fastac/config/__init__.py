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
    RateSchedule,
    RunConfig,
    Schedule,
    setting_names,
)
from fastac.config.environments import EnvConfig, Vectorization, is_atari
from fastac.config.settings import TrainSettings
from fastac.config.values import OTHER_NAMES, OWN_ENVS, ConfigValue, EnvArguments, JsonValue, is_json, with_home

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
    "RateSchedule",
    "RunConfig",
    "Schedule",
    "TrainSettings",
    "Vectorization",
    "is_atari",
    "is_json",
    "setting_names",
    "with_home",
]

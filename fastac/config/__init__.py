"""Settings: frozen dataclasses, validated once, and the same settings as typed keyword arguments."""

from fastac.config.config import (
    ActionChoice,
    ActivationName,
    AlgoConfig,
    AlgoName,
    CollectMode,
    Config,
    EncoderName,
    EnvConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Schedule,
    Vectorization,
    is_atari,
    setting_names,
)
from fastac.config.settings import TrainSettings
from fastac.config.values import OTHER_NAMES, ConfigValue, EnvArguments, JsonValue, is_json

__all__ = [
    "OTHER_NAMES",
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
    "JsonValue",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "Schedule",
    "TrainSettings",
    "Vectorization",
    "is_atari",
    "is_json",
    "setting_names",
]

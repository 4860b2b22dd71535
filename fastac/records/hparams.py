"""What TensorBoard's HPARAMS tab knows a run by: its settings, and the metrics to compare runs by.

Written without `tensorboard.plugins.hparams.summary`, whose import takes 0.3 s, and without torch's, which takes 2 s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastac.config import Config

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

# What `summary.json` says, and the scalar that a run writes of it at its end.
FINAL_TAGS = {
    "eval_mean_return": "final/eval_mean_reward",
    "best_eval_mean_return": "final/best_eval_mean_reward",
    "mean_return": "final/ep_rew_mean",
    "sps": "final/fps",
    "train_wall_s": "final/train_seconds",
    "env_steps": "final/total_timesteps",
}


def settings_summaries(config: Config) -> tuple[Summary, Summary]:
    """Return the two records of a run's settings, under their flat names."""
    from tensorboard.plugins.hparams.api_pb2 import (
        DATA_TYPE_BOOL,
        DATA_TYPE_FLOAT64,
        DATA_TYPE_STRING,
        Experiment,
        HParamInfo,
        MetricInfo,
        MetricName,
    )
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    session, kinds = SessionStartInfo(start_time_secs=time.time()), []
    for name, value in config.to_flat().items():
        if isinstance(value, bool):
            session.hparams[name].bool_value, kind = value, DATA_TYPE_BOOL
        elif isinstance(value, int | float):
            session.hparams[name].number_value, kind = value, DATA_TYPE_FLOAT64
        else:
            session.hparams[name].string_value, kind = str(value), DATA_TYPE_STRING
        kinds.append(HParamInfo(name=name, type=kind))
    metrics = [MetricInfo(name=MetricName(tag=tag)) for tag in FINAL_TAGS.values()]
    experiment = Experiment(hparam_infos=kinds, metric_infos=metrics)
    return (
        _summarize("experiment", HParamsPluginData(experiment=experiment)),
        _summarize("session_start_info", HParamsPluginData(session_start_info=session)),
    )


def _summarize(name: str, data: HParamsPluginData) -> Summary:
    """Return what the plugin's own `_summary` makes: metadata under a tag that the plugin looks for."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)])
    nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=shape)
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=f"_hparams_/{name}", metadata=metadata, tensor=nothing)])

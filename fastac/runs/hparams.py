"""A run's data for TensorBoard's HPARAMS tab: its settings, and metrics of the whole run.

No list of settings and metrics (an "experiment") is written: TensorBoard derives a better one from the runs it finds,
with the settings that differ first.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastac.config import Config

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

# Keys of `summary.json`, and the scalar written for each at the end of a run.
FINAL_TAGS = {
    "eval_mean_return": "final/eval_mean_reward",
    "best_eval_mean_return": "final/best_eval_mean_reward",
    "mean_return": "final/ep_rew_mean",
    "sps": "final/fps",
    "train_wall_s": "final/train_seconds",
    "efficiency": "final/efficiency",
}


def settings_summary(config: Config) -> Summary:
    """Return the record of a run's settings by their flat names, without those that are None."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    session = SessionStartInfo(start_time_secs=time.time())
    for name, value in config.to_flat().items():
        if isinstance(value, bool):
            session.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            session.hparams[name].number_value = value
        elif value is not None:
            session.hparams[name].string_value = str(value)
    content = HParamsPluginData(session_start_info=session).SerializeToString()
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="hparams", content=content))
    # The data is all in the metadata; the plugin's own records have this empty tensor, too.
    nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    return Summary(value=[Summary.Value(tag="_hparams_/session_start_info", metadata=metadata, tensor=nothing)])

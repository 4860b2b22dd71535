"""The numerical kernels of the hot loop: each one readable reference and fast twins, one signature.

A kernel knows nothing of rollouts, configs or models: arrays in, arrays out. Tests hold every fast
twin to its reference by fuzzing.
"""

from fastac.kernels.gae import gae, gae_reference

__all__ = ["gae", "gae_reference"]

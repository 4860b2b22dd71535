"""Tools for a trained policy, a finished run, the machine or a revision: act, record a video, plot, tune, gate."""

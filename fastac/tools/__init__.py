"""Tools for a trained policy or a finished run: act, record a video, plot, tune."""

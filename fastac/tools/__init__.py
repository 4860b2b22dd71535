"""What works on a trained policy or a finished run: evaluate, record a video, plot."""

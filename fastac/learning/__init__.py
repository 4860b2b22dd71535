"""From a rollout to new parameters: losses, gradients, the optimiser and the learner."""

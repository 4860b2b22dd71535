"""Learning: losses, gradients, the optimiser and the learner."""

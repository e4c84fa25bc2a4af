"""Meta-reinforcement learning on Gymnasium and Meta-World."""

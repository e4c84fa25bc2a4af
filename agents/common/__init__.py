"""Machinery that algorithms share: policies that adapt by gradients, their derivatives, and PPO on whole trials."""

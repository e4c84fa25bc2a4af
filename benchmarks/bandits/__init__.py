"""Strategies for Bernoulli bandits that learn nothing beforehand, many instances at once."""

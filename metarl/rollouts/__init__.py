"""Rollouts: an agent meets tasks, collects, adapts and collects again."""

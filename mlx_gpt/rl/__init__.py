"""Reinforcement learning: rollouts, their rewards, and objectives; a sandbox for the programs of a model."""

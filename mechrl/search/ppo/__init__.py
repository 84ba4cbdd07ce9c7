"""PPO: the policies, their training, and the checkpoint."""

"""Search: the PPO agent, the orders it has to beat, and the protocol that evaluates all of them alike."""

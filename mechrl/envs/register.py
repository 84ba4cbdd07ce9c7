"""Makes the environment known to gymnasium, which calls this through its plugin entry point."""


def register() -> None:
    """Registers `mechrl/HeadDiscovery-v0`."""
    import gymnasium

    if "mechrl/HeadDiscovery-v0" not in gymnasium.registry:
        gymnasium.register("mechrl/HeadDiscovery-v0", entry_point="mechrl.envs.single:HeadDiscoveryEnv")

"""The game of finding heads: a numba kernel, and the environments that libraries expect on top of it.

Importing this package makes `mechrl/HeadDiscovery-v0` known to `gymnasium.make`.
"""

import gymnasium

gymnasium.register("mechrl/HeadDiscovery-v0", entry_point="mechrl.envs.single:HeadDiscoveryEnv")

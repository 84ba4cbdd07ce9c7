"""Models: the embedded `mini`, a local folder or a hub name, loaded as a folded TransformerBridge and fingerprinted."""

from mechrl.models.folder import MINI, absolute_name, cache_name, find_folder, is_folder
from mechrl.models.load import cast, check_length, load_model, load_vocabulary, pick_device
from mechrl.models.model import Model

__all__ = [
    "MINI",
    "Model",
    "absolute_name",
    "cache_name",
    "cast",
    "check_length",
    "find_folder",
    "is_folder",
    "load_model",
    "load_vocabulary",
    "pick_device",
]

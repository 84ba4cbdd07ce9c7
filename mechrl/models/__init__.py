"""Models: `mini`, a folder, a GGUF file or a hub name, loaded as a folded TransformerBridge and fingerprinted."""

from mechrl.models.files.folder import MINI, OWN, absolute_name, cache_name, find_folder, is_path
from mechrl.models.load import cast, check_context, check_length, load_model, load_vocabulary, pick_device
from mechrl.models.model import Model

__all__ = [
    "MINI",
    "OWN",
    "Model",
    "absolute_name",
    "cache_name",
    "cast",
    "check_context",
    "check_length",
    "find_folder",
    "is_path",
    "load_model",
    "load_vocabulary",
    "pick_device",
]

"""Models: the embedded `mini`, a local folder or a hub name, loaded as a folded TransformerBridge and fingerprinted."""

import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechrl.errors import MachineError, MechrlError, UsageError, unknown_name
from mechrl.vocabulary import Vocabulary

MINI = Path(__file__).parent / "mini"
HUB_SECONDS = 10
TOKENIZER_FILES = ("tokenizer.*", "vocab*", "*.model", "tekken.json")
PROBE_TOKENS = 64
# Of the largest number: far above what rounding in float32 does, far below what a missing term does.
PROBE_ERROR = 1e-3
LOOKS_AHEAD = 1e-4
# Of a config's entries, those that change nothing the sweep computes.
NOT_FINGERPRINTED = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}


@dataclass(frozen=True)
class Model:
    """A causal language model whose heads can be ablated.

    :param bridge: the TransformerBridge, in eval mode, weights folded (see `weight_processing` in a cache).
    :param name: what the user called it.
    :param revision: the hub revision asked for, else "".
    :param sha256: of the config and all weights before folding; the same on every machine.
    :param tokenizer_sha256: of the tokenizer's whole definition.
    :param constants: what folding moved out of each head's output into the output bias, `b_V + b_LN W_V`, float32
        [layer, head, head width]; None if it moved more than a constant.
    """

    bridge: Any
    name: str
    revision: str
    sha256: str
    tokenizer_sha256: str
    vocabulary: Vocabulary
    constants: np.ndarray | None

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        return int(self.bridge.cfg.n_heads)

    @property
    def n_ctx(self) -> int:
        """The longest sequence, in tokens."""
        return int(self.bridge.cfg.n_ctx)

    @property
    def weight_processing(self) -> str:
        """What was done to the weights, as a cache records it; some norms TransformerLens cannot fold."""
        folded = (
            "LayerNorm and value biases" if getattr(self.bridge.adapter, "supports_fold_ln", True) else "value biases"
        )
        return f"TransformerLens enable_compatibility_mode: {folded} folded"

    @property
    def device(self) -> torch.device:
        return next(self.bridge.parameters()).device


def pick_device(device: str) -> str:
    """`auto` as the best device there is; anything else checked.

    :raises UsageError: torch cannot use that device here.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    kind = re.sub(r"(?<=^cuda):\d+$", "", device)
    if kind not in available:
        raise unknown_name("device", device, ["auto", *available])
    if not available[kind]:
        raise UsageError(f"torch {torch.__version__} finds no {kind} device on this machine; use --device cpu")
    return device


def load_model(name: str = "mini", *, device: str = "auto", revision: str = "") -> Model:
    """Load `mini`, a folder or a hub name in float32, folded as TransformerLens does it, in eval mode.

    :raises UsageError: no such folder, one without weights or tokenizer, no such model on the hub, one that is not a
        causal language model, one whose heads TransformerLens does not show or whose logits it does not reproduce.
    :raises MachineError: the hub cannot be reached and the model is not in its local cache; out of memory.
    """
    device = pick_device(device)
    folder = find_folder(name, revision)
    with _quiet_imports():
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoConfig, AutoModelForCausalLM

        with _refused(f"{name!r} cannot be loaded as a causal language model"):
            _check_kind(name, AutoConfig.from_pretrained(folder))
            tokenizer = _load_tokenizer(name, folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            hf, loading = loaded
            tokens, logits = _probe(name, hf.to(device))
        if loading["missing_keys"] or loading["mismatched_keys"]:
            missing = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
            raise UsageError(f"{name!r}: the folder lacks weights: {', '.join(missing[:3])} … ({len(missing)} in all)")
        sha256 = _weights_sha256(hf)
        with _refused(f"{name!r} cannot be swept"):
            bridge = TransformerBridge.boot_transformers(
                str(folder),
                hf_model=hf,
                tokenizer=copy.deepcopy(tokenizer),  # where there is no BOS, it makes one of EOS
                device=device,
                dtype=torch.float32,
            )
            unfolded = _head_outputs(bridge.eval())
            bridge.enable_compatibility_mode(disable_warnings=True)
            _check_sweepable(name, bridge, tokens, logits)
            constants = _constants(unfolded, _head_outputs(bridge))
    _speed_up(bridge)
    bridge.eval().requires_grad_(False)
    return Model(bridge, name, revision, sha256, _tokenizer_sha256(tokenizer), Vocabulary(tokenizer), constants)


def load_vocabulary(name: str = "mini", revision: str = "") -> Vocabulary:
    """The tokenizer of a model alone.

    :raises UsageError: no such folder, or no tokenizer in it.
    :raises MachineError: the hub cannot be reached, or has no such model.
    """
    folder = find_folder(name, revision)
    with _quiet_imports(), _refused(f"the tokenizer of {name!r} cannot be loaded"):
        return Vocabulary(_load_tokenizer(name, folder))


def cast(model: Model, dtype: str) -> None:
    """Brings a loaded model to `float32`, `bfloat16` or `float16`, in place; it was folded in float32."""
    with contextlib.redirect_stdout(io.StringIO()):  # the bridge announces it on stdout
        model.bridge.to(getattr(torch, dtype))


def is_folder(name: str) -> bool:
    """Whether a model name means a folder: it exists, or it is written as a path."""
    return os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1


def absolute_name(name: str) -> str:
    """A folder's name that means the same in every working directory; other names as they are."""
    return str(Path(name).expanduser().absolute()) if is_folder(name) and name != "mini" else name


def find_folder(name: str, revision: str = "") -> Path:
    """Where the model's files are on this machine, fetched from the hub if they have to be.

    :raises UsageError: no such folder, or no weights in it; no such model or revision on the hub, or no access to it.
    :raises MachineError: the hub cannot be reached.
    """
    if name != "mini" and not is_folder(name):
        return _fetch(name, revision)
    if revision:
        raise UsageError(f"--revision {revision} is for models on the hub, and {name} is none")
    if name == "mini":
        return MINI
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{name}: no such folder")
    if not (folder / "config.json").is_file():
        raise UsageError(f"{name}: no config.json there; a model folder is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise UsageError(f"{name}: the folder has a config.json and no weights (*.safetensors)")
    return folder


def cache_name(name: str, sha256: str, ablation: str = "zero") -> str:
    """The default file name of a model's cache: the last part of its name, for a folder with its fingerprint."""
    stem = re.sub(r"[^a-z0-9.-]+", "-", name.rstrip("/").rpartition("/")[2].lower())
    if is_folder(name) and name != "mini":
        stem += f"-{sha256[:8]}"
    return stem + ("" if ablation == "zero" else f".{ablation}") + ".h5"


def _fetch(name: str, revision: str) -> Path:
    """The model's files out of the local hub cache, or else from the hub, which gets one try."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted: dict[str, Any] = {
        "revision": revision or None,
        "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model"],
    }
    with contextlib.suppress(OSError, ValueError):
        folder = Path(snapshot_download(name, local_files_only=True, **wanted))
        if any(folder.glob("*.safetensors")):
            return folder
    try:
        HfApi().model_info(name, revision=revision or None, timeout=HUB_SECONDS)
        return Path(snapshot_download(name, **wanted))
    except GatedRepoError as error:  # before RepositoryNotFoundError, of which it is a kind
        raise UsageError(
            f"{name!r} is gated on the hub: accept its terms at https://huggingface.co/{name}, then `hf auth login` or "
            "set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"the hub has no model {name!r}, or it is private{_did_you_mean(name)}") from error
    except RevisionNotFoundError as error:
        raise UsageError(f"{name!r} has no revision {revision!r} on the hub") from error
    except HFValidationError as error:
        raise UsageError(f"{name!r} is neither a folder nor a name on the hub: {_first_sentence(error)}") from error
    except Exception as error:  # what a failed connection raises depends on the hub library's version
        raise MachineError(
            f"model {name!r} is not on this machine and the hub cannot be reached ({type(error).__name__}). Offline: "
            "--model FOLDER for a model saved with save_pretrained, with --control-text FILE; or --model mini, which "
            "comes with mechrl"
        ) from error


@torch.inference_mode()
def _head_outputs(bridge: Any) -> list[torch.Tensor]:
    """`hook_z` of each layer on a few tokens, [position, head, head width]; before folding it goes by another name."""
    seen: list[torch.Tensor] = []
    tokens = torch.arange(1, 9, device=next(bridge.parameters()).device)[None]
    names = [f"blocks.{layer}.attn.o.hook_in" for layer in range(bridge.cfg.n_layers)]
    names = [name for name in names if name in bridge.hook_dict]  # what is missing is reported after folding
    bridge.run_with_hooks(tokens, fwd_hooks=[(name, lambda z, hook: seen.append(z[0].clone())) for name in names])
    return seen


def _constants(unfolded: list[torch.Tensor], folded: list[torch.Tensor]) -> np.ndarray | None:
    """The difference of the heads' outputs, if it is the same at all positions."""
    if [z.shape for z in unfolded] != [z.shape for z in folded]:
        return None
    difference = torch.stack(unfolded) - torch.stack(folded)
    constants = difference.mean(1)
    if (difference - constants[:, None]).abs().max() > 1e-4 * max(1.0, torch.stack(unfolded).abs().max().item()):
        return None
    return constants.cpu().numpy()


def _did_you_mean(name: str) -> str:
    """The model on the hub whose name is nearest, as the end of a message; "" if the hub finds none."""
    from huggingface_hub import HfApi

    stem = name.rpartition("/")[2].lower()
    beginning = stem[: max(3, 2 * len(stem) // 3)]  # the hub finds parts of names, and the typo may come later
    try:
        found = [m.id for m in HfApi().list_models(search=beginning, sort="downloads", limit=100)]
    except Exception:  # the suggestion is a courtesy
        return ""
    names = {model.rpartition("/")[2].lower(): model for model in reversed(found)}  # of equal ones the most downloaded
    near = get_close_matches(stem, names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turns what the libraries raise about a model into one sentence; theirs can list hundreds of classes."""
    try:
        yield
    except MechrlError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MachineError(f"{what}: out of memory") from error
    except Exception as error:
        raise UsageError(f"{what}: {_first_sentence(error)}") from error


def _first_sentence(error: Exception) -> str:
    return re.split(r"(?<=[.!?])\s|\n", str(error).strip())[0].rstrip(".:") or type(error).__name__


def _load_tokenizer(name: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):  # else some classes begin empty
        raise UsageError(f"{name}: no tokenizer files there, such as tokenizer.json; save the tokenizer too")
    return AutoTokenizer.from_pretrained(folder)


def _check_kind(name: str, config: Any) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.is_encoder_decoder:
        raise UsageError(f"{name!r} is an encoder-decoder model ({config.model_type}), not a causal language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"{name!r} is a model of type {config.model_type}, which is not a causal language model")


@torch.no_grad()
def _probe(name: str, hf: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [2, position], rows that differ in the second half, and the logits that transformers computes from them.

    :raises UsageError: the model looks ahead.
    """
    limit = getattr(hf.config, "max_position_embeddings", None) or -1  # XLNet's -1 means none
    half = min(PROBE_TOKENS, limit // 2) // 2 if limit > 0 else PROBE_TOKENS // 2
    tokens = torch.arange(100, 100 + 2 * half, device=hf.device).repeat(2, 1) % hf.get_input_embeddings().num_embeddings
    tokens[1, half:] = tokens[1, :half]
    logits = hf(tokens).logits
    if _difference(logits[1, :half], logits[0, :half]) > LOOKS_AHEAD:
        raise UsageError(
            f"{name!r} is not a causal model: tokens change the logits before them, and mechrl reads a prompt at its "
            "last position"
        )
    return tokens, logits


@torch.no_grad()
def _check_sweepable(name: str, bridge: Any, tokens: torch.Tensor, expected: torch.Tensor) -> None:
    """Whether the folded model is still the same model, and each attention the projection of its heads.

    :param expected: the logits of these tokens before folding.
    :raises UsageError: it is not, or TransformerLens does not show its heads.
    """
    layers = range(bridge.cfg.n_layers)
    shown = bridge.hook_dict
    wanted = [f"blocks.{layer}.attn.{part}" for layer in layers for part in ("hook_z", "o.hook_in")]
    for hook in [*wanted, "ln_final.hook_in", "unembed.hook_in"]:
        if hook not in shown:
            raise UsageError(f"{name!r} cannot be swept: TransformerLens has no {hook} for this kind of model")
    seen: list[torch.Tensor] = []
    hooks = [
        (f"blocks.{layer}.attn.{part}", lambda tensor, hook: seen.append(tensor))
        for layer in layers
        for part in ("hook_z", "hook_out")
    ]
    logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
    for layer, z, written in zip(layers, seen[::2], seen[1::2], strict=True):
        if z.shape[2] != bridge.cfg.n_heads:
            raise UsageError(
                f"{name!r} cannot be swept: TransformerLens shows {z.shape[2]} heads in layer {layer}, where the model "
                f"has {bridge.cfg.n_heads}"
            )
        if _difference(bridge.blocks[layer].attn.o(z.flatten(2)), written) > PROBE_ERROR:
            raise UsageError(
                f"{name!r} cannot be swept: the attention of layer {layer} writes more than its heads, projected"
            )
    # Centring the unembedding moves all logits of a position alike, which changes no probability.
    centred = (x - x.mean(-1, keepdim=True) for x in (logits, expected))
    if (difference := _difference(*centred)) > PROBE_ERROR:
        raise UsageError(
            f"{name!r} cannot be swept: folded by TransformerLens, its logits differ from those of transformers by "
            f"{difference:.0%} of the largest"
        )


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, divided by the largest number expected; nan, which the sweep will report, passes."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _speed_up(bridge: Any) -> None:
    """Three changes that leave the numbers alone and take a third off a sweep on CPU.

    In compatibility mode attention looks for queries that see no key at all, which right padding never makes; GPT-2's
    activation is put together from seven elementwise operations, and LayerNorm from six.
    """
    for block in bridge.blocks:
        block.attn.compatibility_mode = False
    for module in bridge.modules():
        if isinstance(getattr(module, "original_component", None), torch.nn.LayerNorm):
            module.__dict__["_python_norm_forward"] = module.original_component.forward
    for module in bridge.original_model.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def _weights_sha256(model: Any) -> str:
    """The hash of all parameters by name, as float32, and of the config that says how they are used."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in NOT_FINGERPRINTED}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{text} bos={tokenizer.bos_token_id}".encode()).hexdigest()


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    """No progress bars and no advice from the libraries while a model loads; errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging as transformers_logging

    level = logging.root.manager.disable
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            transformers_logging.enable_progress_bar()

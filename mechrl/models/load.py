"""Loading a model: from its files to a folded TransformerBridge that may be swept."""

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mechrl.errors import MachineError, MechrlError, UsageError, unknown_name
from mechrl.models.folder import find_folder
from mechrl.models.hub import first_sentence
from mechrl.models.model import Model
from mechrl.models.probe import check_resumable, check_sweepable, constant_parts, head_outputs, probe
from mechrl.models.regimes import Regimes
from mechrl.models.tokenizer import load_tokenizer, tokenizer_sha256
from mechrl.vocabulary import Vocabulary

# Of a config's entries, those that change nothing the sweep computes.
NOT_FINGERPRINTED = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
# Of a config's sizes, the greatest that is believed: far above any model, far below what would run for ever.
LARGEST = {
    "num_hidden_layers": 2**10, "num_attention_heads": 2**12, "num_key_value_heads": 2**12, "hidden_size": 2**18,
    "intermediate_size": 2**20, "vocab_size": 2**24,
}  # fmt: skip


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
    with _quiet():
        from transformer_lens.model_bridge import TransformerBridge

        with _refused(f"{name!r} cannot be loaded as a causal language model"):
            kind = _check_kind(name, folder)
            tokenizer = load_tokenizer(name, folder)
            hf = _load_weights(name, folder).to(device)
            rows = _vocabulary_rows(hf)
            _check_bos(name, tokenizer, rows)
            tokens, logits = probe(name, hf)
        sha256 = _weights_sha256(hf)
        with _taken_apart(name, kind):
            bridge = TransformerBridge.boot_transformers(
                str(folder),
                hf_model=hf,
                tokenizer=copy.deepcopy(tokenizer),  # where there is no BOS, it makes one of EOS
                device=device,
                dtype=torch.float32,
                trust_remote_code=False,
            )
            unfolded = head_outputs(bridge.eval())
            bridge.enable_compatibility_mode(disable_warnings=True)
            check_sweepable(name, bridge, tokens, logits)
            check_resumable(name, bridge, tokens, logits)
            constants = constant_parts(unfolded, head_outputs(bridge))
    _speed_up(bridge)
    bridge.eval().requires_grad_(False)
    return Model(
        bridge, name, revision, sha256, tokenizer_sha256(tokenizer), Vocabulary(tokenizer, rows), constants,
        probed=tokens.shape[1], regimes=Regimes(bridge, rows, name),
    )  # fmt: skip


def load_vocabulary(name: str = "mini", revision: str = "") -> Vocabulary:
    """The tokenizer of a model alone.

    :raises UsageError: no such folder, or no tokenizer in it.
    :raises MachineError: the hub cannot be reached, or has no such model.
    """
    folder = find_folder(name, revision)
    with _quiet(), _refused(f"the tokenizer of {name!r} cannot be loaded"):
        return Vocabulary(load_tokenizer(name, folder))


def check_length(model: Model, positions: int) -> None:
    """Whether the folded model is still the same model on sequences longer than those that loading has tried.

    The model is loaded once more for it, unfolded.

    :param positions: the longest sequence that will be run, in tokens.
    :raises UsageError: it is not.
    """
    if positions <= model.probed:
        return
    with _quiet(), _refused(f"{model.name!r} cannot be swept on {positions} tokens"):
        plain = _load_weights(model.name, find_folder(model.name, model.revision)).to(model.device)
        check_sweepable(model.name, model.bridge, *probe(model.name, plain, 2 * (positions // 2 + 1)))


def cast(model: Model, dtype: str) -> None:
    """Brings a loaded model to `float32`, `bfloat16` or `float16`, in place; it was folded in float32."""
    with contextlib.redirect_stdout(io.StringIO()):  # the bridge announces it on stdout
        model.bridge.to(getattr(torch, dtype))
    model.regimes.forget()


def _check_kind(name: str, folder: Path) -> str:
    """The type of a model, as its config names it.

    :raises UsageError: the folder's config is not that of a causal language model that can be loaded.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    raw = json.loads((folder / "config.json").read_bytes())
    if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING:
        raise UsageError(
            f"{name!r} brings its own code (auto_map in config.json), and mechrl runs no code from a model's folder. "
            "Only architectures that transformers itself has can be swept"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise UsageError(f"{name!r} is an encoder-decoder model ({config.model_type}), not a causal language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"{name!r} is a model of type {config.model_type}, which is not a causal language model")
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise UsageError(
            f"{name!r} has quantised weights ({method or 'quantization_config in config.json'}), and mechrl folds "
            "whole ones: save the model dequantised, in float32 or bfloat16"
        )
    for size, largest in LARGEST.items():
        value = getattr(config.get_text_config(), size, None)
        if isinstance(value, int) and not 0 < value <= largest:
            raise UsageError(f"{name!r}: config.json says {size} {value}, which no model has")
    return str(config.model_type)


def _load_weights(name: str, folder: Path) -> Any:
    """The model as transformers has it, float32.

    :raises UsageError: the folder lacks weights, or has some of another shape.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, trust_remote_code=False
    )
    hf, loading = loaded
    if loading["missing_keys"] or loading["mismatched_keys"]:
        missing = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        raise UsageError(f"{name!r}: the folder lacks weights: {', '.join(missing[:3])} … ({len(missing)} in all)")
    return hf.eval()


def _vocabulary_rows(hf: Any) -> int:
    """How many tokens the model can both read and predict; its tokenizer may have more."""
    unembedding = hf.get_output_embeddings()
    rows = [part.weight.shape[0] for part in (hf.get_input_embeddings(), unembedding) if part is not None]
    return int(min(rows))


def _check_bos(name: str, tokenizer: Any, rows: int) -> None:
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id >= rows:
        raise UsageError(
            f"{name!r}: the tokenizer's BOS {tokenizer.bos_token!r} has id {tokenizer.bos_token_id}, and the model's "
            f"embedding has {rows} rows: a token was added to the tokenizer and not to the model"
        )


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
        raise UsageError(f"{what}: {first_sentence(error)}") from error


@contextlib.contextmanager
def _taken_apart(name: str, kind: str) -> Iterator[None]:
    """Says of a model that TransformerLens fails on what kind it is; what the library says of it is for its authors."""
    try:
        yield
    except MechrlError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MachineError(f"{name!r} cannot be swept: out of memory") from error
    except Exception as error:
        raise UsageError(
            f"{name!r} cannot be swept: TransformerLens {version('transformer-lens')} cannot take apart models of type "
            f"{kind} (--debug shows its error)"
        ) from error


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from the libraries while a model loads, and nothing for them to ask.

    Errors still come through.
    """
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

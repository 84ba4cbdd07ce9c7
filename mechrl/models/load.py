"""Loading a model: from its files to a folded TransformerBridge that may be swept."""

import contextlib
import copy
import hashlib
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mechrl.errors import UsageError, refused, unknown_name
from mechrl.models.files.folder import find_folder
from mechrl.models.files.gguf import quantisation
from mechrl.models.files.inspection import check_kind, check_memory, check_weights, weight_files
from mechrl.models.model import Model
from mechrl.models.probe import RESUMED_TOKENS, check_resumable, check_sweepable, constant_parts, head_outputs, probe
from mechrl.models.quiet import quiet, silent
from mechrl.models.regimes import Regimes
from mechrl.models.tokenizer import load_tokenizer, tokenizer_sha256
from mechrl.progress import SLOW, said_if_slow, say
from mechrl.vocabulary import Vocabulary

# Of an instruction-tuned model BOS begins a chat, not a text; docs/smollm2.md has the figures.
WITHOUT_BOS = {"smollm2-135m"}
# Of a config's entries, those that change nothing the sweep computes.
NOT_FINGERPRINTED = {
    "_name_or_path",
    "_model_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


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
        raise UsageError(f"torch {torch.__version__} finds no {kind} device on this machine; take the device cpu")
    return device


def load_model(name: str = "mini", *, device: str = "auto", revision: str = "", bos: bool | None = None) -> Model:
    """Load `mini`, a folder, a GGUF file or a hub name in float32, folded as TransformerLens does it, in eval mode.

    :param bos: whether BOS is put before every prompt, where the tokenizer has one; by default it is, but for the
        models in `WITHOUT_BOS`.

    :raises UsageError: no such folder, one without weights or tokenizer, no such model on the hub, one that is not a
        causal language model, one whose heads TransformerLens does not show or whose logits it does not reproduce.
    :raises MachineError: the hub cannot be reached and the model is not in its local cache; out of memory.
    """
    device = pick_device(device)
    folder = find_folder(name, revision)
    start = time.monotonic()
    with quiet():
        with said_if_slow(f"loading {name}: reading its weights"):
            kind = check_kind(name, folder)
            tokenizer = load_tokenizer(name, folder)
            check_weights(name, folder)
            with refused(f"{name!r}: what its config.json describes cannot be loaded as a causal language model"):
                hf = _load_weights(name, folder).to(device)
                rows = _vocabulary_rows(hf)
                _check_bos(name, tokenizer, rows)
                tokens, logits = probe(name, hf)
                config, weights = _fingerprinted(hf)
        if time.monotonic() - start > SLOW:
            say(f"loading {name}: folding its weights, and comparing it with transformers")
        library = f"TransformerLens {version('transformer-lens')}"
        with (
            ThreadPoolExecutor(1) as beside,
            silent(),
            refused(f"{name!r} cannot be swept: {library} cannot take apart models of type {kind}"),
        ):
            fingerprint = beside.submit(_sha256, config, weights)
            TransformerBridge = _bridge_class()
            bridge = TransformerBridge.boot_transformers(
                str(folder),
                hf_model=hf,
                tokenizer=_for_lens(tokenizer, folder),
                device=device,
                dtype=torch.float32,
                trust_remote_code=False,
            )
            unfolded = head_outputs(bridge.eval())
            sha256 = fingerprint.result()  # before folding changes the weights
            _fold(bridge)
            check_sweepable(name, bridge, tokens, logits)
            check_resumable(name, bridge, tokens[:, :RESUMED_TOKENS], logits[:, :RESUMED_TOKENS])
            constants = constant_parts(unfolded, head_outputs(bridge))
    _speed_up(bridge)
    bridge.eval().requires_grad_(False)
    return Model(
        bridge, name, revision, sha256, tokenizer_sha256(tokenizer),
        Vocabulary(tokenizer, rows, name not in WITHOUT_BOS if bos is None else bos), constants,
        probed=tokens.shape[1], regimes=Regimes(bridge, rows, name), quantisation=quantisation(folder),
    )  # fmt: skip


def load_vocabulary(name: str = "mini", revision: str = "", bos: bool | None = None) -> Vocabulary:
    """The tokenizer of a model alone; `bos` as in `load_model`.

    :raises UsageError: no such folder, or no tokenizer in it.
    :raises MachineError: the hub cannot be reached, or has no such model.
    """
    folder = find_folder(name, revision)
    with quiet():
        return Vocabulary(load_tokenizer(name, folder), bos=name not in WITHOUT_BOS if bos is None else bos)


def check_context(model: Model, task: str, positions: int) -> None:
    """Whether a task's longest sequence fits the model's context.

    :param positions: its length in tokens.
    :raises UsageError: it does not.
    """
    if positions > model.n_ctx:
        raise UsageError(
            f"task {task!r} has {positions} tokens in a sequence and {model.name!r} takes {model.n_ctx} at most"
        )


def check_length(model: Model, positions: int) -> None:
    """Whether the folded model is still the same model on sequences longer than those that loading has tried.

    The model is loaded once more for it, unfolded.

    :param positions: the longest sequence that will be run, in tokens.
    :raises UsageError: it is not.
    """
    if positions <= model.probed:
        return
    with quiet(), refused(f"{model.name!r} cannot be swept on {positions} tokens"):
        plain = _load_weights(model.name, find_folder(model.name, model.revision)).to(model.device)
        check_sweepable(model.name, model.bridge, *probe(model.name, plain, 2 * (positions // 2 + 1)))


def cast(model: Model, dtype: str) -> None:
    """Brings a loaded model to `float32`, `bfloat16` or `float16`, in place; it was folded in float32."""
    wanted: torch.dtype = getattr(torch, dtype)
    if all(parameter.dtype == wanted for parameter in model.bridge.parameters()):
        return  # moving it to where it is takes the bridge a second
    with contextlib.redirect_stdout(io.StringIO()):  # the bridge announces it on stdout
        model.bridge.to(wanted)
    model.regimes.forget()


def _bridge_class() -> Any:
    """TransformerBridge, which beside a model with images would install a package for what reads images."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources.transformers import source

    module: Any = source
    module.load_modality_processor = lambda *_, **__: None
    return TransformerBridge


def _for_lens(tokenizer: Any, folder: Path) -> Any:
    """A copy for TransformerLens, which nothing here asks: it makes a BOS of EOS where there is none.

    Unless the copy says that it adds BOS, TransformerLens loads one that does from the folder, and would run its code.
    """
    own = copy.deepcopy(tokenizer)
    own.init_kwargs |= {"name_or_path": str(folder), "add_bos_token": True}
    return own


def _load_weights(name: str, folder: Path) -> Any:
    """The model as transformers has it, float32, in eval mode.

    :raises UsageError: the folder lacks weights, or has some of another shape.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config._attn_implementation = "eager"  # what config.json says would win over the argument
    _check_amount(name, folder, config)
    if (folder / "generation_config.json").is_file():  # read with the weights, and never used here
        with refused(f"{name!r}: its generation_config.json holds what transformers does not take; delete or mend it"):
            GenerationConfig.from_pretrained(folder)
    weights = weight_files(name, folder)[0].name
    with refused(f"{name!r}: its weights ({weights} …) do not fit its config.json, or cannot be loaded"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, use_kernels=False,
        )  # fmt: skip
    hf, loading = loaded
    for fault, keys in (
        ("lacks weights", loading["missing_keys"]),
        ("has other sizes than the weights", loading["mismatched_keys"]),
    ):
        if keys:
            listed = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
            raise UsageError(
                f"{name!r}: the folder {fault} of the model of type {hf.config.model_type} that its config.json "
                f"describes: {', '.join(listed[:3])} … ({len(keys)} in all)"
            )
    hf.config.architectures = [type(hf).__name__]  # what was loaded, whatever config.json says
    hf.config.return_dict = True
    return hf.eval()


def _check_amount(name: str, folder: Path, config: Any) -> None:
    """:raises UsageError: config.json describes a model with more numbers than the files of weights have bytes."""
    from transformers import AutoModelForCausalLM

    what = f"{name!r}: transformers cannot make the model that its config.json describes"
    with refused(what), torch.device("meta"):
        make: Any = AutoModelForCausalLM.from_config
        empty = make(config, trust_remote_code=False)
    wanted = sum(parameter.numel() for parameter in empty.parameters())
    files = weight_files(name, folder)
    check_memory(repr(name), wanted)
    there = sum(path.stat().st_size for path in files)
    if wanted > there:
        raise UsageError(
            f"{name!r}: its config.json describes a model of type {config.model_type} with {wanted:,} numbers, and its "
            f"weights ({files[0].name}) have {there:,} bytes: they are of another model"
        )


def _vocabulary_rows(hf: Any) -> int:
    """How many tokens the model can both read and predict; its tokenizer may have more."""
    unembedding = hf.get_output_embeddings()
    rows = [part.weight.shape[0] for part in (hf.get_input_embeddings(), unembedding) if part is not None]
    return int(min(rows))


def _check_bos(name: str, tokenizer: Any, rows: int) -> None:
    if tokenizer.bos_token == "":
        places = "bos_token in tokenizer_config.json or special_tokens_map.json"
        raise UsageError(f"{name!r}: the tokenizer's BOS is an empty text ({places})")
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id >= rows:
        raise UsageError(
            f"{name!r}: the tokenizer's BOS {tokenizer.bos_token!r:.40} has id {tokenizer.bos_token_id}, and the "
            f"model's embedding has {rows} rows: a token was added to the tokenizer and not to the model"
        )


def _fold(bridge: Any) -> None:
    """Folds weights as `enable_compatibility_mode` does, without two copies of all of them that its steps begin with.

    Value biases need no folding in a model without biases, and the unembedding is centred where it lies.
    """
    unembedding = bridge.unembed.original_component
    plain = type(unembedding) is torch.nn.Linear and not (getattr(bridge.cfg, "output_logits_soft_cap", None) or 0) > 0
    biases = any(key.endswith("bias") for key, _ in bridge.original_model.named_parameters())
    bridge.enable_compatibility_mode(disable_warnings=True, center_unembed=not plain, fold_value_biases=biases)
    if plain:
        for of_vocabulary in (unembedding.weight, unembedding.bias):
            if of_vocabulary is not None:
                of_vocabulary.data = of_vocabulary.data - of_vocabulary.data.mean(0)


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


def _fingerprinted(model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the fingerprint is taken of: the config's entries that say how the parameters are used, and those."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in NOT_FINGERPRINTED}
    return config, dict(model.state_dict())


def _sha256(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    """The hash of the config and of all parameters by name, as float32."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, tensor in sorted(weights.items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()

"""What loading asks of a model: that it is causal, and that the folded model is still the same model."""

from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from mechrl.errors import UsageError
from mechrl.models.files.hub import first_sentence
from mechrl.models.regimes import probe_tokens
from mechrl.models.running import resumed, run, unembed

PROBE_TOKENS = 64
RESUMED_TOKENS = 16  # enough to see that a later layer goes on from what it is given
# Of the largest number: far above what rounding in float32 does, far below what a missing term does.
PROBE_ERROR = 1e-3
LOOKS_AHEAD = 1e-4
ODD_POSITIONS = 0.02  # of all


@torch.no_grad()
def probe(name: str, hf: Any, most: int = PROBE_TOKENS) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [2, position], rows that differ in the second half, and the logits that transformers computes from them.

    :param most: how many tokens a row has, or as many as the model takes.
    :raises UsageError: the model looks ahead, or its logits are not finite.
    """
    limits = (getattr(hf.config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    limit = next((n for n in limits if isinstance(n, int)), -1)  # XLNet's -1 means none
    half = max(1, (min(most, limit - 2) if limit > 0 else most) // 2)  # RoBERTa counts its positions from 2
    tokens = probe_tokens(hf, 2 * half).repeat(2, 1).to(hf.device)
    tokens[1, half:] = tokens[1, :half]
    try:
        logits = hf(tokens).logits
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        raise UsageError(
            f"{name!r}: transformers {version('transformers')} itself cannot run this model ({hf.config.model_type}) "
            f"on {2 * half} tokens: {first_sentence(error)}"
        ) from error
    if not torch.isfinite(logits).all():
        raise UsageError(f"{name!r} cannot be swept: {_not_finite(hf, logits)}")
    if _disagreement(LOOKS_AHEAD, logits[1, :half], logits[0, :half]):
        raise UsageError(
            f"{name!r} is not a causal model: tokens change the logits before them, and mechrl reads a prompt at its "
            "last position"
        )
    return tokens, logits


def _not_finite(hf: Any, logits: torch.Tensor) -> str:
    """Where a model's logits are not finite, and the parameter that is to blame, if one is."""
    for key, parameter in hf.named_parameters():
        bad = (~torch.isfinite(parameter)).flatten(1).any(1) if parameter.ndim > 1 else ~torch.isfinite(parameter)
        if bad.any():
            return (
                f"{key} is not finite in row {int(bad.nonzero()[0])} ({int(bad.sum())} such rows), nor are its logits"
            )
    return f"its logits are not finite in float32 ({int((~torch.isfinite(logits)).sum())} of {logits.numel()})"


@torch.no_grad()
def check_sweepable(name: str, bridge: Any, tokens: torch.Tensor, expected: torch.Tensor) -> None:
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
    if difference := _disagreement(PROBE_ERROR, *_centred(logits, expected)):
        raise UsageError(
            f"{name!r} cannot be swept: folded by TransformerLens, its logits differ from those of transformers by "
            f"{difference:.0%} of the largest"
        )


@torch.no_grad()
def check_resumable(name: str, bridge: Any, tokens: torch.Tensor, expected: torch.Tensor) -> None:
    """Whether the folded model, started at a later layer and read at one position, gives the same logits: a sweep does.

    :param expected: its logits on these tokens, [row, position, vocabulary].
    :raises UsageError: it does not.
    """
    n_layers, rows = bridge.cfg.n_layers, torch.arange(len(tokens), device=tokens.device)
    last = tokens.shape[1] - 1 - rows * (tokens.shape[1] // 2)  # another position in the other row
    seen: list[torch.Tensor] = []
    hooks = [
        (f"blocks.{layer}.{part}", lambda tensor, hook: seen.append(tensor))
        for layer in range(n_layers)
        for part in ("hook_in", "attn.hook_z")
    ]
    run(bridge, hooks, last, tokens)
    for layer in sorted({0, n_layers // 2, n_layers - 1}):
        found = unembed(bridge, resumed(bridge, layer, seen[2 * layer], seen[2 * layer + 1], last, []))
        if difference := min(_disagreement(PROBE_ERROR, *_centred(found[i], expected[i, last[i]])) for i in rows):
            raise UsageError(
                f"{name!r} cannot be swept: started at layer {layer}, it does not give the logits that it gives from "
                f"the beginning, they differ by {difference:.0%} of the largest. Something in it passes the blocks by"
            )


def _centred(*logits: torch.Tensor) -> list[torch.Tensor]:
    """Logits about their mean: centring the unembedding moves all of a position alike, and changes no probability."""
    return [of.float() - of.float().mean(-1, keepdim=True) for of in logits]


def _disagreement(limit: float, found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of logits [..., vocabulary], divided by the largest number expected; 0 if it is rounding.

    Rounding it is, too, where one position in fifty is off by more than the limit: a router that finds two experts as
    good as equal takes the one or the other.
    """
    largest = expected.abs().max()
    off = (found - expected).abs().amax(-1) / largest
    return float(off.max()) if (off > limit).float().mean() > ODD_POSITIONS else 0.0


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, divided by the largest number expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.inference_mode()
def head_outputs(bridge: Any) -> list[torch.Tensor]:
    """`hook_z` of each layer on a few tokens, [position, head, head width]; before folding it goes by another name."""
    seen: list[torch.Tensor] = []
    tokens = probe_tokens(bridge.original_model, min(8, bridge.cfg.n_ctx))[None].to(next(bridge.parameters()).device)
    names = [f"blocks.{layer}.attn.o.hook_in" for layer in range(bridge.cfg.n_layers)]
    names = [name for name in names if name in bridge.hook_dict]  # what is missing is reported after folding
    bridge.run_with_hooks(tokens, fwd_hooks=[(name, lambda z, hook: seen.append(z[0].clone())) for name in names])
    return seen


def constant_parts(unfolded: list[torch.Tensor], folded: list[torch.Tensor]) -> np.ndarray | None:
    """The difference of the heads' outputs, if it is the same at all positions."""
    if [z.shape for z in unfolded] != [z.shape for z in folded]:
        return None
    difference = torch.stack(unfolded) - torch.stack(folded)
    constants = difference.mean(1)
    if (difference - constants[:, None]).abs().max() > 1e-4 * max(1.0, torch.stack(unfolded).abs().max().item()):
        return None
    return constants.cpu().numpy()

"""Running parts of a bridge: from a layer on, without some blocks, read at one position of each row."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

FINAL_NORM = "ln_final.hook_in"  # what enters it is what leaves the last block


def run(
    bridge: Any, hooks: list[tuple[str, Any]], last: torch.Tensor | None, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """The residual stream that leaves the last block, [row, position, width]; at `last` alone, if given.

    :param hooks: pairs of a hook's name and a function, for TransformerLens.
    :param last: the position to read of each row, int64 [row].
    """
    final: list[torch.Tensor] = []
    if last is not None:
        # What the last block's attention and MLP write is wanted at one position, and broadcast to the others.
        block = f"blocks.{bridge.cfg.n_layers - 1}"
        hooks = [*hooks, (f"{block}.attn.hook_z", lambda hidden, hook: at(hidden, last))]
        if bridge.blocks[-1].mlp.name:  # else its matrices lie in the block (OPT), which flattens rows
            hooks = [*hooks, (f"{block}.mlp.hook_in", lambda hidden, hook: at(hidden, last))]
    hooks = [*hooks, (FINAL_NORM, lambda hidden, hook: final.append(hidden))]
    # The unembedding comes later, of fewer positions or in chunks.
    hooks = [*hooks, ("unembed.hook_in", lambda hidden, hook: hidden[:1, :1])]
    bridge.run_with_hooks(*args, fwd_hooks=hooks, **kwargs)
    return final[0] if last is None else at(final[0], last)


def unembed(bridge: Any, final: torch.Tensor, normed: torch.Tensor | None = None) -> torch.Tensor:
    """Logits, float32 [row, vocabulary], from what leaves the last block, [row, 1, width].

    The model itself does it, with its final norm, its bias and its soft cap, and without its blocks.

    :param normed: what leaves the final norm, if that is given already.
    """
    hooks: list[tuple[str, Any]] = [(FINAL_NORM, lambda hidden, hook: final)]
    if normed is not None:
        hooks.append(("unembed.hook_in", lambda hidden, hook: normed))
    with skipped(bridge.blocks):
        logits = bridge.run_with_hooks(
            final, start_at_layer=bridge.cfg.n_layers - 1, fwd_hooks=hooks, return_type="logits"
        )
    last: torch.Tensor = logits[:, 0].float()
    return last


def resumed(
    bridge: Any,
    layer: int,
    residual: torch.Tensor,
    z: torch.Tensor,
    last: torch.Tensor | None,
    hooks: list[tuple[str, Any]],
) -> torch.Tensor:
    """What `run` gives, started at a layer whose heads' outputs are known: its attention is only projected.

    :param residual: what enters that layer, [row, position, width].
    :param z: its heads' outputs, [row, position, head, head width].
    """
    with _from_heads(bridge, layer, z):
        return run(bridge, hooks, last, residual, start_at_layer=layer)


class _Reached(Exception):
    """A run has come to where it was to end."""


def resumed_until(
    bridge: Any, layer: int, residual: torch.Tensor, z: torch.Tensor, stop: int, hooks: list[tuple[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the later layer `stop`, and its heads' outputs there, of a run resumed as by `resumed`.

    :returns: [row, position, width] and [row, position, head, head width].
    """
    seen: list[torch.Tensor] = []

    def end(heads: torch.Tensor, hook: object) -> None:
        seen.append(heads)
        raise _Reached

    there = [(f"blocks.{stop}.hook_in", lambda entering, hook: seen.append(entering))]
    hooks = [*hooks, *there, (f"blocks.{stop}.attn.hook_z", end)]
    with _from_heads(bridge, layer, z), contextlib.suppress(_Reached):
        bridge.run_with_hooks(residual, start_at_layer=layer, fwd_hooks=hooks)
    entering, heads = seen
    return entering, heads


@contextmanager
def _from_heads(bridge: Any, layer: int, z: torch.Tensor) -> Iterator[None]:
    """For the time of the call no block below a layer computes, and its attention only projects its heads' outputs."""
    attention = bridge.blocks[layer].attn
    with skipped(bridge.blocks[:layer]), replaced([attention], lambda *_, **__: (attention.o(z.flatten(2)), None)):
        yield


def skipped(blocks: Any) -> AbstractContextManager[None]:
    """For the time of the call these blocks hand on their input and compute nothing."""
    return replaced(blocks, lambda hidden_states, *args, **kwargs: hidden_states)


@contextmanager
def replaced(modules: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """For the time of the call these modules do something else.

    The entry goes into the module's own `__dict__`: plain assignment would write through to the Hugging Face module.
    """
    for module in modules:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


def at(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Position `last` [row] of each row, [row, 1, …]."""
    return hidden[torch.arange(len(last), device=last.device), last].unsqueeze(1)

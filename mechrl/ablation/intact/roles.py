"""What heads of the intact model look like: patterns, features, and roles, which interpreters look for first.

The four roles that are scores of attention come from rows of random tokens, such as the induction task has: BOS if the
tokenizer has one, then a block of words, none of them twice, then the same block again. So what a query should attend
to is one position, and nothing but the repetition points to it.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState

from mechrl.ablation import ROLES
from mechrl.ablation.forward import CleanRun, Forward, finite
from mechrl.ablation.intact.direct import adds_plainly, unscaled, written_alone
from mechrl.errors import MachineError, UsageError
from mechrl.models import Model
from mechrl.models.running import at
from mechrl.tasks import Prompts

BLOCK = 25  # tokens that are repeated, as in arXiv 2209.11895, or what the context holds
LEAST = 3  # in a shorter block the token after the earlier occurrence is the one before the query, or the query
ROWS = 32
CIRCUIT_ERROR = 1e-3  # of the largest value: far above rounding
SUM_ERROR = 0.01  # of a pattern's rows; reduced precision rounds that much


def shows_patterns(forward: Forward) -> bool:
    """Whether `hook_pattern` is, in every layer, what mixes the positions of `hook_z`.

    Its rows must sum to one, and when they are changed so that all attend to the first position alone, z must be the
    same at all positions.
    """
    sites = [f"blocks.{layer}.attn." for layer in range(forward.model.n_layers)]
    if any(site + "hook_pattern" not in forward.model.bridge.hook_dict for site in sites):
        return False
    tokens = forward.model.some_tokens(8)[None]
    sums: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def attend_to_the_first(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        sums.append(pattern.float().sum(-1))
        changed = torch.zeros_like(pattern)
        changed[..., 0] = 1
        return changed

    hooks: list[tuple[str, Callable[..., Any]]] = [(site + "hook_pattern", attend_to_the_first) for site in sites]
    hooks += [(site + "hook_z", lambda z, hook: outputs.append(z.float())) for site in sites]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns of what some families do with a changed pattern
        forward.run(hooks, None, tokens)
    shape = (1, forward.model.n_heads, 8)
    return [s.shape for s in sums] == [shape] * len(sites) and all(
        bool((s - 1).abs().max() <= SUM_ERROR) and bool((z - z[:, :1]).abs().max() <= SUM_ERROR * z.abs().max())
        for s, z in zip(sums, outputs, strict=True)
    )


@torch.inference_mode()
def attention_patterns(forward: Forward, prompts: Prompts, sites: Sequence[int], last: bool = False) -> np.ndarray:
    """The attention of some heads of the intact model, float32 [prompt, site, query, key]; 0 beyond a prompt's end.

    :param last: only from the position that is read, [prompt, site, key].
    :raises UsageError: it is a model whose patterns cannot be read, see `shows_patterns`.
    :raises MachineError: a number is not finite, or one prompt alone does not fit in memory.
    """
    if not shows_patterns(forward):
        raise UsageError(
            f"{forward.model.name!r}: where its heads look cannot be read: what TransformerLens gives as the attention "
            "patterns of this kind of model is not, in every layer, what mixes the positions"
        )
    positions, n_heads = int(prompts.length.max()), forward.model.n_heads

    def patterns(rows: np.ndarray) -> torch.Tensor:
        width = int(prompts.length[rows].max())
        tokens, end = forward.tensors(prompts.tokens[rows, :width], prompts.length[rows] - 1)
        inside = (torch.arange(width, device=end.device) <= end[:, None]).float()  # [row, query]
        seen: dict[int, torch.Tensor] = {}

        def keep(pattern: torch.Tensor, hook: object, layer: int) -> None:
            for site in (site for site in sites if site // n_heads == layer):
                of_head = pattern[:, site % n_heads].float() * inside[:, :, None]
                seen[site] = at(of_head, end)[:, 0] if last else of_head

        layers = sorted({site // n_heads for site in sites})
        forward.run(
            [(f"blocks.{layer}.attn.hook_pattern", partial(keep, layer=layer)) for layer in layers], None, tokens
        )
        missing = (0, positions - width)
        return torch.nn.functional.pad(torch.stack([seen[site] for site in sites], 1), missing * (1 if last else 2))

    return finite(forward.in_groups(patterns, prompts.length), "prompt")


def head_features(forward: Forward, prompts: Prompts) -> dict[str, np.ndarray]:
    """What the heads of the intact model do on one batch of prompts, float32 [prompt, site] each.

    Of a model that `shows_patterns`, over the queries up to the position that is read:

    - `attention_entropy`: of a query's attention, in nats, mean over queries.
    - `previous_token`: attention to the token before, mean over all queries but the first; 0 where there is no other.
    - `bos_attention`: attention to the first position, mean likewise.

    Of a model that adds to the residual stream just what its heads write:

    - `output_norm`: Euclidean norm of what a head writes at the position that is read.

    :raises MachineError: a number is not finite, or one prompt alone does not fit in memory.
    """
    patterns, plain = shows_patterns(forward), adds_plainly(forward)

    def features(rows: np.ndarray) -> dict[str, torch.Tensor]:
        seen = PatternFeatures(forward, prompts[rows].length) if patterns else None
        clean = forward.clean_prompts(prompts[rows], hooks=seen.hooks if seen else ())
        return (seen.columns() if seen else {}) | (output_norms(forward, clean) if plain else {})

    values_by_name = forward.in_groups(features, prompts.length)
    return {name: finite(values, "prompt", forward.named()) for name, values in values_by_name.items()}


class PatternFeatures:
    """What a clean run's attention patterns say of each head, see `head_features`; `hooks` are for that run.

    :param length: of the run's prompts, int [prompt].
    """

    def __init__(self, forward: Forward, length: np.ndarray):
        last = torch.from_numpy(length - 1).to(forward.model.device)
        query = torch.arange(int(length.max()), device=last.device)
        self._read = (query <= last[:, None]).float()[:, None]  # [row, 1, query]
        self._seen: dict[str, list[torch.Tensor]] = {}
        self.hooks = [(f"blocks.{layer}.attn.hook_pattern", self._keep) for layer in range(forward.model.n_layers)]

    def columns(self) -> dict[str, torch.Tensor]:
        """[prompt, site] by name, once the model has run."""
        return {name: torch.cat(layers, 1) for name, layers in self._seen.items()}

    @torch.no_grad()
    def _keep(self, pattern: torch.Tensor, hook: object) -> None:
        pattern, read = pattern.float(), self._read
        later = read * (torch.arange(read.shape[-1], device=read.device) > 0)
        previous = torch.nn.functional.pad(pattern.diagonal(-1, -2, -1), (1, 0))
        for name, values, counted in (
            ("attention_entropy", torch.special.entr(pattern).sum(-1), read),
            ("previous_token", previous, later),
            ("bos_attention", pattern[..., 0], later),
        ):
            mean = (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)
            self._seen.setdefault(name, []).append(mean)


@torch.inference_mode()
def output_norms(forward: Forward, clean: CleanRun) -> dict[str, torch.Tensor]:
    """`output_norm` of every head on a clean run's prompts, [prompt, site]; of a model that `adds_plainly`."""
    pairs = zip(forward.model.bridge.blocks, clean.layers, strict=True)
    norms = [written_alone(block, at(layer.z, clean.end)).float().norm(dim=-1)[..., 0].T for block, layer in pairs]
    return {"output_norm": torch.cat(norms, 1)}


@torch.inference_mode()
def measure_roles(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    """The role scores of all heads, float32 [site] by name, in the order of `ROLES`.

    Of a model that `shows_patterns`, with a context and a vocabulary of words for it, shares of attention on repeated
    random tokens, means over queries and rows:

    - `previous_token`: to the token before; over all queries but the first.
    - `duplicate_token`: to the earlier occurrence of the same token; over the queries of the second block.
    - `induction`: to the token after that occurrence (arXiv 2209.11895); over the queries of the second block.
    - `bos_attention`: to the first position, BOS or not; over all queries but the first.

    Of a model whose values are its normed residual stream times `W_V`:

    - `copying`: the sum of the real parts ÷ the sum of the magnitudes, from -1 to 1, of the eigenvalues of the head's
      full OV circuit W_E W_V W_O W_U ("A Mathematical Framework for Transformer Circuits", Elhage et al. 2021); 0 if
      all are zero. The logits are centred over the vocabulary, as folding leaves them. The norms on the way
      count with their weights and without their scales, which differ from token to token.

    A score that the model does not allow is left out.

    :param model: in float32.
    :param seed: of the random tokens.
    :raises MachineError: a score is not finite, or one row alone does not fit in memory.
    """
    forward = Forward(model)
    scores: dict[str, torch.Tensor] = {}
    tokens = repeated_tokens(model, seed)
    if tokens.shape[1] // 2 >= LEAST and shows_patterns(forward):
        shares = forward.in_groups(lambda rows: _attention(forward, tokens[rows]), np.full(ROWS, tokens.shape[1]))
        scores = {name: values.mean(0) for name, values in shares.items()}
    if (copying := _copying(forward)) is not None:
        scores["copying"] = copying
    roles = {name: scores[name].to("cpu", torch.float32).numpy() for name in ROLES if name in scores}
    for name, values in roles.items():
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            layer, head = divmod(int(bad[0]), model.n_heads)
            raise MachineError(f"{model.name!r}: {name} of head {layer}.{head} is not finite")
    return roles


def repeated_tokens(model: Model, seed: int) -> np.ndarray:
    """Rows of a block of random words and the same block again, after BOS if there is one, int64 [row, position]."""
    vocabulary, rng = model.vocabulary, RandomState(seed)
    size = min(BLOCK, len(vocabulary.word_ids), (model.n_ctx - len(vocabulary.with_bos([]))) // 2)
    blocks = (rng.choice(vocabulary.word_ids, size, replace=False).tolist() for _ in range(ROWS))
    return np.array([vocabulary.with_bos(block + block) for block in blocks], np.int64)


def _attention(forward: Forward, tokens: np.ndarray) -> dict[str, torch.Tensor]:
    """The scores of attention on some rows, [row, site]."""
    size = tokens.shape[1] // 2
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in ROLES if name != "copying"}

    # TransformerLens's `detect_head` takes text, which need not come out as these tokens, and divides by all queries,
    # also by those that have no earlier occurrence, so that a perfect induction head gets less than 1/2.
    def keep(pattern: torch.Tensor, hook: object) -> None:
        for name, back in (("previous_token", 1), ("duplicate_token", size), ("induction", size - 1)):
            attended = pattern.float().diagonal(-back, -2, -1)  # [row, head, query], queries from `back` on
            columns[name].append((attended if back == 1 else attended[..., -size:]).mean(-1))
        columns["bos_attention"].append(pattern[..., 1:, 0].float().mean(-1))

    layers = range(forward.model.n_layers)
    hooks: list[tuple[str, Callable[..., Any]]] = [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in layers]
    forward.run(hooks, None, torch.from_numpy(tokens).to(forward.model.device))
    return {name: torch.cat(values, 1) for name, values in columns.items()}


def _copying(forward: Forward) -> torch.Tensor | None:
    """The copying scores, float64 [site]; None if the heads' values are not what the weights say."""
    bridge, n_heads = forward.model.bridge, forward.model.n_heads
    tokens = forward.model.some_tokens(8)[:, None]  # a token alone attends to itself: z is its value
    basis = torch.eye(bridge.cfg.d_model, device=tokens.device).unsqueeze(1)
    embedding = bridge.W_E  # rows of tokens that nobody uses need not be finite
    vocabulary = bridge.W_U @ embedding.masked_fill(~torch.isfinite(embedding).all(1, keepdim=True), 0)
    scores = []
    for block, (residual, z, _) in zip(bridge.blocks, forward.clean_spans(tokens.cpu().numpy()).layers, strict=True):
        norm, W_V = getattr(block, "ln1", None), getattr(block.attn, "W_V", None)
        if norm is None or W_V is None or W_V.ndim != 3:
            return None
        W_V = W_V.repeat_interleave(n_heads // len(W_V), 0)  # query heads may share values
        expected = torch.einsum("rpd,hde->rphe", norm(residual), W_V)
        if expected.shape != z.shape or not (expected - z).abs().max() <= CIRCUIT_ERROR * z.abs().max():
            return None
        z_basis = torch.eye(z[0].numel(), device=z.device).unsqueeze(1)
        W_O = block.attn.o(z_basis) - block.attn.o(torch.zeros_like(z_basis))
        for after in (getattr(block, "ln1_post", None), bridge.ln_final):
            W_O = W_O if after is None else unscaled(forward.model, after, W_O)
        # The eigenvalues of A B that are not zero are those of B A, which here is as small as a head is wide.
        circuit = W_O.view(*z.shape[2:], -1) @ vocabulary @ unscaled(forward.model, norm, basis)[:, 0] @ W_V
        eigenvalues = torch.linalg.eigvals(circuit.cpu().double())
        total = eigenvalues.abs().sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
        scores.append(eigenvalues.real.sum(-1) / total)
    return torch.cat(scores)

"""Measures: one number per prompt from the logits at its last position."""

import torch


def _logsumexp_of(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log Σ exp over the columns `ids` [row, k] of `values` […, row, vocabulary], where -1 means none."""
    picked = values.gather(-1, ids.clamp(min=0).expand(*values.shape[:-1], -1))
    return picked.masked_fill(ids < 0, -torch.inf).logsumexp(-1)


def measure(
    logits: torch.Tensor, clean_logprobs: torch.Tensor, answers: torch.Tensor, wrongs: torch.Tensor
) -> dict[str, torch.Tensor]:
    """All measures, each […, row].

    - `logit_diff`: logsumexp of the answers' logits minus logsumexp of the wrongs', in nats.
    - `logprob`: log probability of the answers together, in nats.
    - `kl`: Kullback-Leibler divergence from the clean to this distribution, in nats.
    - `top1`: 1 where the most probable token is an answer.
    - `prob_diff`: probability of the answers minus that of the wrongs.
    - `top1_margin`: how far the logit of the clean model's most probable token lies above the highest other one, in
      nats; the two agree where it is not below zero. No cache holds it.

    :param logits: […, row, vocabulary], such as one [row, vocabulary] per ablated head.
    :param clean_logprobs: log-softmax of the clean logits, [row, vocabulary].
    :param answers: int64 [row, k], padded with -1; `wrongs` likewise.
    """
    logprobs, (highest, said) = logits.log_softmax(-1), logits.topk(2)
    clean_said = clean_logprobs.argmax(-1, keepdim=True).expand(*logits.shape[:-1], 1)
    other = torch.where(said[..., :1] == clean_said, highest[..., 1:], highest[..., :1])
    right, wrong = _logsumexp_of(logprobs, answers), _logsumexp_of(logprobs, wrongs)
    return {
        "logit_diff": _logsumexp_of(logits, answers) - _logsumexp_of(logits, wrongs),
        "logprob": right,
        "kl": (clean_logprobs.exp() * (clean_logprobs - logprobs)).sum(-1),
        "top1": (said[..., :1] == answers).any(-1).to(logits.dtype),
        "prob_diff": right.exp() - wrong.exp(),
        "top1_margin": (logits.gather(-1, clean_said) - other)[..., 0],
    }


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of each row in nats, [row], from logits [row, position, vocabulary] and tokens."""
    rows, positions = tokens.shape
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(rows * (positions - 1), -1), tokens[:, 1:].reshape(-1), reduction="none"
    )
    return loss.view(rows, positions - 1).mean(-1)

"""The slow reference: the whole model once per head, with one hook. What the sweep must equal, and what verify asks."""

from functools import partial
from typing import Any

import numpy as np
import torch

from mechrl.ablation.measures import measure, next_token_loss
from mechrl.models import Model
from mechrl.tasks import Prompts


@torch.inference_mode()
def logits(model: Model, tokens: torch.Tensor, site: int | None = None) -> torch.Tensor:
    """Logits [row, position, vocabulary], clean or with `hook_z` of one head at zero."""
    if site is None:
        return model.bridge(tokens, return_type="logits")
    layer, head = divmod(site, model.n_heads)
    hook = (f"blocks.{layer}.attn.hook_z", partial(_zero_head, head=head))
    return model.bridge.run_with_hooks(tokens, fwd_hooks=[hook], return_type="logits")


def _zero_head(z: torch.Tensor, hook: Any, head: int) -> torch.Tensor:
    z = z.clone()
    z[:, :, head] = 0
    return z


def logit_diff(model: Model, prompts: Prompts, site: int | None = None) -> np.ndarray:
    """The logit difference of each prompt of a batch in nats, float32 [prompt]."""
    columns = (prompts.tokens[:, : prompts.length.max()], prompts.length - 1, prompts.answers, prompts.wrongs)
    tokens, last, answers, wrongs = (torch.from_numpy(column).long().to(model.device) for column in columns)
    read = logits(model, tokens, site)[torch.arange(len(last), device=last.device), last]
    return measure(read, read.log_softmax(-1), answers, wrongs)["logit_diff"].float().cpu().numpy()


def control_loss(model: Model, spans: np.ndarray, site: int | None = None) -> np.ndarray:
    """The mean next-token loss of each span of a batch in nats, float32 [span]."""
    tokens = torch.from_numpy(spans).long().to(model.device)
    return next_token_loss(logits(model, tokens, site), tokens).float().cpu().numpy()

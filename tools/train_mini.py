"""Train the embedded model `mini` on text that the generators of `mechrl.tasks` write, and measure it.

    python tools/train_mini.py --out mechrl/mini         train it (half an hour on two cores)
    python tools/train_mini.py --evaluate mechrl/mini    print its accuracies on unseen prompts

Everything is seeded, but threads add floating-point numbers in an order of their own: a second training gives a model
that does the same and is not the same bit for bit.
"""

import json
import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from numpy.random import RandomState
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mechrl.ablation.measures import measure
from mechrl.cli import app
from mechrl.tasks import EVALUATION, TASKS, Vocabulary, generate
from mechrl.tasks.base import Prompts, usable_pools
from mechrl.tasks.control import prose_spans
from mechrl.tasks.prose import prose

BOS = "<|endoftext|>"
VOCABULARY = 1280
CONTEXT = 64
TEXT_TASKS = [name for name, task in TASKS.items() if all(pool.words for pool in task.pools.values())]
SHORT_TASKS = [name for name in TEXT_TASKS if name != "docstring"]
UNSEEN, UNSEEN_SEED = 1024, 10_000_000  # prompts of each task that training never shows


def build_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's pre-tokenizer over a vocabulary of bytes and of whole pre-tokens: every word our generators write."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words: dict[str, int] = {}
    rng = RandomState(0)
    examples = [TASKS[t].draw(rng, {s: p.words for s, p in TASKS[t].pools.items()}) for t in TEXT_TASKS * 3000]
    texts = [e.context + answer for e in examples for answer in e.answers]
    for text in [*texts, *(prose(rng, 10) for _ in range(5000))]:
        for piece, _ in splitter.pre_tokenize_str(text):
            if not piece.strip("Ġ").isdigit():
                words[piece] = words.get(piece, 0) + 1
    tokens = [BOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [w for w in sorted(words, key=lambda w: (-words[w], w)) if w not in tokens]
    # A pre-token that is in the vocabulary is one token, a year is its century and two digits; anything else falls
    # apart into bytes.
    digits = "0123456789"
    merges = [("Ġ", "1"), *(("Ġ1", d) for d in digits), *((d, e) for d in digits for e in digits)]
    tokens += ["".join(pair) for pair in merges]
    if len(tokens) > VOCABULARY:
        raise SystemExit(f"{len(tokens)} words do not fit a vocabulary of {VOCABULARY}")
    tokenizer = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, clean_up_tokenization_spaces=False
    )


def unseen_prompts(vocabulary: Vocabulary, n: int = UNSEEN) -> dict[str, Prompts]:
    """The (first `n`) prompts that training leaves out, by task."""
    return {name: generate(task, vocabulary, n, EVALUATION, UNSEEN_SEED) for name, task in TASKS.items()}


class Text:
    """Draws training sequences: int64 ids [CONTEXT] and the labels, -100 where nothing can be predicted."""

    def __init__(self, vocabulary: Vocabulary, seed: int):
        self.vocabulary = vocabulary
        self.rng = RandomState(seed)
        self.words = np.array(vocabulary.word_ids)
        self.pools = {name: usable_pools(TASKS[name], vocabulary).pools for name in TEXT_TASKS}
        self.unseen = {
            tuple(row[:length])
            for prompts in unseen_prompts(vocabulary).values()
            for row, length in zip(prompts.tokens.tolist(), prompts.length, strict=True)
        }

    def repeated_block(self) -> tuple[np.ndarray, np.ndarray]:
        """A block of random words, again and again; only the repeats are labelled."""
        period = self.rng.randint(4, CONTEXT - 8)
        ids = np.resize(self.rng.choice(self.words, period, replace=False), CONTEXT - 1)
        ids = np.concatenate([[self.vocabulary.bos], ids])
        labels = np.where(np.arange(CONTEXT) > period + 1, ids, -100)
        return ids, labels

    def scattered_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Random words in which some pairs A B come back as A B; only those second Bs are labelled."""
        ids = np.concatenate([[self.vocabulary.bos], self.rng.choice(self.words, CONTEXT - 1, replace=False)])
        labels = np.full(CONTEXT, -100)
        free = np.ones(CONTEXT, bool)
        for _ in range(12):
            first, second = sorted(self.rng.randint(1, CONTEXT - 1, 2))
            cells = [first, first + 1, second, second + 1]
            if second - first > 1 and free[cells].all():
                ids[second : second + 2] = ids[first : first + 2]
                labels[second + 1] = ids[second + 1]
                free[cells] = False
        return ids, labels

    def document(self, name: str) -> list[int]:
        """One prompt of a text task with its answer, or a short story; BOS first."""
        while name != "prose":
            example = TASKS[name].draw(self.rng, self.pools[name])
            ids = self.vocabulary.encode(example.context)
            if tuple(ids) not in self.unseen:
                return self.vocabulary.encode(example.context + example.answers[self.rng.randint(len(example.answers))])
        return self.vocabulary.encode(prose(self.rng, 1 + self.rng.randint(12)))

    def sequence(self) -> tuple[np.ndarray, np.ndarray]:
        kind = self.rng.randint(8)
        if kind < 2:
            return self.scattered_pairs() if kind else self.repeated_block()
        name = ("ioi", "docstring", "prose", *["any"] * 3)[kind - 2]
        ids: list[int] = []
        while len(ids) < CONTEXT:
            ids += self.document(SHORT_TASKS[self.rng.randint(len(SHORT_TASKS))] if name == "any" else name)
            name = "prose" if name == "docstring" else name
        row = np.array(ids[:CONTEXT])
        return row, row

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = zip(*(self.sequence() for _ in range(size)), strict=True)
        return torch.from_numpy(np.stack(ids)).long(), torch.from_numpy(np.stack(labels)).long()


@torch.inference_mode()
def evaluate(model: torch.nn.Module, vocabulary: Vocabulary, n: int = UNSEEN) -> dict[str, float]:
    """Top-1 accuracy over the whole vocabulary on unseen prompts, mean logit difference, and the loss on prose."""
    model.eval()
    results = {}
    for name, prompts in unseen_prompts(vocabulary, n).items():
        rows = torch.arange(len(prompts))
        logits = model(torch.from_numpy(prompts.tokens).long()).logits[
            rows, torch.from_numpy(prompts.length).long() - 1
        ]
        answers, wrongs = (torch.from_numpy(a).long() for a in (prompts.answers, prompts.wrongs))
        found = measure(logits, logits.log_softmax(-1), answers, wrongs)
        results[f"{name} accuracy"] = found["top1"].mean().item()
        results[f"{name} logit difference"] = found["logit_diff"].mean().item()
    spans = torch.from_numpy(prose_spans(vocabulary, n, EVALUATION, UNSEEN_SEED)).long()
    results["prose loss (nats)"] = model(spans, labels=spans).loss.item()
    model.train()
    return results


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Train, and write the model into this folder.")
@click.option(
    "--evaluate", "folder", type=click.Path(exists=True, path_type=Path), help="Only measure the model there."
)
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="Go on from a model, on other text.")
@click.option("--layers", default=6, show_default=True)
@click.option("--heads", default=8, show_default=True)
@click.option("--width", default=128, show_default=True)
@click.option("--steps", default=6000, show_default=True)
@click.option("--batch", default=64, show_default=True, help="Sequences in a step.")
@click.option("--lr", default=1e-3, show_default=True, help="Peak learning rate; cosine decay after a short warm-up.")
@click.option("--seed", default=0, show_default=True)
def main(out, folder, start, layers, heads, width, steps, batch, lr, seed):
    """Train `mini`, or measure it with --evaluate."""
    if (out is None) == (folder is None):
        raise click.UsageError("give one of --out and --evaluate")
    if folder is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        click.echo(json.dumps(evaluate(model, Vocabulary(PreTrainedTokenizerFast.from_pretrained(folder))), indent=2))
        return
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vocabulary = Vocabulary(tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        activation_function="gelu_pytorch_tanh",  # gelu_new as one fused operation: a third of a step's time
    )  # fmt: skip
    model = (
        GPT2LMHeadModel(config)
        if start is None
        else GPT2LMHeadModel.from_pretrained(start, config=config, dtype=torch.float32)
    )
    text = Text(vocabulary, seed if start is None else seed + 1_000_000)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )
    warmup = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.02 + 0.98 * (1 + math.cos(math.pi * min(step / steps, 1))) / 2),
    )
    began = time.monotonic()
    for step in range(steps + 1):
        if step % 250 == 0:
            measured = {key: round(value, 3) for key, value in evaluate(model, vocabulary, n=128).items()}
            click.echo(f"step {step} {time.monotonic() - began:.0f} s {json.dumps(measured)}")
        ids, labels = text.batch(batch)
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 1000 == 999:
            save(model, tokenizer, out)
    save(model, tokenizer, out)


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """float16 on disk; the model in memory stays as it is."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.config.activation_function = "gelu_new"
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    app.run(main)

"""A real language model, where `tools/get_smollm2.sh` fetched it: damages by plain modules, all commands."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import USERS_HOME
from transformers import AutoModelForCausalLM

from mechrl.ablation.forward import Forward
from mechrl.ablation.sweep import sweep_task
from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.train import train
from mechrl.cli.verify import verify
from mechrl.models import find_folder, load_model
from mechrl.models.files.folder import FETCHED
from mechrl.tasks import TRAIN, generate, get_task

pytestmark = pytest.mark.slow
NAME = "smollm2-135m"
TASKS = ("ioi", "gendered_pronoun", "country_capital", "successor")


@pytest.fixture
def fetched(own_home: Path) -> None:
    if not (USERS_HOME / "models" / FETCHED[NAME]).is_file():
        pytest.skip(f"{NAME} was not fetched; tools/get_smollm2.sh does it")
    (own_home / "models").symlink_to(USERS_HOME / "models")


@contextmanager
def without(plain, layer: int, head: int):
    """For the time of the call a head of a plain model writes nothing."""
    width = plain.config.head_dim

    def silence(module, arguments):
        (z,) = arguments
        z = z.clone()
        z[..., head * width : (head + 1) * width] = 0
        return (z,)

    handle = plain.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def test_damages_are_those_of_plain_modules(fetched):
    model = load_model(NAME, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(find_folder(NAME), dtype=torch.float32).eval()
    forward, rng = Forward(model), np.random.RandomState(0)
    for name in TASKS:
        prompts = generate(get_task(name), model.vocabulary, 32, TRAIN)
        heads = rng.choice(model.n_layers * model.n_heads, 20, replace=False)
        sets = np.eye(model.n_layers * model.n_heads, dtype=bool)[heads]
        clean, ablated = sweep_task(forward, prompts, sets=sets)
        tokens, rows = torch.from_numpy(prompts.tokens).long(), torch.arange(32)
        last = torch.from_numpy(prompts.length).long() - 1

        def logit_diff(tokens=tokens, rows=rows, last=last, prompts=prompts) -> np.ndarray:
            logits = plain(tokens).logits[rows, last].double()

            def of(ids: np.ndarray) -> torch.Tensor:
                chosen = torch.from_numpy(ids).long()
                return logits.gather(1, chosen.clamp(min=0)).masked_fill(chosen < 0, -torch.inf).logsumexp(1)

            return (of(prompts.answers) - of(prompts.wrongs)).numpy()

        intact = logit_diff()
        np.testing.assert_allclose(clean["logit_diff"], intact, atol=1e-4)
        for column, site in enumerate(heads):
            with without(plain, *divmod(int(site), model.n_heads)):
                expected = intact - logit_diff()
            ours = clean["logit_diff"] - ablated["logit_diff"][:, column]
            np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=f"{name}, head {site}")


def test_from_the_model_to_the_verdict(fetched, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    sizes = ("--batches", 3, "--batch-size", 4, "--control-batches", 3)
    what = ("--model", NAME, "--tasks", "gendered_pronoun,country_capital")
    assert call(cache_command, "build", *what, *sizes, "--out", "smol.h5", "--device", "cpu")[0] == 0
    cache = Cache.open("smol.h5")
    assert cache.n_sites == 270
    assert cache.attributes["prepend_bos"] is False
    assert cache.attributes["control_source"] == "model"
    assert cache.attributes["weight_processing"].startswith("dequantised from Q4_1")
    assert call(train, "--from-cache", "smol.h5", "--hold-out", "country_capital", "--steps", 800)[0] == 0
    code, out, _ = call(verify, "--cache", "smol.h5", "--model", NAME, "--fresh-batches", 2, "--json")
    assert code in (0, 3), "a verdict, whatever it is"
    assert json.loads(out)["faithful"]["answer"] is True

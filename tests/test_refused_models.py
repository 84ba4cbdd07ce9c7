"""Models that are refused: each with one short reason, and never swept wrongly."""

import shutil
from types import SimpleNamespace

import pytest
import transformers as hf
from helpers import ARCHITECTURES, GROUPED, SIZES, randomize, save
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformer_lens.model_bridge.bridge_core import BridgeCore

from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.cli.cache import cache as cache_command
from mechrl.errors import MachineError, UsageError
from mechrl.models import load_model

GPT2 = {"vocab_size": 1106, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
DEEPSEEK = {
    **SIZES, "moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 1, "first_k_dense_replace": 3, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
}  # fmt: skip
NOT_CAUSAL = "is not a causal model: tokens change the logits before them"
REFUSED = {
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES)), NOT_CAUSAL),
    "roberta": (lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES)), NOT_CAUSAL),
    "roberta as a decoder": (lambda: hf.RobertaForCausalLM(hf.RobertaConfig(**SIZES)), NOT_CAUSAL),
    "gemma3 that embeds": (
        lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(head_dim=8, use_bidirectional_attention=True, **GROUPED)),
        NOT_CAUSAL,
    ),
    "distilbert": (
        lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(n_layers=1, n_heads=4, dim=32, hidden_dim=64)),
        "is a model of type distilbert, which is not a causal language model",
    ),
    "vit": (
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(num_hidden_layers=1, num_attention_heads=4, hidden_size=32, intermediate_size=64)
        ),
        "is a model of type vit, which is not a causal language model",
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=1106, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
        ),
        "is an encoder-decoder model (t5), not a causal language model",
    ),
    "bart": (
        lambda: hf.BartForConditionalGeneration(
            hf.BartConfig(vocab_size=1106, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64)
        ),
        "is an encoder-decoder model (bart), not a causal language model",
    ),
    "mamba": (
        lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=1106, hidden_size=32, num_hidden_layers=2, state_size=8)),
        "cannot be swept: TransformerLens has no blocks.0.attn.hook_z for this kind of model",
    ),
    "gpt": (
        lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**GPT2)),
        "cannot be swept: TransformerLens has no ln_final.hook_in for this kind of model",
    ),
    "bloom": (  # adds the residual stream within its attention
        lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=1106, n_layer=2, n_head=4, hidden_size=32)),
        "cannot be swept: the attention of layer 0 writes more than its heads, projected",
    ),
    "deepseek": (  # the width of its values is not that of its keys
        lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**DEEPSEEK)),
        "cannot be swept: TransformerLens shows 8 heads in layer 0, where the model has 4",
    ),
    "gpt2 without the scale": (  # which TransformerLens applies nevertheless
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(scale_attn_weights=False, **GPT2)),
        "cannot be swept: folded by TransformerLens, its logits differ from those of transformers by",
    ),
    "gpt-oss": (  # whose folding TransformerLens gets wrong
        lambda: hf.GptOssForCausalLM(
            hf.GptOssConfig(head_dim=8, num_local_experts=2, num_experts_per_tok=1, **GROUPED)
        ),
        "cannot be swept: folded by TransformerLens, its logits differ from those of transformers by",
    ),
    "biogpt": (
        lambda: hf.BioGptForCausalLM(hf.BioGptConfig(**SIZES)),
        "cannot take apart models of type biogpt",
    ),
}
UNTRAINED = ("bert", "roberta")  # weights as small as a new model's: looking ahead hardly shows


@pytest.fixture
def refusal(call, capsys, tmp_path):
    """The one message, and the exit code, of a build with a model that is not built."""
    (tmp_path / "prose.txt").write_text("hello")

    def refusal(*model) -> tuple[int, str]:
        capsys.readouterr()  # what making the model has printed
        out_path = tmp_path / "x.h5"
        flags = ("--device", "cpu", "--control-text", tmp_path / "prose.txt", "--out", out_path)
        code, out, err = call(cache_command, "build", "--model", *model, *flags)
        assert out == ""
        assert "Traceback" not in err
        assert not out_path.exists()
        assert err.count("\n") == 1
        return code, err

    return refusal


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_be_swept_is_refused_with_a_short_reason(refusal, tmp_path, kind):
    make, reason = REFUSED[kind]
    folder = save(make() if kind in UNTRAINED else randomize(make()), tmp_path / "model")
    code, err = refusal(folder)
    assert code == 2
    assert reason in err
    assert len(err) < len(str(folder)) + 150


def test_a_model_without_output_projections_is_refused(tmp_path, monkeypatch):
    """None is known that shows its heads and not the matrix after them, so the hook of one is hidden."""
    every = BridgeCore.hook_dict
    hidden = "blocks.1.attn.o.hook_in"
    monkeypatch.setattr(
        BridgeCore, "hook_dict", property(lambda self: {k: v for k, v in every.fget(self).items() if k != hidden})
    )
    with pytest.raises(UsageError, match=f"cannot be swept: TransformerLens has no {hidden}"):
        load_model("mini", device="cpu")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_folder_without_a_tokenizer_says_so(refusal, tmp_path, name):
    """Left to itself, transformers makes an empty tokenizer for GPT-2 and blames a missing library for Llama."""
    folder = save(ARCHITECTURES[name](), tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    code, err = refusal(folder)
    assert code == 2
    assert f"{folder}: no tokenizer files there, such as tokenizer.json" in err


def test_a_vision_model_without_a_tokenizer_is_refused_for_what_it_is(refusal, tmp_path):
    folder = tmp_path / "model"
    REFUSED["vit"][0]().save_pretrained(folder)
    assert "model of type vit" in refusal(folder)[1]


def test_a_revision_of_a_folder_is_refused(refusal, tmp_path):
    shutil.copytree(save(ARCHITECTURES["gpt2"](), tmp_path / "a"), tmp_path / "model")
    code, err = refusal(tmp_path / "model", "--revision", "step1000")
    assert code == 2
    assert "revision 'step1000' is for models on the hub" in err


def test_what_fails_within_a_sweep_is_a_reason_and_no_traceback(mini, tmp_path, monkeypatch):
    def broken(sweep, prompts, expected, arithmetic, replacement):
        raise IndexError("index 16 is out of bounds")

    monkeypatch.setattr("mechrl.building.workers.worker.self_check", broken)
    with pytest.raises(MachineError, match="'mini' cannot be swept: index 16 is out of bounds"):
        build(mini, BuildSettings(("ioi",), 3, 2, 3), tmp_path / "x.h5")


def hub_error(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
    """An error of the hub library, which writes several lines."""
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind("404 Client Error.\n\nNot Found for url: https://huggingface.co/…", response=response)


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers as it is told: `hub(information, download, found)`, errors being raised."""

    def hub(information, download=None, found=()) -> list[dict]:
        def answer(with_what):
            if isinstance(with_what, Exception):
                raise with_what
            return with_what

        def snapshot_download(name, *, local_files_only=False, **wanted):
            return answer(LocalEntryNotFoundError("not here") if local_files_only else download)

        searches: list[dict] = []
        monkeypatch.setattr(HfApi, "model_info", lambda self, *args, **kwargs: answer(information))
        monkeypatch.setattr(HfApi, "list_models", lambda self, **asked: searches.append(asked) or answer(found))
        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return searches

    return hub


@pytest.mark.parametrize(
    ("name", "search", "found", "suggestion"),
    [
        ("gpt22", "gpt", ["gpt-neo", "gpt2", "someone/gpt2", "gpt2-xl"], "; did you mean gpt2?"),
        ("EleutherAI/Pythia160m", "pythia", ["a/pythia-14m", "b/pythia-160m"], "; did you mean b/pythia-160m?"),
        ("gpt22", "gpt", ["someone/unlike"], ""),
        ("gpt22", "gpt", [], ""),
        ("gpt22", "gpt", OSError("the hub does not answer"), ""),
    ],
)
def test_a_name_that_the_hub_does_not_know(refusal, hub, name, search, found, suggestion):
    """The hub is asked for the beginning of the name, and gives the most downloaded first."""
    models = found if isinstance(found, Exception) else [SimpleNamespace(id=model) for model in found]
    searches = hub(hub_error(RepositoryNotFoundError), found=models)
    code, err = refusal(name)
    assert code == 2
    assert err == f"error: the hub has no model '{name}', or it is private{suggestion}\n"
    assert [(asked["search"], asked["sort"]) for asked in searches] == [(search, "downloads")]


@pytest.mark.parametrize("when", ["information", "download"])
def test_a_gated_model_says_how_to_get_access(refusal, hub, when):
    searches = hub(**{"information": None, when: hub_error(GatedRepoError)})
    code, err = refusal("meta-llama/Llama-3.2-1B")
    assert code == 2
    assert "is gated on the hub: accept its terms at https://huggingface.co/meta-llama/Llama-3.2-1B, then" in err
    assert "`hf auth login` or set HF_TOKEN" in err
    assert searches == []


def test_a_revision_that_the_hub_does_not_know(refusal, hub):
    hub(hub_error(RevisionNotFoundError))
    code, err = refusal("EleutherAI/pythia-160m", "--revision", "step7")
    assert code == 2
    assert "'EleutherAI/pythia-160m' has no revision 'step7' on the hub" in err


def test_a_name_that_no_model_can_have(refusal):
    code, err = refusal("gpt 2")
    assert code == 2
    assert "'gpt 2' is neither a folder nor a name on the hub" in err

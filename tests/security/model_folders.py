"""Model folders, sound and hostile, each made by changing a sound one: `SOUND` and `HOSTILE`, by name."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers as hf
from helpers import GROUPED, SIZES, randomize
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

from mechrl.models import MINI

Change = Callable[[Path], object]
REFUSED, ANY = (2, 4), (0, 2, 4)
ROWS = SIZES["vocab_size"]
GPT2 = {"vocab_size": ROWS, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
TWO_LAYERS = {"num_hidden_layers": 2}
WORDS = (
    ("Mary found a small {} near the hill.", "box", "lamp"),
    ("John saw a tall {} near the river.", "clock", "mirror"),
    ("Tom lost a red {} near the park.", "kite", "drum"),
    ("Sarah bought a new {} near the market.", "coat", "scarf"),
    ("James sold a blue {} near the harbor.", "boat", "wagon"),
    ("Kate hid a golden {} near the tower.", "key", "coin"),
    ("Laura painted a wooden {} near the church.", "bench", "fence"),
    ("David carried a heavy {} near the barn.", "ladder", "bucket"),
)
# The year is two tokens to the tokenizer of `mini`, and four or five to one that goes by another family's rules.
PROMPTS = [
    {"prompt": f"In 1718 {sentence.format(there)} Where is the", "answer": f" {there}", "wrong": f" {other}"}
    for sentence, *words in WORDS
    for there, other in (words, words[::-1])
]
TEXT = [prompt["prompt"] + prompt["answer"] for prompt in PROMPTS]


@dataclass(frozen=True)
class Case:
    """A folder that begins as one of `BASES` and is then changed.

    :param change: is given the folder; what lies beside it is the case's own too. It may return another path to give
        to `--model` in place of the folder.
    :param codes: the exit codes that are right.
    :param says: a pattern that the one message must have, where it is refused.
    :param harm: what a plain reader does, who says yes to every question; it writes the marker.
    """

    base: str
    change: Change
    codes: tuple[int, ...] = REFUSED
    says: str = ""
    harm: Change | None = None


def tokenizer_of_mini(folder: Path) -> None:
    shutil.copy(MINI / "tokenizer.json", folder)
    shutil.copy(MINI / "tokenizer_config.json", folder)


def gpt2(folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    randomize(hf.GPT2LMHeadModel(hf.GPT2Config(bos_token_id=0, eos_token_id=0, **GPT2))).save_pretrained(folder)
    tokenizer_of_mini(folder)


def of_family(kind: str, **sizes: Any) -> Change:
    def make(folder: Path) -> None:
        config = getattr(hf, f"{kind}Config")(bos_token_id=0, eos_token_id=0, **{**GROUPED, **TWO_LAYERS, **sizes})
        randomize(getattr(hf, f"{kind}ForCausalLM")(config)).save_pretrained(folder)
        tokenizer_of_mini(folder)

    return make


def sharded(folder: Path) -> None:
    llama = hf.LlamaForCausalLM(hf.LlamaConfig(bos_token_id=0, eos_token_id=0, **GROUPED, **{}))
    randomize(llama).save_pretrained(folder, max_shard_size="100KB")
    tokenizer_of_mini(folder)


def pickled(folder: Path) -> None:
    gpt2(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def word_files(folder: Path) -> None:
    """A tokenizer as GPT-2's own: vocab.json and merges.txt, and no tokenizer.json."""
    gpt2(folder)
    (folder / "tokenizer.json").unlink()
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(TEXT, vocab_size=ROWS, min_frequency=1, special_tokens=["<|endoftext|>"])
    words.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')


def sentences(folder: Path) -> None:
    """A llama whose tokenizer is a sentencepiece file."""
    of_family("Llama")(folder)
    (folder / "tokenizer.json").unlink()
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT * 20),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            minloglevel=2,
            hard_vocab_limit=False,
            byte_fallback=False,
        )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}')


def old_files(folder: Path) -> None:
    """With everything that transformers 4 wrote, and what a chat model has."""
    gpt2(folder)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text('{"<|endoftext|>": 0}')
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "none"}')


def with_images(folder: Path) -> None:
    text = {**GROUPED, **TWO_LAYERS, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 0}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    randomize(hf.Gemma3ForConditionalGeneration(config)).save_pretrained(folder)
    tokenizer_of_mini(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    (folder / "processor_config.json").write_text('{"processor_class": "Gemma3Processor"}')


BASES: dict[str, Change] = {
    "gpt2": gpt2,
    "llama": of_family("Llama"),
    "qwen2": of_family("Qwen2"),
    "gemma3 with images": with_images,
    "sharded": sharded,
    "pickled": pickled,
    "word files": word_files,
    "sentences": sentences,
    "old files": old_files,
    "neox": of_family("GPTNeoX", num_key_value_heads=None),
    "gemma2": of_family("Gemma2", head_dim=8, sliding_window=64),
    "mistral": of_family("Mistral", sliding_window=64),
    "qwen3": of_family("Qwen3", head_dim=8),
}


def nothing(folder: Path) -> None:
    pass


def both(*changes: Change) -> Change:
    def change(folder: Path) -> object:
        last = None
        for one in changes:
            last = one(folder)
        return last

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return change


def edited(name: str, edit: Callable[[Any], Any]) -> Change:
    """A JSON file read, edited in place or replaced, and written."""

    def change(folder: Path) -> None:
        path = folder / name
        value = json.loads(path.read_text())
        path.write_text(json.dumps(edit(value) or value))

    return change


def with_entries(name: str, **entries: Any) -> Change:
    return edited(name, lambda value: {**value, **entries})


def config(**entries: Any) -> Change:
    return with_entries("config.json", **entries)


def tokenizer_config(**entries: Any) -> Change:
    return with_entries("tokenizer_config.json", **entries)


def tokenizer(**entries: Any) -> Change:
    return with_entries("tokenizer.json", **entries)


def bpe(**entries: Any) -> Change:
    """The vocabulary of tokenizer.json."""
    return edited("tokenizer.json", lambda t: {**t, "model": {**t["model"], **entries}})


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def weights(edit: Callable[[dict[str, torch.Tensor]], Any], metadata: dict[str, str] | None = None) -> Change:
    """The tensors of model.safetensors edited."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors = edit(tensors) or tensors
        save_file({k: t.contiguous() for k, t in tensors.items()}, path, {"format": "pt", **(metadata or {})})

    return change


def header(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """What model.safetensors says that its tensors are, edited; the numbers stay."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        end = 8 + struct.unpack("<Q", raw[:8])[0]
        value = json.loads(raw[8:end])
        new = edit(value) or value
        new = new if isinstance(new, bytes) else json.dumps(new).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[end:])

    return change


DEEP = 100_000
LONG = 200 * 10**6


def cut(part: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(
        part(path.read_bytes().rstrip() if path.suffix == ".json" else path.read_bytes())
    )


def header_length(length: int) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return change


class Payload:
    """Writes the marker when it is unpickled."""

    def __init__(self, folder: Path):
        self.marker = str(folder.parent / "marker")

    def __reduce__(self):
        return (open, (self.marker, "w"))


def evil_pickle(name: str, **how: bool) -> Change:
    return lambda folder: torch.save({"x": Payload(folder)}, folder / name, **how)


def plain_pickle(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Payload(folder)))


def post(*ids: int, token: str = "<|endoftext|>") -> dict[str, Any]:
    """A post-processor that puts a special token first."""
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {token: {"id": token, "ids": list(ids), "tokens": [token] * len(ids)}}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }


def renamed(name: str) -> Change:
    def change(folder: Path) -> Path:
        return folder.rename(folder.parent / name)

    return change


def in_hub_cache(folder: Path) -> Path:
    """As the hub's library keeps a model: files with hashes for names, and links to them."""
    blobs, snapshot = folder.parent / "hub/blobs", folder.parent / "hub/snapshots/0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


def read_only(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)


def other_things(folder: Path) -> None:
    """What else lies in folders from the hub."""
    for name in (
        "consolidated.00.pth tf_model.h5 rust_model.ot flax_model.msgpack model.gguf onnx/model.onnx "
        "original/params.json README.md .gitattributes .cache/huggingface/x.metadata USE_POLICY.md "
        "runs/events.out.tfevents.0 trainer_state.json optimizer.pt coreml/x/model.mlmodel"
    ).split():
        text(name, b"\0 not read")(folder)


def without_keys(*keys: str) -> Change:
    return edited("config.json", lambda c: {k: v for k, v in c.items() if k not in keys})


def larger_embedding(folder: Path) -> None:
    """Rows added to a round number, as trainers do; they are noise."""
    name = "transformer.wte.weight"
    weights(lambda w: w.__setitem__(name, torch.cat([w[name], torch.randn(1152 - ROWS, 32)])))(folder)
    config(vocab_size=1152)(folder)


def without_a_number(folder: Path) -> None:
    """Of a row that no token reads; what is predicted is another matrix."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
            tensors[name] = torch.cat([tensors[name], torch.randn(1152 - ROWS, 32)])
        tensors["gpt_neox.embed_in.weight"][1150] = torch.nan

    weights(change)(folder)
    config(vocab_size=1152)(folder)


SOUND: dict[str, Case] = {
    "gpt2": Case("gpt2", nothing),
    "llama": Case("llama", nothing),
    "sharded": Case("sharded", nothing),
    "word files": Case("word files", nothing),
    "sentences": Case("sentences", nothing),
    "old files": Case("old files", nothing),
    "bfloat16": Case(
        "gpt2", both(weights(lambda w: {k: t.bfloat16() for k, t in w.items()}), config(dtype="bfloat16"))
    ),
    "float16": Case(
        "llama", both(weights(lambda w: {k: t.half() for k, t in w.items()}), config(torch_dtype="float16"))
    ),
    "float64": Case("gpt2", weights(lambda w: {k: t.double() for k, t in w.items()})),
    "files that nobody reads": Case("gpt2", other_things),
    "a README that is a pipe": Case("gpt2", lambda folder: os.mkfifo(folder / "README.md")),
    "names that are odd": Case(
        "gpt2",
        both(
            *(
                text(n, "x")
                for n in ("R\u00c9ADME [1] (copy).md", "a\nb", "-rf", "\x1b[2J", "*.json", "a.safetensors.part")
            )
        ),
    ),
    "a name with spaces": Case("gpt2", renamed("my model (2)")),
    "a name in other letters": Case("gpt2", renamed("модель-模型-é")),
    "a name with brackets": Case("gpt2", renamed("model[abc]{1,2}*?")),
    "a name with a flag in it": Case("gpt2", renamed("--model=x")),
    "a name of a hub's kind": Case("gpt2", renamed("org--name@main:x")),
    "a link to a folder": Case("gpt2", lambda f: (f.parent / "link").symlink_to("model") or f.parent / "link"),
    "a cache of the hub": Case("gpt2", in_hub_cache),
    "a cache of the hub, sharded": Case("sharded", in_hub_cache),
    "read-only": Case("gpt2", read_only),
    "an embedding larger than the tokenizer": Case("gpt2", larger_embedding),
    "a NaN in a row that no token reads": Case("neox", without_a_number),
    "sampling in the generation config": Case(
        "gpt2", with_entries("generation_config.json", do_sample=True, temperature=0.6, top_p=0.9)
    ),
    "no generation config": Case("gpt2", without("generation_config.json")),
    "a chat template": Case("gpt2", text("chat_template.jinja", "{% for m in messages %}{{ m.role }}{% endfor %}")),
    "entries that nobody knows": Case(
        "gpt2", both(config(x={"y": [1]}, task_specific_params={"a": {"b": 1}}), tokenizer_config(x=1))
    ),
    "no architectures": Case("gpt2", without_keys("architectures", "transformers_version", "dtype")),
    "lines as Windows writes them": Case(
        "gpt2", lambda f: text("config.json", (f / "config.json").read_text().replace("\n", "\r\n"))(f)
    ),
    "letters in the config": Case("gpt2", config(_name_or_path="модель 模型", author="é")),
    "weights without a prefix": Case(
        "gpt2", weights(lambda w: {k.removeprefix("transformer."): t for k, t in w.items()})
    ),
    "weights that nobody reads": Case(
        "gpt2",
        weights(lambda w: {**w, **{f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}}),
    ),
    "tied weights that are there twice": Case(
        "gpt2", weights(lambda w: {**w, "lm_head.weight": w["transformer.wte.weight"].clone()})
    ),
    "a post-processor that puts BOS first": Case("gpt2", tokenizer(post_processor=post(0))),
    "a tokenizer that was left truncating": Case(
        "gpt2", tokenizer(truncation={"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"})
    ),
    "a tokenizer that was left padding": Case(
        "gpt2",
        tokenizer(
            padding={
                "strategy": {"Fixed": 60},
                "direction": "Left",
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<|endoftext|>",
                "pad_to_multiple_of": None,
            }
        ),
    ),
    "a pickle of the trainer": Case("gpt2", plain_pickle("training_args.bin")),
    "safetensors beside a pickle": Case("gpt2", evil_pickle("pytorch_model.bin")),
    "other metadata of the weights": Case("gpt2", weights(lambda w: None, {"total_size": "5", "made_by": "\u00e9"})),
    **{name: Case(name, nothing) for name in ("neox", "gemma2", "mistral", "qwen3")},
}
SOUND = {name: replace(case, codes=(0,)) for name, case in SOUND.items()}

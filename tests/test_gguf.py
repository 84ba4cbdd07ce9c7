"""Models in GGUF files: loaded as transformers dequantises them, and refused where a file lies."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import platformdirs
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechrl.errors import MachineError, MechrlError, UsageError
from mechrl.home import home
from mechrl.models import MINI, cache_name, find_folder, load_model
from mechrl.models.files import folder as folders
from mechrl.models.files.gguf import check_gguf

gguf = pytest.importorskip("gguf")
Q8, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
WIDTH, HEADS, MLP, LAYERS = 64, 4, 96, 2


def write(path: Path, architecture: str = "llama", tokens: bool = True, rows: int | None = None) -> Path:
    """A small model with random weights in Q8_0, and the tokenizer of mini."""
    tokenizer = json.loads((MINI / "tokenizer.json").read_text())
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    words += [token["content"] for token in tokenizer["added_tokens"] if token["content"] not in words]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(words)
        writer.add_token_types([1] * len(words))
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
        writer.add_bos_token_id(words.index("<|endoftext|>"))
        writer.add_eos_token_id(words.index("<|endoftext|>"))
    rng = np.random.default_rng(0)
    half = WIDTH // 2
    shapes = {"token_embd": (rows or len(words), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm": (WIDTH,), f"{block}ffn_norm": (WIDTH,)}
        shapes |= {f"{block}attn_q": (WIDTH, WIDTH), f"{block}attn_k": (half, WIDTH), f"{block}attn_v": (half, WIDTH)}
        shapes |= {f"{block}attn_output": (WIDTH, WIDTH), f"{block}ffn_gate": (MLP, WIDTH)}
        shapes |= {f"{block}ffn_up": (MLP, WIDTH), f"{block}ffn_down": (WIDTH, MLP)}
    for name, shape in shapes.items():
        values = rng.normal(0.5 if len(shape) == 1 else 0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, Q8), raw_dtype=Q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "Tiny.Q8_0.gguf")


def test_a_gguf_file_is_loaded_as_transformers_dequantises_it(sound, own_home, capsys):
    model = load_model(str(sound), device="cpu")
    assert "dequantising Tiny.Q8_0.gguf to float32, once" in capsys.readouterr().err
    where: Any = {"gguf_file": sound.name, "dtype": torch.float32}
    plain = AutoModelForCausalLM.from_pretrained(sound.parent, **where)
    tokens = model.some_tokens(20)[None]
    ours, theirs = model.bridge(tokens, return_type="logits"), plain(tokens).logits
    ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)
    text = "When Mary and John went to the store, John gave a book to"
    own = AutoTokenizer.from_pretrained(sound.parent, gguf_file=sound.name)
    assert model.vocabulary.tokenizer.encode(text) == own.encode(text)
    assert model.weight_processing.startswith("dequantised from Q8_0; TransformerLens")
    assert cache_name(str(sound), model.sha256) == f"tiny.q8-0-{model.sha256[:8]}.h5"

    assert load_model(str(sound), device="cpu").sha256 == model.sha256
    assert "dequantising" not in capsys.readouterr().err, "it was written once"
    made = find_folder(str(sound))
    assert made.parent == own_home / "models"
    assert [path.name for path in made.parent.iterdir()] == [made.name], "nothing unfinished is left"
    assert load_model(str(made), device="cpu").sha256 == model.sha256


def changed(source: Path, path: Path, old: bytes, new: bytes) -> Path:
    raw = source.read_bytes()
    assert raw.count(old) >= 1
    path.write_bytes(raw.replace(old, new, 1))
    return path


def info(name: str, *shape: int, kind: int = 8) -> bytes:
    """A tensor as the header describes it, without where it begins."""
    sizes = b"".join(struct.pack("<Q", n) for n in reversed(shape))
    return (
        struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape)) + sizes + struct.pack("<I", kind)
    )


def header(*keys: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


Q = "blk.0.attn_q.weight"
LIES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no gguf": (lambda sound, path: path.write_bytes(b"PK\3\4" + bytes(100)), "does not begin as one does"),
    "empty": (lambda sound, path: path.write_bytes(b""), "does not begin as one does"),
    "version": (lambda sound, path: path.write_bytes(b"GGUF" + struct.pack("<I", 9)), "of version 9"),
    "cut in the header": (lambda sound, path: path.write_bytes(sound.read_bytes()[:3000]), "is damaged"),
    "cut in the weights": (lambda sound, path: path.write_bytes(sound.read_bytes()[:-3000]), "cut off, or damaged"),
    "unknown quantisation": (
        lambda sound, path: changed(sound, path, info(Q, WIDTH, WIDTH), info(Q, WIDTH, WIDTH, kind=4321)),
        "quantisation number 4321",
    ),
    "impossible size": (
        lambda sound, path: changed(sound, path, info(Q, WIDTH, WIDTH), info(Q, 2**50, WIDTH)),
        "cut off, or damaged",
    ),
    "other size": (
        lambda sound, path: changed(sound, path, info(Q, WIDTH, WIDTH), info(Q, WIDTH // 2, WIDTH)),
        "do not fit its sizes",
    ),
    "negative amount": (
        lambda sound, path: changed(sound, path, info(Q, WIDTH, WIDTH), info(Q, WIDTH, 0)),
        "has sizes",
    ),
    "no tokenizer": (lambda sound, path: write(path, tokens=False), "has no tokenizer"),
    "other tokenizer": (lambda sound, path: write(path, rows=64), "and its embedding 64 rows"),
    "no causal language model": (lambda sound, path: write(path, "bert"), "does not know its architecture"),
    "unknown architecture": (lambda sound, path: write(path, "nonesuch"), "does not know its architecture"),
    "no weights": (lambda sound, path: path.write_bytes(header()), "holds no weights"),
    "endless text": (
        lambda sound, path: path.write_bytes(header(key("a", 8, struct.pack("<Q", 2**60)))),
        "bytes in one text",
    ),
    "endless array": (
        lambda sound, path: path.write_bytes(header(key("a", 9, struct.pack("<IQ", 0, 2**60)))),
        "items in one array",
    ),
    "array that is not there": (
        lambda sound, path: path.write_bytes(header(key("a", 9, struct.pack("<IQ", 12, 2**20)))),
        "ends in the middle",
    ),
    "array of arrays": (
        lambda sound, path: path.write_bytes(header(key("a", 9, struct.pack("<IQ", 9, 1)))),
        "array of type 9",
    ),
    "many keys": (
        lambda sound, path: path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60)),
        "keys",
    ),
    "type that is none": (lambda sound, path: path.write_bytes(header(key("a", 77, b"")))  , "of type 77"),
    "folder": (lambda sound, path: path.mkdir(), "no config.json there"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_gguf_file_that_lies_is_one_message(lie, sound, tmp_path, own_home):
    make, message = LIES[lie]
    path = tmp_path / "lie.gguf"
    make(sound, path)
    with pytest.raises(UsageError, match=message) as caught:
        find_folder(str(path))
    assert "\n" not in str(caught.value)
    assert not list(own_home.glob("models/*"))


def test_a_model_larger_than_the_machine_is_refused_before_it_is_read(sound, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**20))
    with pytest.raises(MachineError, match=r"numbers: loading it takes .* GB of memory, and this machine has 0\.0 GB"):
        find_folder(str(sound))
    with pytest.raises(MachineError, match="loading it takes"):
        load_model("mini")


def test_a_disk_that_is_too_small_is_said_before_writing(sound, monkeypatch, own_home):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(MachineError, match="MECHRL_HOME names another folder"):
        find_folder(str(sound))
    assert not list((own_home / "models").iterdir())


def test_a_model_that_was_not_fetched_names_the_script(own_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    with pytest.raises(UsageError, match=r"tools/get_smollm2\.sh"):
        find_folder("smollm2-135m")


def test_a_fetched_model_is_found_by_name(sound, own_home, monkeypatch):
    monkeypatch.setitem(folders.FETCHED, "smollm2-135m", sound.name)
    (own_home / "models").mkdir(parents=True)
    (own_home / "models" / sound.name).write_bytes(sound.read_bytes())
    assert find_folder("smollm2-135m") == find_folder(str(sound))
    model = load_model("smollm2-135m", device="cpu")
    assert model.vocabulary.bos is None
    assert model.vocabulary.said_of_bos == "no BOS before a prompt: '<|endoftext|>' is left out"
    assert load_model("smollm2-135m", device="cpu", bos=True).vocabulary.bos is not None
    assert cache_name("smollm2-135m", model.sha256) == "smollm2-135m.h5"


def test_home_is_the_users_cache_folder_unless_said_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("MECHRL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home() == Path(platformdirs.user_cache_dir("mechrl", appauthor=False))
    monkeypatch.setenv("MECHRL_HOME", "elsewhere")
    assert home() == Path("elsewhere").absolute()


def test_the_header_is_what_the_library_reads(sound):
    found, reader = check_gguf(sound), gguf.GGUFReader(sound)
    assert {name: shape for name, (shape, _, _) in found.tensors.items()} == {
        tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors
    }
    assert found.data_begins == reader.data_offset
    assert found.keys["llama.block_count"] == LAYERS


def test_without_the_package_it_says_what_to_install(sound, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MechrlError, match=r"pip install 'mechrl\[gguf\]'"):
        find_folder(str(sound))

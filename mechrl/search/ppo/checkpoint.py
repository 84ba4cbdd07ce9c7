"""The checkpoint: the zip of stable-baselines3 with `mechrl.json` in it, from which alone it is read back."""

import io
import json
import re
import zipfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from sb3_contrib import MaskablePPO

from mechrl.cache.format import NAME
from mechrl.cache.reader import Cache
from mechrl.cache.storage import file_sha256, write_whole
from mechrl.display import html_table
from mechrl.envs.kernel import REPEAT_REWARD, SCORE_SCALE
from mechrl.errors import FileError, UsageError
from mechrl.search.ppo.heads_policy import HeadsPolicy, make_heads_policy
from mechrl.search.ppo.training import PlanningPolicy, make_policy
from mechrl.search.ppo.zip_file import NOTE, POLICY, open_zip, read_member, read_tensors
from mechrl.search.structure import blank_structure, head_structure

FORMAT, VERSION = "mechrl-checkpoint", 2
KEYS = {"task_signal": "told"}  # fields that are called otherwise in the file
LARGEST_NOTE = 2**20  # bytes
MOST_WEIGHTS = 2**24  # of a policy; it takes seconds to build one
WIDEST = 1024  # hidden layers of the policy `heads`
LIBRARIES = ("torch", "stable-baselines3", "sb3-contrib", "numpy", "numba")


@dataclass(frozen=True)
class CheckpointNote:
    """What a checkpoint says of itself.

    :param tasks: the training tasks, in the order of the one-hot.
    :param hold_out: tasks left out of training.
    :param layers: widths of the hidden layers; of the policy `heads` one number.
    :param policy: `paper`, one output per head, or `heads`, the same weights for every head.
    :param task_signal: whether the observation begins with the one-hot of the tasks.
    :param hints: whether the observation ends with hints.
    :param split_rule: which batches it was trained on.
    """

    tasks: list[str]
    hold_out: list[str]
    picks: int
    control_weight: float
    score_scale: float
    repeat_reward: float
    plan_k: int
    preset: str
    layers: list[int]
    seed: int
    steps: int
    n_layers: int
    n_heads: int
    model: str
    model_sha256: str
    ablation: str
    weight_processing: str
    cache_sha256: str
    algorithm: str = "MaskablePPO"
    policy: str = "paper"
    task_signal: bool = True
    hints: bool = False
    split_rule: str = "training batches: all but the last quarter, at least 2"

    @property
    def signals(self) -> list[str]:
        """The tasks of the one-hot, in order."""
        return self.tasks if self.task_signal else []


@dataclass(frozen=True)
class Training:
    """How a training went.

    :param ppo: the object of stable-baselines3 that was trained; it writes the file.
    :param seconds: what the training took.
    :param lasting: seconds from its start after which the oracle ratio after 3 picks stayed at 0.99 or above on every
        training task; None if it did not.
    :param passes: of the model on one batch; 0 where scores were looked up.
    """

    ppo: MaskablePPO
    seconds: float
    lasting: float | None
    passes: int


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """A trained policy, and what it says of itself.

    :param path: the file it was saved to or loaded from; None before.
    :param training: how the training went; None if it was loaded.
    :param sha256: of that file, as it was saved or loaded.
    """

    policy: PlanningPolicy
    note: CheckpointNote
    path: Path | None = None
    training: Training | None = None
    sha256: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Read the note and the policy's tensors; nothing in the file is executed.

        :raises UsageError: no such file.
        :raises FileError: not a checkpoint of mechrl, damaged, or of another version.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"{path}: no such checkpoint; mechrl-train writes one")
        try:
            with open(path, "rb") as file, open_zip(file) as archive:
                note = _note(json.loads(read_member(archive, NOTE, LARGEST_NOTE)))
                if 4 * (weights := _weights(note)) > archive.getinfo(POLICY).file_size:
                    raise FileError(f"{NOTE} describes a policy of {weights} weights, more than {POLICY} holds")
                policy = _blank(note)
                policy.load_state_dict(read_tensors(archive, policy.state_dict()))
        except FileError as error:
            raise FileError(f"{path}: {error}") from error
        except Exception as error:  # a hostile zip can fail in any way; all of them mean the same
            raise FileError(f"{path}: not a checkpoint of mechrl-train, or damaged ({error})") from error
        if isinstance(policy, HeadsPolicy) and not (policy.scale > 0).all() & (policy.noise > 0).all():
            raise FileError(f"{path}: {POLICY} holds a scale or a variance that is not positive")
        policy.set_training_mode(False)
        return cls(policy, note, path, sha256=file_sha256(path))

    def save(self, path: str | Path) -> "Checkpoint":
        """Write the file, whole or not at all; returns the checkpoint with its path.

        :raises UsageError: it was loaded, so that there is a file already.
        :raises MachineError: the path cannot be written to.
        """
        if self.training is None:
            raise UsageError(f"this checkpoint was loaded: copy its file, {self.path}")
        save_checkpoint(self.training.ppo, self.note, Path(path))
        return replace(self, path=Path(path), sha256=file_sha256(Path(path)))

    def check_saved(self) -> Path:
        """The file that holds it.

        :raises UsageError: it was not saved.
        :raises FileError: the file is gone, or holds another checkpoint by now.
        """
        if self.path is None:
            raise UsageError("save the checkpoint first, with its method save")
        if not self.path.is_file() or file_sha256(self.path) != self.sha256:
            raise FileError(f"{self.path} does not hold this checkpoint any more: save every agent under its own name")
        return self.path

    def __repr__(self) -> str:
        n = self.note
        return f"Checkpoint(policy {n.policy!r}, trained on {', '.join(n.tasks)} of {n.model}, seed {n.seed})"

    def _repr_html_(self) -> str:
        n = self.note
        rows = [
            ("trained on", ", ".join(n.tasks)),
            ("held out", ", ".join(n.hold_out) or None),
            ("model", f"{n.model}, {n.n_layers} × {n.n_heads} heads, {n.ablation} ablation"),
            ("training", f"{n.steps} picks, {n.picks} in an episode, preset {n.preset}, seed {n.seed}"),
            ("control weight", n.control_weight),
            ("file", self.path),
        ]
        return html_table(f"Checkpoint: policy {n.policy}", ["", ""], rows)


def save_checkpoint(ppo: MaskablePPO, note: CheckpointNote, path: Path) -> None:
    """Write a checkpoint, whole or not at all.

    :raises MachineError: the path cannot be written to.
    """
    fields = {KEYS.get(name, name): value for name, value in asdict(note).items()}
    libraries = {name: version(name) for name in LIBRARIES}
    text = {"format": FORMAT, "format_version": VERSION, **fields, "library_versions": libraries}
    buffer = io.BytesIO()
    # What `train` hung on the policy is of no use without its environment and would be pickled.
    ppo.policy.__dict__.pop("query", None)
    ppo.save(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(NOTE, json.dumps(text, indent=1))
    write_whole(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def adapt_to_cache(policy: PlanningPolicy, note: CheckpointNote, cache: Cache) -> CheckpointNote:
    """Have a checkpoint's policy search the heads of this cache, which may be another than the one it comes from.

    The policy `heads` is given the structure of the cache's heads, from the tasks that it was trained on.

    :returns: the note with as many picks as the share of the heads that it was trained with.
    :raises FileError: the policy has one output per head of another model, or the cache lacks a training task.
    """
    n_sites = note.n_layers * note.n_heads
    if isinstance(policy, HeadsPolicy):
        if missing := [task for task in note.tasks if task not in cache.tasks]:
            raise FileError(
                f"the checkpoint does not fit {cache.path}: it was trained on {', '.join(missing)}, the cache holds "
                f"{', '.join(cache.tasks)}"
            )
        if cache.sha256 != note.cache_sha256:
            policy.use([head_structure(cache, note.tasks, note.control_weight)])
        return replace(note, picks=max(1, note.picks * cache.n_sites // n_sites))
    if cache.n_sites != n_sites:
        raise FileError(
            f"the checkpoint does not fit {cache.path}: its policy has one output per head, {n_sites}, and the model "
            f"of the cache has {cache.n_sites} heads; the policy 'heads' fits any model"
        )
    return note


def _blank(note: CheckpointNote) -> PlanningPolicy:
    """An untrained policy as the note describes it."""
    n_sites = note.n_layers * note.n_heads
    if note.policy == "paper":
        return make_policy(len(note.signals), n_sites, note.layers)
    return make_heads_policy(blank_structure(n_sites, len(note.tasks)), note.layers[0], len(note.signals), note.hints)


def _weights(note: CheckpointNote) -> int:
    """How many weights the policy has at least."""
    n_sites = note.n_layers * note.n_heads
    if note.policy == "heads":
        return 7 * note.layers[0] ** 2 + n_sites * (5 + len(note.tasks))
    widths = [len(note.signals) + 2 * n_sites, *note.layers]
    return 2 * sum(a * b for a, b in pairwise(widths)) + n_sites * widths[-1]


def _note(text: dict[str, Any]) -> CheckpointNote:
    """The note, every field present and of its type, and small enough to build a policy from."""
    if text.get("format") != FORMAT or text.get("format_version") != VERSION:
        raise FileError(f"checkpoint format {text.get('format')!r} {text.get('format_version')!r}, not {VERSION}")
    fields: dict[str, Any] = {}
    for name, hint in get_type_hints(CheckpointNote).items():
        kind = get_origin(hint) or hint
        value = text.get(KEYS.get(name, name))
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FileError(f"{NOTE}: {KEYS.get(name, name)!r} is {value!r:.80}")
        fields[name] = value
    note = CheckpointNote(**fields)
    sizes = [note.n_layers, note.n_heads, note.picks, note.plan_k, *note.layers]
    if not all(type(n) is int and 1 <= n <= 4096 for n in sizes) or max(len(note.layers), len(note.tasks)) > 64:
        raise FileError(f"{NOTE}: sizes out of range")
    if not note.tasks or not all(type(t) is str and re.fullmatch(NAME, t) for t in [*note.tasks, *note.hold_out]):
        raise FileError(f"{NOTE}: tasks are {note.tasks!r:.80}, held out {note.hold_out!r:.80}")
    if not all(value.isprintable() for value in fields.values() if isinstance(value, str)):
        raise FileError(f"{NOTE}: control characters")
    if set(note.tasks) & set(note.hold_out) or len({*note.tasks, *note.hold_out}) < len(note.tasks + note.hold_out):
        raise FileError(f"{NOTE}: a task is named twice")
    if not 0 <= note.control_weight < 1e6:
        raise FileError(f"{NOTE}: control_weight is {note.control_weight}")
    if (note.score_scale, note.repeat_reward) != (SCORE_SCALE, REPEAT_REWARD):
        raise FileError(f"{NOTE}: another game: score scale {note.score_scale}, repeat reward {note.repeat_reward}")
    if note.algorithm != "MaskablePPO" or note.policy not in ("paper", "heads"):
        raise FileError(f"{NOTE}: unknown algorithm {note.algorithm!r} or policy {note.policy!r}")
    if note.policy == "heads" and len(note.layers) != 1:
        raise FileError(f"{NOTE}: the policy heads has one width, not {note.layers}")
    if note.policy == "heads" and note.layers[0] > WIDEST:
        raise FileError(f"{NOTE}: sizes out of range")
    if _weights(note) > MOST_WEIGHTS or note.picks > note.n_layers * note.n_heads:
        raise FileError(f"{NOTE}: sizes out of range")
    return note

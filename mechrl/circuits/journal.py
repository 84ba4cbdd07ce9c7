"""What a search has measured, written down as it comes: who is interrupted goes on, and nothing is measured twice."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mechrl.circuits.search import KEPT, Numbers, Subject
from mechrl.home import home


class Journal:
    """A file of measurements, a line each. A line that was cut off, or is not what it should be, is measured again.

    :param of: whatever the measurements depend on: model, prompts, ablation.
    """

    def __init__(self, *of: object):
        key = hashlib.sha256(repr(of).encode()).hexdigest()[:32]
        self.path: Path = home() / "circuits" / f"{key}.jsonl"
        self.known: dict[str, Any] = {}
        if self.path.is_file():
            for line in self.path.read_text(errors="replace").splitlines():
                try:
                    name, value = json.loads(line)
                    self.known[name] = value
                except (ValueError, TypeError):
                    continue

    def write(self, found: dict[str, Any]) -> None:
        """Writes measurements down, by their names."""
        self.known |= found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in found.items())

    def remove(self) -> None:
        """What is through needs it no longer."""
        self.path.unlink(missing_ok=True)


class Recorded:
    """A subject whose measurements go through a journal, under a name."""

    def __init__(self, subject: Subject, journal: Journal, name: str, n_prompts: int):
        self.subject, self.journal, self.name, self.n_prompts = subject, journal, name, n_prompts
        self.n_sites = subject.n_sites

    def measure(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        names = [f"{self.name} {np.packbits(row).tobytes().hex()}" for row in kept]
        shape = (len(KEPT), self.n_prompts)
        new = [i for i, name in enumerate(names) if _numbers(self.journal.known.get(name), shape) is None]
        if new:
            measured = self.subject.measure(kept[new])
            each = np.stack([measured[of] for of in KEPT]).transpose(2, 0, 1).tolist()
            self.journal.write({names[i]: values for i, values in zip(new, each, strict=True)})
        known = np.array([self.journal.known[name] for name in names], float)  # [set, measure, prompt]
        return {of: known[:, i].T for i, of in enumerate(KEPT)}

    def gradient(self, mask: np.ndarray, numbers: Numbers) -> np.ndarray:
        name = (
            f"{self.name} gradient {numbers.target:g} {hashlib.sha256(mask.astype(np.float64).tobytes()).hexdigest()}"
        )
        found = _numbers(self.journal.known.get(name), (self.n_sites,))
        if found is None:
            found = self.subject.gradient(mask, numbers)
            self.journal.write({name: found.tolist()})
        return found


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Numbers from a file, or None where they are not such."""
    try:
        found = np.array(value, float)
    except (TypeError, ValueError):
        return None
    return found if found.shape == shape and np.isfinite(found).all() else None

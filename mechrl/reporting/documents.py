"""What `mechrl-verify --json` and `mechrl bench --json` print, read back.

Somebody else may have written such a file: every field is checked for its type and range before anything is shown.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from mechrl.errors import FileError

VERIFICATION, VERSION = "mechrl-verification", 1
LARGEST_FILE = 64 * 2**20  # bytes
LARGEST = 1e6  # nats, runs, prompts: anything above is no measurement


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds control characters")
    return text


def _ordered(estimate: tuple[float, float, float]) -> tuple[float, float, float]:
    if estimate[1] > estimate[2]:
        raise ValueError("the interval ends before it begins")
    return estimate


Text = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_printable)]
Head = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})$")]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**6)]
Estimate = Annotated[
    tuple[Number, Number, Number], AfterValidator(_ordered)
]  # mean, and the lower and upper end of its 95 % interval


class _Part(BaseModel):
    """Frozen; a number is a number and not a text. What was not asked for is None, what we do not know is ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class ReplayedHead(_Part):
    """A head on the live model, in nats.

    :param cached: its score in the cache; `live` the same measured again; `difference` the largest of any prompt.
    :param damage: on fresh prompts, like `score`, `direct` and `elsewhere` (its mean damage on the other tasks).
    :param share: damage ÷ clean logit difference.
    :param stands: share of resamples in which it stays among the best.
    :param why: what the answer goes by.
    """

    head: Head
    cached: Number | None = None
    live: Number | None = None
    difference: Number | None = None
    damage: Estimate | None = None
    share: Number | None = None
    score: Estimate | None = None
    p: Share | None = None
    p_adjusted: Share | None = None
    stands: Share | None = None
    rank: Estimate | None = None
    direct: Estimate | None = None
    elsewhere: Estimate | None = None
    answer: bool | None = None
    why: Text | None = None


class Faithful(_Part):
    """Whether cache and live model agree."""

    answer: bool | None = None
    difference: Number | None = None
    tolerance: Number | None = None
    control_difference: Number | None = None


class Replicates(_Part):
    """Whether the picks hold on prompts that the cache does not have."""

    answer: bool | None = None
    fresh_from: Text | None = None
    prompts: Count | None = None
    groups: Count | None = None
    clean: Number | None = None
    known_answers: tuple[Count, Count] | None = None
    searched_answers: Count | None = None
    swept: bool | None = None
    rank_limit: Count | None = None


class Placebo(_Part):
    """Whether the same procedure says no where there is nothing to find."""

    answer: bool | None = None
    passed: list[Head] = []
    clean: Number | None = None


class Complete(_Part):
    """Whether heads are missing that matter more than the picks."""

    answer: bool | None = None
    coverage: Estimate | None = None
    ratio: Estimate | None = None
    best: list[Head] = []


class Joint(_Part):
    """Damage of several heads removed together, and the sum of their damages one by one."""

    heads: list[Head]
    joint: Estimate
    summed: Estimate
    interaction: Estimate | None = None


class Ranking(_Part):
    """Logit difference with only the best k heads of a ranking left (`kept`), and without them (`ablated`)."""

    heads: list[Head] = []
    kept: list[Number] = []
    ablated: list[Number] = []
    cpr: Number | None = None
    cmd: Number | None = None
    necessity: Number | None = None


class Curves(_Part):
    """Necessity and sufficiency at growing numbers of heads, `counts`."""

    counts: list[Count] = []
    full: Number | None = None
    empty: Number | None = None
    rankings: dict[Text, Ranking] = {}
    refused: Text | None = None

    @model_validator(mode="after")
    def _lengths(self) -> "Curves":
        for name, ranking in self.rankings.items():
            if not {len(ranking.kept), len(ranking.ablated)} <= {0, len(self.counts)}:
                raise ValueError(f"the curves of {name!r} do not have {len(self.counts)} points")
        return self


class VerifiedTask(_Part):
    trained: bool | None = None
    runs: Number | None = None
    search: dict[Text, Number | None] = {}
    faithful: Faithful | None = None
    replicates: Replicates | None = None
    placebo: Placebo | None = None
    complete: Complete | None = None
    heads: list[ReplayedHead] = []
    joint: list[Joint] | None = None
    curves: Curves | None = None


class Verification(_Part):
    """What `mechrl-verify --json` prints."""

    format_version: int
    command: Text | None = None
    mechrl_version: Text | None = None
    library_versions: dict[Text, Text] = {}
    model: Text | None = None
    model_sha256: Text
    cache_sha256: Text | None = None
    checkpoint_sha256: Text | None = None
    ablation: Text | None = None
    control_weight: Number | None = None
    seed: int | None = None
    confirmed: bool | None = None
    faithful: Faithful | None = None
    tasks: dict[Text, VerifiedTask]


class SearchedTask(_Part):
    """A method on a held-out task of a cache: cost to 90 % coverage in runs, and coverage at the costs of the grid."""

    cache: Text
    family: Text
    task: Text
    method: Text
    seed: int
    cost: Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
    censored: bool
    coverage: list[Number]


class Method(_Part):
    track: Text
    exploratory: bool


class Verdict(_Part):
    track: Text
    agent: Text
    sentence: Text
    cost_ratio: Number
    low: Number
    high: Number
    p_adjusted: Share


class Fingerprints(_Part):
    model: Text
    model_sha256: Text
    cache_sha256: Text


class Bench(_Part):
    """What `mechrl bench --json` prints. `caches` is None in files of an older mechrl."""

    by_protocol: bool | None = None
    methods: dict[Text, Method]
    tasks: list[SearchedTask]
    cost_grid: list[Number]
    verdicts: list[Verdict]
    caches: dict[Text, Fingerprints] | None = None

    @model_validator(mode="after")
    def _lengths(self) -> "Bench":
        for row in self.tasks:
            if len(row.coverage) != len(self.cost_grid):
                raise ValueError(f"the curve of {row.method!r} does not have {len(self.cost_grid)} points")
            if row.method not in self.methods:
                raise ValueError(f"method {row.method!r} is not among the methods")
            if self.caches is not None and row.cache not in self.caches:
                raise ValueError(f"cache {row.cache!r} is not among the caches")
        return self


def read_document(path: Path) -> Verification | Bench | None:
    """What a JSON file holds; None where it is neither of the two.

    :raises FileError: no JSON, of another version, or a field is not what it should be.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise FileError(f"{path}: larger than {LARGEST_FILE >> 20} MiB")
    text = path.read_bytes()
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        return None
    if found.get("format") == VERIFICATION:
        if found.get("format_version") != VERSION:
            raise FileError(
                f"{path}: verification format version {found.get('format_version')!r:.40}; this mechrl reads version "
                f"{VERSION} only"
            )
        return _checked(Verification, path, text, "mechrl-verify --json")
    return _checked(Bench, path, text, "mechrl bench --json") if "verdicts" in found else None


def _checked(kind: Any, path: Path, text: bytes, command: str) -> Any:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise FileError(f"{path}: not what {command} prints: {place:.200}: {first['msg']:.300}") from error

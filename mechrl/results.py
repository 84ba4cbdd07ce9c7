"""What all results share: they are read back as they were written, each with its format and version.

Somebody else may have written a file: every field is checked for its type and range before anything is shown.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mechrl import intervals
from mechrl.errors import FileError

LARGEST_FILE = 64 * 2**20  # bytes
LONGEST_TEXT = 4096
LARGEST = 1e6  # nats, runs, prompts: anything above is no measurement


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds control characters")
    return text


def _ordered(estimate: intervals.Estimate) -> intervals.Estimate:
    if not all(map(math.isfinite, estimate)):
        raise ValueError("Input should be a finite number")
    if max(map(abs, estimate)) > LARGEST:
        raise ValueError(f"Input should be less than or equal to {LARGEST:.0f}")
    if estimate.low > estimate.high:
        raise ValueError("the interval ends before it begins")
    return estimate


Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT), AfterValidator(_printable)]
Head = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})$")]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**6)]
Estimate = Annotated[intervals.Estimate, AfterValidator(_ordered)]


class ResultPart(BaseModel):
    """A part of a result: frozen, and a number is a number and not a text. Fields that it does not know are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Result(ResultPart):
    """A result as a whole; a class of it names its `format` and its `format_version`.

    :param written_by: the command that writes it.
    :param older: a key that tells files of an older mechrl, which had no format; "" where there were none.
    """

    written_by: ClassVar[str] = ""
    older: ClassVar[str] = ""


def safe_text(value: object) -> str:
    """A text that may come from a file as a `Text`: control characters spelt out, cut where it is too long."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))[:LONGEST_TEXT]


def library_versions(text: object) -> dict[str, str]:
    """Versions by library, from a cache's attribute of that name; none where it cannot be read."""
    try:
        versions = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}
    return {safe_text(k): safe_text(v) for k, v in versions.items()} if isinstance(versions, dict) else {}


def read_result(path: Path, kinds: Sequence[type[Result]], otherwise: type[Result] | None = None) -> Result | None:
    """What a JSON file holds; None where it is none of these results.

    :param kinds: the results that it may be.
    :param otherwise: what it is where it names no format, as a file written by hand.
    :raises FileError: no JSON, of another version, or a field is not what it should be.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise FileError(f"{path}: larger than {LARGEST_FILE >> 20} MiB")
    data = path.read_bytes()
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        return None
    for kind in kinds:
        fields = kind.model_fields
        if kind.older and "format" not in found and kind.older in found:
            raise FileError(f"{path}: an older mechrl wrote it, without a format; run {kind.written_by} again")
        if found.get("format") == (name := fields["format"].default):
            if found.get("format_version") != (version := fields["format_version"].default):
                raise FileError(
                    f"{path}: {name}, version {found.get('format_version')!r:.40}; this mechrl reads version {version} "
                    f"only, run {kind.written_by} again"
                )
            return _checked(kind, path, data)
    return None if otherwise is None or "format" in found else _checked(otherwise, path, data)


def _checked(kind: type[Result], path: Path, data: bytes) -> Result:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        what = f"{safe_text(place):.200}: {first['msg']:.300}"
        raise FileError(f"{path}: not what {kind.written_by} writes: {what}") from error

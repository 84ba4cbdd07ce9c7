"""`mechrl-cache export`: scores of heads for other tools."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@app.existing
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "parquet", "heads-json", "eap-ig", "auto-circuit", "transformer-lens", "minari"]),
    required=True,
)
@click.option("--task", "tasks", default="", callback=app.names, help="Which tasks.  [default for csv, parquet: all]")
@click.option(
    "--n", "-n", type=click.IntRange(1), help="How many heads, by score.  [default: all; transformer-lens: 10]"
)
@click.option(
    "--heads", callback=app.names, help="eap-ig, auto-circuit, transformer-lens: the circuit of these, as 0.3,0.6."
)
@click.option("--method", help="minari: the search whose episodes to write; `mechrl bench --list`.  [default: random]")
@click.option("--picks", type=click.IntRange(1), help="minari: in an episode.  [default: 35 % of the heads]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="minari: of a random search.  [default: 0]")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Where to.  [default for text: stdout]")
def export(
    path: Path, kind: str, tasks: list[str], n: int | None, heads: list[str] | None, method: str | None,
    picks: int | None, seed: int | None, out: Path | None,
) -> None:  # fmt: skip
    """Hand the scores of heads over to other tools.

    csv, parquet: a row for every task and head. heads-json: one task, with what the numbers are of. eap-ig: a graph
    for EAP-IG (JSON). auto-circuit: prune scores for AutoCircuit (torch.save). transformer-lens: Python that ablates
    the best heads. minari: a folder with the evaluation episodes of a search, for offline reinforcement learning.

    With --heads, eap-ig and auto-circuit hold that circuit instead of scores; transformer-lens ablates all other heads.
    """
    if kind == "minari":
        if heads is not None:
            raise click.UsageError("--heads does not go with --format minari")
        return _export_trajectories(path, tasks, n, method, picks, seed, out)
    for flag, value in (("--method", method), ("--picks", picks), ("--seed", seed)):
        if value is not None:
            raise click.UsageError(f"{flag} goes with --format minari, not with {kind}")
    from mechrl.cache.export import BINARY
    from mechrl.cache.export import export as export_cache
    from mechrl.cache.reader import Cache
    from mechrl.cache.storage import check_writable, manifest_path, write_whole

    if out is None and kind in BINARY:
        raise click.UsageError(f"--format {kind} is no text: name a file with --out")
    if out is not None and out.resolve() in (path.resolve(), manifest_path(path).resolve()):
        raise click.UsageError(f"--out {out} would overwrite the cache or its manifest")
    if out is not None and out.is_file() and _first_bytes(out) == b"\x89HDF\r\n\x1a\n":
        raise click.UsageError(f"--out {out} would overwrite another cache")
    data = export_cache(Cache.open(path), kind, tasks, n, heads)
    if out is None:
        return click.echo(data, nl=False)  # bytes: a terminal's encoding must not change them
    check_writable(out)
    write_whole(out, lambda temporary: temporary.write_bytes(data))
    return click.echo(f"{out} written")


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _export_trajectories(
    path: Path, tasks: list[str], n: int | None, method: str | None, picks: int | None, seed: int | None,
    out: Path | None,
) -> None:  # fmt: skip
    """The evaluation episodes of a search as a Minari dataset."""
    if out is None or n is not None:
        raise click.UsageError("--format minari needs --out, the folder of the dataset, and has no --n")
    from mechrl.cache.reader import Cache
    from mechrl.search.trajectories import search, write_minari

    cache = Cache.open(path)
    if len(tasks) != 1:
        raise click.UsageError(f"--format minari is of one task: give --task with one of {', '.join(cache.tasks)}")
    sites = search(cache, tasks[0], method or "random", picks, seed or 0)
    data = write_minari(cache, tasks[0], sites, out, name=method or "random")
    click.echo(f"{out} written: {len(sites)} episodes of {sites.shape[1]} picks; minari.MinariDataset({str(data)!r})")

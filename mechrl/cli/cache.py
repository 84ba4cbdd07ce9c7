"""`mechrl-cache`: build a cache, look into it and hand its results over."""

from pathlib import Path

import click

from mechrl.cli import app, task_files

EXISTING = click.argument("path", type=click.Path(path_type=Path), default=app.MINI_CACHE, required=False)


def _shard(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int]:
    """`3/16` as (3, 16)."""
    index, _, count = (value or "1/1").partition("/")
    if not index.isdigit() or not count.isdigit() or not 1 <= int(index) <= int(count):
        raise click.BadParameter(f"{value!r} is not i/n with 1 ≤ i ≤ n, such as 3/16")
    return int(index), int(count)


@click.group()
def cache() -> None:
    """Build the file with every head's damage, and look into it."""


@cache.command()
@app.model
@app.revision
@click.option(
    "--tasks",
    callback=app.names,
    help="Built-in ones, or all; `mechrl-cache tasks` lists them.  [default: induction,ioi,docstring]",
)
@click.option(
    "--task",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of your own prompts (.jsonl, .json, .csv, .tsv, .txt); then --tasks defaults to none.",
)
@task_files.names
@task_files.skip
@click.option("--batches", type=int, help="Prompt batches of each task.  [default: 16 for mini, 64 otherwise]")
@click.option("--batch-size", type=int, help="Prompts in a batch.  [default: 32, or less for a small task file]")
@click.option("--control-batches", type=int, help="Batches of control text.  [default: as --batches]")
@click.option(
    "--control-text", type=click.Path(path_type=Path), help="A text file.  [default: WikiText-2; for mini, prose]"
)
@click.option(
    "--ablation",
    "kinds",
    default="zero",
    show_default=True,
    callback=app.names,
    help="Of zero, zero_raw, mean_task, mean_control, resample, counterfactual; several make one file each.",
)
@click.option("--sets", type=click.Choice(["pairs"]), help="Ablate all pairs of heads together, too.")
@click.option("--shard", callback=_shard, help="i/n: build only the i-th of n parts, for `mechrl-cache merge`.")
@app.device
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What to compute in; verify then allows for its error.",
)
@click.option("--tf32", is_flag=True, help="Let a CUDA GPU round the factors of float32 products.")
@click.option("--workers", type=click.IntRange(1), help="So many processes on this machine.  [needs mechrl[cluster]]")
@click.option("--scheduler", help="tcp://HOST:8786 of a running Dask cluster.  [needs mechrl[cluster]]")
@app.seed
@app.threads(None)
@click.option("--out", type=click.Path(path_type=Path), help="Where to.  [default: cache/<model>.h5]")
@app.as_json
def build(
    model, revision, tasks, files, task_names, skip_bad_lines, batches, batch_size, control_batches, control_text,
    kinds, sets, shard, device, dtype, tf32, workers, scheduler, seed, threads, out, as_json,
):  # fmt: skip
    """Ablate every head on every prompt and store the damage."""
    if workers and scheduler:
        raise click.UsageError("--workers starts processes here and --scheduler names a cluster: give one of them")
    if not kinds or len(set(kinds)) < len(kinds):
        raise click.UsageError("--ablation needs one or more kinds, each once")
    if out is not None and len(kinds) > 1:
        raise click.UsageError(f"--out names one file and --ablation {','.join(kinds)} makes {len(kinds)}")
    if as_json and len(kinds) > 1:
        raise click.UsageError("--json prints one object: build one ablation at a time")
    app.use_threads(threads)
    if model == "mini":
        app.say(app.FIRST_LINE)
    from mechrl.building.build import BuildSettings
    from mechrl.building.build import build as build_cache
    from mechrl.building.check import file_notes
    from mechrl.building.cluster import connect
    from mechrl.cache.storage import check_writable
    from mechrl.models import cache_name, find_folder, load_model, pick_device
    from mechrl.tasks import TASKS
    from mechrl.tasks.base import tokenize
    from mechrl.tasks.control import read_control
    from mechrl.tasks.task_file import LARGEST_BATCH, fitting_batch_size

    own = task_files.read("--task", files, task_names, skip_bad_lines, TASKS)
    if tasks is None:
        tasks = [] if own else ["induction", "ioi", "docstring"]
    elif tasks == ["all"]:
        tasks = list(TASKS)
    if batch_size is None:
        batch_size = fitting_batch_size(own)
        if batch_size < LARGEST_BATCH:
            app.say(f"batches of {batch_size}, for all tasks, because that is what a task file has prompts for")
    if batches is None:
        batches = 16 if model == "mini" else 64
    if control_batches is None:
        control_batches = batches
    if out is not None:
        check_writable(out)
    find_folder(model, revision)
    source, text = read_control(control_text, generated=model == "mini")
    every = [
        BuildSettings(
            tuple(tasks), batches, batch_size, control_batches, source, kind, seed, dtype, tf32, own, sets or ""
        )
        for kind in kinds
    ]
    if not scheduler:
        device = pick_device(device)
    for settings in every:
        path = out
        with connect(workers, scheduler, threads) as client:
            loaded = load_model(model, device="cpu" if client else device, revision=revision)
            if settings is every[0]:
                for file in task_files.fitting(own, loaded):
                    for note in file_notes(loaded, file, tokenize(file.name, file.examples, loaded.vocabulary, 0)):
                        app.warn(note)
            if path is None:
                part = "" if shard[1] == 1 else f".{shard[0]}of{shard[1]}"
                name = cache_name(model, loaded.sha256, settings.ablation).removesuffix(".h5")
                path = Path("cache") / (name + part + ".h5")
                check_writable(path)
            if path.exists():
                app.say(f"{path} is there already and will be replaced")
            where = scheduler or (f"{workers} workers" if workers else loaded.device)
            if settings.ablation == "zero":
                app.say(loaded.zero_means)
            app.say(
                f"{loaded.n_layers} layers × {loaded.n_heads} heads on {where}, {loaded.vocabulary.said_of_bos}, "
                + " and ".join(
                    [f"{len(tasks)} tasks × {batches} batches"] * bool(tasks)
                    + [f"{len(file)} prompts of {file.name}" for file in own]
                )
            )
            with app.progress("sweeping") as progress:
                build_cache(loaded, settings, path, text, shard, progress, client, device)
        if shard[1] > 1:
            if as_json:
                app.print_json({"path": str(path), "shard": list(shard)})
            else:
                click.echo(f"{path}: shard {shard[0]} of {shard[1]}; mechrl-cache merge OUT PARTS… joins them")
        else:
            _finish(path, as_json)


@cache.command()
@click.argument("path", type=click.Path(path_type=Path))
@task_files.names
@task_files.skip
@app.model
@app.revision
@app.device
@app.threads(None)
@app.as_json
def check(path, task_names, skip_bad_lines, model, revision, device, threads, as_json):
    """Check a task file line by line, and see what the model does on it."""
    app.use_threads(threads)
    from mechrl.tasks import TASKS

    file = task_files.read("PATH", [path], task_names, skip_bad_lines, TASKS)[0]
    from mechrl.building.check import check_task
    from mechrl.intervals import LEAST_GROUPS
    from mechrl.models import load_model
    from mechrl.tasks.task_file import fitting_batch_size

    loaded = load_model(model, device=device, revision=revision)
    file = task_files.fitting([file], loaded)[0]
    found = check_task(loaded, file)
    if as_json:
        return app.print_json(found.model_dump(mode="json"))
    from mechrl.tables import print_table

    skipped = f" without the {found.skipped} {file.unit}s that do not fit" if found.skipped else ""
    click.echo(
        f"{path}: sound{skipped}; {found.prompts} prompts of {found.shortest} to {found.longest} tokens in "
        f"{found.groups} groups, {'with' if found.twins else 'without'} counterfactual twins; batches of "
        f"{fitting_batch_size([file])}"
    )
    click.echo(found.bos)
    columns = ["model", "logit diff (nats)", "accuracy", "top-1", "log prob. of the answer", "prob. difference"]
    print_table(
        "",
        columns,
        [[model, found.logit_diff, found.accuracy, found.top1, found.logprob, found.prob_diff]],
        "means; accuracy: answers before wrongs; top-1: an answer before every other token",
        secondary=["prob. difference", "log prob. of the answer", "top-1"],
    )
    print_table(
        "the prompts it does worst on",
        [file.unit, "logit diff", "says", "prompt"],
        [[w.line, w.logit_diff, repr(w.says), _shortened(w.prompt)] for w in found.worst],
        text="prompt",
    )
    for note in found.notes:
        app.warn(note)
    if found.groups < LEAST_GROUPS:
        app.warn(f"{found.groups} groups are too few for error bars: verify confirms nothing below {LEAST_GROUPS}")
    if found.logit_diff <= 0:
        app.warn(f"{model} does not do {found.task}: damage on this task would mean little")


@cache.command()
@click.argument("name", required=False)
@click.option("--show", default=0, type=click.IntRange(0), help="Print so many of its prompts.")
@click.option("--model", default="mini", show_default=True, help="Whose tokenizer to use.")
@app.seed
@app.as_json
def tasks(name, show, model, seed, as_json):
    """The built-in tasks, or one of them and its prompts."""
    from mechrl.tasks import TASKS, TRAIN, as_text, generate, get_task

    chosen = [get_task(name)] if name else list(TASKS.values())
    shown = {}
    if show:
        from mechrl.models import load_vocabulary

        vocabulary = load_vocabulary(model)
        for task in chosen:
            shown[task.name] = as_text(generate(task, vocabulary, show, TRAIN, seed), vocabulary)
    if as_json:
        return app.print_json(
            {
                t.name: {"family": t.family, "about": t.about, "source": t.source, "prompts": shown.get(t.name, [])}
                for t in chosen
            }
        )
    from mechrl.tables import print_table

    if not name:
        print_table("", ["task", "family", "source"], [[t.name, t.family, t.source] for t in chosen], text="source")
    for task in chosen:
        if name:
            click.echo(f"{task.name} ({task.family})\n\n{task.about}\n\nSource: {task.source}")
        for prompt in shown.get(task.name, []):
            click.echo("\n" + "\n".join(f"  {key:9} {value!r}" for key, value in prompt.items()))


@cache.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("parts", type=click.Path(path_type=Path), nargs=-1, required=True)
@app.as_json
def merge(out, parts, as_json):
    """Join the parts that `build --shard` wrote into OUT."""
    from mechrl.building.build import merge_files
    from mechrl.cache.storage import check_writable

    check_writable(out)
    merge_files(out, parts)
    _finish(out, as_json)


@cache.command("import")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="What the scores are of, such as docstring.")
@click.option("--n-layers", required=True, type=click.IntRange(1, 4096), help="Of the model.")
@click.option("--n-heads", required=True, type=click.IntRange(1, 4096), help="Of each layer.")
@click.option("--model", default="unknown", show_default=True, help="What to call the model.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to.")
@app.as_json
def import_(table, task, n_layers, n_heads, model, out, as_json):
    """Make a cache from scores that others measured.

    TABLE is a .csv file: a row for each episode, a column for each head, named layer.head in the header; the first
    column may name the episodes. The scores contain the control term, and there are no prompts: such a cache can be
    searched and trained on, not verified.
    """
    from mechrl.cache.imported import import_table
    from mechrl.cache.reader import Cache
    from mechrl.cache.storage import check_writable, manifest_path

    check_writable(out)
    if table.resolve() in (out.resolve(), manifest_path(out).resolve()):
        raise click.UsageError(f"--out {out} would overwrite the table")
    if out.exists():
        app.say(f"{out} is there already and will be replaced")
    _print_info(Cache.open(import_table(table, task, n_layers, n_heads, out, model)), as_json)


@cache.command()
@EXISTING
@app.as_json
def info(path, as_json):
    """What a cache holds, and of which model."""
    from mechrl.cache.reader import Cache

    _print_info(Cache.open(path), as_json)


@cache.command()
@EXISTING
def validate(path):
    """Check every byte of a cache against its manifest, and every number for sense."""
    from mechrl.cache.reader import Cache
    from mechrl.cache.storage import check_manifest, manifest_path
    from mechrl.errors import FileError

    opened = Cache.open(path)
    if not check_manifest(path, opened.content):
        raise FileError(f"{path}: the content is sound, but {manifest_path(path)} is missing")
    click.echo(f"{path}: sound; sha256 of the content {opened.sha256}")


@cache.command()
@EXISTING
@click.option("--task", "tasks", default="", callback=app.names, help="Which tasks.  [default: all]")
@click.option("--by", type=click.Choice(["score", "damage", "abs"]), default="score", show_default=True)
@click.option("--n", "-n", default=10, show_default=True, type=click.IntRange(1), help="How many heads.")
@app.as_json
def top(path, tasks, by, n, as_json):
    """The heads that matter most, over all prompts, with 95 % intervals.

    Direct: what the head itself writes for the answer. Damage - direct: what goes through later layers; negative, the
    model repairs itself. Specificity: damage minus its mean on the other tasks of the cache. Roles: what a head scores
    0.4 or more as, see `mechrl-cache roles`.
    """
    from mechrl.cache.reader import Cache
    from mechrl.cache.top import WEIGHTS, top_heads

    opened = Cache.open(path)
    rows = {task: top_heads(opened, task, n, by) for task in tasks or opened.tasks}
    if as_json:
        return app.print_json({task: [vars(row) for row in found] for task, found in rows.items()})
    from mechrl.tables import print_table, shown

    if opened.imported:
        for task, found in rows.items():
            print_table(
                f"{task}: scores imported from {opened.attributes['imported']}",
                ["head", "score", "rank"],
                [[r.head, shown(r.score), *r.ranks] for r in found],
                "means over all episodes, with 95 % intervals (bootstrap over episodes)",
                secondary=["rank"],
            )
        return None

    has_roles = bool(opened.roles)
    for task, found in rows.items():
        print_table(
            f"{task}: accuracy {opened.accuracy(task):.3f}, clean logit difference {opened.clean(task).mean():.2f}",
            [
                "head", "score", "damage", "direct", "damage - direct", "specificity", "ranks",
                *["roles"] * has_roles, "marks",
            ],
            [
                [
                    r.head, *map(shown, (r.score, r.damage, r.direct, r.indirect, r.specificity)),
                    " ".join(map(str, r.ranks)),
                    *[", ".join(f"{name} {score:.2f}" for name, score in r.roles.items())] * has_roles,
                    ", ".join(r.marks),
                ]
                for r in found
            ],
            secondary=[
                "damage - direct", "ranks", "direct", *["roles"] * has_roles, "marks", "specificity", "damage",
            ],
        )  # fmt: skip
    return click.echo(
        "Means in nats over all prompts, with 95 % intervals (bootstrap over groups); score = damage - control damage; "
        f"ranks by score at control weights {', '.join(f'{w:g}' for w in WEIGHTS)}"
    )


@cache.command()
@EXISTING
@click.option("--task", "tasks", default="", callback=app.names, help="Which tasks.  [default: all]")
@click.option("--n", "-n", default=10, show_default=True, type=click.IntRange(1), help="How many pairs.")
@app.as_json
def pairs(path, tasks, n, as_json):
    """Pairs of heads whose damage together is furthest from the sum, with 95 % intervals.

    Interaction above zero: together they cost more than one by one, as heads that stand in for one another do.
    """
    from mechrl.cache.pairs import top_pairs
    from mechrl.cache.reader import Cache

    opened = Cache.open(path)
    found = {task: top_pairs(opened, task, n) for task in tasks or opened.tasks}
    if as_json:
        return app.print_json({task: [vars(pair) for pair in of] for task, of in found.items()})
    from mechrl.tables import print_table, shown

    for task, of in found.items():
        print_table(
            task,
            ["heads", "joint damage", "summed", "interaction"],
            [[" ".join(p.heads), *map(shown, (p.joint, p.summed, p.interaction))] for p in of],
            "means in nats over the evaluation prompts; the pairs were chosen on the training prompts",
            secondary=["summed", "joint damage"],
        )


@cache.command()
@EXISTING
@click.option("--task", "tasks", default="", callback=app.names, help="Which tasks.  [default: all, and control]")
@app.as_json
def attribution(path, tasks, as_json):
    """How well gradients predict damage: rank correlation over the heads.

    Spearman's, of the heads' mean attribution with their mean damage over all prompts; one-step costs 3 runs a batch,
    integrated 15.
    """
    from mechrl.cache.agreement import agreement
    from mechrl.cache.reader import Cache

    opened = Cache.open(path)
    found = {task: agreement(opened, task) for task in tasks or opened.tasks}
    if not tasks:
        found["control"] = agreement(opened, None)
    if as_json:
        return app.print_json({task: {name: vars(a) for name, a in of.items()} for task, of in found.items()})
    from mechrl.tables import print_table

    for task, of in found.items():
        rows = [["all heads", *(a.heads for a in of.values())]]
        rows += [[f"layer {i}", *pair] for i, pair in enumerate(zip(*(a.layers for a in of.values()), strict=True))]
        print_table(task, ["", *of], rows)
    click.echo("Spearman's rank correlation of mean attribution with mean damage; –: all heads of the layer are alike")


@cache.command()
@app.model
@app.revision
@app.device
@click.option("--n", "-n", default=5, show_default=True, type=click.IntRange(1), help="How many heads of each role.")
@app.as_json
def roles(model, revision, device, n, as_json):
    """What the heads of a model look like: the heads with the highest score of each role.

    On a block of random words that comes twice, the share of attention to the token before, to the earlier occurrence
    of the token, to the token after that occurrence (induction), and to the first position. Copying: whether what a
    head writes speaks for the token it reads (1) or against it (-1), by the eigenvalues of its OV circuit.
    """
    if model == "mini":
        app.say(app.FIRST_LINE)
    from mechrl.ablation import ROLES
    from mechrl.ablation.roles import measure_roles
    from mechrl.models import load_model

    loaded = load_model(model, device=device, revision=revision)
    found = measure_roles(loaded)
    heads = [f"{layer}.{head}" for layer in range(loaded.n_layers) for head in range(loaded.n_heads)]
    if missing := [name for name in ROLES if name not in found]:
        app.warn(f"{', '.join(missing)}: cannot be measured on this model")
    if as_json:
        scores = {name: dict(zip(heads, values.tolist(), strict=True)) for name, values in found.items()}
        return app.print_json({"model": model, "model_sha256": loaded.sha256, "roles": scores})
    from mechrl.tables import print_table

    best = {name: (-values).argsort(kind="stable")[:n] for name, values in found.items()}
    columns = [[f"{heads[site]} ({found[name][site]:.2f})" for site in sites] for name, sites in best.items()]
    return print_table(
        f"{model}: {loaded.n_layers} layers × {loaded.n_heads} heads",
        list(best),
        list(zip(*columns, strict=True)),
        "shares of attention on repeated random tokens; copying: Σ Re λ / Σ |λ| of the OV circuit",
    )


def _shortened(text: str, most: int = 90) -> str:
    """A prompt on one line, its beginning left out if it is long."""
    line = repr(text)[1:-1]
    return line if len(line) <= most else "…" + line[1 - most :]


@cache.command()
@EXISTING
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
@click.option("--method", help="minari: the search whose episodes to write; `mechrl bench --list`.  [default: random]")
@click.option("--picks", type=click.IntRange(1), help="minari: in an episode.  [default: 35 % of the heads]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="minari: of a random search.  [default: 0]")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Where to.  [default for text: stdout]")
def export(path, kind, tasks, n, method, picks, seed, out):
    """Hand the scores of heads over to other tools.

    csv, parquet: a row for every task and head. heads-json: one task, with what the numbers are of. eap-ig: a graph
    for EAP-IG (JSON). auto-circuit: prune scores for AutoCircuit (torch.save). transformer-lens: Python that ablates
    the best heads. minari: a folder with the evaluation episodes of a search, for offline reinforcement learning.
    """
    if kind == "minari":
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
    data = export_cache(Cache.open(path), kind, tasks, n)
    if out is None:
        return click.echo(data, nl=False)  # bytes: a terminal's encoding must not change them
    check_writable(out)
    write_whole(out, lambda temporary: temporary.write_bytes(data))
    return click.echo(f"{out} written")


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _export_trajectories(path, tasks, n, method, picks, seed, out) -> None:
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


def _finish(path: Path, as_json: bool) -> None:
    """Opens a cache that was just written, warns of what the model cannot do, and prints what is in it."""
    from mechrl.cache.reader import Cache

    built = Cache.open(path)
    for task in built.tasks:
        if not built.task_attributes(task)["does_task"]:
            app.warn(
                f"the model does not do {task}: its clean logit difference is {built.clean(task).mean():.3f}, not "
                "above zero. Damage on this task means little; the cache records it"
            )
    _print_info(built, as_json)


def _print_info(opened, as_json: bool) -> None:
    from mechrl.cache.information import ImportedInformation, cache_information

    found = cache_information(opened)
    if as_json:
        return app.print_json(found.model_dump(mode="json"))
    if isinstance(found, ImportedInformation):
        return _print_imported(opened, found)
    from mechrl.tables import print_table
    from mechrl.vocabulary import said_of_bos

    a = opened.attributes
    click.echo(f"{opened.path}: {a['ablation']} ablation of {opened.n_layers} × {opened.n_heads} heads of {a['model']}")
    click.echo(
        f"control: {a['control_source'][:17]}, {len(opened.control_damage)} spans of "
        f"{opened.content.arrays['/control/tokens'].shape[1]} tokens, clean loss {found.control_loss:.3f} nats; "
        f"{said_of_bos(a['prepend_bos'], a.get('bos_token', ''))}"
    )
    click.echo(f"fingerprint of the model {a['model_sha256'][:12]}, of the content {opened.sha256[:12]}")
    columns = ["task", "prompts", "clean logit diff", "accuracy", "top-1", "does it", "eval. answers also in training"]
    print_table(
        "",
        columns,
        [
            [task, *(v if not isinstance(v, bool) else ("yes" if v else "NO") for _, v in values)]
            for task, values in found.tasks.items()
        ],
        secondary=["eval. answers also in training", "top-1", "prompts", "does it", "accuracy"],
    )


def _print_imported(opened, found) -> None:
    from mechrl.tables import print_table

    a = opened.attributes
    click.echo(f"{opened.path}: scores of {opened.n_layers} × {opened.n_heads} heads, measured elsewhere")
    click.echo(f"imported from {a['imported']} (sha256 {a['imported_sha256'][:12]}); no prompts, it cannot be replayed")
    click.echo(f"model {a['model']}; fingerprint of the content {opened.sha256[:12]}")
    columns = ["task", "episodes", "for evaluation", "mean best score"]
    rows = [[task, *(v for _, v in values)] for task, values in found.tasks.items()]
    print_table("", columns, rows, secondary=["for evaluation", "episodes"])


def main() -> None:
    """Entry point of `mechrl-cache`."""
    app.run(cache)

"""`mechrl-cache check`: a task file, line by line."""

from pathlib import Path

import click

from mechrl.cli import app, task_files


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@task_files.names
@task_files.skip
@app.model
@app.revision
@app.no_bos
@app.device
@app.threads(None)
@app.as_json
def check(
    path: Path, task_names: tuple[str, ...], skip_bad_lines: bool, model: str, revision: str, no_bos: bool, device: str,
    threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Check a task file line by line, and see what the model does on it."""
    app.use_threads(threads)
    from mechrl.tasks import TASKS

    file = task_files.read("PATH", [path], task_names, skip_bad_lines, TASKS)[0]
    from mechrl.building.check import check_task
    from mechrl.intervals import LEAST_GROUPS
    from mechrl.models import load_model
    from mechrl.tasks.batches import fitting_batch_size
    from mechrl.tasks.fitting import fit_files

    loaded = load_model(model, device=device, revision=revision, bos=False if no_bos else None)
    (file,) = fit_files([file], loaded.vocabulary, loaded.n_ctx)
    checked = check_task(loaded, file)
    if as_json:
        return app.print_json(checked.model_dump(mode="json"))
    from mechrl.display import print_table

    skipped = f" without the {checked.skipped} {file.unit}s that do not fit" if checked.skipped else ""
    click.echo(
        f"{path}: sound{skipped}; {checked.prompts} prompts of {checked.shortest} to {checked.longest} tokens in "
        f"{checked.groups} groups, {'with' if checked.twins else 'without'} counterfactual twins; batches of "
        f"{fitting_batch_size([file])}"
    )
    click.echo(checked.bos)
    columns = ["model", "logit diff (nats)", "accuracy", "top-1", "log prob. of the answer", "prob. difference"]
    print_table(
        "",
        columns,
        [[model, checked.logit_diff, checked.accuracy, checked.top1, checked.logprob, checked.prob_diff]],
        "means; accuracy: answers before wrongs; top-1: an answer before every other token",
        secondary=["prob. difference", "log prob. of the answer", "top-1"],
    )
    print_table(
        "the prompts it does worst on",
        [file.unit, "logit diff", "says", "prompt"],
        [[w.line, w.logit_diff, repr(w.says), _shortened(w.prompt)] for w in checked.worst],
        text="prompt",
    )
    for note in checked.notes:
        app.warn(note)
    if checked.groups < LEAST_GROUPS:
        app.warn(f"{checked.groups} groups are too few for error bars: verify confirms nothing below {LEAST_GROUPS}")
    if checked.logit_diff <= 0:
        app.warn(f"{model} does not do {checked.task}: damage on this task would mean little")


def _shortened(text: str, most: int = 90) -> str:
    """A prompt on one line, its beginning left out if it is long."""
    line = repr(text)[1:-1]
    return line if len(line) <= most else "…" + line[1 - most :]

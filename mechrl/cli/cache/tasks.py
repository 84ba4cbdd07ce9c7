"""`mechrl-cache tasks`: the built-in behaviours."""

import click

from mechrl.cli import app


@click.command()
@click.argument("name", required=False)
@click.option("--show", default=0, type=click.IntRange(0), help="Print so many of its prompts.")
@click.option("--model", default="mini", show_default=True, help="Whose tokenizer to use.")
@app.seed
@app.as_json
def tasks(name: str | None, show: int, model: str, seed: int, as_json: bool) -> None:
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
    from mechrl.display import print_table

    if not name:
        print_table("", ["task", "family", "source"], [[t.name, t.family, t.source] for t in chosen], text="source")
    for task in chosen:
        if name:
            click.echo(f"{task.name} ({task.family})\n\n{task.about}\n\nSource: {task.source}")
        for prompt in shown.get(task.name, []):
            click.echo("\n" + "\n".join(f"  {key:9} {value!r}" for key, value in prompt.items()))

"""`mechrl-cache roles`: what the heads of a model look like."""

import click

from mechrl.cli import app


@click.command()
@app.model
@app.revision
@app.device
@click.option("--n", "-n", default=5, show_default=True, type=click.IntRange(1), help="How many heads of each role.")
@app.as_json
def roles(model: str, revision: str, device: str, n: int, as_json: bool) -> None:
    """What the heads of a model look like: the heads with the highest score of each role.

    On a block of random words that comes twice, the share of attention to the token before, to the earlier occurrence
    of the token, to the token after that occurrence (induction), and to the first position. Copying: whether what a
    head writes speaks for the token it reads (1) or against it (-1), by the eigenvalues of its OV circuit.
    """
    if model == "mini":
        app.say(app.FIRST_LINE)
    from mechrl.ablation import ROLES
    from mechrl.ablation.intact.roles import measure_roles
    from mechrl.models import load_model

    loaded = load_model(model, device=device, revision=revision)
    scores_by_role = measure_roles(loaded)
    heads = [f"{layer}.{head}" for layer in range(loaded.n_layers) for head in range(loaded.n_heads)]
    if missing := [name for name in ROLES if name not in scores_by_role]:
        app.warn(f"{', '.join(missing)}: cannot be measured on this model")
    if as_json:
        scores = {name: dict(zip(heads, values.tolist(), strict=True)) for name, values in scores_by_role.items()}
        return app.print_json({"model": model, "model_sha256": loaded.sha256, "roles": scores})
    from mechrl.display import print_table
    from mechrl.score import best_first

    best = {name: best_first(values)[:n] for name, values in scores_by_role.items()}
    columns = [[f"{heads[site]} ({scores_by_role[name][site]:.2f})" for site in sites] for name, sites in best.items()]
    return print_table(
        f"{model}: {loaded.n_layers} layers × {loaded.n_heads} heads",
        list(best),
        list(zip(*columns, strict=True)),
        "shares of attention on repeated random tokens; copying: Σ Re λ / Σ |λ| of the OV circuit",
    )

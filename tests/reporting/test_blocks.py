"""The pieces of the page say what the files say: numbers, answers, and in which order."""

import json

import documents
import numpy as np
import pytest

from mechrl.cache.top import top_heads
from mechrl.reporting.blocks import attention_map
from mechrl.reporting.page import render
from mechrl.reporting.run import collect
from mechrl.reporting.sections import cache as cache_section
from mechrl.reporting.sections.attention import looked_at
from mechrl.reporting.sections.cache import heads_in_order
from mechrl.reporting.sections.search import bench_on_caches, compared, searched
from mechrl.reporting.sections.verification import verified


@pytest.fixture(scope="module")
def model(whole_run):
    (model,) = collect([whole_run]).models
    return model


def drawn(figure) -> dict[str, tuple]:
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.plot.data}


def test_the_best_heads_of_a_task_are_the_highest_scores(small_cache):
    tops = {task: heads_in_order(small_cache, task) for task in small_cache.tasks}
    (table,) = cache_section.asked(small_cache, tops).tables
    for task, row in zip(small_cache.tasks, table.rows, strict=True):
        best = ", ".join(f"{head.head} ({head.score[0]:.2f})" for head in top_heads(small_cache, task, 3))
        assert row == [task, "32", "1.000", f"{small_cache.clean(task).mean():.2f}", best]


def test_the_pointer_over_the_control_map_is_told_control_damage(small_cache):
    tops = {task: heads_in_order(small_cache, task) for task in small_cache.tasks}
    (figure,) = cache_section.control(small_cache, tops).figures
    said = np.ravel(figure.plot.data[0].hovertext)
    for head, text in zip(tops[small_cache.tasks[0]], said, strict=True):
        mean, low, high = (round(value, 4) + 0.0 for value in head.control)
        assert text == f"<b>{head.head}</b> control damage {mean:.4f} ({low:.4f} to {high:.4f}) nats per token"


def test_the_control_weight_of_the_score_is_told(small_cache):
    assert ("score", "damage − 0.5 × control damage") in cache_section.facts(small_cache, 0.5)


def test_the_curves_of_a_search_are_its_mean_coverage(model):
    (checkpoint,) = model.checkpoints
    (figure,) = searched(checkpoint, "ioi").figures
    curves = drawn(figure)
    assert list(curves) == [name for name, _ in checkpoint.evaluations["ioi"]]
    for name, evaluation in checkpoint.evaluations["ioi"]:
        costs, found = curves[name]
        assert costs == sorted(set(evaluation.runs.ravel()))
        for cost, coverage in zip(costs, found, strict=True):
            reached = [
                max(((run, share) for run, share in zip(runs, shares, strict=True) if run <= cost), default=(0, 0))[1]
                for runs, shares in zip(evaluation.runs, evaluation.coverages(), strict=True)
            ]
            assert coverage == pytest.approx(np.mean(reached))


def test_a_comparison_gives_every_method_its_cost_and_its_curve(model):
    (bench,) = bench_on_caches(model)
    (block,) = compared(bench)
    (table,) = block.tables
    assert table.rows == [["agent", "4.00", "0%"], ["random", "8.00", "100%"]]
    grid = [1.0, 2.0, 4.0, 8.0]
    assert drawn(block.figures[0]) == {"agent": (grid, [0, 0.5, 0.95, 1]), "random": (grid, [0, 0.2, 0.5, 0.95])}


def test_joint_damage_is_shown_beside_the_sum(model):
    (file,) = model.verifications
    joint = file.content.tasks["induction"].joint
    (block,) = [block for block in verified(file, "induction") if block.title == "Together and one by one"]
    assert "more than their damages add up to" in block.sentences[0]
    assert drawn(block.figures[0]) == {
        "together": (["1", "2", "3"], [j.joint[0] for j in joint]),
        "one by one, in sum": (["1", "2", "3"], [j.summed[0] for j in joint]),
    }


@pytest.mark.parametrize("question", ["faithful", "replicates", "specific", "complete"])
def test_an_answer_of_no_is_shown_as_no(small_cache, tmp_path, question):
    printed = documents.verification(small_cache).model_dump(mode="json")
    for task in printed["tasks"].values():
        for other in ("faithful", "replicates", "specific", "complete"):
            task[other]["answer"] = other != question
    (tmp_path / "verification.json").write_text(json.dumps(printed))
    (file,) = collect([tmp_path]).models[0].verifications
    answers = verified(file, "ioi")[0].answers
    assert [said.partition(":")[0] for said, _ in answers] == ["faithful", "replicates", "specific", "complete"]
    assert [answer for said, answer in answers] == [said.partition(":")[0] != question for said, _ in answers]


def test_random_heads_that_pass_are_shown(small_cache, tmp_path):
    """One of twenty may pass, with two the test does not tell heads apart; where there are none, it says so."""
    printed = documents.verification(small_cache).model_dump(mode="json")
    for passed, of, said in (
        ([], 20, "all of 20 random other heads fail it"),
        (["5.7"], 20, "1 of 20 random other heads pass it (5.7)"),
        (["5.6", "5.7"], 20, "2 of 20 random other heads pass it (5.6, 5.7): it does not tell heads apart"),
        ([], 0, "there are no other heads to draw at random"),
    ):
        for task in printed["tasks"].values():
            task["specific"] |= {"random_failed": [of - len(passed), of], "random_passed": passed}
        (tmp_path / "verification.json").write_text(json.dumps(printed))
        (file,) = collect([tmp_path]).models[0].verifications
        answers = [answer for answer, _ in verified(file, "ioi")[0].answers]
        assert f"specific: with the answers permuted no pick passes the test; {said}" in answers
        assert answers[1].endswith("the top is 3 of all 48 heads")


def test_a_verification_without_its_cache_is_shown(small_cache, tmp_path):
    (tmp_path / "verification.json").write_text(documents.verification(small_cache).model_dump_json())
    page = render(collect([tmp_path]))
    assert "verification of a cache that is not here" in page
    assert f"Removing {top_heads(small_cache, 'ioi', 1)[0].head} (total effect" in page


def test_attention_is_drawn_and_told_as_it_is_in_the_file(model):
    (file,) = model.attentions
    means, prompt = looked_at(file)
    (table,) = means.tables
    assert table.rows == [[head, "0.70 (0.45 to 0.95)", "0.25 (0.00 to 0.50)", "–"] for head in ("0.1", "1.0")]
    (figure,) = means.figures
    (drawn,) = figure.plot.data
    assert [list(row) for row in drawn.z] == [[0.7, 0.25, 0.05]] * 2
    assert (drawn.zmin, drawn.zmax) == (0, 0.25), "the colours leave the first position out"
    assert "Colours end at 0.25, the largest share off the first position" in figure.caption
    assert dict(zip(figure.plot.layout.xaxis.tickvals, figure.plot.layout.xaxis.ticktext, strict=True)) == {
        0: "&lt;bos&gt;", 1: "Mary 30%", 2: "to",
    }  # fmt: skip
    assert drawn.hovertext[1][1] == "<b>1.0</b> → -2 ' Mary' 30%: 0.250 (0.000 to 0.500)"
    assert figure.table.rows[1][:5] == ["-2", "' Mary'", "30%", "100%", "0%"]
    assert prompt.sentences == [" Mary to"]
    assert len(prompt.figures) == 2
    (drawn,) = prompt.figures[0].plot.data
    assert [list(row) for row in drawn.z] == [[1, None, None], [0.875, 0.125, None], [0.625, 0.25, 0.125]]
    assert drawn.zmax == 0.25
    assert drawn.hovertext[2][1] == "<b>0.1</b> -1 ' to' → -2 ' Mary': 0.250"
    assert prompt.figures[0].table.columns == ["query", "-3 '<bos>'", "-2 ' Mary'", "-1 ' to'"]
    assert prompt.figures[0].table.rows[2] == ["-1 ' to'", "0.625", "0.250", "0.125"]


def test_tokens_of_a_stranger_are_shown_as_text(small_cache, tmp_path):
    """In HTML and in what Plotly reads as HTML; the browser's tests do the same to a page."""
    token = "<script>alert(1)</script><a href='x'>"
    found = documents.attention(small_cache, token=token)
    (tmp_path / "attention.json").write_text(found.model_dump_json())
    run = collect([tmp_path])
    page = render(run)
    assert page.count("<script>") == 2, "our own"
    assert "<a href='x'" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;a href=" in page
    for block in looked_at(run.models[0].attentions[0]):
        for figure in block.figures:
            (drawn,) = figure.plot.data
            axes = figure.plot.layout.xaxis, figure.plot.layout.yaxis
            texts = [text.replace("<b>", "").replace("</b>", "") for row in drawn.hovertext for text in row]
            texts += [text for axis in axes for text in axis.ticktext]
            assert any("&lt;script&gt;" in text for text in texts)
            assert not any("<" in text for text in texts)


def test_of_many_tokens_as_many_are_named_as_there_is_room_for():
    n = 100
    plot, limit = attention_map([[0.5] * n] * n, [str(i) for i in range(n)], ["x" * 30] * n, [[""] * n] * n, ("", ""))
    assert limit == 0.5
    assert plot.layout.yaxis.ticktext[:2] == ("99", "95")
    assert len(plot.layout.yaxis.ticktext) == 25
    assert set(plot.layout.xaxis.ticktext) == {"x" * 13 + "…"}

"""The report in a real browser: it shows the cache's numbers, sends nothing, runs nothing of what a file says."""

import json
import re

import documents
import numpy as np
import plotly.graph_objects as go
import pytest
from helpers import table_cache

from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_content
from mechrl.cache.top import top_heads
from mechrl.reporting.blocks import as_json
from mechrl.reporting.page import write_page
from mechrl.reporting.run import collect

HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>&lt;b&gt;<b>%{x}</b>"


@pytest.fixture(scope="module")
def report(whole_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(collect([whole_run]), path)
    return path


def figures(page) -> dict[str, dict]:
    """Data, cell texts and place of every figure, by its label."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.canvas')].map(c => [c.ariaLabel, {
            z: c.data[0].z, hover: c.data[0].hovertext,
            texts: [...c.querySelectorAll('.heatmap-label')].map(t => t.textContent),
            legend: [...c.querySelectorAll('.legendtext')].map(t => t.textContent),
            shapes: (c.layout.shapes || []).map(s => [(s.y0 + s.y1) / 2, (s.x0 + s.x1) / 2, s.line.dash]),
            symbols: c.data.slice(1).map(t => [t.name, t.x, t.y]),
        }]))"""
    )


def test_the_page_asks_for_nothing_and_complains_of_nothing(visit, report):
    seen = visit(report)
    assert seen.errors == []
    assert seen.requests == [report.as_uri()]


def test_the_policy_lets_no_request_and_no_foreign_script_through(visit, report):
    seen = visit(report)
    blocked = seen.page.evaluate(
        """async () => {
            const blocked = [];
            document.addEventListener('securitypolicyviolation', e => blocked.push(e.effectiveDirective));
            await fetch('https://example.org/').catch(() => 0);
            new Image().src = 'https://example.org/x.png';
            const script = document.createElement('script');
            script.textContent = 'window.ran = 1';
            document.body.append(script);
            const link = Object.assign(document.createElement('link'), {rel: 'stylesheet', href: 'https://example.org/x.css'});
            document.head.append(link);
            await new Promise(done => setTimeout(done, 300));
            return blocked;
        }"""
    )
    assert sorted(blocked) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert seen.page.evaluate("window.ran") is None
    assert sorted(seen.refused) == ["https://example.org/x.css csp", "https://example.org/x.png csp"]


def test_the_heat_maps_carry_the_numbers_of_the_cache(visit, report, small_cache):
    drawn = figures(visit(report).page)
    control = small_cache.control_damage.mean(0)
    for task in small_cache.tasks:
        damage = small_cache.damage(task).mean(0)
        for what, expected in (("damage", damage), ("score", damage - control)):
            figure = drawn[f"{what} of every head on {task}, mini, 6 layers × 8 heads"]
            assert np.allclose(np.ravel(figure["z"]), expected, atol=1e-6)
            digits = 2 if np.abs(expected).max() > 0.5 else 3
            assert figure["texts"] == [f"{round(float(v), digits) + 0.0:.{digits}f}" for v in expected]
    assert np.allclose(np.ravel(drawn["Control damage, mini, 6 layers × 8 heads"]["z"]), control, atol=1e-6)


def test_the_tables_beside_the_heat_maps_carry_the_same_numbers(visit, report, small_cache):
    rows = visit(report).page.evaluate(
        """() => [...document.querySelector('[aria-label^="score of every head on ioi"]').closest('figure')
            .querySelectorAll('tbody tr')].map(r => [...r.children].map(c => c.textContent))"""
    )
    score = small_cache.damage("ioi").mean(0) - small_cache.control_damage.mean(0)
    assert [row[0] for row in rows] == [str(layer) for layer in range(6)]
    assert np.allclose([list(map(float, row[1:])) for row in rows], score.reshape(6, 8), atol=0.00051)


def test_every_figure_has_a_caption_a_label_and_a_table(visit, report):
    page = visit(report).page
    told = page.evaluate(
        """() => [...document.querySelectorAll('figure')].map(f => [f.querySelector('figcaption').textContent.length,
            f.querySelector('.canvas').ariaLabel, f.querySelectorAll('details tbody tr').length])"""
    )
    # control; maps, joint, two curves, search of each task; bench; attention: means, and two heads on a prompt
    assert len(told) >= 1 + 3 * (2 + 1 + 2 + 1) + 1 + 3
    assert min(min(caption, rows) for caption, _, rows in told) > 0
    assert len({label for _, label, _ in told}) == len(told), "no two figures are called the same"


def test_the_picks_are_outlined_dotted_where_the_answer_was_no(visit, report, small_cache):
    outlined = figures(visit(report).page)["damage of every head on ioi, mini, 6 layers × 8 heads"]["shapes"]
    best = [head.head for head in top_heads(small_cache, "ioi", 3)]
    assert [f"{round(y)}.{round(x)}" for y, x, _ in outlined] == best
    assert [dash for _, _, dash in outlined] == ["solid", "solid", "dot"]


def test_the_pointer_over_a_cell_is_told_the_head_and_its_interval(visit, report, small_cache):
    page = visit(report).page
    canvas = page.locator("[aria-label^='damage of every head on ioi']")
    canvas.scroll_into_view_if_needed()
    best = top_heads(small_cache, "ioi", 1, by="damage")[0]
    layer, index = map(int, best.head.split("."))
    x, y = canvas.evaluate(
        """(c, [layer, index]) => { const l = c._fullLayout, box = c.getBoundingClientRect();
            return [box.x + l._size.l + l.xaxis.d2p(index), box.y + l._size.t + l.yaxis.d2p(layer)]; }""",
        [layer, index],
    )
    page.mouse.move(x, y)
    said = canvas.locator(".hoverlayer .hovertext").text_content(timeout=5000)
    mean, low, high = best.damage
    assert said.startswith(f"{best.head} damage {mean:.3f} ({low:.3f} to {high:.3f}) nats")
    assert "tested live: replicates" in said


@pytest.mark.parametrize(("width", "media"), [(390, "screen"), (1280, "screen"), (718, "print")])
def test_nothing_is_wider_than_the_screen_or_the_paper(visit, report, width, media):
    page = visit(report, width, media).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    too_wide = page.evaluate(
        """width => [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && !e.closest('svg')
            && e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 100))""",
        width,
    )
    assert too_wide == []


def test_on_paper_there_are_figures_and_no_buttons(visit, report):
    page = visit(report, 718, "print").page
    assert page.locator(".main-svg").first.is_visible()
    for hidden in ("nav", "details", ".modebar-container"):
        assert not page.locator(hidden).first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_whatever_a_file_says_is_shown_as_text_and_runs_nothing(visit, small_cache, tmp_path):
    arrays, attributes = small_cache.content.arrays, dict(small_cache.content.attributes)
    attributes["/"] = {**attributes["/"], "model": HOSTILE, "model_sha256": HOSTILE, "control_source": HOSTILE,
                       "device": HOSTILE, "library_versions": json.dumps({HOSTILE: HOSTILE})}  # fmt: skip
    path = tmp_path / "<img src=x onerror=alert(1)>.h5"
    write_content(path, Content(arrays, attributes))
    printed = documents.verification(Cache.open(path)).model_dump(mode="json")
    printed |= {"command": HOSTILE, "mechrl_version": HOSTILE, "library_versions": {HOSTILE: HOSTILE}}
    for task in printed["tasks"].values():
        task["heads"][2]["why"] = HOSTILE
        task["replicates"]["fresh_from"] = HOSTILE
        task["curves"]["rankings"] = {HOSTILE: task["curves"]["rankings"]["random"]}
    (tmp_path / "verification.json").write_text(json.dumps(printed))
    bench = documents.bench({"cache/mini.h5": Cache.open(path)}, agent="<u>x</u>")
    (tmp_path / "bench.json").write_text(bench.model_dump_json())
    attention = documents.attention(Cache.open(path), token=HOSTILE).model_copy(
        update={"bos": HOSTILE, "task": HOSTILE}
    )
    (tmp_path / "attention.json").write_text(attention.model_dump_json())
    (tmp_path / "<script>x.txt").write_text("")
    run = collect([tmp_path])
    assert run.damaged == []
    write_page(run, tmp_path / "report.html")
    seen = visit(tmp_path / "report.html")
    assert seen.errors == []
    assert seen.page.evaluate("window.ran") is None
    assert seen.page.locator("img").count() == 0
    assert seen.page.evaluate("document.querySelectorAll('script:not([type])').length") == 2
    assert seen.page.locator("h2").first.text_content() == HOSTILE
    drawn = figures(seen.page)
    name = "Logit difference with only the top heads left, ioi"
    assert drawn[name]["legend"] == [HOSTILE]
    assert drawn["Coverage against cost, track scores, cache/mini.h5"]["legend"] == ["<u>x</u>", "random"]
    assert seen.page.evaluate("document.querySelectorAll('svg a, svg [style*=underline]').length") == 0
    assert seen.requests == [(tmp_path / "report.html").as_uri()]


def test_no_figure_can_end_its_script():
    figure = go.Figure(layout={"title": {"text": "</script><!-- &amp; \u2028"}})
    text = as_json(figure)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["layout"]["title"]["text"] == "</script><!-- &amp; \u2028"


def test_gpt2_small_is_shown_with_the_roles_of_the_literature(visit, tmp_path):
    rng = np.random.default_rng(0)
    damage = {task: rng.normal(size=(8, 144)) for task in ("ioi", "mine")}
    made = table_cache(tmp_path / "by_hand.h5", damage, rng.normal(size=(8, 144)), 12, 12)
    for model, known in (("openai-community/gpt2", True), ("gpt2-medium", False)):
        root = {**made.content.root, "model": model}
        write_content(tmp_path / "gpt2.h5", Content(made.content.arrays, {**made.content.attributes, "/": root}))
        write_page(collect([tmp_path / "gpt2.h5"]), tmp_path / "report.html")
        drawn = figures(visit(tmp_path / "report.html").page)
        figure = drawn[f"damage of every head on ioi, {model}, 12 layers × 12 heads"]
        marked = {name: sorted(zip(map(round, y), map(round, x), strict=True)) for name, x, y in figure["symbols"]}
        assert marked.get("name mover") == ([(9, 6), (9, 9), (10, 0)] if known else None)
        assert ("name mover" in figure["legend"]) == known
        assert ("name mover (Wang et al. 2022" in figure["hover"][9][9]) == known
        assert drawn[f"damage of every head on mine, {model}, 12 layers × 12 heads"]["symbols"] == []


def test_without_scripts_all_numbers_are_still_there(report):
    text = re.sub(r"<script.*?</script>", "", report.read_text(), flags=re.DOTALL)
    assert "<noscript>" in text
    assert text.count("<table>") >= 20

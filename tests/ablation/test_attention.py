"""Where heads look: plain modules query by query, means by hand, what is refused, and what the command says."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import ARCHITECTURES, randomize, save
from transformers import AutoModelForCausalLM

import mechrl
from mechrl.ablation.forward import Forward
from mechrl.ablation.intact import attention
from mechrl.ablation.intact.attention import MOST_LENGTHS, Attention, measure_attention, most_attended
from mechrl.ablation.intact.roles import attention_patterns
from mechrl.cli.cache import cache as command
from mechrl.errors import FileError
from mechrl.intervals import bootstrap_means, interval
from mechrl.models import MINI, load_model
from mechrl.reporting.run import collect
from mechrl.results import read_result
from mechrl.tasks import EVALUATION, find_task, generate, get_task

HEADS = ["4.4", "0.6", "5.7"]


@pytest.fixture(scope="module", params=["mini", "llama", "gemma2"])
def loaded(request, mini, tmp_path_factory):
    """(folder, model); `llama` and `gemma2` share key heads, `gemma2` has windows, and neither has BOS."""
    if request.param == "mini":
        return MINI, mini
    folder = save(randomize(ARCHITECTURES[request.param]()), tmp_path_factory.mktemp(request.param), bos=False)
    return folder, load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ioi(mini) -> Attention:
    return measure_attention(mini, get_task("ioi"), HEADS, drawn=4)


@pytest.fixture
def with_mini(mini, monkeypatch):
    monkeypatch.setattr("mechrl.models.load_model", lambda name, device, revision: mini)


def plain(folder, prompts) -> list[np.ndarray]:
    """The attentions of plain modules, each prompt alone, float64 [layer, head, query, key] each."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    found = []
    for row, n in zip(prompts.tokens, prompts.length.tolist(), strict=True):
        with torch.no_grad():
            attentions = hf(torch.from_numpy(row[:n]).long()[None], output_attentions=True).attentions
        found.append(torch.cat(attentions).numpy())
    return found


def test_patterns_equal_plain_attentions_and_rows_sum_to_one(loaded):
    folder, model = loaded
    prompts = generate(get_task("ioi"), model.vocabulary, 24, EVALUATION)
    assert len(set(prompts.length.tolist())) > 1
    sites = [model.n_heads * model.n_layers - 1, 1, model.n_heads + 2]
    for tokens in (10**6, 40):  # all together, and in groups of one or two prompts
        forward = Forward(model, pass_tokens=tokens)
        whole = attention_patterns(forward, prompts, sites)
        last = attention_patterns(forward, prompts, sites, last=True)
        for row, expected in enumerate(plain(folder, prompts)):
            n = int(prompts.length[row])
            for i, site in enumerate(sites):
                of_head = expected[site // model.n_heads, site % model.n_heads]
                np.testing.assert_allclose(whole[row, i, :n, :n], of_head, atol=1e-5)
                np.testing.assert_allclose(last[row, i, :n], of_head[-1], atol=1e-5)
            np.testing.assert_allclose(whole[row, :, :n].sum(-1), 1, atol=1e-5)
            assert not whole[row, :, n:].any()
            assert not last[row, :, n:].any()


def test_means_and_intervals_are_those_of_plain_attentions(mini, ioi):
    prompts = generate(get_task("ioi"), mini.vocabulary, 128, EVALUATION)
    patterns = plain(MINI, prompts)
    assert (ioi.prompts, ioi.groups) == (128, len(set(prompts.group.tolist())))
    assert ioi.model_sha256 == mini.sha256
    for part in ioi.aligned:
        rows = np.flatnonzero(prompts.length == len(part.slots))
        assert (part.prompts, part.groups) == (len(rows), len(set(prompts.group[rows].tolist())))
        for head, found in part.attention.items():
            layer, index = map(int, head.split("."))
            values = np.array([patterns[row][layer, index, -1] for row in rows])
            low, high = interval(bootstrap_means(values, prompts.group[rows]))
            np.testing.assert_allclose(found, np.stack([values.mean(0), low, high], 1), atol=1e-5)
    assert sum(part.prompts for part in ioi.aligned) == 128
    for of in ioi.heads:
        layer, index = map(int, of.head.split("."))
        last = [pattern[layer, index, -1] for pattern in patterns]
        assert of.first.mean == pytest.approx(np.mean([weights[0] for weights in last]), abs=1e-5)
        for found, words in ((of.answers, prompts.answers), (of.wrongs, prompts.wrongs)):
            shares = [
                sum(weights[at] for at in range(1, len(weights)) if tokens[at] in of_prompt)
                for weights, tokens, of_prompt in zip(last, prompts.tokens, words, strict=True)
            ]
            assert found.mean == pytest.approx(np.mean(shares), abs=1e-5)
            assert found.low < found.mean < found.high
    assert len({of.answers.mean for of in ioi.heads}) == 3


def test_slots_are_those_of_the_templates(ioi):
    part = ioi.aligned[0]
    assert len(part.slots) == 15
    named = dict(enumerate(part.slots))
    assert (named[3].token, named[3].share) == (" and", 1)
    assert (named[14].token, named[14].share) == (" to", 1)
    # The two names: one of them the answer, the other the wrong. The giver, later, is always the wrong.
    for at in (2, 4):
        assert named[at].share < 0.5
        assert named[at].answer + named[at].wrong == pytest.approx(1)
    assert (named[10].answer, named[10].wrong) == (0, 1)
    assert all(slot.answer == slot.wrong == 0 for at, slot in named.items() if at not in (2, 4, 10))


def test_drawn_prompts_are_the_first_with_their_whole_patterns(mini, ioi):
    prompts = generate(get_task("ioi"), mini.vocabulary, 4, EVALUATION)
    for row, (drawn, expected) in enumerate(zip(ioi.drawn, plain(MINI, prompts), strict=True)):
        n = int(prompts.length[row])
        assert drawn.tokens == [mini.vocabulary.tokenizer.decode([t]) for t in prompts.tokens[row, :n]]
        assert drawn.text == "".join(drawn.tokens[1:])
        for head, rows in drawn.patterns.items():
            layer, index = map(int, head.split("."))
            for query, weights in enumerate(rows):
                np.testing.assert_allclose(weights, expected[layer, index, query, : query + 1], atol=1e-5)


def test_heads_of_mini_look_where_their_roles_say(mini, ioi):
    """4.4 is its best induction head; on IOI 0.6 looks at the giver, who is the wrong answer."""
    (induction,) = measure_attention(mini, get_task("induction"), ["4.4"]).heads
    assert induction.answers.low > 0.9
    assert induction.wrongs is None
    by_head = {of.head: of for of in ioi.heads}
    assert by_head["0.6"].wrongs.low > 0.8 > 0.1 > by_head["0.6"].answers.high


def test_positions_are_counted_from_the_end_the_most_attended_first():
    assert most_attended([0.1, 0.5, 0.1, 0.3]) == [-3, -1, -4, -2]
    assert most_attended([0.1, 0.5, 0.1, 0.3], 2) == [-3, -1]


def test_a_task_file_is_taken_whole_and_what_means_do_not_cover_is_noted(mini, tmp_path):
    path = tmp_path / "own.jsonl"
    line = '{{"prompt": "Mary saw {}the {} and the", "answer": " dog", "wrong": " cat"}}\n'
    more = ("", "old ", "old red ", "old red small ")
    lines = [line.format(often, thing) for often in more for thing in ("ring", "bone", "book")]
    path.write_text("".join([*lines, line.format("", "ball")]))
    found = measure_attention(mini, find_task(path), ["1.3"], drawn=1)
    assert (found.task, found.prompts, found.groups, found.with_answer, found.with_wrong) == ("own", 13, 13, 0, 0)
    assert found.heads[0].answers is None
    assert [part.prompts for part in found.aligned] == [4, 3, 3]
    assert len(found.aligned) == MOST_LENGTHS
    assert found.notes[0] == "3 prompts of other lengths are in no mean by position"
    assert len(found.notes) == 4
    assert (
        found.notes[1] == f"the prompts of {len(found.aligned[0].slots)} tokens are in 4 groups: too few for error bars"
    )


def test_prompts_too_long_for_a_picture_are_only_in_the_means(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_DRAWN", 12)
    path = tmp_path / "own.jsonl"
    line = '{{"prompt": "{}Mary saw the {} and the", "answer": " dog", "wrong": " cat"}}\n'
    long = [
        line.format("the red house and the red house and ", thing) for thing in ("ring", "bone", "book", "ball", "hat")
    ]
    path.write_text("".join(long))
    found = measure_attention(mini, find_task(path), ["1.3"])
    assert len(found.aligned[0].slots) > 12
    assert found.drawn == []
    assert found.notes == [
        "5 groups of prompts are too few for error bars",
        "every prompt has more than 12 tokens: no whole pattern is shown",
    ]
    path.write_text("".join([*long, line.format("", "key")]))
    found = measure_attention(mini, find_task(path), ["1.3"])
    assert found.prompts == 6
    assert [drawn.text for drawn in found.drawn] == ["Mary saw the key and the"]


def test_a_model_that_does_not_show_its_patterns_is_refused(call, mini, tmp_path, monkeypatch):
    model = load_model(str(save(randomize(ARCHITECTURES["llama"]()), tmp_path)), device="cpu")
    monkeypatch.setitem(model.bridge.blocks[1].attn.__dict__, "hook_pattern", lambda weights: weights)
    monkeypatch.setattr("mechrl.models.load_model", lambda name, device, revision: model)
    code, out, err = call(command, "attention", "--model", "some", "--head", "1.1", "--task", "ioi")
    assert (code, out) == (2, "")
    assert re.search(r"error: .*: where its heads look cannot be read: .* mixes the positions\n$", err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--head", "9.9", "--task", "ioi"), "'mini' has no head 9.9: its heads are 0.0 to 5.7"),
        (("--head", "4.8", "--task", "ioi"), "'mini' has no head 4.8"),
        (("--head", "4,4", "--task", "ioi"), "'4,4' is no head: write layer.head, as in 9.6"),
        (("--head", "4.4 ", "--task", "ioi"), "'4.4 ' is no head"),
        (("--head", "L4H4", "--task", "ioi"), "'L4H4' is no head"),
        (("--head", "04.4", "--task", "ioi"), "'04.4' is no head"),
        (("--head", "-1.4", "--task", "ioi"), "'-1.4' is no head"),
        (("--head", "4.4", "--task", "iio"), "unknown task 'iio'. Did you mean 'ioi'?"),
        (("--head", "4.4", "--task", "none.jsonl"), "none.jsonl: No such file"),
        (("--head", "4.4", "--task", "ioi", "--out", "x.png"), "x.png: the attention of heads is written to"),
        (("--head", "4.4", "--task", "ioi", "--prompts", "0"), "'--prompts'"),
        (("--head", "4.4"), "'--task'"),
        (("--task", "ioi"), "'--head'"),
    ],
)
def test_wrong_input_gets_one_message(call, with_mini, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(command, "attention", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.lower().count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_a_task_that_the_tokenizer_splits_is_refused(call, mini, monkeypatch):
    monkeypatch.setattr("mechrl.models.load_model", lambda name, device, revision: mini)
    monkeypatch.setattr(type(mini.vocabulary), "single", lambda self, text: None)
    code, out, err = call(command, "attention", "--head", "4.4", "--task", "ioi")
    assert (code, out) == (2, "")
    assert "task 'ioi': only 0 of its name fillers are single tokens in this tokenizer" in err


def test_the_command_prints_the_five_positions_looked_at_most(call, with_mini, ioi):
    code, out, err = call(command, "attention", "--head", "4.4", "--head", "0.6", "--head", "5.7", "--task", "ioi")
    assert code == 0, err
    assert "mini on ioi: 128 prompts in 57 groups" in out
    first = ioi.heads[0].first
    assert re.search(rf"4\.4 +{first.mean:.2f} \({first.low:.2f} to {first.high:.2f}\)", out)
    for part in ioi.aligned:
        means = [estimate.mean for estimate in part.attention["4.4"]]
        best = int(np.argmax(means))
        slot = part.slots[best]
        assert re.search(rf"4\.4 +{best - len(means)} +'{slot.token}' +{slot.share:.0%} ", out)
    weights = ioi.drawn[0].patterns["4.4"][-1]
    best = int(np.argmax(weights))
    assert f"'{ioi.drawn[0].tokens[best]}' ({best - len(weights)}) {weights[best]:.2f}" in out
    assert len(re.findall(r"^ +4\.4 ", out, re.MULTILINE)) == 1 + 5 * 3 + 3


def test_what_is_written_is_read_back_and_shown(call, with_mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("attention", "--head", "4.4", "--task", "ioi", "--prompts", "1")
    code, out, err = call(command, *given, "--out", "attention.json", "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["format"] == "mechrl-attention"
    read = read_result(tmp_path / "attention.json", (Attention,))
    assert read.model_dump(mode="json") == printed
    assert read == mechrl.attention("4.4", "ioi", prompts=1, device="cpu", out="page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>Where do the heads look?</h1>" in page
    assert "What is not here" not in page
    assert "mechrl-cache attention --model mini --head 4.4 --task ioi --prompts 1 --seed 0" in page
    assert collect([tmp_path / "attention.json"]).models[0].attentions[0].content == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["drawn"][0]["patterns"]["4.4"][2].append(0.1), "not one row for each token"),
        (lambda f: f["drawn"][0]["patterns"]["4.4"].pop(), "not one row for each token"),
        (lambda f: f["aligned"][0]["slots"].pop(), "not one number for each position"),
        (lambda f: f["heads"].append({**f["heads"][0], "head": "1.1"}), "not every part has the same heads"),
        (lambda f: f["drawn"][0]["patterns"]["4.4"][1].__setitem__(0, 1.5), "less than or equal to 1"),
        (lambda f: f["drawn"][0]["tokens"].__setitem__(0, "\x1b[2J"), "control characters"),
        (lambda f: f.update(format_version=2), "version 2"),
    ],
)
def test_a_damaged_result_is_refused(ioi, tmp_path, change, message):
    found = ioi.model_dump(mode="json")
    change(found)
    (tmp_path / "attention.json").write_text(json.dumps(found))
    with pytest.raises(FileError, match=message):
        collect([tmp_path])

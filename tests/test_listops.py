"""ListOps: the recipe, the parser against the formula written out, and its exact mean gradient."""

import gzip
import hashlib
import itertools
import math
import os
from collections import Counter
from dataclasses import replace

import pytest
import scipy.stats
import torch

import gradthrough as gt
from gradthrough.bench import _files, listops_data
from gradthrough.bench.config import RunConfig
from gradthrough.bench.listops_data import (
    SYMBOLS,
    draw_expressions,
    load_listops,
    parse_words,
    value,
    words,
)
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.tasks._listops_batches import Batch, Sentences
from gradthrough.bench.tasks._listops_cell import LeafLSTM
from gradthrough.bench.tasks._listops_chart import Weights
from gradthrough.bench.tasks._listops_model import Drop
from gradthrough.bench.tasks._listops_parse import parse
from gradthrough.bench.tasks.listops import ListOps
from gradthrough.bench.train import run
from gradthrough.rollout import Bound, Rollout
from problems import DISCRETE

REAL = os.environ.get("GRADTHROUGH_DATA")
TINY = ListOps(5, 4, 3, source="generated", train_size=89, max_length=20)
CPU = torch.device("cpu")
SERVED = [
    key
    for key, kind in gt.ESTIMATORS.items()
    if kind.traits.many_draws and not kind.traits.relaxed and "categorical" in kind.traits.families
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "listops"


# The data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("7", 7),
        ("[MIN 3 1 2 ]", 1),
        ("[MAX 3 9 2 ]", 9),
        ("[MED 9 1 4 ]", 4),
        ("[MED 1 9 4 8 ]", 6),
        ("[MED 3 4 ]", 3),
        ("[SM 7 8 9 ]", 4),
        ("( ( ( [SM ( ( ( [MAX 2 ) 9 ) ] ) ) 4 ) ] )", 3),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
    ],
)
def test_expressions_come_to_what_they_mean(text, want):
    expression = parse_words(text)
    assert value(expression) == want
    assert parse_words(words(expression)) == expression


@pytest.mark.parametrize(
    "text",
    ["", "1 2", "[MIN 1 2", "1 ]", "MIN 1 ]", "[ ]", "[MIN ]", "[ 1 2 ]", "MAX", "[MIN MAX 2 ]"],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(gt.DomainError, match="not one whole expression"):
        value(parse_words(text))


def test_an_unknown_word_is_refused():
    with pytest.raises(gt.DomainError, match="AVG"):
        parse_words("[AVG 1 2 ]")


def shape(expression):
    """Return the largest number of nested operators, and of each the name and number of arguments.

    The second list has one entry for each operator.
    """
    names, sizes, depth, found = [], [0], 0, []
    for token in expression:
        symbol = SYMBOLS[token]
        if symbol == "[":
            sizes[-1] += 1
            sizes.append(0)
            depth = max(depth, len(sizes) - 1)
        elif symbol.isdigit():
            sizes[-1] += 1
        elif symbol == "]":
            found.append((names.pop(), sizes.pop()))
        else:
            names.append(symbol)
    return depth, found


def test_drawn_expressions_are_new_and_follow_the_grammar():
    taken = draw_expressions(300, seed=1)
    drawn = draw_expressions(2000, seed=0, taken=taken)
    assert len(set(drawn) | set(taken)) == 2300
    assert drawn == draw_expressions(2000, seed=0, taken=taken) != draw_expressions(2000, seed=0)
    shapes = [shape(x) for x in drawn]
    operators = [x for _, found in shapes for x in found]
    assert {size for _, size in operators} == {2, 3, 4, 5}
    assert {name for name, _ in operators} == {"MIN", "MAX", "MED", "SM"}
    assert max(depth for depth, _ in shapes) == 19
    assert {value(x) for x in drawn} == set(range(10))


def test_the_order_says_nothing_about_the_length():
    drawn = draw_expressions(2000, seed=0)
    rank = scipy.stats.spearmanr(range(len(drawn)), [len(x) for x in drawn])
    assert rank.pvalue > 1e-5


# What the README of the release's copy lists: counts of the 10,000 expressions to test on.
LABELS = (1127, 1038, 967, 978, 991, 969, 895, 930, 964, 1141)
DEPTHS = (1, 2093, 2339, 1429, 893, 611, 519, 404, 287, 230)
DEPTHS += (185, 158, 113, 104, 88, 81, 48, 61, 32, 324)
OPERATORS = {"MAX": 0.249, "MED": 0.249, "MIN": 0.252, "SM": 0.249}
ARGUMENTS = {2: 0.236, 3: 0.248, 4: 0.256, 5: 0.261}
LENGTHS = {8: 0.25, 16: 0.5, 40: 0.75, 106: 0.9, 185: 0.95, 386: 0.99}  # cumulative shares


def same_law(counts, others):
    """Return the p-value of two histograms being of one law."""
    pairs = [(a, b) for a, b in zip(counts, others, strict=True) if a + b >= 10]
    return scipy.stats.chi2_contingency(list(zip(*pairs, strict=True))).pvalue


@pytest.mark.slow
def test_the_recipe_has_the_statistics_of_the_release():
    drawn = draw_expressions(100_000, seed=0)
    some = drawn[:30_000]  # at random
    labels, shapes = Counter(map(value, some)), [shape(x) for x in some]
    depths = Counter(depth for depth, _ in shapes)
    assert same_law([labels[i] for i in range(10)], LABELS) > 1e-5
    assert same_law([depths[i] for i in range(20)], DEPTHS) > 1e-5
    lengths = sorted(len(x) - x.count(1) for x in drawn)  # "[MAX" is one token there
    for length, share in LENGTHS.items():
        below = sum(x < length for x in lengths) / len(drawn)
        upto = sum(x <= length for x in lengths) / len(drawn)
        error = 4.5 * (share * (1 - share) / 10_000) ** 0.5
        assert below - error < share < upto + error
    operators = [operator for _, found in shapes for operator in found]
    assert len(operators) / len(some) == pytest.approx(9.21, abs=0.8)
    names, sizes = (Counter(x) for x in zip(*operators, strict=True))
    for found, shares in ((names, OPERATORS), (sizes, ARGUMENTS)):
        for kind, share in shares.items():
            assert found[kind] / len(operators) == pytest.approx(share, abs=0.008)


real = pytest.mark.skipif(not REAL, reason="$GRADTHROUGH_DATA is not set")


@real
@pytest.mark.parametrize(("split", "size"), [("valid", 1000), ("test", 10_000)])
def test_the_labels_of_the_release_are_the_values(split, size):
    content, _ = _files.local(listops_data.FILES[f"{split}.tsv.gz"], _files.Path(REAL))
    lines = [line.split("\t") for line in gzip.decompress(content).decode().splitlines()]
    assert len(lines) == size
    assert all(value(parse_words(text)) == int(label) for label, text in lines)


@real
def test_the_training_set_has_nothing_of_the_held_out_ones():
    data = load_listops(train_size=5000)
    assert repr(data) == "ListOpsData(train=5000, valid=1000, test=10000)"
    assert len({*data.train, *data.valid, *data.test}) == 16_000


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A folder with small files in the place of the published ones."""
    monkeypatch.setattr(listops_data, "TRAIN", 40)
    folder = tmp_path / "data"
    (folder / "listops").mkdir(parents=True)
    for split, seed in (("valid", 3), ("test", 4)):
        rows = [f"{value(x)}\t{words(x).replace('[ ', '[')}" for x in draw_expressions(5, seed)]
        text = ("\n".join(rows) + "\n").encode()
        for name, content in ((f"{split}.tsv", text), (f"{split}.tsv.gz", gzip.compress(text))):
            (folder / "listops" / name).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            file = replace(listops_data.FILES[name], sha256=sha256)
            monkeypatch.setitem(listops_data.FILES, name, file)
    return folder


def test_the_release_is_read_packed_or_not(release):
    whole = load_listops(train_size=40, root=release)
    assert whole.valid == draw_expressions(5, seed=3)
    assert whole.test == draw_expressions(5, seed=4)
    assert len({*whole.train, *whole.valid, *whole.test}) == len({*whole.valid, *whole.test}) + 40
    (release / "listops" / "valid.tsv").unlink()
    (release / "listops" / "test.tsv.gz").unlink()
    part = load_listops(train_size=7, root=release)
    assert part == replace(whole, train=whole.train[:7])
    other = load_listops(train_size=40, seed=1, root=release)
    assert set(other.train) != set(whole.train)


def test_files_that_are_missing_or_damaged_are_refused(release, monkeypatch):
    (release / "listops" / "test.tsv").write_text("7\t7\n")
    with pytest.raises(gt.DomainError, match="SHA256"):
        load_listops(train_size=7, root=release)
    monkeypatch.delenv("GRADTHROUGH_DATA", raising=False)
    with pytest.raises(gt.ConfigError, match=r"(?s)valid.tsv.gz.*GRADTHROUGH_DATA.*'generated'"):
        load_listops(train_size=7)


@pytest.mark.parametrize(
    "options", [{"source": "web"}, {"train_size": 0}, {"train_size": 89_001}], ids=str
)
def test_bad_options_of_the_data_are_refused(options):
    with pytest.raises(gt.ConfigError, match=str(next(iter(options.values())))):
        load_listops(**options)


def test_generated_splits_are_in_proportion_and_disjoint():
    data = load_listops("generated", train_size=890)
    assert (len(data.train), len(data.valid), len(data.test)) == (890, 10, 100)
    assert len({*data.train, *data.valid, *data.test}) == 1000


def test_the_cache_is_used_and_a_broken_file_is_drawn_anew(cache, monkeypatch):
    data = load_listops("generated", train_size=50)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for broken in (whole[:-3], whole[:20], b"", whole[:50] + b"x" + whole[51:]):
        file.write_bytes(broken)
        assert load_listops("generated", train_size=50) == data
        assert list(cache.iterdir()) == [file]
        assert file.read_bytes() == whole
    monkeypatch.delattr(listops_data, "draw_expressions")
    assert load_listops("generated", train_size=50) == data
    with pytest.raises(NameError):
        load_listops("generated", train_size=50, seed=1)


# Batches -------------------------------------------------------------------------------------


def test_batches_hold_every_sentence_once_with_others_of_its_length():
    drawn = [x for x in draw_expressions(1300, seed=0) if len(x) < 100][:1000]
    sentences = Sentences(drawn, CPU)
    found, spread = [], 0
    for batch in sentences.shuffled(8, torch.Generator().manual_seed(0)):
        assert len(batch) == 8
        assert batch.tokens.shape == (8, int(batch.lengths.max()))
        spread += int(batch.tokens.shape[1] * 8 - batch.lengths.sum())
        for row, length, label in zip(batch.tokens, batch.lengths, batch.labels, strict=True):
            assert not row[length:].any()
            found.append(bytes(row[:length].tolist()))
            assert int(label) == value(found[-1])
    assert sorted(found) == sorted(drawn)
    assert spread < 0.1 * sum(map(len, drawn))
    lengths = torch.cat([x.lengths for x in sentences.sorted(7)])
    assert lengths.tolist() == sorted(map(len, drawn), reverse=True)


def test_batches_follow_the_seed_and_the_epoch():
    def order(seeds, epoch):
        batches = TINY.batches("train", seeds, epoch=epoch, size=8)
        return torch.cat([x.tokens.sum(1) for x in batches]).tolist()

    assert order(Seeds(0), 0) == order(Seeds(0), 0)
    assert order(Seeds(0), 0) != order(Seeds(0), 1)
    assert order(Seeds(0), 0) != order(Seeds(1), 0)
    assert sorted(order(Seeds(0), 0)) == sorted(order(Seeds(1), 1))


def test_a_batch_gives_shares_of_itself():
    batch = next(iter(Sentences(draw_expressions(9, seed=0), CPU).sorted(9)))
    parts = [batch[rank::2] for rank in (0, 1)]
    assert [len(x) for x in parts] == [5, 4]
    assert torch.equal(parts[1].lengths, batch.lengths[1::2])
    assert torch.equal(parts[1].tokens, batch.tokens[1::2])
    assert torch.equal(parts[1].labels, batch.labels[1::2])


# The parser ----------------------------------------------------------------------------------


# What a short sentence does not use has the gradient 0.
UNUSED = {"allow_unused": True, "materialize_grads": True}


def formula(weights, leaves, choose):
    """Return h of the root of one sentence (L, 2 D): the algorithm as it is defined, no more."""
    d, nodes = len(weights.query), leaves
    while len(nodes) > 1:
        left, right = nodes[:-1], nodes[1:]
        gates = left[:, :d] @ weights.pair[0].T + right[:, :d] @ weights.pair[1].T + weights.bias
        i, f_left, f_right, o, u = gates.chunk(5, -1)
        c = i.sigmoid() * u.tanh()
        c = c + f_left.sigmoid() * left[:, d:] + f_right.sigmoid() * right[:, d:]
        parents = torch.cat((o.sigmoid() * c.tanh(), c), -1)
        z = choose(parents[:, :d] @ weights.query) if len(parents) > 1 else torch.ones(1).double()
        z_behind = z.cumsum(0) - z  # 1 behind the one chosen
        z_before = z.flip(0).cumsum(0).flip(0) - z
        nodes = z_before[:, None] * left + z[:, None] * parents + z_behind[:, None] * right
    return nodes[0, :d]


class Hot(torch.autograd.Function):
    """A one-hot, exactly, that has the Jacobian of something smooth."""

    @staticmethod
    def forward(ctx, hard, soft):
        return hard.clone()

    @staticmethod
    def backward(ctx, g):
        return None, g


def hot(index, scores):
    """Return one-hots with the Jacobian of a softmax."""
    hard = torch.nn.functional.one_hot(index, scores.shape[-1]).to(scores.dtype)
    return Hot.apply(hard, (1.3 * scores).softmax(-1))


def problem(lengths, d=3):
    generator = torch.Generator().manual_seed(len(lengths))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    place = torch.arange(max(lengths)).unsqueeze(1)
    inside = (place < torch.tensor(lengths)).unsqueeze(-1)
    leaves = normal(max(lengths), len(lengths), 2 * d) * inside
    weights = (normal(2, 5 * d, d), normal(5 * d), normal(d))
    parts = [x.requires_grad_() for x in (leaves, *weights)]
    return parts, normal(len(lengths), d)


@pytest.mark.parametrize(
    "lengths", [[1], [2, 1], [3], [4, 3, 3, 2, 1, 1], [9, 9, 9], [12, 7, 6, 6, 1]], ids=str
)
@pytest.mark.parametrize("seed", range(3))
def test_parsing_has_value_and_gradient_of_the_formula(lengths, seed):
    parts, target = problem(lengths)
    leaves, weights = parts[0], Weights(*parts[1:])
    u = torch.rand(len(leaves), len(lengths), generator=torch.Generator().manual_seed(seed))
    steps, roots = itertools.count(), []

    def choose(scores):
        share = u[next(steps), : len(scores)] * scores.isfinite().sum(-1)
        return hot(share.long(), scores)

    got = parse(weights, leaves, lengths, choose)
    for row, length in enumerate(lengths):
        step = itertools.count()
        roots.append(
            formula(
                weights,
                leaves[:length, row],
                lambda s, row=row, step=step: hot((u[next(step), row] * len(s)).long(), s),
            )
        )
    want = torch.stack(roots)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad((x * target).sum(), parts, **UNUSED) for x in (got, want)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_parse_can_be_taken_back_twice():
    parts, target = problem([5, 4, 2])
    root = parse(Weights(*parts[1:]), parts[0], [5, 4, 2], lambda s: hot(s.argmax(-1), s))
    loss = (root * target).sum()
    first = torch.autograd.grad(loss, parts, retain_graph=True)
    again = torch.autograd.grad(loss, parts)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_leaves_are_those_of_an_lstm():
    torch.manual_seed(0)
    want = torch.nn.LSTM(3, 4).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    # torch has the gates in the order input, forget, update, output; here the update comes last.
    order = torch.tensor([*range(8), *range(12, 16), *range(8, 12)])
    inputs = x @ want.weight_ih_l0[order].T + (want.bias_ih_l0 + want.bias_hh_l0)[order]
    h, c = LeafLSTM.apply(inputs, want.weight_hh_l0[order])
    for t in range(6):
        all_h, (_, last_c) = want(x[: t + 1])
        torch.testing.assert_close(h[: t + 1], all_h, rtol=0, atol=1e-15)
        torch.testing.assert_close(c[t], last_c[0], rtol=0, atol=1e-15)
    weight = torch.randn(16, 4, dtype=torch.float64, requires_grad=True)
    leaf = inputs.detach().requires_grad_()
    assert torch.autograd.gradcheck(LeafLSTM.apply, (leaf, weight))


# The model -----------------------------------------------------------------------------------

CASES = pytest.mark.parametrize("leaf_rnn", [True, False], ids=["rnn", "tokens"])


def network(*, leaf_rnn=True, scale=1.0):
    """Return a task without dropout, and its model in float64, with weights that matter."""
    task = replace(TINY, leaf_rnn=leaf_rnn, dropout=0.0)
    model = task.model(Seeds(0)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return task, model


def sentences(lengths):
    generator = torch.Generator().manual_seed(7)
    place = torch.arange(max(lengths))
    tokens = torch.randint(1, 17, (len(lengths), max(lengths)), generator=generator)
    sizes = torch.tensor(lengths)
    labels = torch.randint(0, 10, (len(lengths),), generator=generator)
    return Batch(tokens * (place < sizes.unsqueeze(1)), sizes, labels)


def read(model, tokens, choose):
    """Return the logits of the labels of one sentence, from the formula."""
    x = model.leaf(model.embedding(tokens))
    if model.leaf_rnn:
        d, h, states = model.query.shape[0], 0.0 * model.query, []
        c = h
        for row in x:
            i, f, o, u = (row + model.recurrent @ h).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * u.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(torch.cat((h, c)))
        x = torch.stack(states)
    d = model.query.shape[0]
    bias = model.bias + torch.cat([g * torch.ones(d) for g in (0, 1, 1, 0, 0)])
    root = formula(Weights(model.pair, bias, model.query * model.scale), x, choose)
    return model.out(model.classifier(root).relu())


def loss_of(model, tokens, label, choose):
    return -read(model, tokens, choose).log_softmax(-1)[label]


class Greedy(Bound):
    """Merges the best pair, with the Jacobian of a softmax: no noise that rows could share."""

    def __init__(self):
        super().__init__(gt.StraightThrough())

    def rollout(self):
        rollout = super().rollout()
        rollout.sample = lambda scores: hot(scores.argmax(-1), scores)
        rollout.combine = lambda values: values.mean(0)
        return rollout


@CASES
def test_rows_of_a_batch_neither_see_one_another_nor_their_padding(leaf_rnn):
    task, model = network(leaf_rnn=leaf_rnn)
    lengths = [4, 1, 7, 2, 3, 7]
    batch = sentences(lengths)
    together = task.losses(model, batch, Greedy())
    wanted = [p for name, p in model.named_parameters()]
    for i, length in enumerate(lengths):
        tokens, label = batch.tokens[i, :length], batch.labels[i]
        alone = loss_of(model, tokens, label, lambda s: hot(s.argmax(-1), s))
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-14)
        got = torch.autograd.grad(together[i], wanted, retain_graph=True)
        want = torch.autograd.grad(alone, wanted, **UNUSED)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@CASES
def test_evaluation_merges_the_best_pair(leaf_rnn):
    task, model = network(leaf_rnn=leaf_rnn)
    batch = sentences([6, 3, 5, 1, 2])
    model.eval()
    losses = task.losses(model, batch, Bound(gt.ReinMax()))
    for i, length in enumerate(batch.lengths.tolist()):
        best = loss_of(
            model, batch.tokens[i, :length], batch.labels[i], lambda s: hot(s.argmax(-1), s)
        )
        torch.testing.assert_close(losses[i], best)
    answers = model.answers(batch)
    mean = torch.nn.functional.cross_entropy(answers, batch.labels)
    torch.testing.assert_close(mean, losses.mean())


class Driven(Bound):
    """An estimator whose draws are given: for each step the places, (N, B)."""

    def __init__(self, estimator, samples, picks):
        super().__init__(estimator, samples)
        self.picks = picks

    def rollout(self):
        rollout, picks = super().rollout(), iter(self.picks)

        def sample(scores):
            q = gt.Categorical(scores)
            # Where there is one class left, this is it.
            index = torch.minimum(next(picks), scores.isfinite().sum(-1) - 1)
            z = torch.nn.functional.one_hot(index, scores.shape[-1]).to(scores.dtype)
            return Rollout.sample(rollout, q, noise=q.noise_for(z))

        rollout.sample = sample
        return rollout


def tree_law(model, tokens, label, picks):
    """Return the log-probability of a tree, given by what it merges, and its loss."""
    log_p, left = [], iter(picks)

    def choose(scores):
        k = next(left)
        log_p.append(scores.log_softmax(-1)[k])
        return torch.nn.functional.one_hot(torch.tensor(k), len(scores)).double()

    loss = loss_of(model, tokens, label, choose)
    return (torch.stack(log_p).sum() if log_p else torch.zeros(())), loss


TREES = {4: list(itertools.product(range(3), range(2))), 3: [(0,), (1,)], 2: [()], 1: [()]}


@CASES
@pytest.mark.parametrize(
    ("key", "options", "samples", "lengths"),
    [
        ("reinforce", {}, 1, (4, 1, 3, 2)),
        ("reinforce", {"baseline": 0.7}, 1, (3, 4)),
        ("rloo", {}, 2, (4,)),
        ("rloo", {}, 2, (1, 3)),
        ("vargrad", {}, 2, (3, 2)),
    ],
)
def test_unbiased_estimators_have_the_exact_mean_over_all_trees(
    leaf_rnn, key, options, samples, lengths
):
    task, model = network(leaf_rnn=leaf_rnn, scale=0.7)
    wanted = list(model.parameters())
    batch = sentences(list(lengths))
    rows = list(zip(batch.tokens, batch.lengths.tolist(), batch.labels, strict=True))
    laws = [
        {p: tree_law(model, tokens[:n], label, p) for p in TREES[n]} for tokens, n, label in rows
    ]
    exact = sum(log_p.exp() * loss for law in laws for log_p, loss in law.values())
    want = torch.autograd.grad(exact, wanted)
    mean = [torch.zeros_like(p) for p in wanted]
    value, total = 0.0, 0.0
    # The model has the longest first, and so have the picks.
    order = batch.lengths.argsort(descending=True, stable=True).tolist()
    for trees in itertools.product(*(laws[i] for i in order for _ in range(samples))):
        log_p = sum(
            float(laws[i][tree][0].detach())
            for i, tree in zip((i for i in order for _ in range(samples)), trees, strict=True)
        )
        padded = [(*tree, 0, 0)[:2] for tree in trees]
        picks = torch.tensor(padded).reshape(len(order), samples, 2).permute(2, 1, 0)
        losses = task.losses(model, batch, Driven(gt.estimator(key, **options), samples, picks))
        weight = math.exp(log_p)
        total += weight
        value += weight * float(losses.detach().sum())
        for a, b in zip(mean, torch.autograd.grad(losses.sum(), wanted), strict=True):
            a += weight * b
    assert total == pytest.approx(1.0, abs=1e-12)
    assert value == pytest.approx(float(exact.detach()), rel=1e-12)
    for a, b in zip(mean, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def trained(estimator, steps=3):
    """Train a fresh model for some steps; return the losses and the parameters."""
    model = TINY.model(Seeds(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bound = Bound(estimator, estimator.traits.min_samples, torch.Generator().manual_seed(1))
    losses = []
    batches = TINY.batches("train", Seeds(0), epoch=0, size=6)
    for batch in itertools.islice((b for b in batches if len(b) == 6), steps):
        loss = TINY.losses(model, batch, bound)
        assert loss.shape == (6,)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), dict(model.named_parameters())


@pytest.mark.parametrize("key", SERVED)
def test_every_estimator_of_whole_programs_trains_all_weights(key):
    estimator = gt.estimator(key)
    assert TINY.refuses(estimator) is None
    losses, after = trained(estimator)
    before = dict(TINY.model(Seeds(0)).named_parameters())
    assert losses.isfinite().all()
    for name, x in after.items():
        assert x.isfinite().all()
        assert not torch.equal(x, before[name]), name


@pytest.mark.parametrize("key", ["reinmax", "rloo"])
def test_training_depends_on_its_seeds_alone(key):
    (losses, after), (again, repeated) = trained(gt.estimator(key)), trained(gt.estimator(key))
    assert TINY.dropout > 0
    assert torch.equal(losses, again)
    assert all(torch.equal(x, repeated[name]) for name, x in after.items())


@pytest.mark.parametrize("key", [key for key in DISCRETE if key not in SERVED])
def test_every_other_estimator_is_refused_with_the_reason(key):
    estimator = gt.estimator(key)
    reason = TINY.refuses(estimator)
    assert reason is not None
    assert type(estimator).__name__ in reason
    assert ("soft" in reason) == estimator.traits.relaxed
    assert ("one latent" in reason) != estimator.traits.relaxed


def test_an_estimator_that_cannot_serve_so_many_classes_is_refused():
    reason = TINY.refuses(gt.GumbelRao(k="exact"))
    assert reason is not None
    assert "two classes" in reason


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("key", ["stgs", "gst", "reinmax", "rloo"])
def test_gradients_are_finite_for_long_sentences_and_extreme_weights(key, scale):
    task, model = network(scale=scale)
    model.float()
    estimator = gt.estimator(key)
    bound = Bound(estimator, estimator.traits.min_samples, torch.Generator().manual_seed(0))
    task.losses(model, sentences([100, 100, 51]), bound).mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert float(model.pair.grad.abs().max()) > 0


def test_a_share_without_rows_reaches_every_weight_with_zero():
    task, model = network()
    losses = task.losses(model, sentences([3, 2])[2:], Bound(gt.ReinMax()))
    assert losses.shape == (0,)
    losses.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_dropout_is_drawn_from_the_generator_and_keeps_the_mean():
    x = torch.ones(50, 40)
    drop = Drop(0.25, torch.Generator().manual_seed(0))
    dropped = drop(x, x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1, abs=4.5 * (1 / 3 / 2000) ** 0.5)
    assert not torch.equal(dropped, drop(x, x))
    assert torch.equal(dropped, Drop(0.25, torch.Generator().manual_seed(0))(x, x))
    rows = drop(x, x[:, :1])
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert Drop(0.0)(x, x) is x


def test_the_first_choice_is_a_law_of_the_pairs_of_neighbours():
    task, model = network()
    batch = sentences([2, 5, 1, 3])
    law = task.latent(model, batch)
    assert law.variables == (4,)
    assert task.law().variables == (1,)
    for i, length in enumerate(batch.lengths.tolist()):
        seen = []
        choose = lambda s, seen=seen: (seen.append(s), hot(s.argmax(-1), s))[1]  # noqa: E731
        read(model, batch.tokens[i, :length], choose)
        want = torch.full((4,), -torch.inf, dtype=torch.float64)
        want[: max(1, length - 1)] = seen[0] if seen else 0.0
        if length == 2:
            want[0] = law.logits[i, 0]
        torch.testing.assert_close(law.logits[i], want)
    assert task.latent(model, batch[2:3]).variables == (1,)


# The task ------------------------------------------------------------------------------------


def test_long_sentences_are_left_out_of_every_split():
    data = load_listops("generated", train_size=89)
    for split in ("train", "valid", "test"):
        kept = [x for x in getattr(data, split) if len(x) <= 20]
        assert len(TINY.sentences(split)) == len(kept)
    assert sum(map(len, TINY.batches("train", Seeds(0), epoch=0, size=7))) == len(
        TINY.sentences("train")
    )


def test_evaluation_is_of_all_sentences_and_the_last_one_by_length():
    task = replace(TINY, train_size=445, max_length=60)
    model = task.model(Seeds(0)).eval()
    found = task.evaluate(model, "test", Seeds(0))
    parts = task.evaluate(model, "test", Seeds(0), final=True)
    lengths = task.sentences("test").lengths
    shares = {
        name: int(((lengths >= low) & (lengths <= high)).sum()) / len(lengths)
        for name, low, high in (
            ("accuracy_1_10", 1, 10),
            ("accuracy_11_25", 11, 25),
            ("accuracy_26_50", 26, 50),
            ("accuracy_from_51", 51, 60),
        )
    }
    assert [m.name for m in task.metrics] == ["loss", "accuracy", *shares]
    assert sum(shares.values()) == 1
    mean = sum(share * parts.get(name, 0.0) for name, share in shares.items())
    assert mean == pytest.approx(found["accuracy"], rel=1e-12)
    whole = next(iter(task.sentences("test").sorted(1000)))
    right = (model.answers(whole).argmax(-1) == whole.labels).double()
    assert found["accuracy"] == pytest.approx(100 * float(right.mean()), rel=1e-12)
    assert task.evaluate(model, "test", Seeds(5)) == found


def test_options_are_checked_and_make_a_config():
    for option, bad in (("hidden", 0), ("max_length", 0), ("dropout", 1.0), ("dropout", -0.1)):
        with pytest.raises(gt.DomainError, match=option):
            replace(TINY, **{option: bad})
    config = RunConfig("listops", TINY.options(), "reinmax")
    assert TASKS["listops"](**config.task_options) == TINY


def test_a_run_trains_clips_schedules_and_reports(tmp_path):
    config = RunConfig(
        "listops",
        replace(TINY, train_size=178, max_length=50).options(),
        "reinmax",
        {"tau": 1.1},
        optimizer="radam",
        lr=7e-4,
        batch_size=16,
        epochs=2,
        clip=5.0,
        schedule="plateau",
    )
    result = run(config, out=tmp_path, progress=False)
    assert result.status == "done"
    names = {(r.split, r.metric) for r in result.records if r.kind == "metric"}
    assert {("train", "loss"), ("valid", "accuracy"), ("test", "accuracy_1_10")} <= names
    skipped = run(replace(config, estimator="rebar", estimator_options={}), out=tmp_path)
    assert skipped.status == "skipped"
    with pytest.raises(gt.ConfigError, match=r"rollout\(\).*Train without"):
        run(replace(config, compile="default"), out=tmp_path, progress=False)

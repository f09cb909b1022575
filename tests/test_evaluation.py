"Probes and retrieval against naive loops, closed forms and scikit-learn; what must be refused is."

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.svm import LinearSVC
from torch import nn

from vidrepro.clips.contract import Clip, view
from vidrepro.clips.sampling import random_clips, uniform_clips
from vidrepro.core.files import InputError
from vidrepro.core.random import generator
from vidrepro.evaluation import finetune as finetuning
from vidrepro.evaluation import probes, retrieval

torch.set_num_threads(1)
PREDICTORS = [
    partial(probes.logistic, decays=(0.1,)),
    probes.logistic,
    probes.svm,
    partial(probes.nearest, k=5),
]


def clusters(n, seed, k=5, d=8, spread=0.5):
    label = torch.arange(n) % k
    return torch.eye(k, d)[label] * 2 + spread * torch.randn(n, d, generator=generator(seed)), label


class Numbers:
    "Video i shows the value i + frame, so the right feature of every clip is known."

    def __init__(self, n=6, length=20):
        self.lengths, self.labels = torch.full((n,), length), torch.arange(n) % 2
        self.classes, self.asked = ("even", "odd"), []

    def __len__(self):
        return len(self.lengths)

    def clips(self, index, frames):
        self.asked.append(frames.shape[0] * frames.shape[1])
        value = (10 * index[:, None, None] + frames).to(torch.uint8)
        return value[:, :, None, :, None, None].expand(-1, -1, 3, -1, 2, 2)


class Mean(nn.Module):
    dim = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(3)

    def forward(self, x):
        return self.norm(x).mean((2, 3, 4))


# ---- scores ------------------------------------------------------------------------------------
def test_score_prints_and_survives_json():
    score = probes.Score("motion probe", 0.4431, 0.412, 0.468, 1 / 12, 1200, {"split": "test"})
    assert repr(score) == "motion probe 0.443 [0.41, 0.47] (chance 0.083, n=1200)"
    assert probes.Score(**json.loads(json.dumps(score.to_dict()))) == score


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_bootstrap_covers_the_truth(probability):
    "A 95 % interval over 300 simulated test sets: 95 % within three standard errors of coverage."
    rng, inside = generator("coverage", round(100 * probability)), 0
    for trial in range(300):
        hits = torch.rand(150, generator=rng) < probability
        low, high = probes.bootstrap(hits, draws=300, seed=trial)
        inside += low <= probability <= high
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 300) < inside / 300 < 1


def test_bootstrap_draws_whole_videos():
    hits = (torch.arange(100) % 3 == 0).repeat_interleave(5)
    video = torch.arange(100).repeat_interleave(5)
    assert probes.bootstrap(hits, video) == pytest.approx(probes.bootstrap(hits[::5]))
    low, high = probes.bootstrap(hits)
    assert high - low < 0.6 * np.ptp(probes.bootstrap(hits, video))
    order = torch.randperm(500, generator=generator("order"))  # names of videos do not matter
    assert probes.bootstrap(hits[order], 7 * video[order]) == pytest.approx(
        probes.bootstrap(hits, video)
    )


def test_bootstrap_is_a_loop_over_drawn_videos():
    "Videos with unequal numbers of rows: each resampled mean weighs rows, not videos."
    values, video = torch.rand(40, generator=generator("v")), (torch.arange(40).sqrt()).long()
    drawn = torch.randint(7, (100, 7), generator=generator("bootstrap", 5)).tolist()
    means = [torch.cat([values[video == u] for u in draw]).double().mean().item() for draw in drawn]
    expected = np.quantile(means, [0.05, 0.95])
    assert probes.bootstrap(values, video, draws=100, level=0.9, seed=5) == pytest.approx(expected)


def test_same_seed_same_interval():
    values = torch.rand(40, generator=generator("values"))
    assert probes.bootstrap(values) == probes.bootstrap(values)
    assert probes.bootstrap(values, seed=1) != probes.bootstrap(values)


# ---- features ----------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_extract_is_a_loop_over_clips_in_bounded_batches(batch_size):
    source, model = Numbers(), Mean()
    frames = torch.randint(0, 20, (6, 5, 4), generator=generator("frames"))
    features = probes.extract(model, source, frames, batch_size=batch_size)
    value = (10 * torch.arange(6)[:, None] + frames.float().mean(2)) / 255 / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(features, value[..., None].expand(-1, -1, 3))
    assert max(source.asked) <= batch_size
    assert sum(source.asked) == 30


def test_extract_restores_modes_even_after_an_error():
    model = nn.Sequential(Mean(), nn.Dropout())
    model[0].norm.eval()
    before = [m.training for m in model.modules()]
    frames = torch.zeros(6, 1, 2, dtype=torch.long)
    features = probes.extract(model, Numbers(), frames)
    assert not features.is_inference()
    with pytest.raises(ZeroDivisionError):
        probes.extract(model, Numbers(), frames, prepare=lambda x: 1 / 0)
    assert [m.training for m in model.modules()] == before
    assert model[0].norm.num_batches_tracked == 0


def test_extract_in_bfloat16_is_close():
    model, frames = nn.Sequential(Mean(), nn.Linear(3, 4)), torch.arange(4).expand(6, 2, 4)
    exact = probes.extract(model, Numbers(), frames)
    rough = probes.extract(model, Numbers(), frames, autocast=True)
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.zeros(5, 1, 2, dtype=torch.long), "for 6 videos"),
        (torch.zeros(6, 0, 2, dtype=torch.long), "one clip at least"),
    ],
)
def test_extract_refuses_wrong_frames(frames, message):
    with pytest.raises(InputError, match=message):
        probes.extract(Mean(), Numbers(), frames)


# ---- probes ------------------------------------------------------------------------------------
def test_linear_probe_reaches_the_bayes_accuracy():
    y = torch.arange(20000) % 2
    x = torch.randn(20000, 4, generator=generator("bayes")) + (2 * y[:, None] - 1) * 0.5
    score = probes.linear_probe(x[:10000], y[:10000], x[10000:], y[10000:])
    assert score.value == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))), abs=0.012)
    assert score.chance == 0.5 and score.n == 10000


@pytest.mark.parametrize("predict", PREDICTORS, ids=["decay 0.1", "logistic", "svm", "knn"])
def test_probes_learn_clusters_and_report_themselves(predict):
    score = probes.probe(predict, *clusters(100, "a"), *clusters(60, "b"))
    assert score.low > 0.75 > score.chance == pytest.approx(0.2)
    assert {"views", "classifier", "how chosen"} <= set(score.protocol)
    json.dumps(score.to_dict())


@pytest.mark.parametrize("predict", PREDICTORS, ids=["decay 0.1", "logistic", "svm", "knn"])
def test_test_labels_and_other_test_rows_decide_nothing(predict):
    (x, y), (test, _) = clusters(60, "a", spread=1.5), clusters(40, "b", spread=1.5)
    together = predict(x.double(), y, test.double())[0]
    alone = torch.cat([predict(x.double(), y, row[None].double())[0] for row in test])
    assert together.tolist() == alone.tolist()


def test_clips_are_averaged():
    (x, y), (test, test_y) = clusters(50, "a"), clusters(30, "b")
    noise = torch.randn(50, 4, 8, generator=generator("noise"))
    views = x[:, None] + noise - noise.mean(1, keepdim=True)
    one, many = (probes.linear_probe(f, y, test, test_y) for f in (x, views))
    assert one.value == many.value
    assert probes.linear_probe(x, y, test[:, None], test_y).protocol["views"] == "1 clips averaged"


def test_held_out_rows_are_stratified_and_groups_stay_whole():
    labels = torch.arange(400) % 10
    out = probes.held_out(labels)
    assert out.sum() == 100 and labels[out].bincount().tolist() == [10] * 10
    groups = torch.arange(400) % 9
    out = probes.held_out(labels, groups)
    assert len(groups[out].unique()) == 3 and not torch.isin(groups[out], groups[~out]).any()


def test_logistic_never_chooses_on_rows_of_a_fitted_group():
    "The held-out rows are known: only the group that is held out whole can change the choice."
    (x, y), groups = clusters(90, "g", spread=2.0), torch.arange(90) % 9
    how = probes.logistic(x.double(), y, x.double(), groups)[1]
    out = int(probes.held_out(y, groups).sum())
    assert f"on {out} held-out training rows" in how["how chosen"] and out == 30


def test_knn_is_sklearns():
    (x, y), (test, _) = clusters(80, "a", spread=2.0), clusters(50, "b", spread=2.0)
    theirs = KNeighborsClassifier(9, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.3))
    expected = theirs.fit(x.numpy(), y.numpy()).predict(test.numpy())
    assert probes.nearest(x, y, test, k=9, tau=0.3)[0].tolist() == expected.tolist()


def test_svm_is_liblinear_with_squared_hinge():
    (x, y), (test, test_y) = clusters(80, "a", spread=2.0), clusters(50, "b", spread=2.0)
    theirs = LinearSVC(C=1.0, fit_intercept=False, dual=True, max_iter=100000, tol=1e-8)
    expected = theirs.fit(x.double().numpy(), y.numpy()).predict(test.double().numpy())
    score = probes.linear_svm(x, y, test, test_y)
    assert score.value == pytest.approx(accuracy_score(test_y.numpy(), expected))


def test_probe_counts_videos_not_rows():
    (x, y), (test, test_y) = clusters(50, "a"), clusters(40, "b")
    score = probes.linear_probe(x, y, test, test_y, units=torch.arange(40) // 4)
    assert score.n == 10


def test_cross_validate_never_trains_on_the_tested_group():
    (x, y), groups, seen = clusters(60, "a"), torch.arange(60) % 4, []

    def spy(train_x, train_y, test_x, kept):
        seen.append((set(kept.tolist()), len(test_x)))
        return probes.nearest(train_x, train_y, test_x, k=3)

    score = probes.cross_validate(x, y, groups, spy)
    assert seen == [({0, 1, 2, 3} - {g}, 15) for g in range(4)]
    assert score.value > 0.9 and score.protocol["split"] == "leave one of 4 groups out"


(X, Y), BAD = clusters(20, "x"), torch.full((20, 8), math.nan)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: probes.linear_probe(BAD, Y, X, Y),
            "train features: got NaN or infinity in 20 rows",
        ),
        (lambda: probes.linear_probe(X, Y, BAD, Y), "test features"),
        (lambda: probes.linear_probe(X, Y[:-1], X, Y), "19 labels for 20 rows"),
        (lambda: probes.linear_probe(X[:0], Y[:0], X, Y), "0 rows"),
        (lambda: probes.linear_probe(X, 0 * Y, X, Y), "train labels"),
        (lambda: probes.linear_svm(X, 0 * Y, X, Y), "at least two classes"),
        (lambda: probes.linear_probe(X, Y, X, Y, groups=0 * Y), "train labels"),
        (lambda: probes.knn(X[:7], Y[:7], X, Y), "choose 1 to 7"),
        (lambda: probes.cross_validate(X, Y, 0 * Y), "two groups at least"),
        (lambda: retrieval.retrieve(X, Y, X[:4], Y[:4]), "choose 1 to 4"),
        (lambda: retrieval.retrieve_within(X, Y, ks=(20,)), "choose 1 to 19"),
        (lambda: retrieval.retrieve(X, Y, X, Y, ks=(0,)), "choose 1 to 20"),
        (lambda: retrieval.retrieve(X, Y, X, Y, ks=()), "name at least one k"),
        (lambda: retrieval.retrieve(BAD, Y, X, Y, ks=(1,)), "query features"),
        (lambda: retrieval.retrieve(X, Y, BAD, Y, ks=(1,)), "gallery features"),
        (lambda: retrieval.retrieve(X, Y, X, Y[:3], ks=(1,)), "3 labels for 20 rows"),
        (lambda: retrieval.retrieve(X, Y, X, Y, ks=(1,), query_groups=Y), "both sides"),
        (lambda: retrieval.retrieve_within(X, Y, 0 * Y, ks=(1,)), "choose 1 to 0"),
    ],
)
def test_refusals_fill_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ---- fine-tuning -------------------------------------------------------------------------------
CLIP = Clip(4, 1, 2)
TUNING = finetuning.Tuning(test_clips=2, epochs=2, batch=2)


def test_finetune_is_a_function_of_its_arguments():
    backbone = Mean()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(finetuning.finetune(backbone, Numbers(), Numbers(), CLIP, TUNING))
        assert torch.initial_seed() == seed
    assert runs[0].curve == runs[1].curve and runs[0].score == runs[1].score
    assert all(torch.equal(state[name], value) for name, value in backbone.state_dict().items())
    assert not torch.equal(runs[0].model[0].norm.weight, backbone.norm.weight)
    protocol = runs[0].score.protocol
    assert protocol["test_clips"] == 2 and protocol["frames"] == 4 and len(runs[0].curve) == 2
    json.dumps(runs[0].score.to_dict())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_frozen_backbone_keeps_weights_and_statistics(precision):
    tuning = replace(TUNING, frozen=True, precision=precision)
    result = finetuning.finetune(Mean(), Numbers(), Numbers(), CLIP, tuning)
    for before, after in zip(Mean().state_dict().values(), result.model[0].state_dict().values()):
        assert torch.equal(before, after)
    assert result.model[1].weight.requires_grad and not result.model[0].norm.weight.requires_grad
    assert result.model.train()[1].training and not result.model[0].training


def test_augmentation_sees_training_clips_only(monkeypatch):
    calls = []

    def augment(clips, noise, strengths):
        calls.append((len(clips), torch.rand(1, generator=noise).item(), strengths.flip))
        return clips.float() / 255

    monkeypatch.setattr(finetuning, "augment", augment)
    finetuning.finetune(Mean(), Numbers(), Numbers(), CLIP, replace(TUNING, flip=0.25))
    assert [(size, flip) for size, _, flip in calls] == [(2, 0.25)] * 6
    assert len({u for _, u, _ in calls}) == 6


def test_training_steps_are_a_naive_loop():
    "Two epochs of plain AdamW on what the batches' numbers say, with batch norm and all."
    model, naive = (finetuning.Tuned(Mean(), nn.Linear(3, 2)) for _ in range(2))
    naive.load_state_dict(model.state_dict())
    plain = replace(TUNING, crop=1.0, jitter=0.0, grey=0.0)
    finetuning.tune(model, Numbers(), CLIP, plain)
    wide = [p for p in naive.parameters() if p.ndim > 1]
    flat = [p for p in naive.parameters() if p.ndim < 2]
    groups = [{"params": wide, "weight_decay": 1e-4}, {"params": flat, "weight_decay": 0.0}]
    optimizer, source = torch.optim.AdamW(groups), Numbers()
    for step in range(6):
        order = torch.randperm(6, generator=generator(0, "order", step // 3))
        index = order[2 * (step % 3) :][:2]
        start = random_clips(source.lengths[index], 4, 1, 1, generator(0, "sample", step))
        x = view(source.clips(index, start)[:, 0], CLIP)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 6)) / 2
        optimizer.zero_grad()
        F.cross_entropy(naive(x), source.labels[index]).backward()
        optimizer.step()
    for (name, mine), theirs in zip(model.state_dict().items(), naive.state_dict().values()):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_answers_average_probabilities_of_unaugmented_clips():
    class Brightness(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3, 4)), torch.zeros(len(x))], 1)

    source, net = Numbers(), Brightness()
    frames = uniform_clips(source.lengths, 4, 1, 3)
    votes = [
        sum(
            F.softmax(net(view(source.clips(torch.tensor([i]), frames[[i]])[:, j], CLIP)), 1)
            for j in range(3)
        )
        for i in range(6)
    ]
    expected = torch.cat(votes).argmax(1)
    assert torch.equal(finetuning.answer(net, source, CLIP, 3), expected)


def test_mean_softmax_averages_probabilities():
    logits = torch.randn(4, 3, 5, generator=generator("logits"))
    loops = torch.stack([sum(F.softmax(clip, 0) for clip in video) / 3 for video in logits])
    torch.testing.assert_close(finetuning.mean_softmax(logits), loops)


@pytest.mark.parametrize(
    "module", ["evaluation.finetune", "evaluation.retrieval", "explain.gradcam"]
)
def test_numbers_need_no_plotting(module):
    "What a paper imports on the way does not load what only pictures and probes need."
    code = f"import sys, vidrepro.{module}; print({{'matplotlib.pyplot', 'sklearn.svm'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# ---- retrieval ---------------------------------------------------------------------------------
@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=15, deadline=None)
def test_neighbours_are_a_sorted_list(seed, center):
    rng = generator("naive", seed)
    query, gallery = torch.randn(6, 4, generator=rng), torch.randn(12, 4, generator=rng)
    gallery[7] = gallery[2]  # a tie
    mine, theirs = torch.randint(3, (6,), generator=rng), torch.randint(3, (12,), generator=rng)
    k = 12 - int(theirs.bincount(minlength=3).max())
    found = retrieval.neighbours(query, gallery, k, center, mine, theirs)
    q, g = (x.double() - center * x.double().mean(0) for x in (query, gallery))
    for i in range(6):
        key = {
            j: (-round(F.cosine_similarity(q[i], g[j], dim=0).item(), 9), j)
            for j in range(12)
            if theirs[j] != mine[i]
        }
        assert found[i].tolist() == sorted(key, key=key.get)[:k]


def test_neighbours_are_sklearns_and_ignore_length_and_order():
    query, gallery = (torch.randn(n, 16, generator=generator(n)) for n in (1100, 300))
    found = retrieval.neighbours(query, gallery, 10)
    theirs = NearestNeighbors(n_neighbors=10, metric="cosine").fit(gallery.double().numpy())
    expected = theirs.kneighbors(query.double().numpy(), return_distance=False)
    assert (found.numpy() == expected).all()
    longer = gallery * (0.1 + torch.rand(300, 1, generator=generator("length")))
    assert torch.equal(retrieval.neighbours(query, longer, 10), found)
    order = torch.randperm(300, generator=generator("order"))
    assert torch.equal(order[retrieval.neighbours(query, gallery[order], 10)], found)


def test_ties_go_to_the_lower_index():
    gallery = torch.ones(50, 4) * 2.0 ** (torch.arange(50)[:, None] % 5)
    found = retrieval.neighbours(torch.ones(3, 4), gallery, 20)
    assert torch.equal(found, torch.arange(20).expand(3, -1))
    dead = retrieval.neighbours(torch.zeros(2, 4), torch.randn(50, 4), 5)  # all cosines are zero
    assert torch.equal(dead, torch.arange(5).expand(2, -1))


@pytest.mark.parametrize("grouped", [False, True])
def test_recall_and_its_chance_by_counting(grouped):
    (query, ql), (gallery, gl) = clusters(40, "q", spread=2.0), clusters(71, "g", spread=2.0)
    mine, theirs = torch.arange(40) % 3, torch.arange(71) % 3
    groups = {"query_groups": mine, "gallery_groups": theirs} if grouped else {}
    scores = retrieval.retrieve(query, ql, gallery, gl, ks=(1, 4, 9), **groups)
    free = [[j for j in range(71) if not grouped or theirs[j] != mine[i]] for i in range(40)]
    for k, score in scores.items():
        hits, chance = 0, 0
        for i in range(40):
            near = sorted(free[i], key=lambda j: -F.cosine_similarity(query[i], gallery[j], dim=0))
            hits += any(gl[j] == ql[i] for j in near[:k])
            chance += hypergeom.sf(0, len(free[i]), sum(int(gl[j] == ql[i]) for j in free[i]), k)
        assert score.value == pytest.approx(hits / 40) and score.chance == pytest.approx(
            chance / 40
        )
        assert score.n == 40 and score.low <= score.value <= score.high


def test_within_one_set_a_video_is_not_its_own_answer():
    x, y = clusters(30, "w")
    assert (retrieval.retrieve(x, y, x, y, ks=(1,))[1].value) == 1.0
    unique = torch.arange(30)  # no other video has this class
    score = retrieval.retrieve_within(x, unique, ks=(1, 29))
    assert [s.value for s in score.values()] == [s.chance for s in score.values()] == [0.0, 0.0]
    person = torch.arange(30) // 3
    found = retrieval.neighbours(x, x, 20, False, person, person)
    assert (person[found] != person[:, None]).all()


def test_noise_scores_at_chance():
    x, y = torch.randn(2000, 32, generator=generator("noise")), torch.arange(2000) % 12
    for score in retrieval.retrieve(x[:1000], y[:1000], x[1000:], y[1000:]).values():
        assert abs(score.value - score.chance) < 4 * math.sqrt(0.25 / 1000)


def test_centring_removes_a_shift_between_the_sides_and_says_so():
    (query, ql), (gallery, gl) = clusters(100, "q", spread=0.3), clusters(100, "g", spread=0.3)
    plain, centred = (
        retrieval.retrieve(query + 3 * torch.eye(8)[0], ql, gallery, gl, (1,), center)[1]
        for center in (False, True)
    )
    assert centred.value > 0.95 > plain.value + 0.2
    assert plain.protocol["centred"] == "no" and "own mean" in centred.protocol["centred"]


def test_examples_show_failures_too():
    hits = torch.arange(40) % 4 > 0
    rows = retrieval.examples(hits, 6)
    assert hits[rows].tolist() == [True] * 3 + [False] * 3
    assert torch.equal(rows, retrieval.examples(hits, 6))
    assert len(retrieval.examples(torch.ones(40, dtype=torch.bool), 6)) == 3


def test_panel_colours_tell_right_from_wrong():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    source = Numbers()
    figure = retrieval.panel(source, source, torch.tensor([[2, 1]] * 6), torch.tensor([0, 1]))
    edges = [
        [ax.spines["left"].get_edgecolor() for ax in figure.axes[3 * r : 3 * r + 3]] for r in (0, 1)
    ]
    green, red = (matplotlib.colors.to_rgba(c) for c in ("tab:green", "tab:red"))
    assert [row[1:] for row in edges] == [[green, red], [red, green]]
    assert figure.axes[0].get_title() == "even"

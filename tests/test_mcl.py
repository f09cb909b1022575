"Promises of MCL's samplers, losses and state for any draw; the notebook checks chosen cases."

import dataclasses
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from two_processes import average, half, in_two

from vidrepro.clips.transforms import crop_boxes
from vidrepro.core.checkpoint import read_checkpoint
from vidrepro.core.files import InputError
from vidrepro.core.random import generator
from vidrepro.core.settings import override
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.experiments.tables import suites
from vidrepro.learning.distributed import apply
from vidrepro.learning.train import Batches, Checkpoint, Learner, Schedule
from vidrepro.papers import mcl, mcl_scores, mcl_views
from vidrepro.papers.mcl import ABLATION, PRESETS, build, callbacks, loss
from vidrepro.papers.mcl_views import Config, extras, sample, views
from vidrepro.runs import execute
from vidrepro.runs.run import Run
from vidrepro.runs.videos import videos

repeat = settings(max_examples=12, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
SMALL = dict(batch=4, videos=24, queue=64, hidden=16)
SOURCE = MovingDigits(24)


def config(**changes):
    return override(PRESETS['tiny'], {**SMALL, **changes})


def batches(cfg, source=SOURCE, *rank):
    more = partial(extras, cfg=cfg)
    return Batches(source, partial(sample, cfg=cfg), cfg.batch, cfg.seed, *rank, extras=more)


def batch(cfg, k=0):
    return batches(cfg)[k]


def look(cfg, k=0):
    return views(batch(cfg, k), generator(k), cfg)


def rand(seed, *shape):
    return torch.rand(*shape, generator=generator(seed))


class TestSampling:
    @repeat
    @given(
        SEEDS,
        st.lists(st.integers(1, 60), min_size=1, max_size=5),
        st.integers(2, 6),
        st.integers(1, 3),
        st.integers(1, 8),
    )
    def test_candidates(self, seed, lengths, candidates, stride, frames):
        "Exist, run forwards at one stride until the video ends, and come in order of time."
        cfg = dataclasses.replace(Config(), candidates=candidates, stride=stride, frames=frames)
        drawn = sample(torch.tensor(lengths), generator(seed), cfg)
        assert drawn.frames.shape == (len(lengths), candidates, frames) and drawn.frames.min() >= 0
        assert (drawn.frames.amax((1, 2)) < torch.tensor(lengths)).all()
        assert (drawn.frames[:, :, 0].diff(dim=1) >= 0).all()
        for row, length in zip(drawn.frames, lengths):
            want = (row[:, :1] + stride * torch.arange(frames)).clamp(max=length - 1)
            assert torch.equal(row, want)

    @repeat
    @given(
        SEEDS, st.integers(4, 9), st.sampled_from([2, 3]), st.sampled_from(['paper', 'official'])
    )
    def test_choice(self, seed, m, n, rules):
        "The chosen are the best that the rule allows; the query comes first or last, the others in order."
        score, order = rand(seed, 6, m), torch.randint(2, (6,), generator=generator(seed))
        places = mcl_views.choose_clips(score, order, rand(seed + 1, 6, m), n, rules)
        assert all(len(set(p)) == n for p in places.tolist())
        rest = places[:, 1:]
        assert (
            (rest.diff(dim=1) > 0).all()
            and ((places[:, :1] < rest).all(1) == (order == 1)).all()
            and ((places[:, :1] > rest).all(1) == (order == 0)).all()
        )
        for p, s, first in zip(places.tolist(), score, order.tolist()):
            halves = [range(m)] if rules == 'paper' else [range(m // 2), range(m // 2, m)]
            counts = [n] if rules == 'paper' else [1, n - 1] if first else [n - 1, 1]
            for own, count in zip(halves, counts):
                mine, values = [i for i in p if i in own], s[list(own)]
                good = {i for i in own if s[i] >= values.quantile(0.5)}
                assert len(mine) == count
                assert set(mine) <= good or good <= set(
                    mine
                )  # worse ones only when the good are used up

    def test_motion_is_used_for_its_share(self):
        cfg = config(batch=24, motion_share=0.5, candidates=4)
        always, never = (
            views(batch(cfg), generator(3), dataclasses.replace(cfg, motion_share=s)).frames
            for s in (1.0, 0.0)
        )
        half = views(batch(cfg), generator(3), cfg).frames
        as_always, as_never = (((half == x).flatten(1)).all(1) for x in (always, never))
        assert (as_always | as_never).all() and 0 < as_always.sum() < 24 and 0 < as_never.sum() < 24


class TestCrops:
    @repeat
    @given(
        SEEDS,
        st.sampled_from([(16, 16), (20, 27)]),
        st.sampled_from(['paper', 'official']),
        st.sampled_from(['motion', 'random']),
    )
    def test_boxes_fit(self, seed, frame, rules, spatial):
        cfg = dataclasses.replace(Config(), rules=rules, spatial=spatial, crop=0.1, candidates=4)
        top, left, height, width = mcl_views.motion_boxes(
            rand(seed, 5, *frame), generator(seed), cfg
        ).unbind(1)
        assert (torch.stack([top, left]) >= 0).all() and (torch.stack([height, width]) >= 1).all()
        assert (top + height <= frame[0]).all() and (left + width <= frame[1]).all()

    @repeat
    @given(SEEDS)
    def test_larger_boxes_hold_more(self, seed):
        maps = rand(seed, 3, 16, 16) ** 6
        boxes = crop_boxes(
            torch.zeros(1, 1, 1, 1, 1).expand(12, 1, 1, 16, 16), generator(seed), (0.1, 0.5)
        ).view(3, 4, 4)
        top, left, height, width = boxes.unbind(2)
        y, x = (top - 1).clamp(min=0), (left - 1).clamp(min=0)
        wider = torch.stack(
            [y, x, (top + height + 1).clamp(max=16) - y, (left + width + 1).clamp(max=16) - x], 2
        )
        assert (mcl_views.hot_share(maps, wider) >= mcl_views.hot_share(maps, boxes)).all()
        assert (
            mcl_views.rectangle_share(maps, wider)[0]
            >= mcl_views.rectangle_share(maps, boxes)[0] - 1e-6
        ).all()

    def test_blank_maps_ask_for_nothing(self):
        "The first box is taken, as without the rule."
        blank = torch.zeros(8, 16, 16)
        for rules in ('paper', 'official'):
            cfg = config(rules=rules, candidates=4)
            tries, one_size = mcl_views.TRIES[rules], rules == 'official'
            first = mcl_views.draw_boxes(blank, tries, generator(1), cfg.crop, one_size)[:, 0]
            assert torch.equal(mcl_views.motion_boxes(blank, generator(1), cfg), first)


class TestTrueFlow:
    def test_of_the_very_source(self):
        "Whatever its seed, its still videos, its rows: the flow is the one of the batch."
        cfg, found = config(flow='true', stride=2), {}
        for seed, still in ((0, 0.0), (7, 0.0), (0, 0.5)):
            source = MovingDigits(24, seed=seed, still=still)
            got = batches(cfg, source)[1]
            want = source.truth(got['index'], got['drawn'].frames, cfg.stride).flow[:, :, :, :-1]
            assert got['flow'].shape == (4, 3, 2, 7, 32, 32) and torch.equal(got['flow'], want)
            found[seed, still] = got['flow']
        assert not any(torch.allclose(found[0, 0.0], found[k]) for k in ((7, 0.0), (0, 0.5)))

    def test_is_what_the_views_show(self):
        "The query's motion map is that of its own frames, whether or not its clip was chosen by motion."
        for temporal in ('motion', 'random'):
            cfg = config(flow='true', temporal=temporal, crop=1.0)
            seen = look(cfg)
            known = SOURCE.truth(seen.video, seen.frames[:, :1]).flow[:, :, :, :-1]
            clips = SOURCE.clips(seen.video, seen.frames[:, :1])
            want = mcl_views.measure(clips, cfg, known)[:, 0]
            assert_close(seen.motion, mcl_views.crop_maps(want, seen.boxes[:, 0], (8, 8)))

    def test_two_processes_get_their_rows(self):
        cfg = config(flow='true')
        parts = [batches(cfg, SOURCE, rank, 2)[3]['flow'] for rank in range(2)]
        assert torch.equal(torch.cat(parts), batch(cfg, 3)['flow'])

    def test_a_learner_brings_it(self, tmp_path):
        "A run hands the hook on, and only the source they train on is asked."
        run = Run('mcl/tiny/toy-s0', 'mcl', config(flow='true', steps=1, warmup=0))
        learn, _ = execute.learner(run, tmp_path, MovingDigits(24, seed=3), 'cpu', quiet=True)
        got, source = learn.batches[0], MovingDigits(24, seed=3)
        want = source.truth(got['index'], got['drawn'].frames).flow[:, :, :, :-1]
        assert torch.equal(got['flow'], want)
        assert learn.fit(1).total.isfinite()

    def test_refused_where_nobody_knows_it(self):
        class Footage:
            name = 'footage'

        drawn = sample(torch.full((2,), 60), generator(0), config())
        with pytest.raises(InputError, match='setting flow.*footage has no true flow') as refused:
            extras(Footage(), torch.arange(2), drawn, config(flow='true'))
        assert '\n' not in str(refused.value)
        assert extras(Footage(), torch.arange(2), drawn, config()) == {}


class TestLosses:
    @repeat
    @given(
        SEEDS, st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.sampled_from([0.1, 0.5])
    )
    def test_queue_nce_is_its_sum(self, seed, b, n, m, tau):
        unit = lambda k, *shape: F.normalize(
            torch.randn(*shape, generator=generator(seed, k)).double(), dim=-1
        )
        q, keys, queue, own = unit(0, b, 5), unit(1, b, n, 5), unit(2, m, 5), rand(seed, b, m) < 0.3

        def e(x, y):
            return math.exp(float(x @ y) / tau)

        each = [
            -math.log(
                e(q[i], keys[i, j])
                / (e(q[i], keys[i, j]) + sum(e(q[i], queue[k]) for k in range(m) if not own[i, k]))
            )
            for i in range(b)
            for j in range(n)
        ]
        assert mcl.queue_nce(q, keys, queue, own, tau).item() == pytest.approx(
            sum(each) / len(each), abs=1e-9
        )

    @repeat
    @given(SEEDS, st.floats(1e-3, 1e3))
    def test_agreement(self, seed, factor):
        "Is a cosine: blind to scale, symmetric where it is not weighted, one for equal maps, never above one."
        p, m = rand(seed, 2, 3, 2, 4, 4).double()
        for volume in ('whole', 'softmax'):
            a, b = mcl.agreement(p, m, volume), mcl.agreement(factor * p, m, volume)
            for k in a:
                assert_close(a[k], b[k])
                assert (a[k] <= 1 + 1e-9).all() and (a[k] >= 0).all()
            assert_close(mcl.agreement(m, m, volume), {k: torch.ones(3).double() for k in a})
        assert_close(mcl.agreement(p, m), mcl.agreement(m, p))

    @repeat
    @given(
        SEEDS,
        st.sampled_from(['weighted-gradient', 'weighted-feature', 'feature']),
        st.sampled_from(['step', 'clip']),
    )
    def test_response_is_its_sum(self, seed, form, weight):
        x, g = torch.randn(2, 2, 3, 2, 2, 2, generator=generator(seed)).double()
        for i in range(2):
            for t in range(2):

                def w(c):
                    return g[i, c, t].mean() if weight == 'step' else g[i, c].mean()

                if form == 'feature':
                    want = sum(x[i, c, t] for c in range(3))
                elif form == 'weighted-feature':
                    want = sum(w(c) * x[i, c, t] for c in range(3))
                else:
                    want = sum(w(c) * g[i, c, t] for c in range(3)).clamp(min=0)
                assert_close(mcl.response(x, g, form, weight)[i, t], want)

    def test_order_of_videos_does_not_matter(self):
        cfg = config(batch=6)
        model, seen = build(cfg).eval(), look(cfg)
        shuffled = apply(seen, lambda v: v[[3, 0, 5, 1, 4, 2]])
        assert_close(loss(model, seen, cfg)[1], loss(model, shuffled, cfg)[1])

    def test_keys_are_constants(self):
        "Nothing reaches the key encoder, and a second-order loss reaches all of the query encoder before the head's end."
        cfg = config()
        model = build(cfg)
        total, terms = loss(model, look(cfg), cfg)
        total.backward()
        assert all(
            p.grad is None
            for p in [*model.key_backbone.parameters(), *model.key_heads.parameters()]
        )
        alone = torch.autograd.grad(
            loss(model, look(cfg), cfg)[1]['align_st'],
            [p for p in model.parameters() if p.requires_grad],
            allow_unused=True,
        )
        reached = {
            n
            for (n, p), g in zip(
                ((n, p) for n, p in model.named_parameters() if p.requires_grad), alone
            )
            if g is not None and g.abs().max() > 0
        }
        assert {
            'backbone.stem.0.weight',
            'backbone.layer1.conv2.weight',
            'backbone.layer3.conv2.weight',
            'heads.inter.0.weight',
            'heads.inter.2.weight',
        } <= reached

    def test_still_videos(self):
        "Nothing moves: no alignment, no gradient, and the log says so."
        cfg = config(least_motion=1e9)
        model = build(cfg)
        total, terms = loss(model, look(cfg), cfg)
        assert terms['motionless'] == 1 and all(terms[f'align_{k}'] == 0 for k in ('st', 's', 't'))
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert_close(total, terms['nce'])


class TestWhenAndWhose:
    def test_late(self):
        "Before half time the weights move as without alignment, afterwards they do not."
        cfg = config(when='align@0=0 align@0.5=1', steps=10)
        plain = dataclasses.replace(cfg, when='', align_st=0.0, align_s=0.0, align_t=0.0)
        for step, same in ((4, True), (5, False)):
            found = []
            for one in (cfg, plain):
                model = build(one)
                model.step.fill_(step)
                loss(model, look(one), one)[0].backward()
                found.append(model.backbone.stem[0].weight.grad)
            assert torch.allclose(*found, atol=1e-7) == same

    def test_schedule_multiplies(self):
        cfg = config(when='align_s@0=3 nce@0.5=0.25')
        at = lambda step: mcl.term_weights(cfg, torch.tensor(step))
        half = cfg.steps // 2
        assert (float(at(0)['align_s']), float(at(0)['align_st'])) == (3, 1)
        assert (float(at(half - 1)['nce']), float(at(half)['nce'])) == (1, 0.25)
        assert mcl.term_weights(config(), torch.tensor(9))['align_st'] == 1.0

    def test_other_motion(self):
        "Everything is as without the control, but the map is the next video's."
        mine, theirs = look(config()), look(config(other_motion=True))
        assert torch.equal(theirs.motion, mine.motion.roll(1, 0))
        assert torch.equal(theirs.query, mine.query) and torch.equal(theirs.boxes, mine.boxes)

    def test_border(self):
        "Motion at the edge moves no crop."
        maps = torch.zeros(6, 16, 16)
        maps[:, :2] = 1
        assert not mcl_views.inner(maps, 2).any() and torch.equal(mcl_views.inner(maps, 0), maps)
        inside = torch.rand(6, 12, 12, generator=generator(3))
        kept = F.pad(inside, (2, 2, 2, 2))
        assert torch.equal(mcl_views.inner(kept + maps, 2), kept)

    def test_starts_from_a_run(self, tmp_path):
        "Both encoders begin where another run ended; the row `warm` names it."
        run = Run('mcl/tiny/contrast-s0', 'mcl', config(steps=1, warmup=0))
        saved = execute.train(run, tmp_path / 'begun', 'cpu', quiet=True)
        model = build(config(weights=str(tmp_path / 'begun')))
        want = saved.network().backbone.state_dict()
        for k, v in want.items():
            for part in (model.backbone, model.key_backbone):
                assert torch.equal(part.state_dict()[k], v), k
        warm = next(r for r in suites()['mcl-ablation'] if '/warm-' in r.name)
        twin = next(r for r in suites()['mcl-ablation'] if r.name == warm.start.name)
        assert warm.start == twin and warm.start.name.startswith('mcl/tiny/contrast-s')


@pytest.mark.parametrize('row', ABLATION)
def test_rows(row):
    "Every row of the ablation trains: finite loss, finite gradients, and the same bits from the same seed."
    found = []
    for _ in range(2 if row in ('full', 'official') else 1):
        cfg = config(**ABLATION[row])
        model = build(cfg)
        total, terms = loss(model, look(cfg), cfg)
        total.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert (
            total.isfinite()
            and all(g.isfinite().all() for g in grads)
            and max(g.abs().max() for g in grads) > 0
        )
        found.append([total.detach(), *grads])
    for a, b in zip(found[0], found[-1]):
        assert torch.equal(a, b)


@pytest.mark.parametrize('preset', PRESETS)
def test_presets(preset):
    "The watched layer exists and leaves room for space and time."
    steps, rows, columns = mcl_views.grid_of(PRESETS[preset])
    assert steps >= 2 and min(rows, columns) >= 4


def test_unknown_layer():
    with pytest.raises(InputError, match='layer1.conv2'):
        look(config(layer='conv9'))


class TestState:
    "Queue, key encoder and step are part of the model, so that a checkpoint is all there is."

    def learner(self, cfg, folder=None):
        model = build(cfg)
        saves = (
            [Checkpoint(folder / 'c.safetensors', dict(method='mcl'), every=100)] if folder else []
        )
        return Learner(
            model,
            partial(loss, cfg=cfg),
            partial(views, cfg=cfg),
            batches(cfg),
            mcl.optimizer(model, cfg),
            [Schedule(cfg.lr, cfg.warmup, 'constant'), *callbacks(cfg), *saves],
            device='cpu',
            seed=cfg.seed,
        )

    @pytest.mark.parametrize(
        'changes',
        [{}, dict(ABLATION['official'], solver='sgd', lr=0.01)],
        ids=['paper', 'official'],
    )
    def test_resume(self, changes, tmp_path):
        "Two steps, a restart and two steps end where four steps end, bit for bit."
        cfg = config(**changes, warmup=0, steps=4)
        whole = self.learner(cfg).fit(4).model.state_dict()
        self.learner(cfg, tmp_path).fit(2)
        again = self.learner(cfg, tmp_path)
        again.fit(4)
        assert again.step == 4 and whole['step'] == 4
        for k, v in again.model.state_dict().items():
            assert torch.equal(v, whole[k]), k
        saved = read_checkpoint(tmp_path / 'c.safetensors', 'mcl')[0]
        for k in ('queue', 'owner', 'key_backbone.stem.0.weight', 'key_heads.inter.2.bias'):
            assert torch.equal(saved[f'model.{k}'], whole[k]), k

    @pytest.mark.parametrize(
        'changes', [{}, dict(queue=0), ABLATION['official']], ids=['paper', 'batch', 'official']
    )
    def test_follows_as_before_the_next_step(self, changes):
        "Oracle: the key encoder moved at the start of each forward pass. Three steps, the same bits."
        cfg = config(**changes, momentum=0.9, warmup=0, steps=3)

        @torch.no_grad()
        def follow(model, *inputs):
            for k, fast in model.named_parameters():
                if not k.startswith('key_') and not k.startswith('classifier'):
                    slow = model.get_parameter(f'key_{k}')
                    slow.copy_(slow.lerp(fast, 1 - cfg.momentum))

        old, ours = build(cfg), self.learner(cfg)
        hook = old.register_forward_pre_hook(follow)
        optimizer = mcl.optimizer(old, cfg)
        Learner(
            old, partial(loss, cfg=cfg), partial(views, cfg=cfg), batches(cfg), optimizer,
            [Schedule(cfg.lr, 0, 'constant')], device='cpu', seed=cfg.seed,
        ).fit(3)  # fmt: skip
        hook.remove()
        found = ours.fit(3).model.state_dict()
        behind = {k: v.clone() for k, v in old.state_dict().items()}
        weights = {k for k, _ in old.named_parameters() if k.startswith('key_')}
        assert weights and all((found[k] != behind[k]).any() for k in weights)
        follow(old)  # the pass that the next step would begin with
        for k, v in old.state_dict().items():
            assert torch.equal(v, found[k]), k

    def test_key_statistics_are_its_own(self):
        cfg = config(steps=2)
        state = self.learner(cfg).fit(2).model.state_dict()
        names = [k for k in state if k.startswith('key_') and 'running' in k]
        assert names and all((state[k] != state[k.removeprefix('key_')]).any() for k in names)

    def test_own_keys_are_left_out(self):
        "Unless the settings say that they count."
        cfg = config()
        model, seen = build(cfg), look(cfg)
        loss(model, seen, cfg)  # now the queue holds this batch
        values = [
            loss(model.eval(), seen, dataclasses.replace(cfg, strangers=s))[1]['nce']
            for s in (True, False)
        ]
        assert values[0] < values[1] - 1e-3


# Two processes: batch norm in training mode sees its own rows only, so losses are compared in evaluation mode.
LOSSES = {
    'paper': {},
    'official': dict(ABLATION['official'], strangers=True),
    'feature': dict(form='feature'),
}


def terms_of(rank, ranks, row):
    "Still clips are spread unevenly: three of four on the first process, none on the second."
    cfg = config(batch=8, **LOSSES[row])
    seen, model = look(cfg), build(cfg).eval()
    model.step.fill_(cfg.steps // 2)
    seen.motion[:3] = 0
    total, each = loss(model, half(seen, rank, ranks), cfg)
    total.backward()
    grads = {
        k: average(torch.zeros_like(p) if p.grad is None else p.grad)
        for k, p in model.named_parameters()
        if p.requires_grad
    }
    return dict(total=average(total), terms={k: average(v) for k, v in each.items()}, grads=grads)


def memory_of(rank, ranks):
    "Keys of two batches, as all processes remember them."
    model = build(config(queue=24))
    for k in range(3):
        keys, video = F.normalize(rand(k, 4, 2, mcl.DIM), dim=2), torch.arange(4) + 10 * k
        mcl.remember(model, half(keys, rank, ranks), half(video, rank, ranks))
    return dict(queue=model.queue, owner=model.owner)


def trained(rank, ranks):
    "Two steps of a learner whose batches are split over the processes."
    cfg = config(steps=2)
    model = build(cfg)
    learn = Learner(
        model,
        partial(loss, cfg=cfg),
        partial(views, cfg=cfg),
        batches(cfg, SOURCE, rank, ranks),
        mcl.optimizer(model, cfg),
        callbacks(cfg),
        device='cpu',
    )
    assert learn.accelerator.num_processes == ranks
    learn.fit(2)
    return {
        k: v.clone() for k, v in learn.accelerator.unwrap_model(learn.model).state_dict().items()
    }


def everything(rank, ranks):
    return dict(
        losses={row: terms_of(rank, ranks, row) for row in LOSSES}, memory=memory_of(rank, ranks)
    )


def both(rank, folder):
    return dict(everything(rank, 2), trained=trained(rank, 2))


@pytest.fixture(scope='module')
def one():
    return everything(0, 1)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    return in_two(both, tmp_path_factory.mktemp('two'))


class TestTwoProcesses:
    @pytest.mark.parametrize('row', LOSSES)
    def test_losses(self, one, two, row):
        want = one['losses'][row]
        for found in two:
            got = found['losses'][row]
            assert_close(got['total'], want['total'], atol=1e-5, rtol=0)
            assert_close(got['terms'], want['terms'], atol=1e-5, rtol=0)
            assert_close(got['grads'], want['grads'], atol=2e-5, rtol=1e-3)
        assert (
            want['terms']['motionless'] == 3 / 8
            and max(g.abs().max() for g in want['grads'].values()) > 1e-3
        )

    def test_memory(self, one, two):
        for found in two:
            assert_close(found['memory'], one['memory'], rtol=0, atol=0)
        assert sorted(set(one['memory']['owner'].tolist())) == [
            k + 10 * i for i in range(3) for k in range(4)
        ]

    def test_training(self, two):
        "Both processes end with the same weights, key encoder and queue; only statistics of batch norm may differ."
        a, b = (found['trained'] for found in two)
        for k in a:
            if 'running' not in k:
                assert_close(a[k], b[k], rtol=0, atol=0, msg=k)
        assert (
            a['step'] == 2
            and (a['owner'] >= 0).sum() == 8
            and (a['backbone.stem.0.weight'] != build(config()).backbone.stem[0].weight).any()
        )


def test_real_videos(data_dir):
    "Flow, choice, crop, loss and scores run on camera footage, and moving pixels stay in the crops."
    cfg = override(
        PRESETS['real'], dict(root=str(data_dir / 'weizmann'), batch=4, queue=64, hidden=16)
    )
    test = videos(cfg, 'test').subset(torch.arange(4))
    seen = views(Batches(test, partial(sample, cfg=cfg), 4)[0], generator(0), cfg)
    assert (
        seen.motion.shape == (4, *mcl_views.grid_of(cfg))
        and (seen.motion.amax((1, 2, 3)) > 0).all()
    )
    model = build(cfg)
    assert loss(model, seen, cfg)[0].isfinite()
    found = mcl_scores.scores(model.eval(), cfg, lambda part: test)
    assert [s.name for s in found] == ['CAM like motion'] and 0 < found[0].value <= 1

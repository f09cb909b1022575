"Promises of ProViCo's mathematics for any draw, two processes against one, bad settings; the notebook checks chosen cases."

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from two_processes import average, half, in_two

from vidrepro.core.files import InputError
from vidrepro.core.random import generator
from vidrepro.core.settings import override
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.learning.train import Batches, Checkpoint, Learner, Log, Schedule
from vidrepro.papers import provico as P
from vidrepro.papers import provico_gaussians as G
from vidrepro.papers import provico_scores as S

repeat = settings(max_examples=12, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
ROWS = {
    'provico': dict(mine_after=0, tau=0.3),
    'infonce': dict(objective='infonce'),
    'sampled': dict(mine_after=0, tau=0.3, mining='sampled'),
    'ancestral': dict(drawing='ancestral'),
    'closed': dict(match='closed', mine_after=0, tau=0.2),
    'vector': dict(mine_after=0, tau=0.3, deviation='vector', weighted='positives', kl_of='clips'),
}
SMALL = dict(frames=4, size=16, batch=8, dim=16, samples=3, trace_high=16.0)


def small(**changes):
    return P.Config(**(SMALL | changes))


def gaussians(seed, b=5, n=3, d=6):
    "Unit means and log-variances over four orders of magnitude."
    g = generator('gaussians', seed)
    mu = torch.nn.functional.normalize(torch.randn(b, n, d, generator=g), dim=2)
    return mu, torch.rand(b, n, d, generator=g) * 9 - 8


def raw(cfg, seed=0):
    "A batch of noise, as `Batches` would hand it over."
    drawn = P.sample(torch.full((cfg.batch,), 64), generator(seed), cfg)
    shape = cfg.batch, cfg.clips, 3, cfg.frames, cfg.size, cfg.size
    clips = torch.randint(256, shape, dtype=torch.uint8, generator=generator('pixels', seed))
    return dict(clips=clips, drawn=drawn, index=torch.arange(cfg.batch) + 7)


def views_of(cfg, seed=0):
    return P.views(raw(cfg, seed), generator(seed), cfg)


# Two processes compute what one does. Batch norm in training mode sees its own rows only, so the network is compared in evaluation mode.


def terms(rank, ranks, row):
    cfg = small(**ROWS[row])
    model, views = P.build(cfg).eval(), half(views_of(cfg), rank, ranks)
    with torch.no_grad():
        model.b.fill_(14.0)
    total, each = P.loss(model, views, cfg)
    total.backward()
    grads = {
        k: average(torch.zeros_like(p) if p.grad is None else p.grad)
        for k, p in model.named_parameters()
    }
    return dict(total=average(total), terms={k: average(v) for k, v in each.items()}, grads=grads)


def settled(rank, ranks):
    "The first boundary is that of the whole batch."
    mu, log_var = half(gaussians(3, b=8, d=16), rank, ranks)
    model = P.build(small())
    P.settle(model, G.moments(mu, log_var))
    return model.b.detach().clone()


def whole(rank, ranks):
    "Three steps of the real learner, wrapped for several processes: weights, own loss, boundary."
    found = {}
    for row in ('provico', 'infonce'):
        cfg = small(**ROWS[row], steps=3)
        model, source = P.build(cfg), MovingDigits(n=16, size=16, length=64)
        batches = Batches(source, partial(P.sample, cfg=cfg), cfg.batch, 0, rank, ranks)
        learn = Learner(
            model,
            partial(P.loss, cfg=cfg),
            partial(P.views, cfg=cfg),
            batches,
            P.optimizer(model, cfg),
            P.callbacks(cfg),
            device='cpu',
        )
        assert learn.accelerator.num_processes == ranks
        learn.fit(3)
        model = learn.accelerator.unwrap_model(learn.model)
        found[row] = (
            {k: v.detach().clone() for k, v in model.named_parameters()},
            learn.total.item(),
            model.seen.item(),
            model.open.item(),
        )
    return found


def everything(rank, ranks):
    return dict({row: terms(rank, ranks, row) for row in ROWS}, settled=settled(rank, ranks))


def both(rank, folder):
    return everything(rank, 2) | dict(whole=whole(rank, 2))


@pytest.fixture(scope='module')
def one():
    return everything(0, 1)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    return in_two(both, tmp_path_factory.mktemp('two'))


@pytest.mark.parametrize('row', ROWS)
def test_two_processes(one, two, row):
    want = one[row]
    for got in (found[row] for found in two):
        assert_close(got['total'], want['total'], atol=1e-5, rtol=1e-5)
        assert got['terms'].keys() == want['terms'].keys()
        assert_close(got['terms'], want['terms'], atol=1e-5, rtol=1e-5)
        scale = max(g.abs().max() for g in want['grads'].values())
        for k, g in want['grads'].items():
            assert_close(got['grads'][k] / scale, g / scale, atol=1e-5, rtol=1e-4, msg=k)
    assert scale > 1e-3
    if row in ('provico', 'sampled', 'closed'):
        assert want['terms']['mined'] > 0


def test_one_boundary_for_all(one, two):
    for found in two:
        assert_close(found['settled'], one['settled'])
    assert one['settled'] > 1


@pytest.mark.parametrize('row', ['provico', 'infonce'])
def test_learner_on_two(two, row):
    "Each process has its own videos, and both end with the same weights."
    (a, mine, seen, unset), (b, yours, *_) = (found['whole'][row] for found in two)
    assert mine != yours and (seen, unset) == (3, False)
    for k in a:
        assert torch.equal(a[k], b[k]), k
    start = dict(P.build(small(**ROWS[row])).named_parameters())
    assert not torch.equal(a['head.mu.weight'], start['head.mu.weight'])
    moved = (
        (a['head.var.weight'] - start['head.var.weight']).abs().max()
    )  # of the twin, by weight decay alone
    assert moved < 1e-6 if row == 'infonce' else moved > 1e-5


# The mathematics, for any draw.


@repeat
@given(SEEDS, st.integers(1, 6), st.integers(1, 9))
def test_variance_of_a_mixture(seed, n, d):
    mu, log_var = gaussians(seed, 4, n, d)
    video, var = G.moments(mu, log_var), log_var.exp()
    assert_close(video.var, var.mean(1) + mu.var(1, unbiased=False), atol=1e-6, rtol=1e-5)
    assert_close(
        video.var.sum(1), var.sum(2).mean(1) + 1 - video.mean.square().sum(1), atol=1e-5, rtol=1e-5
    )
    assert (video.var >= var.mean(1)).all() and (video.between >= 0).all()
    if n == 1:
        assert torch.equal(video.var, var[:, 0]) and torch.equal(video.mean, mu[:, 0])


@repeat
@given(SEEDS, st.integers(1, 7), st.integers(1, 5), st.sampled_from([0.25, 1.0]))
def test_fast_average_is_the_sum(seed, k, b, lam):
    "Exactly, for any K, with different numbers of rows on both sides."
    mu, log_var = gaussians(seed, b + 2, 1, 8)
    mean, var = mu[:, 0], log_var[:, 0].exp()
    z = mean[:, None] + var.sqrt()[:, None] * torch.randn(
        b + 2, k, 8, generator=generator('z', seed)
    )
    fast = G.sampled_bhattacharyya(z[:b], var[:b], z, var, lam)
    s = var[:b, None] + var
    log = 0.5 * (s / (2 * (var[:b, None] * var).sqrt())).log().sum(2)
    gap = (z[:b, None, :, None] - z[None, :, None]).square() / s[:, :, None, None]
    assert_close(fast, log + lam * gap.sum(-1).mean((2, 3)), atol=1e-4, rtol=1e-5)


@repeat
@given(SEEDS, st.integers(1, 12))
def test_distance(seed, d):
    "Symmetric, at least 0, and 0 from a Gaussian to itself; blocks of rows do not show."
    mu, log_var = gaussians(seed, 5, 1, d)
    mean, var = mu[:, 0].double(), log_var[:, 0].double().exp()
    found = G.bhattacharyya(mean, var, mean, var)
    assert_close(found, found.T)
    assert (found > -1e-12).all() and found.diagonal().abs().max() < 1e-9
    rows = torch.cat(
        [G.bhattacharyya(mean[i : i + 1], var[i : i + 1], mean, var) for i in range(5)]
    )
    assert_close(found, rows)
    many = G.bhattacharyya(
        mean.repeat(200, 1),
        var.repeat(200, 1),
        mean.repeat(60, 20)[:, :d],
        var.repeat(60, 20)[:, :d],
    )
    assert_close(many[:5, :5], found)
    assert_close(many[-5:, -5:], found)


@repeat
@given(SEEDS, st.floats(0, 500))
def test_log_match(seed, size):
    "Two logarithms of numbers that add to one, however large the logits; finite slopes."
    logit = (torch.randn(4, 3, 6, generator=generator('logit', seed)) * size).requires_grad_()
    yes, no = (P.log_match(logit, torch.full((4, 3), flag)) for flag in (True, False))
    assert_close(
        yes.double().exp() + no.double().exp(), torch.ones(4, 3).double(), atol=1e-5, rtol=0
    )
    (yes.sum() + no.sum()).backward()
    assert yes.isfinite().all() and no.isfinite().all() and logit.grad.isfinite().all()


@repeat
@given(
    SEEDS,
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.sampled_from(P.CHOICES['mining']),
    st.integers(1, 9),
)
def test_mining(seed, tau, way, b):
    mu, log_var = gaussians(seed, b, 3, 6)
    video = G.moments(mu, log_var)
    z = video.mean[:, None, None] + video.var.sqrt()[:, None, None] * torch.randn(
        b, 2, 4, 6, generator=generator('z', seed)
    )
    d = P.pair_distance(
        P.Rows(video.mean, video.var, z), P.Rows(video.mean, video.var, z), small(mining=way)
    )
    mask = P.mine(d, small(tau=tau))
    assert not mask.diagonal().any() and mask.sum() <= math.ceil(tau * b * (b - 1)) + 1
    if mask.any():
        assert d[mask].max() < d[~mask & ~torch.eye(b, dtype=torch.bool)].min()
    if tau == 0:
        assert not mask.any()


def test_no_pair_of_samples_is_stored():
    "No tensor of the loss has B K B K D numbers, nor those of B B D at once where B is large."
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for x in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(x, torch.Tensor):
                    self.size = max(self.size, x.numel())
            return found

    b, k, d = 64, 8, 128
    cfg = P.Config(mine_after=0, samples=k, dim=d, batch=b)
    mu = torch.nn.functional.normalize(
        torch.randn(b, 3, d, generator=generator('m')), dim=2
    ).requires_grad_()
    log_var = torch.full((b, 3, d), -5.0, requires_grad=True)
    out = P.Output(mu, mu, log_var, torch.tensor(10.0), torch.tensor(14.0), torch.tensor(0))
    drawn = P.sample(torch.full((b,), 64), generator(0), cfg)
    with Largest() as watched:
        P.stochastic_loss(
            out,
            P.Views(torch.zeros(b, 3, 3, 1, 1, 1), torch.arange(b), drawn.noise, drawn.clip),
            cfg,
        )[0].backward()
    assert watched.size <= max(2**18, (b * k) ** 2)


# Settings, numbers, restart.


@pytest.mark.parametrize(
    'wrong, words',
    [
        (dict(lam=-1.0), 'lam'),
        (dict(samples=0), 'samples'),
        (dict(clips=1, objective='infonce'), 'clips'),
        (dict(tau=2.0), 'tau'),
        (dict(tau=-0.1, threshold='fixed'), 'tau'),
        (dict(beta=-1.0), 'beta'),
        (dict(trace_high=0.5), 'trace'),
        (dict(weighted='some'), 'weighted'),
        (dict(dim=1), 'dim'),
    ],
)
def test_bad_settings(wrong, words):
    with pytest.raises(InputError, match=words) as caught:
        P.Config(**wrong)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_bad_numbers(value):
    cfg = small()
    views = views_of(cfg)
    views.clips[0, 0, 0, 0, 0, 0] = value
    with pytest.raises(InputError, match='NaN or infinity'):
        P.loss(P.build(cfg), views, cfg)


@pytest.mark.parametrize('row', [n for n in P.ABLATION if n not in ('samples-2', 'beta-0.001')])
def test_rows(row):
    "A step of every row of the ablation: finite, repeatable to the last bit, and all that should learn does."
    cfg = override(
        P.PRESETS['tiny'], P.ABLATION[row] | dict(frames=4, size=16, batch=6, mine_after=0)
    )
    found = []
    for _ in range(2):
        model = P.build(cfg)
        total, terms = P.loss(model, views_of(cfg), cfg)
        total.backward()
        found.append((total.detach(), {k: p.grad for k, p in model.named_parameters()}))
        assert all(v.isfinite() for v in terms.values())
    assert torch.equal(found[0][0], found[1][0])
    for k, g in found[0][1].items():
        idle = (
            cfg.objective == 'infonce'
            and k in ('head.var.weight', 'head.var.bias', 'raw_a', 'b')
            or not cfg.learn_ab
            and k in ('raw_a', 'b')
        )
        assert (g is None) if idle else g.isfinite().all() and torch.equal(g, found[1][1][k]), k


@pytest.mark.parametrize('bias', [-500.0, 500.0])
def test_variance_at_its_bounds(bias):
    cfg = small(mine_after=0, tau=0.3)
    model = P.build(cfg)
    torch.nn.init.constant_(model.head.var.bias, bias)
    with torch.autocast('cpu', torch.bfloat16):
        total, terms = P.loss(model, views_of(cfg), cfg)
    total.backward()
    own = [
        *model.head.parameters(),
        model.raw_a,
        model.b,
    ]  # convolutions in bf16 are the processor's affair
    assert total.isfinite() and all(p.grad.isfinite().all() for p in own)
    assert (terms['at_low'], terms['at_high']) == ((1, 0) if bias < 0 else (0, 1))


def trained(folder, stops, precision='no'):
    "Weights after six steps, with restarts after some of them."
    cfg, source = small(mine_after=2, tau=0.3, steps=6), MovingDigits(n=16, size=16, length=64)
    for stop in stops:
        model, log = P.build(cfg), Log(every=1)
        if precision != 'no':
            model.backbone.requires_grad_(
                False
            )  # slopes of bf16 convolutions vary on some processors
        save = Checkpoint(folder / f'{len(stops)}.safetensors', dict(method='provico'))
        learn = Learner(
            model,
            partial(P.loss, cfg=cfg),
            partial(P.views, cfg=cfg),
            Batches(source, partial(P.sample, cfg=cfg), cfg.batch),
            P.optimizer(model, cfg),
            [save, Schedule(cfg.lr, 2, 'constant'), log, *P.callbacks(cfg)],
            device='cpu',
            precision=precision,
        )
        learn.fit(stop)
    return {k: v.clone() for k, v in model.state_dict().items()}, log.rows


def test_resume(tmp_path):
    "Boundary, count of batches, optimizer: a run with a break ends where one without does, bit for bit."
    one, rows = trained(tmp_path, [6])
    two, _ = trained(tmp_path, [3, 6])
    assert rows[-1]['mined'] > 0 == rows[0]['mined'] and one['seen'] == 6 and not one['open']
    for k in one:
        assert torch.equal(one[k], two[k]), k


def test_half_precision(tmp_path):
    _, rows = trained(tmp_path, [6], 'bf16')
    assert (
        all(math.isfinite(v) for row in rows for v in row.values())
        and rows[-1]['loss'] != rows[0]['loss']
    )


@pytest.mark.parametrize('objective', ['provico', 'infonce'])
def test_scores(objective):
    "Names do not depend on the weights, values are finite and inside their intervals, chance is there."
    cfg = small(objective=objective)

    def some(part):
        return MovingDigits(
            n=24, size=16, length=64, split='test' if part == 'test' else 'train', seed=3
        )

    found = S.scores(P.build(cfg).eval(), cfg, some)
    names = [s.name for s in found]
    assert len(set(names)) == len(names) and {
        'R@1 of mu_V',
        'R@10 of mu_V',
        'mined precision by cosine',
        'AUC untrimmed between',
    } <= set(names)
    assert ('collapsed' in names) == ('AUC blur within' in names) == (objective == 'provico')
    for s in found:
        assert (
            math.isfinite(s.value)
            and s.low - 1e-9 <= s.value <= s.high + 1e-9
            and math.isfinite(s.chance)
        ), s


@pytest.mark.parametrize('kind', S.CORRUPTIONS)
def test_spoilt_videos(kind):
    "Same shape, same every time, not the clean clips; frames beyond the end of a shorter video are never asked for."

    class Uneven:
        lengths = torch.tensor([12, 40, 9, 30])
        inner = MovingDigits(n=4, size=16, length=40)

        def __len__(self):
            return 4

        def clips(self, index, frames):
            assert (frames < self.lengths[index, None, None]).all()
            return self.inner.clips(index, frames)

    source, index = Uneven(), torch.arange(4)
    frames = torch.stack(
        [torch.stack([torch.arange(4), torch.arange(4) + n - 5]) for n in source.lengths]
    )
    a, b = (S.Corrupted(source, kind).clips(index, frames) for _ in range(2))
    assert (
        torch.equal(a, b)
        and a.shape == (4, 2, 3, 4, 16, 16)
        and not torch.equal(a, source.clips(index, frames))
    )

"Promises of TEC's losses for any draw; the notebook checks chosen cases."

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.core.files import InputError
from vidrepro.core.random import generator
from vidrepro.learning.distributed import apply
from vidrepro.papers.tec import (
    PRESETS,
    Config,
    build,
    equivariance_loss,
    identify,
    instance_loss,
    loss,
    sample,
    views,
)

repeat = settings(max_examples=30, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)


@st.composite
def draws(draw, least=1):
    "Settings, lengths and a seed of a batch of groups; short videos and few speeds, so that theta recur."
    groups = draw(st.integers(least, 5))
    cfg = Config(
        frames=4,
        speeds=draw(st.sampled_from([(1,), (1, 2), (1, 2, 4, 8)])),
        tau=draw(st.sampled_from([0.1, 0.5])),
        stop_gradient=draw(st.booleans()),
    )
    shortest = 4 * max(cfg.speeds)
    lengths = draw(
        st.lists(st.integers(shortest, shortest + 20), min_size=2 * groups, max_size=2 * groups)
    )
    return cfg, lengths, draw(SEEDS)


def make(drawing):
    "Labels and vectors of a drawn batch."
    cfg, lengths, seed = drawing
    psi = torch.randn(len(lengths), 2, 6, generator=generator('psi', seed))
    return cfg, sample(torch.tensor(lengths), generator(seed), cfg), psi


def sets(drawn, cfg):
    "Positives and negatives of every (video, order), in plain Python."
    both = drawn.relative().tolist()
    rows = [(i, m) for i in range(len(both)) for m in (0, 1)]
    theta = {
        (i, m): (i // 2, m) if cfg.spatial == 'equivariant' else tuple(both[i][m]) for i, m in rows
    }
    positive = {
        a: {c for c in rows if c != a and (c[0] // 2, c[1]) == (a[0] // 2, a[1])} for a in rows
    }
    return rows, positive, {a: {c for c in rows if theta[c] != theta[a]} for a in rows}


def masks(drawn, cfg):
    partner, content = (v.flatten() for v in identify(drawn, cfg))
    return (partner[:, None] == partner) & ~torch.eye(len(partner)).bool(), content[
        :, None
    ] != content


@repeat
@given(draws(), st.sampled_from(['invariant', 'equivariant']))
def test_masks_are_the_sets(drawing, spatial):
    cfg, drawn, _ = make(drawing)
    cfg = dataclasses.replace(cfg, spatial=spatial)
    rows, positive, negative = sets(drawn, cfg)
    got = masks(drawn, cfg)
    assert got[0].tolist() == [[c in positive[a] for c in rows] for a in rows]
    assert got[1].tolist() == [[c in negative[a] for c in rows] for a in rows]
    assert not (got[0] & got[1]).any() and (got[0].sum(1) == 1).all()


@repeat
@given(draws())
def test_loss_is_its_sum(drawing):
    cfg, drawn, psi = make(drawing)
    rows, positive, negative = sets(drawn, cfg)
    u = dict(zip(rows, torch.nn.functional.normalize(psi.double(), dim=2).flatten(0, 1)))

    def d(a, c):
        return math.exp(float(u[a] @ u[c]) / cfg.tau)

    each = [
        -math.log(d(a, p) / (d(a, p) + sum(d(a, k) for k in negative[a])))
        for a in rows
        for p in positive[a]
    ]
    assert equivariance_loss(psi, drawn, cfg).item() == pytest.approx(
        sum(each) / len(each), abs=1e-4
    )


@repeat
@given(draws(least=2), SEEDS)
def test_order_of_groups_does_not_matter(drawing, seed):
    cfg, drawn, psi = make(drawing)
    groups = torch.randperm(len(psi) // 2, generator=generator(seed))
    rows = (2 * groups[:, None] + torch.arange(2)).flatten()
    moved = apply(drawn, lambda v: v[rows])
    torch.testing.assert_close(
        equivariance_loss(psi[rows], moved, cfg), equivariance_loss(psi, drawn, cfg)
    )
    video = torch.arange(len(psi)) + 100
    torch.testing.assert_close(
        instance_loss(psi[rows], video[rows], cfg), instance_loss(psi, video, cfg)
    )


@repeat
@given(draws(least=2))
def test_p_and_q_play_equal_roles(drawing):
    "Renaming the clips of every pair renames the rows, and the loss does not mind."
    cfg, drawn, psi = make(drawing)
    flip = lambda v: v.flip(1)
    renamed = dataclasses.replace(
        drawn,
        speed=flip(drawn.speed),
        direction=flip(drawn.direction),
        start=flip(drawn.start),
        frames=flip(drawn.frames),
        shift=-drawn.shift,
    )
    torch.testing.assert_close(
        equivariance_loss(psi.flip(1), renamed, cfg), equivariance_loss(psi, drawn, cfg)
    )


@repeat
@given(draws(least=2))
def test_the_stop_changes_the_gradient_and_not_the_value(drawing):
    cfg, drawn, psi = make(drawing)
    value, grad = {}, {}
    for stop in (False, True):
        leaf = psi.clone().requires_grad_()
        value[stop] = equivariance_loss(leaf, drawn, dataclasses.replace(cfg, stop_gradient=stop))
        (grad[stop],) = torch.autograd.grad(value[stop], leaf)
    assert torch.equal(value[False], value[True])
    assert grad[False].isfinite().all() and grad[True].isfinite().all()
    if masks(drawn, cfg)[1].any():
        assert not torch.allclose(grad[False], grad[True])


def raw(cfg, seed=0):
    "A batch of noise, as `Batches` would hand it over."
    drawn = sample(torch.full((cfg.batch,), 128), generator(seed), cfg)
    shape = cfg.batch, 2, 3, cfg.frames, cfg.size, cfg.size
    clips = torch.randint(256, shape, dtype=torch.uint8, generator=generator('pixels', seed))
    return dict(clips=clips, drawn=drawn, index=torch.arange(cfg.batch) + 7)


@repeat
@given(SEEDS, st.sampled_from(['equivariant', 'invariant']))
def test_same_video_positives(seed, temporal):
    "Both rows of a group are one video and one transformation; only the augmentation differs."
    cfg = Config(batch=4, frames=4, size=16, positives='same', temporal=temporal)
    batch = raw(cfg, seed)
    seen = views(batch, generator(seed), cfg)
    assert torch.equal(seen.video[::2], seen.video[1::2]) and torch.equal(
        seen.video[::2], batch['index'][::2]
    )
    for name, value in vars(seen.drawn).items():
        assert torch.equal(value[::2], value[1::2]), name
        assert torch.equal(value[::2], getattr(batch['drawn'], name)[::2]), name
    assert not torch.equal(seen.clips[::2], seen.clips[1::2])
    still = dataclasses.replace(cfg, crop=1.0, jitter=0.0, grey=0.0)
    plain = views(batch, generator(seed), still).clips
    assert torch.equal(plain[::2], plain[1::2])


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(spatial='equivariant'),
        dict(temporal='invariant'),
        dict(positives='same'),
        dict(temporal='invariant', spatial='equivariant'),
        dict(regress=2.0, equi=0.0),
    ],
    ids=str,
)
def test_total_is_the_weighted_sum(changes):
    "Of the named terms; and one seed gives one value and one gradient, to the last bit."
    cfg = Config(batch=4, frames=4, size=16, hidden=16, dim=8, **changes)
    got = []
    for _ in range(2):
        model = build(cfg)
        total, terms = loss(model, views(raw(cfg), generator(1), cfg), cfg)
        total.backward()
        got.append([total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        weighted = sum(getattr(cfg, name) * value for name, value in terms.items())
        torch.testing.assert_close(total, weighted, rtol=0, atol=0)
        assert all(v.isfinite() for v in terms.values())
    assert len(got[0]) > 10 and all(torch.equal(a, b) for a, b in zip(*got, strict=True))
    trained = {name.split('.')[0] for name, p in model.named_parameters() if p.grad is not None}
    heads = dict(
        instance='phi',
        equi='psi',
        speed='speed',
        direction='direction',
        order='order',
        regress='shift',
    )
    assert trained == {'backbone', *(heads[name] for name in terms)}


@pytest.mark.parametrize(
    'field, value',
    [
        ('temporal', 'both'),
        ('spatial', ''),
        ('positives', 'other'),
        ('tau', 0.0),
        ('tau', -1.0),
        ('speeds', ()),
        ('speeds', (0, 1)),
    ],
)
def test_senseless_settings(field, value):
    with pytest.raises(InputError, match=f'setting {field}'):
        Config(**{field: value})


def test_no_term_is_an_error():
    off = dict.fromkeys(('instance', 'equi', 'speed', 'direction', 'order'), 0.0)
    cfg = Config(batch=4, frames=4, size=16, **off)
    with pytest.raises(InputError, match='at least one loss term'):
        loss(build(cfg), views(raw(cfg), generator(0), cfg), cfg)


@pytest.mark.parametrize('name', PRESETS)
def test_presets_follow_the_best_row(name):
    "What is known of the paper holds in every preset."
    cfg = PRESETS[name]
    assert (cfg.temporal, cfg.spatial, cfg.positives, cfg.stop_gradient) == (
        'equivariant',
        'invariant',
        'across',
        True,
    )
    assert set(cfg.speeds) <= {1, 2, 4, 8} and cfg.batch % 2 == 0

"Each dial turns what it says, measured from pixels in a way of its own; with none turned, Moving Digits are what they were."

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from vidrepro.core import results
from vidrepro.core.files import InputError
from vidrepro.digits import dials
from vidrepro.digits.dials import BLOCK, DialedDigits, dials_of
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.evaluation.probes import make_score
from vidrepro.experiments import dials as worlds
from vidrepro.experiments.tables import DIALS
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.scores import score_world, spoiled
from vidrepro.runs.videos import painted, videos

DRIFTS = ('left', 'right', 'up', 'down')


def binomial(share, n):
    "Half the width of an interval that holds 99.9 % of the counts, as a share."
    return 3.3 * math.sqrt(share * (1 - share) / n) + 1e-9


def at(n, *times):
    return torch.arange(n), torch.tensor(times).expand(n, 1, len(times))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([16, 24, 33]),
    split=st.sampled_from(['train', 'test']),
    seed=st.integers(0, 1000),
)
def test_nothing_turned_is_moving_digits(size, split, seed):
    how = dict(n=12, size=size, split=split, seed=seed)
    plain, world = MovingDigits(**how), DialedDigits(**how)
    asked = at(12, 0, 5, 99)
    assert torch.equal(plain.clips(*asked), world.clips(*asked))
    a, b = plain.truth(*asked, step=3), world.truth(*asked, step=3)
    assert torch.equal(a.flow, b.flow) and torch.equal(a.opacity, b.opacity)


def test_moving_digits_paint_what_they_always_did():
    "A fingerprint of pixels taken before there were dials."
    clips = MovingDigits(48, seed=3).clips(*at(48, 0, 17, 64))
    assert int(clips.long().sum()) == 26565377 and clips[7, 0, :, 1, 9, 20].tolist() == [0, 26, 28]


@pytest.mark.parametrize('rho', [0.25, 0.6, 1.0])
def test_share_of_backgrounds_at_home(rho):
    "Backgrounds without anything on them are matched to those of sure videos by correlation of pixels."
    n, how = 400, dict(size=24, pan=0.0, side=1e-3, distractors=0, motions=DRIFTS)
    sure = DialedDigits(n, scene=1.0, **how)
    asked = DialedDigits(n, scene=rho, seed=9, split='test', **how)
    rows = [s.clips(*at(n, 0)).reshape(n, -1).double().numpy() for s in (sure, asked)]
    rows = [(x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in rows]
    nearest = (rows[1] @ rows[0].T).argmax(1)
    home = sure.labels.numpy()[nearest] == asked.labels.numpy()
    assert abs(home.mean() - rho) <= binomial(rho, n)
    assert (home == (asked.places == asked.labels).numpy()).all()


def test_a_group_shares_its_looks():
    "Pixels of the background are equal within groups of a still camera, and differ between them."
    world = DialedDigits(64, group=8, motions=DRIFTS, side=1e-3, size=16)
    x = world.clips(*at(64, 0)).flatten(1).float()
    same = world.sources[:, None] == world.sources
    apart = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist')
    assert (apart[same] < 1e-6).all() and (apart[~same] > 1).all() and (same.sum(1) == 8).all()
    with_sprite = dataclasses.replace(world, side=1.0).clips(*at(64, 0)).flatten(1).float()
    assert (torch.cdist(with_sprite, with_sprite) > 1)[
        same
    ].sum() == 64 * 7  # each moves on its own


@pytest.mark.parametrize('factor', [0.5, 1.0, 1.3])
def test_size_of_the_digit(factor):
    "The area of what differs from the same scene without a digit grows with the square of the factor."
    how = dict(size=64, motions=DRIFTS, distractors=0)
    bare, asked = (DialedDigits(60, side=s, **how) for s in (1e-3, factor))
    usual = DialedDigits(60, **how)
    area = lambda s: (s.clips(*at(60, 3)).int() - bare.clips(*at(60, 3)).int()).abs().amax(2) > 25
    ratio = (area(asked).sum() / area(usual).sum()).item()
    assert ratio == pytest.approx(factor**2, rel=0.12)


@pytest.mark.parametrize('share', [0.0, 0.4, 1.0])
def test_share_of_idle_time(share):
    "With a still camera, frames that equal the next one."
    n, times = 60, range(0, 128)
    world = DialedDigits(n, 16, idle=share, pan=0.0, motions=DRIFTS)
    clips = world.clips(*at(n, *times))[:, 0]
    still = (clips[:, :, 1:] == clips[:, :, :-1]).all(1).all(-1).all(-1)
    blocks = still.view(n, -1)[:, : 127 // BLOCK * BLOCK].view(n, -1, BLOCK)[:, :, : BLOCK - 1]
    found = blocks.double().mean().item()
    assert abs(found - share) <= binomial(share, n * 7) + 0.03
    known = world.happens('idle', *at(n, *times))[:, 0, :112].view(n, -1, BLOCK)[:, :, 0]
    assert (blocks.all(2) == known).double().mean() > 0.97  # slow strokes may round to no motion


def test_share_of_blurred_time():
    "Contrast between neighboring pixels falls where the truth says so."
    n, times = 40, range(8, 128, 16)
    world = DialedDigits(n, 32, blur=0.4)
    x = world.clips(*at(n, *times))[:, 0].float()
    sharp = DialedDigits(n, 32).clips(*at(n, *times))[:, 0].float()
    edge = lambda v: (v[..., 1:] - v[..., :-1]).abs().mean((1, 3, 4))
    softer = edge(x) < 0.8 * edge(sharp)
    known = world.happens('blur', *at(n, *times))[:, 0]
    assert torch.equal(softer, known)
    assert abs(known.double().mean().item() - 0.4) <= binomial(0.4, known.numel())


def test_shake_moves_everything():
    "The jump that aligns two frames best is the one of the truth, for scene and sprite alike."
    world = DialedDigits(12, 64, shake=0.1, pan=0.0, idle=1.0, distractors=0)
    asked = at(12, 5, 6)
    clips, flow = world.clips(*asked)[:, 0].float(), world.truth(*asked).flow[:, 0, :, 0]
    for clip, f in zip(clips, flow):
        dx, dy = f.mean((1, 2)).round().int().tolist()
        assert (f.std((1, 2)) < 1e-3).all()
        moved = clip[:, 0].roll((dy, dx), (1, 2))
        inner = (slice(None), slice(14, 50), slice(14, 50))
        assert (moved - clip[:, 1])[inner].abs().mean() < 0.55 * (clip[:, 0] - clip[:, 1])[
            inner
        ].abs().mean() + 2


def test_zoom_is_a_similarity_about_the_middle():
    "Frames are those without zoom, magnified by SciPy; and the factor is periodic."
    world, plain = (DialedDigits(6, 48, zoom=z) for z in (1.0, 0.0))
    asked = at(6, 3, 24, 51)
    seen, raw = (w.clips(*asked)[:, 0].numpy().astype(float) for w in (world, plain))
    factor = dials._magnified(world, world.numbers, asked[1])[:, 0].numpy()
    assert (factor[:, 0] == pytest.approx(factor[:, 2])) and 1 <= factor.min() < factor.max() <= 2
    line = (np.arange(48) - 23.5)[None]
    for i in range(6):
        for t in range(3):
            x = line / factor[i, t] + 23.5
            places = np.meshgrid(x[0], x[0], indexing='ij')
            for c in range(3):
                found = map_coordinates(raw[i, c, t], places, order=1, mode='nearest')
                assert np.abs(found - seen[i, c, t]).max() < 2


def test_passers_hide_and_are_seen():
    world, plain = DialedDigits(30, 48, passers=3), DialedDigits(30, 48)
    asked = at(30, 0, 9)
    changed = (world.clips(*asked) != plain.clips(*asked)).any(2)
    a, b = (w.truth(*asked) for w in (world, plain))
    assert (a.opacity <= b.opacity + 1e-6).all() and (a.opacity < b.opacity - 0.5).any()
    differs = (a.flow != b.flow).any(2)
    assert (changed[differs]).double().mean() > 0.99  # where the flow is a passer's, one is painted


def test_families():
    world = DialedDigits(24)
    names = np.array(['drift', 'spin', 'zoom', 'orbit', 'bounce'])
    assert names[world.families[:12]].tolist() == sum(
        [['drift'] * 4, ['spin'] * 2, ['zoom'] * 2, ['orbit'] * 2, ['bounce'] * 2], []
    )


@pytest.mark.parametrize('words', ['scene=2', 'group=0', 'side=0', 'colour=1', 'blur=often', 'n=4'])
def test_bad_worlds_are_refused(words):
    with pytest.raises(InputError):
        painted(pick_preset('tec', 'tiny', data=f'moving-digits {words}'), 'pretrain')


def test_a_setting_names_a_world():
    cfg = pick_preset('tec', 'tiny', data='moving-digits scene=0.5 motions=left+up', size=16)
    source = videos(cfg, 'test')
    assert (source.scene, source.motions, source.split, source.size) == (
        0.5,
        ('left', 'up'),
        'test',
        16,
    )
    assert type(videos(pick_preset('tec', 'tiny'), 'test')) is MovingDigits
    assert dials_of('weizmann without eli') is None


def test_spoiled_frames_keep_what_they_should():
    frames = torch.arange(24).view(1, 3, 8)
    found = spoiled(frames)
    assert (found['frozen clips'].diff(dim=2) == 0).all()
    assert torch.equal(found['shuffled frames'].sort(2).values, frames)
    assert not torch.equal(found['shuffled frames'], frames)


@pytest.mark.parametrize('dial', DIALS, ids=lambda d: d.name)
def test_suites_of_dials(dial):
    "Rows of a level differ in what the row says and in nothing else that is shared."
    runs = dial.runs((0, 1, 2))
    assert len(dial.levels) >= 4 and len({r.name for r in runs}) == len(runs)
    ends = {f'{x:g}' for x in (dial.levels[0], dial.levels[-1])}
    for name, of in pd.Series([r.config.seed for r in runs]).groupby([r.name[:-3] for r in runs]):
        assert sorted(of) == [*range(5 if name.rpartition('-')[2] in ends else 3)]
    worlds = {}
    for r in runs:
        level = r.name.rpartition('-s')[0].rpartition('-')[2]
        worlds.setdefault(level, set()).add(r.config.data)
        assert painted(r.config, 'test') is not None
    assert all(len(w) == 1 for w in worlds.values()) and len(worlds) == len(dial.levels)
    assert (
        dial.places()[0] == 0 and dial.places()[-1] == 1 and dial.places() == sorted(dial.places())
    )
    assert (
        len({(r.config.steps, r.config.batch, r.config.size, r.config.videos) for r in runs}) == 1
    )


def test_scores_of_a_world_bring_their_floors():
    "Each number has three floors; a network that sees one frame is at home on frozen clips."

    class Still(torch.nn.Module):
        "The mean color of each quarter of the first frame: no time at all."

        def forward(self, x):
            return torch.nn.functional.adaptive_avg_pool2d(x[:, :, x.shape[2] // 2], 2).flatten(1)

    parts = [
        DialedDigits(n=48, size=16, length=32, seed=k, scene=1.0, pan=0.0, motions=DRIFTS)
        for k in (1, 2)
    ]
    clip = pick_preset('tec', 'tiny', size=16).clip
    found = {s.name: s for s in score_world(Still(), Still(), clip, *parts)}
    floors = ('random encoder', 'frozen clips', 'shuffled frames')
    names = [m + f for m in ('motion probe', 'R@1') for f in ('', *(f', {x}' for x in floors))]
    assert sorted(found) == sorted([*names, 'place probe'])
    for m in ('motion probe', 'R@1'):
        assert found[m].value == found[f'{m}, frozen clips'].value
        assert torch.equal(found[m].hits, found[f'{m}, random encoder'].hits)
    assert found['place probe'].value > 0.9 and found['R@1'].value > 0.9  # one place, one class


def toy_cards(root, gain):
    "Rows of TEC's dial: the effect falls from 0.3 to 0, and the control gains `gain`."
    dial, rng = DIALS[0], np.random.default_rng(1)
    for place, level in zip(dial.places(), dial.levels):
        truth = dict(zip(dial.rows, (0.6 - 0.3 * place, 0.3, 0.3 + gain)))
        for row, p in truth.items():
            for seed in range(3):
                score = make_score(
                    'motion probe', (torch.rand(400) < p + 0.02 * rng.normal()), 0.25, {}
                )
                results.save_run(
                    f'{dial.at(row, level)}-s{seed}', {}, {'motion probe': score.value}, [],
                    seed=seed, protocol={'motion probe': dict(chance=0.25)}, data={}, device='cpu', seconds=1.0, hits={'motion probe': (level, score.hits.tolist())}, root=root,
                )  # fmt: skip


@pytest.mark.parametrize('gain, word', [(0.4, 'reproduced'), (0.0, 'not learnt')])
def test_a_trend_is_found_only_where_the_control_passes(tmp_path, monkeypatch, gain, word):
    monkeypatch.setattr(results, 'versions', dict)  # slow
    torch.manual_seed(0)
    toy_cards(tmp_path, gain)
    first, second, *others = worlds.answers(worlds.TRENDS, tmp_path)
    assert (first.word, second.word) == (word, 'not run')
    assert abs(first.slope.mean - 0.3) < 0.1 and first.levels == 4
    assert {a.word for a in others} == {'not run'}
    assert ('cannot tell' in worlds.in_words([first])) == (word == 'not learnt')
    assert worlds.phase(DIALS[0], 'motion probe', 'x', tmp_path).axes

"Background segments against the released tables, and untrimmed videos made from every kind of source."

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.core.files import InputError
from vidrepro.data.annotations import read_activitynet, read_tsp_csv
from vidrepro.data.datasets import from_folder
from vidrepro.data.video import probe, read_clips
from vidrepro.digits.moving_digits import MovingDigits, write_video, write_videos
from vidrepro.digits.untrimmed import (
    ACTIVITYNET_SHORTEST,
    PARTS,
    THUMOS14_SHORTEST,
    Script,
    add_background,
    background_segments,
    compose,
    fit,
    kept_apart,
    play,
    script_of,
    string_together,
    write_script,
)

RELEASED = [
    ('activitynet/activitynet_v1-3_train', ACTIVITYNET_SHORTEST, 10_024, 10_024),
    ('activitynet/activitynet_v1-3_valid', ACTIVITYNET_SHORTEST, 4_926, 4_926),
    ('thumos14/thumos14_valid', THUMOS14_SHORTEST, 199, 200),
    ('thumos14/thumos14_test', THUMOS14_SHORTEST, 212, 212),
]


def by_video(table):
    found = defaultdict(list)
    for video, *row in zip(
        *(table[c] for c in ('video-name', 't-start', 't-end', 'temporal-region-label'))
    ):
        found[video].append(row)
    return found


@pytest.mark.parametrize('name, shortest, same, videos', RELEASED)
def test_released_tables(data_dir, name, shortest, same, videos):
    "The released rule reproduces the tables of TSP digit by digit; the running maximum differs where actions nest."
    table = read_tsp_csv(
        data_dir / 'annotations' / 'tsp_HumamAlwassel' / f'{name}_tsp_groundtruth.csv'
    )
    actions = table[table['temporal-region-label'] == 'Action']
    truth, ours, clean = map(
        by_video,
        (table, add_background(actions, shortest, 'released'), add_background(actions, shortest)),
    )
    odd = [v for v in truth if ours[v] != truth[v]]
    assert (len(truth) - len(odd), len(truth)) == (same, videos)
    for v in odd:  # only where a tie of equal starts leaves the order open
        assert actions[actions['video-name'] == v]['t-start'].duplicated().any()
    for v in (v for v in truth if clean[v] != ours[v]):
        free, taken = ([r for r in clean[v] if r[2] == kind] for kind in ('No action', 'Action'))
        assert not [1 for f in free for a in taken if f[0] < a[1] and a[0] < f[1] and a[0] < a[1]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), max_size=6),
    st.integers(60, 80),
    st.integers(0, 9),
)
def test_background_is_the_complement(spans, duration, shortest):
    actions = np.array(spans, float).reshape(-1, 2)
    taken = np.zeros(duration, bool)
    for start, end in spans:
        taken[start:end] = True
    found = background_segments(actions, float(duration), float(shortest))
    runs, start = [], None
    cuts = {s for s, e in spans if s == e}  # an action of no length still parts the background
    for t in range(duration + 1):
        free = t < duration and not taken[t]
        if start is not None and (not free or t in cuts):
            runs.append([start, t])
            start = None
        if free and start is None:
            start = t
    assert found.tolist() == [r for r in runs if r[1] - r[0] >= shortest]


def test_rows_keep_their_values_and_order():
    table = compose_table()
    full = add_background(table, 0.5)
    assert add_background(table[:0]).empty
    assert full[: len(table)].equals(table.reset_index(drop=True))
    rest = full[len(table) :]
    assert (rest['action-label'] == '').all() and (
        rest['temporal-region-label'] == 'No action'
    ).all()
    assert (rest['t-end'] - rest['t-start'] >= 0.5).all()


def compose_table():
    import pandas as pd

    from vidrepro.digits.untrimmed import _annotate

    source = MovingDigits(60)
    return pd.concat(
        [_annotate(source, write_script(source, Script(), k), f'x{k}', 15) for k in range(4)]
    )


def test_a_video_does_not_depend_on_the_others(tmp_path):
    source, script = (
        MovingDigits(60, size=16, length=40),
        Script(seed=3, actions=(1, 2), action=(1.0, 2.0), gap=(0.5, 1.0)),
    )
    few, more = (compose({'test': source}, tmp_path / str(n), n, script) for n in (1, 3))
    first = more['test'][more['test']['video-name'] == 'test_00000'].reset_index(drop=True)
    assert first.equals(few['test'])
    one, two = ((tmp_path / n / 'test' / 'v_test_00000.mp4').read_bytes() for n in '13')
    assert one == two
    net = read_activitynet(tmp_path / '3' / 'activity_net.json')
    assert set(net.subset) == {'testing'} and net.video.nunique() == 3
    assert json.loads((tmp_path / '3' / 'temporal_region_label_mapping.json').read_text()) == [
        'Action',
        'No action',
    ]


def test_painting_in_chunks_changes_nothing():
    source = MovingDigits(60, size=24)
    script = write_script(source, Script(), 1)
    whole, pieces = (torch.cat(list(play(source, script, chunk)), 1) for chunk in (10**6, 7))
    assert torch.equal(whole, pieces) and whole.shape[1] == sum(s.frames for s in script)


def test_an_action_moves_as_its_item_does():
    source = MovingDigits(60)
    script = write_script(source, Script(seed=9), 4)
    pose, at = string_together(source, script), 0
    for s in script:
        own = source.pose(torch.tensor([s.item]), s.numbers[None, None])
        torch.testing.assert_close(
            pose.centre[0, 0, at : at + s.frames].diff(), own.centre[0, 0].diff()
        )
        torch.testing.assert_close(
            pose.angle[0, 0, at : at + s.frames].diff(), own.angle[0, 0].diff()
        )
        at += s.frames


def test_files_as_source(tmp_path):
    write_videos(MovingDigits(24, size=20, length=30), tmp_path / 'trimmed', fps=15)
    source = from_folder(tmp_path / 'trimmed')
    script = Script(actions=(1, 2), action=(1.0, 1.5), gap=(0.5, 1.0), background=('left',))
    table = compose({'train': source}, tmp_path / 'long', 2, script)['train']
    assert 'left' not in set(table['action-label'])
    assert 'left' not in json.loads((tmp_path / 'long' / 'action_label_mapping.json').read_text())
    path = tmp_path / 'long' / 'train' / 'v_train_00001.mp4'
    read = read_clips(path, torch.arange(probe(path).frames)[None])[0].float()
    own = script_of(script, 'train')
    wanted = torch.cat(
        list(play(source, kept_apart(write_script(source, own, 1), 'train'))), 1
    ).float()
    assert (read - wanted).abs().mean() < 2


def test_clips_keep_their_time_and_sizes_are_brought_together(tmp_path):
    "Two files, 30 and 10 frames a second, one twice as wide: actions last as long as the files do."
    for name, fps, size in (('a', 30, 16), ('b', 10, 32)):
        clip = MovingDigits(12, size=size).clips(torch.tensor([0]), torch.arange(60)[None, None])[
            0, 0
        ]
        write_video(tmp_path / 'trimmed' / name / f'{name}.mp4', [clip], fps)
    source = from_folder(tmp_path / 'trimmed')
    script = Script(fps=15, actions=(4, 4), action=(9.0, 9.0), gap=(0.2, 0.4))
    table = compose({'train': source}, tmp_path / 'long', 3, script, 0.1)['train']
    acts = table[table['temporal-region-label'] == 'Action']
    lasted = (acts['t-end'] - acts['t-start']).round(6).groupby(acts['action-label']).unique()
    for name, seconds in dict(a=2.0, b=6.0).items():  # two frames at most are cut
        assert ((lasted[name] <= seconds) & (lasted[name] > seconds - 3 / 15)).all()
    for path in (tmp_path / 'long' / 'train').glob('*.mp4'):
        assert (probe(path).height, probe(path).width) == (16, 16)
    stretches = kept_apart(write_script(source, script_of(script, 'train'), 0), 'train')
    for piece, s in zip(play(source, stretches, size=(16, 16)), stretches):
        assert piece.shape == (3, s.frames, 16, 16)
        if s.action and source.classes[source.labels[s.item]] == 'a':
            numbers = torch.arange(s.first, 60, 2)[None, : s.frames]
            shown = read_clips(tmp_path / 'trimmed' / 'a' / 'a.mp4', numbers)
            assert torch.equal(piece, shown[0])


@settings(deadline=None, max_examples=30)
@given(high=st.integers(8, 40), wide=st.integers(8, 40), size=st.tuples(*[st.integers(4, 40)] * 2))
def test_fit_covers_and_does_not_stretch(high, wide, size):
    "The middle stays in the middle, a flat picture stays flat, and no bar is added."
    flat = torch.full((3, 1, high, wide), 77, dtype=torch.uint8)
    assert (fit(flat, size) == 77).all() and fit(flat, size).shape == (3, 1, *size)
    ramp = (torch.arange(wide) * (200 / wide)).to(torch.uint8).expand(3, 1, high, wide).contiguous()
    shown = fit(ramp, size)[0, 0].float()
    scaled = max(size[1], round(max(size[0] / high, size[1] / wide) * wide))
    off = max(200 / wide, 100 / scaled) + 3  # a pixel given, or half of one shown, and rounding
    assert abs(shown.mean() - ramp.float().mean()) < off and (shown.diff() >= 0).all()


def test_subsets_have_scripts_of_their_own():
    "No two subsets have a seed in common, of sets of other seeds neither."
    seeds = [script_of(Script(seed), part).seed for seed in range(-3, 9) for part in PARTS]
    assert len(set(seeds)) == len(seeds)
    source = MovingDigits(300)
    videos = [
        [(s.item, s.first, s.frames) for k in range(6) for s in write_script(source, own, k)]
        for own in (script_of(Script(), part) for part in PARTS)
    ]
    assert len(set(map(str, videos))) == 3 and not set(videos[0]) & set(videos[1])


@pytest.mark.parametrize('seed', range(3))
def test_no_boundary_repeats_across_subsets(seed):
    "Of as many videos as anybody composes, at the frame rate of the files."
    source, ends = MovingDigits(300), {}
    for part in PARTS:
        own = script_of(Script(seed), part)
        scripts = [write_script(source, own, k) for k in range(60)]
        apart = [kept_apart(s, part) for s in scripts]
        ends[part] = {int(e) for s in apart for e in np.cumsum([x.frames for x in s])}
        for old, new in zip(sum(scripts, []), sum(apart, [])):
            assert -2 <= new.frames - old.frames <= (2 if not old.step else 0) and new.frames > 0
            assert replace(new, frames=old.frames) == old
    assert not ends['train'] & (ends['valid'] | ends['test']) and not ends['valid'] & ends['test']


def test_faults(tmp_path):
    source = MovingDigits(60)
    with pytest.raises(InputError, match='sources'):
        compose({'val': source}, tmp_path)
    with pytest.raises(InputError, match='background'):
        write_script(source, Script(background=source.classes), 0)
    with pytest.raises(InputError, match='rule'):
        background_segments(np.zeros((1, 2)), 1.0, rule='naive')
    clips = [
        torch.zeros(3, 2, 16, 16, dtype=torch.uint8),
        torch.zeros(3, 2, 16, 18, dtype=torch.uint8),
    ]
    with pytest.raises(InputError, match='one size'):
        write_video(tmp_path / 'x.mp4', clips)
    assert not list(tmp_path.iterdir())

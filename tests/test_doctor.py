"The doctor: good sets have no finding, every planted fault is found with its video, official files are not refused."

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vidrepro.cli.localize import app
from vidrepro.core.files import InputError
from vidrepro.localize.doctor import (
    FAULTS,
    MILD,
    OUTSIDE,
    PAIR,
    Rows,
    alike,
    compare,
    examine,
    lost_findings,
    misfit,
    row_findings,
    segment_findings,
    settle,
)
from vidrepro.localize.examples import read_examples

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def database(seed, videos=8, step=16 / 15, labels=('jump', 0, '001')):
    "A good set: entries, and the number of rows of each video."
    rng, out, rows = np.random.default_rng(seed), {}, {}
    for i in range(videos):
        duration = float(rng.uniform(30, 200))
        ends = np.sort(rng.uniform(0, duration, 2 * len(labels))).reshape(-1, 2)
        acts = [dict(segment=list(map(float, s)), label=w) for s, w in zip(ends, labels)]
        subset = 'training' if i % 2 else 'validation'
        out[f'v{i}'] = dict(subset=subset, duration=duration, annotations=acts)
        rows[f'v{i}'] = max(int(duration / step + rng.uniform(-1, 1)), 1)
    return out, rows


@pytest.fixture
def store(tmp_path):
    "Writes a set, and says where."
    (tmp_path / 'f').mkdir()

    def write(entries, rows=None, channels=12, turn=False):
        (tmp_path / 'a.json').write_text(json.dumps(dict(database=entries)))
        for old in (tmp_path / 'f').iterdir():
            old.unlink()
        for v, n in (rows or {}).items():
            x = np.random.default_rng(n).random((n, channels), np.float32)
            np.save(tmp_path / 'f' / f'{v}.npy', x.T.copy() if turn else x)
        return tmp_path / 'a.json', tmp_path / 'f' if rows else None

    return write


@FEW
@given(st.integers(0, 10**6), st.sampled_from([0.5, 16 / 15, 2.0]))
def test_good_sets_have_no_finding(store, seed, step):
    entries, rows = database(seed, step=step)
    assert examine(*store(entries, rows), step) == []
    no_durations = {v: {k: x for k, x in e.items() if k != 'duration'} for v, e in entries.items()}
    file, _ = store(no_durations)
    assert examine(file) == []


number = st.floats(0, 20)
SICK = {
    PAIR: st.sampled_from(
        [[1, 2, 3], [1], [], None, [1, 10**400], 'ab', 5, [None, 2], ['x', 'y'], {'a': 1}]
    ),
    'no finite segment': st.sampled_from(
        [[math.nan, 2.0], [1.0, math.nan], [0.0, math.inf], [-math.inf, 3.0]]
    ),
    'start behind end': st.tuples(number, st.floats(0.01, 9)).map(lambda x: [x[0] + x[1], x[0]]),
    'start below 0': st.tuples(st.floats(0.01, 99), number).map(lambda x: [-x[0], x[1]]),
    OUTSIDE: st.tuples(st.floats(250, 9e3), st.floats(0, 9)).map(lambda x: [x[0], x[0] + x[1]]),
    'no length': number.map(lambda t: [t, t]),
    'far beyond the end': st.tuples(number, st.floats(300, 9e3)).map(list),
}


@FEW
@given(st.data(), st.integers(0, 10**6))
def test_every_planted_segment_is_found(store, data, seed):
    entries, rows = database(seed)
    what = data.draw(st.sampled_from(sorted(FAULTS)))
    video, k = data.draw(st.sampled_from(sorted(entries))), data.draw(st.integers(0, 2))
    if what == 'no label':
        entries[video]['annotations'][k]['label'] = data.draw(
            st.sampled_from([None, '', '  ', math.nan, ['a'], {}])
        )
    else:
        entries[video]['annotations'][k]['segment'] = data.draw(SICK[what])
    file, folder = store(entries, rows)
    (found,) = [f for f in examine(file, folder, 16 / 15) if f.number is not None]
    assert (found.what, found.video, found.number) == (what, video, k)
    assert found.fatal == (what not in MILD)
    if found.fatal:
        with pytest.raises(InputError, match=f'video {video}, annotation {k}'):
            settle([found], 'a.json')


ENTRIES = [  # spoilt entry, words of the finding
    (None, 'no entry'),
    ([], 'no entry'),
    (dict(subset='training'), 'no list'),
    (dict(subset='training', annotations={}), 'no list'),
    (dict(subset='training', annotations=[[1, 2]]), 'no list'),
    (dict(annotations=[]), 'no subset'),
    (dict(subset=None, annotations=[]), 'no subset'),
    (dict(subset='training', duration=0, annotations=[]), 'no duration'),
    (dict(subset='training', duration=None, annotations=[]), 'no duration'),
    (dict(subset='training', duration='long', annotations=[]), 'no duration'),
]


@pytest.mark.parametrize('entry, words', ENTRIES)
def test_every_spoilt_entry_is_found(store, entry, words):
    (found,) = examine(*store(database(0)[0] | dict(v3=entry)))
    assert found.what.startswith(words) and found.video == 'v3' and found.fatal


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"database": []}', '{"database": {}}', '\xff'])
def test_no_database(tmp_path, text):
    file = tmp_path / 'a.json'
    file.write_text(text, encoding='latin-1')
    with pytest.raises(InputError, match='ActivityNet'):
        examine(file)


@FEW
@given(st.integers(0, 10**6), st.sampled_from([24, 25, 30, 1000]))
def test_units(store, seed, unit):
    entries, rows = database(seed)
    for entry in entries.values():
        for a in entry['annotations']:
            a['segment'] = [unit * t for t in a['segment']]
    for files in (store(entries), store(entries, rows)):
        first = examine(*files, 16 / 15)[0]
        assert first.what == 'no seconds' and first.video in entries and first.fatal


@FEW
@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 0.8, 1.25, 2.0, 4.0]))
def test_steps(store, seed, factor):
    entries, rows = database(seed)
    found = examine(*store(entries, rows), factor * 16 / 15)
    assert found[0].what == 'wrong step' and found[0].fatal and found[0].video in entries
    assert 'about 1.0' in found[0].remedy or 'about 1.1' in found[0].remedy


@FEW
@given(st.integers(0, 10**6))
def test_tables_on_their_side(store, seed):
    entries, rows = database(seed)
    assert examine(*store(entries, rows, turn=True), 16 / 15)[0].what == 'a table on its side'
    _, folder = store(entries, rows, turn=True)
    assert examine(None, folder, 16 / 15)[0].what == 'a table on its side'
    bare = {v: {k: x for k, x in e.items() if k != 'duration'} for v, e in entries.items()}
    assert 'a table on its side' in [
        f.what for f in examine(*store(bare, rows, turn=True), 16 / 15)
    ]


def test_resized_features_have_no_step(store):
    entries, rows = database(1)
    found = examine(*store(entries, dict.fromkeys(rows, 100)), 16 / 15)[0]
    assert found.what == 'wrong step' and 'equally many rows' in found.remedy


def test_one_short_video_is_a_note(store):
    entries, rows = database(2)
    (found,) = examine(*store(entries, rows | dict(v4=3)), 16 / 15)
    assert (found.video, found.fatal) == ('v4', False)


@pytest.mark.parametrize('step, clip', [(16 / 15, 16 / 15), (8 / 15, 16 / 15), (1.0, 2.0)])
@pytest.mark.parametrize('seconds', [10.0, 33.3, 240.0])
def test_rows_that_an_extraction_gives_always_fit(step, clip, seconds):
    rows = int((seconds - clip) / step + 1e-9) + 1
    assert abs(misfit(Rows(rows, 9, step, clip), seconds)) <= 1
    assert row_findings({'v': Rows(rows, 9, step, clip)}, {'v': seconds}) == []


def test_a_file_that_knows_its_step_needs_none(store):
    entries, rows = database(3, step=0.2)
    file, folder = store(entries, rows)
    for v in rows:
        axis = dict(step=0.2, length=16 / 15, first=0.0)
        (folder / f'{v}.json').write_text(json.dumps(dict(axis=axis)))
    assert examine(file, folder) == []


@pytest.mark.parametrize(
    'text',
    [
        '{}',
        '[]',
        'x',
        '{"axis": {"step": "x", "length": 1, "first": 0}}',
        '{"axis": {"step": 0, "length": 1, "first": 0}}',
        '{"axis": {"step": NaN, "length": 1, "first": 0}}',
    ],
)
def test_a_spoilt_file_beside_features_is_named(store, text):
    file, folder = store(*database(3))
    (folder / 'v3.json').write_text(text)
    with pytest.raises(InputError, match='v3.json'):
        examine(file, folder, 1.0)


def test_features_without_rows(store):
    file, folder = store(*database(3))
    np.save(folder / 'v3.npy', np.zeros((0, 12), np.float32))
    with pytest.raises(InputError, match='v3.npy'):
        read_examples(folder, file, 'training', 16 / 15)


SPELLINGS = ['{}.mp4', '{}.AVI', 'v_{}.webm', 'videos/{}', 'a/b/v_{}.mkv']


@pytest.mark.parametrize('form', SPELLINGS)
def test_names(store, form):
    entries, rows = database(4)
    file, folder = store({form.format(v): e for v, e in entries.items()}, rows)
    found = examine(file, folder, 16 / 15)[0]
    assert found.what == 'no video in common' and "is 'v0'" in found.remedy, found
    file, folder = store({f'v_{v}': e for v, e in entries.items()}, rows)
    assert examine(file, folder, 16 / 15) == []
    file, folder = store(entries, {f'v_{v}': n for v, n in rows.items()})
    assert examine(file, folder, 16 / 15) == []
    strange = examine(*store({f'x{v}': e for v, e in entries.items()}, rows), 16 / 15)[0]
    assert strange.fatal and 'spell' not in strange.remedy


@FEW
@given(st.integers(0, 10**6), st.sampled_from(['nan', 'inf', 'alike', 'turned']))
def test_numbers(store, seed, fault):
    "One video is spoilt, and named; the numbers of the others are not."
    entries, rows = database(seed)
    file, folder = store(entries, rows)
    one = sorted(rows)[seed % len(rows)]
    table = np.load(folder / f'{one}.npy')
    if fault in ('nan', 'inf'):
        table[seed % len(table), seed % 12] = float(fault)
    table = dict(alike=table * 0 + 0.5, turned=table.T.copy()).get(fault, table)
    np.save(folder / f'{one}.npy', table)
    what = dict.fromkeys(['nan', 'inf'], 'no finite numbers') | dict(alike='rows all alike')
    what |= dict(turned='another width')
    (found,) = [f for f in examine(file, folder, 16 / 15) if f.what == what[fault]]
    assert found.video == one
    assert found.fatal == (fault in ('nan', 'inf', 'turned'))


def test_videos_without_features():
    (note,) = lost_findings(['a', 'b', 'c'], ['a', 'c', 'd'])
    assert not note.fatal and note.value == "1 of 3: 'b'"
    assert not list(lost_findings(['a'], ['a'])) and not list(lost_findings(['a'], ['b']))


@pytest.mark.parametrize('unit', [1 / 60, 'share'])
def test_units_that_are_too_large(store, unit):
    entries, _ = database(3)
    acts = [(e['duration'], a) for e in entries.values() for a in e['annotations']]
    for duration, a in acts:
        a['segment'] = [s / (duration if unit == 'share' else 60) for s in a['segment']]
    assert 'all in the beginning' in [f.what for f in examine(store(entries)[0])]


def test_classes_that_hardly_differ(store):
    entries, _ = database(8)
    for e in entries.values():
        e['annotations'] = [dict(segment=[1.0, 9.0], label=c) for c in ('long jump', 'Long_Jump')]
    (found,) = examine(store(entries)[0])
    assert not found.fatal and found.value == "'Long_Jump', 'long jump'"


def test_two_entries_of_one_name(store):
    entries, _ = database(5)
    found = examine(*store(entries | dict(v_v1=entries['v1'])))
    assert [(f.what, f.video) for f in found] == [('two entries', 'v_v1')]


def test_subsets_and_classes(store):
    entries, rows = database(6)
    file, folder = store(entries, rows)
    first = examine(file, folder, 16 / 15, 'testing')[0]
    assert first.fatal and first.remedy == 'use one of training, validation'
    entries['v0']['annotations'][0]['label'] = 'skip'
    (note,) = examine(store(entries)[0])
    assert not note.fatal and "'skip'" in note.value and 'training' in note.value


def test_alike_only_where_the_spelling_differs():
    assert alike(['a', 'b.mp4', 'C'], ['a', 'b', 'c', 'd']) == {'b.mp4': 'b', 'C': 'c'}
    assert alike(['a.b'], ['a']) == {}  # no ending of a video


def test_notes_go_to_standard_error(store, capsys):
    entries, _ = database(7)
    for v in ('v1', 'v2'):
        entries[v]['annotations'][0]['segment'] = [2.0, 2.0]
    settle(examine(store(entries)[0]), 'a.json')
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and 'v1' in err and '1 more like it' in err


# official files


def official(folder):
    "The published lists in the form of ActivityNet, by name."
    load = lambda name: json.loads((folder / name).read_text())
    yield 'activitynet', load('activity_net.v1-3.reconstructed_from_tsp.json')['database']
    yield 'thumos14', load('thumos14_gtad_eval/thumos_gt.json')['database']
    bmn = load('activitynet13_bmn/anet_anno_action.json')
    subset = pd.read_csv(folder / 'activitynet13_bmn/video_info_new.csv').set_index('video').subset
    yield (
        'bmn',
        {
            v: dict(subset=subset[v], duration=e['duration_second'], annotations=e['annotations'])
            for v, e in bmn.items()
        },
    )
    sheets = folder / 'thumos14_gtad'
    durations = pd.read_csv(sheets / 'thumos14_test_groundtruth.csv')
    durations = durations.set_index('video-name')['video-duration'].to_dict()
    for part in ('val', 'test'):
        groups = pd.read_csv(sheets / f'{part}_Annotation.csv').groupby('video')
        yield (
            f'gtad {part}',
            {
                v: dict(subset=part)
                | (dict(duration=durations[v]) if v in durations else {})
                | dict(
                    annotations=[
                        dict(segment=[r.start, r.end], label=r.type) for r in rows.itertuples()
                    ]
                )
                for v, rows in groups
            },
        )


def test_official_files_are_not_refused(data_dir, tmp_path):
    counts = {}
    for name, entries in official(data_dir / 'annotations'):
        (tmp_path / 'a.json').write_text(json.dumps(dict(database=entries)))
        findings = examine(tmp_path / 'a.json')
        assert not [str(f) for f in findings if f.fatal], name
        counts[name] = pd.Series([f.what for f in findings], dtype=object).value_counts().to_dict()
    assert counts['activitynet']['no length'] == 12 == counts['bmn']['no length']
    assert counts['gtad test'][OUTSIDE] == 26
    seen = [sum(found.values()) for found in counts.values()]
    assert len(seen) == 5 and max(seen) < 40, counts


def test_official_frames_are_refused(data_dir):
    "The same lists with frames in the place of seconds."
    for name, entries in official(data_dir / 'annotations'):
        entries = copy.deepcopy({v: e for v, e in list(entries.items())[:2000] if 'duration' in e})
        for e in entries.values():
            for a in e['annotations']:
                a['segment'] = [30 * float(t) for t in a['segment']]
        seconds = {v.removeprefix('v_'): e['duration'] for v, e in entries.items()}
        assert not entries or any(f.fatal for f in segment_findings(entries, seconds)), name


# scoring


def table(*rows):
    return pd.DataFrame(rows, columns=['video', 'start', 'end', 'label', 'score'])


def test_compare():
    truth = table(('a', 0, 1, 'run', 1.0), ('b', 0, 1, 'sit', 1.0))
    assert compare(truth, truth) == []
    assert compare(truth.assign(label=''), truth) == []
    for sick, words in (
        (truth[:0], 'no detection'),
        (truth.assign(video=truth.video + '.mp4'), 'no video'),
        (truth.assign(label=truth.label.str.upper()), 'no class'),
        (truth.assign(label='jump'), 'no class'),
    ):
        first = compare(sick, truth)[0]
        assert first.fatal and first.what.startswith(words)
    notes = compare(truth[:1], truth)
    assert [f.what for f in notes] == ['videos without detections', 'classes never detected']
    assert not any(f.fatal for f in notes)


def call(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture
def scored(tmp_path):
    "Truth of two classes, and perfect detections of it."
    acts = [dict(segment=[1.0, 5.0], label='0'), dict(segment=[6.0, 8.0], label='001')]
    entry = dict(subset='validation', duration=10.0, annotations=acts)
    (tmp_path / 't.json').write_text(json.dumps(dict(database={f'v{i}': entry for i in range(3)})))
    return tmp_path


def detections(home, change=lambda hit: [hit], name='{}'):
    "Writes detections; `change` may make of a hit what it likes."
    acts = json.loads((home / 't.json').read_text())['database']['v0']['annotations']
    hits = [h for act in acts for h in change(dict(act, score=0.9))]
    results = {name.format(f'v{i}'): hits for i in range(3)}
    (home / 'p.json').write_text(json.dumps(dict(results=results)))
    return home / 'p.json', home / 't.json'


def test_evaluate_prints_classes(scored):
    result = call('evaluate', *detections(scored), '--classes')
    assert result.exit_code == 0, result.output
    assert result.stderr.count('\n') == 1 and 'videos 3, actions 6' in result.stderr
    assert 'mAP: 1.0000' in result.stdout
    assert '001: AP 1.0000, AP@0.50 1.0000, 3 actions' in result.stdout


def test_evaluate_refuses_to_compare_nothing(scored):
    proposal = lambda hit: [{k: x for k, x in hit.items() if k != 'label'}]
    for how, words in (
        (dict(name='{}.mp4'), "'v0' is 'v0.mp4'"),
        (dict(name='x{}'), 'no video in common'),
        (dict(change=lambda hit: []), 'no detection'),
        (dict(change=lambda hit: [dict(hit, label='jump')]), 'no class in common'),
        (dict(change=lambda hit: proposal(hit), name='{}.mp4'), 'no video in common'),
    ):
        result = call('evaluate', *detections(scored, **how))
        assert (result.exit_code, result.stdout) == (2, ''), how
        assert words in result.stderr and result.stderr.count('\n') == 1
    result = call('evaluate', *detections(scored, proposal), '--classes')
    assert result.exit_code == 2 and '--classes' in result.stderr


def test_evaluate_notes_what_is_missing(scored):
    only = lambda hit: [hit] if hit['label'] == '0' else []
    result = call('evaluate', *detections(scored, only), '--classes')
    assert result.exit_code == 0 and "'001'" in result.stderr and 'mAP: 0.5000' in result.stdout
    more = lambda hit: [hit, dict(hit, label='jump')]
    result = call('evaluate', *detections(scored, more))
    assert result.exit_code == 0 and "'jump'" in result.stderr and 'mAP: 1.0000' in result.stdout


def test_labels_may_be_numbers(scored):
    "In annotations and detections, 0 and '0' are one class."
    database = json.loads((scored / 't.json').read_text())
    for entry in database['database'].values():
        entry['annotations'][0]['label'] = 0
    (scored / 't.json').write_text(json.dumps(database))
    result = call('evaluate', *detections(scored))
    assert result.exit_code == 0 and 'mAP: 1.0000' in result.stdout, result.output


def test_check_command(store):
    entries, rows = database(8)
    file, folder = store(entries, rows)
    result = call('check', file, folder, '--step', 16 / 15)
    assert result.exit_code == 0 and '8 videos, 24 actions, 3 classes' in result.stdout
    result = call('check', file, folder, '--step', 8 / 15)
    assert result.exit_code == 2 and result.stdout.startswith('fatal: video v')
    assert result.stderr.count('\n') == 1
    entries['v2']['annotations'][1]['segment'] = [3.0, 3.0]
    result = call('check', store(entries)[0])
    assert result.exit_code == 0 and result.stdout.startswith('note: video v2, annotation 1')

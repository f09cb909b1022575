"What used to pass in silence: classes that are none, steps that are not read, features of another video, repeats."

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from vidrepro.cli.localize import app
from vidrepro.core.files import InputError, content_hash
from vidrepro.core.settings import to_json
from vidrepro.data.annotations import read_activitynet
from vidrepro.data.formats import read_json, read_thumos14
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.features.exports import export_for
from vidrepro.features.settings import Features, Settings
from vidrepro.localize.detect import SMALL, load_detector, train_detector
from vidrepro.localize.doctor import examine, settle
from vidrepro.localize.examples import read_examples, read_features, told


def call(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def refused(result, *words):
    "One line, and all words in it."
    assert result.exit_code == 2 and result.stderr.count('\n') == 1, result.output
    assert all(word in result.stderr for word in words), result.stderr


def act(start, end, label='run'):
    return dict(segment=[start, end], label=label)


def write(file, **videos):
    "Annotations; a video is its actions, or a whole entry."
    entry = lambda x: x if isinstance(x, dict) else dict(subset='training', annotations=x)
    file.write_text(json.dumps(dict(database={v: entry(x) for v, x in videos.items()})))
    return file


def taught(home, extra=()):
    "Six videos in a folder, and their actions; `extra` ones in each."
    (home / 'f').mkdir(exist_ok=True)
    entries = {}
    for e in told(6, 0):
        np.save(home / 'f' / f'{e.name}.npy', e.features)
        acts = [act(*map(float, s), w) for s, w in zip(e.segments, e.labels)] + list(extra)
        entries[e.name] = dict(subset='training', duration=e.duration, annotations=acts)
    return home / 'f', write(home / 'a.json', **entries)


# ambiguous segments


def test_ambiguous_segments_are_not_learnt(tmp_path, capsys):
    folder, file = taught(tmp_path, [act(2.0, 9.0, 'Ambiguous')])
    examples = read_examples(folder, file, 'training', 1.0)
    assert {w for e in examples for w in e.labels} == {'spin', 'wave'}
    assert all(len(e.segments) == len(e.labels) for e in examples)
    err = capsys.readouterr().err
    assert err.count('note') == 1 and 'ambiguous segments, 6 of' in err
    model = tmp_path / 'm.safetensors'
    few = ('--preset', 'small', '--set', 'epochs=1', '--device', 'cpu', '--step', 1)
    result = call('train', folder, file, model, *few)
    assert result.exit_code == 0 and '2 classes' in result.stdout, result.output
    assert load_detector(model).classes == ('spin', 'wave')
    assert '2 classes' in call('check', file).stdout


def test_ambiguous_segments_are_not_exported(tmp_path, capsys):
    settings = Settings()
    about = {k: v for k, v in to_json(settings).items() if k != 'on_short'}
    video = dict(path='a.mp4', frames=1280, seconds=43.0, fps=30.0)
    array = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    (tmp_path / 'f').mkdir()
    made = Features(array, settings.axis(), video, about | dict(encoder='e', weights='w'))
    made.save(tmp_path / 'f' / 'a.npy')
    file = write(tmp_path / 'a.json', a=[act(1.0, 9.0), act(1.0, 9.0, 'Ambiguous')])
    out = tmp_path / 'out'
    export_for(tmp_path / 'f', file, out, 'opentad')
    assert (out / 'category_idx.txt').read_text().split() == ['run']
    assert [a['label'] for a in read_activitynet(out / 'annotations.json').to_dict('records')] == [
        'run'
    ]
    assert 'note: ambiguous segments are no class: 1 left out' in capsys.readouterr().err


# steps


def test_a_step_that_the_file_contradicts_is_refused(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((10, 4), np.float32))
    axis = dict(step=16 / 15, length=16 / 15, first=0.0)
    (tmp_path / 'a.json').write_text(json.dumps(dict(axis=axis)))
    assert read_features(tmp_path / 'a.npy').duration == pytest.approx(32 / 3)
    assert read_features(tmp_path / 'a.npy', 1.066667).duration == pytest.approx(32 / 3)
    with pytest.raises(InputError, match='a.npy: got step 7; .*1.06667'):
        read_features(tmp_path / 'a.npy', 7.0)


def drift(tmp_path, factor, videos=20, step=16 / 15, clip=16 / 15, seconds=(160, 235), beside=0):
    "Findings for features that an extraction gives, and a step that is beside the true one."
    rng, entries = np.random.default_rng(0), {}
    (tmp_path / 'f').mkdir(exist_ok=True)
    for i in range(videos):
        lasts = float(rng.uniform(*seconds))
        n = int((lasts - clip) / step) + 1
        np.save(tmp_path / 'f' / f'v{i}.npy', rng.normal(size=(n, 3)).astype(np.float32))
        if beside:
            made = Features(np.zeros((n, 3), np.float32), Settings().axis(), {}, {})
            made = replace(made, axis=replace(made.axis, step=step, length=clip))
            made.resample(beside).save(tmp_path / 'f' / f'v{i}.npy')
        acts = [act(1.0, 5.0), act(0.5 * lasts, 0.8 * lasts)]
        entries[f'v{i}'] = dict(subset='training', duration=lasts, annotations=acts)
    file = write(tmp_path / 'a.json', **entries)
    found = examine(file, tmp_path / 'f', None if beside else factor * step)
    return [f for f in found if f.what == 'a step a little off']


@pytest.mark.parametrize(
    'factor, words', [(0.9375, '6.5 % less'), (0.97, '3.3 % less'), (1.08, '7.7 % more')]
)
def test_a_step_a_little_off_is_a_note(tmp_path, factor, words):
    (note,) = drift(tmp_path, factor)
    assert not note.fatal and f'rows cover {words} than' in note.value, note
    assert 'about 1.07' in note.remedy


def test_honest_steps_have_no_note(tmp_path):
    assert drift(tmp_path, 1.0) == [] == drift(tmp_path, 0.94, videos=4)
    assert drift(tmp_path, 1.0, seconds=(8, 20)) == []
    assert drift(tmp_path, 1.0, step=8 / 15, seconds=(20, 40)) == []
    assert drift(tmp_path, 1.0, step=4 / 30, clip=64 / 30, seconds=(30, 90)) == []
    assert drift(tmp_path, 1.0, seconds=(8, 20), beside=100) == []


# features of others


def test_features_that_are_not_those_of_the_file_beside_are_refused(tmp_path):
    array = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    file = tmp_path / 'a.npy'
    Features(array, Settings().axis(15.0), {}, {}).save(file)
    assert len(read_features(file).features) == 9
    np.save(file, array[:5])
    with pytest.raises(InputError, match=r'a.npy: got 5 x 4 numbers; .*\[9, 4\]'):
        read_features(file)
    assert call('check', write(tmp_path / 'a.json', a=[act(0, 1)]), tmp_path).exit_code == 2
    Features(array, Settings().axis(15.0), {}, {}).save(file)
    np.save(file, array + 1)
    with pytest.raises(InputError, match='a.npy: got other bytes than were written'):
        read_features(file)


@pytest.fixture
def scene(tmp_path):
    "Two videos, features of the first, and a detector of such features."
    one, two = write_videos(MovingDigits(2, size=32, length=60), tmp_path / 'v', 15)
    array = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    made = Features(array, Settings().axis(15.0), dict(content=content_hash(one)), {})
    (tmp_path / 'f').mkdir()
    made.save(tmp_path / 'f' / f'{one.stem}.npy')
    model = train_detector('bmn', told(4, 0), replace(SMALL['bmn'], epochs=1))
    replace(model, source=None).save(tmp_path / 'm.safetensors')
    return tmp_path, one, two


def show(home, video, *more):
    words = ('show', home / 'm.safetensors', video, home / 'p.png', '--features', home / 'f')
    return call(*words, *more)


def test_show_refuses_features_of_another_video(scene):
    home, one, two = scene
    assert show(home, one).exit_code == 0
    (home / 'p.png').unlink()
    one.write_bytes(two.read_bytes())
    refused(show(home, one), 'another video', one.stem)
    assert not (home / 'p.png').exists()


def test_show_refuses_annotations_that_do_not_know_the_video(scene):
    home, one, _ = scene
    entry = dict(subset='validation', duration=4.0, annotations=[act(1.0, 2.0)])
    truth = write(home / 'b.json', **{f'{one.stem}x': entry})
    refused(show(home, one, '--annotations', truth), 'b.json', f'no video {one.stem!r}')
    assert not (home / 'p.png').exists()
    for name in (one.stem, f'v_{one.stem}'):
        truth = write(home / 'b.json', **{name: entry | dict(annotations=[])})
        assert show(home, one, '--annotations', truth).exit_code == 0


# repeats


def test_the_same_action_twice(tmp_path, capsys):
    many = [act(float(i), i + 0.5) for i in range(120)]
    file = write(tmp_path / 'a.json', a=many + [act(3, '3.5')], b=[act(3.0, 3.5)])
    (note,) = examine(file)
    assert (note.video, note.number, note.fatal) == ('a', 120, False)
    assert note.what == 'the same action twice' and note.value.startswith('1 of 122')
    settle([note], 'a.json')
    assert 'twice' in capsys.readouterr().err
    (fatal,) = examine(write(tmp_path / 'a.json', a=[act(1.0, 2.0)] * 3))
    assert fatal.fatal and fatal.value.startswith('2 of 3')
    assert examine(write(tmp_path / 'a.json', a=[act(1.0, 2.0), act(1.0, 2.0, 'sit')])) == []


def test_evaluate_refuses_a_list_that_is_there_twice(tmp_path):
    entry = dict(subset='validation', annotations=[act(1.0, 5.0)])
    found = dict(results=dict(a=[act(1.0, 5.0) | dict(score=0.9)]))
    (tmp_path / 'p.json').write_text(json.dumps(found))
    twice = write(tmp_path / 't.json', a=entry | dict(annotations=[act(1.0, 5.0)] * 2))
    refused(call('evaluate', tmp_path / 'p.json', twice), 'the same action twice, 1 of 2')


def test_two_forms_of_one_split_are_refused(tmp_path):
    (tmp_path / 'Diving_val.txt').write_text('video_validation_0000001 1.0 2.0\n')
    sheet = pd.DataFrame(dict(video=['video_test_0000001'], type='Diving', start=1.0, end=2.0))
    sheet.to_csv(tmp_path / 'test_Annotation.csv', index=False)
    assert len(read_thumos14(tmp_path)[0]) == 2
    sheet.to_csv(tmp_path / 'val_Annotation.csv', index=False)
    result = call('thumos14', tmp_path, tmp_path / 'o.json')
    refused(result, 'val_Annotation.csv and Diving_val.txt', 'one')


DOUBLE = (
    '{"database": {"a": {"subset": "training", "annotations": []},'
    ' "a": {"subset": "training", "annotations": []}}}'
)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    file = tmp_path / 'd.json'
    file.write_text(DOUBLE)
    for read in (read_activitynet, examine, read_json):
        with pytest.raises(InputError, match="d.json: got 'a' twice"):
            read(file)
    refused(call('check', file), "'a' twice")


@pytest.mark.parametrize('text', ['[]', '{"database": []}', '{"database": {"a": []}}', 'x', ''])
def test_what_is_no_database_is_refused(tmp_path, text):
    file = tmp_path / 'd.json'
    file.write_text(text)
    with pytest.raises(InputError, match='d.json: got .*ActivityNet'):
        read_activitynet(file)
    refused(call('thumos14', file, tmp_path / 'o.json'), 'd.json')

"Nothing is passed over in silence: groups that match nothing, segments, older files of one name, videos that nobody read."

import shutil

import pytest
from safetensors.torch import save_file
from test_features import Small, write
from typer.testing import CliRunner

from vidrepro.cli.data import app as data_app
from vidrepro.cli.features import app as features_app
from vidrepro.core.files import InputError
from vidrepro.data.datasets import from_folder, from_list
from vidrepro.data.door import find
from vidrepro.digits import untrimmed
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.digits.untrimmed import Script, compose
from vidrepro.features.extract import extract
from vidrepro.features.settings import Settings, load
from vidrepro.models.backbones import backbone


def called(app, *words):
    "Exit code, output, and the refusal or the errors in words."
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output, f'{result.exception or ""} {result.stderr}'


def touch(path, content=b'x'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- recordings


@pytest.fixture
def people(tmp_path):
    "Six files of three persons in two classes."
    for k in range(6):
        touch(tmp_path / 'v' / 'ab'[k % 2] / f'person{k // 2}_{k}.mp4', str(k).encode())
    return tmp_path


def test_groups_that_match_nothing_are_refused(people):
    paths = find(people / 'v').paths
    (people / 'groups.csv').write_text('path,group\n' + ''.join(f'v/{p},g\n' for p in paths))
    for wrong in (r'(persn\d)', people / 'groups.csv'):
        with pytest.raises(InputError, match='no video of 6 .*such as a/person0_0.mp4'):
            from_folder(people / 'v', group_by=wrong)
    (people / 'flat.txt').write_text('a.mp4 x\nb.mp4 y\n')
    with pytest.raises(InputError, match='no video of 2'):
        find(people / 'flat.txt', group_by='folder')
    (people / 'splits.csv').write_text('path,split\n' + ''.join(f'{p},train\n' for p in paths))
    assert set(find(people / 'v', group_by=people / 'splits.csv').items.split) == {'train'}


def test_videos_without_a_group_are_counted(people):
    found = find(people / 'v', group_by=r'(person[01])')
    assert '2 of 6 videos match no group, a/person2_4.mp4, b/person2_5.mp4' in found.report()
    assert sorted(set(found.items.group)) == ['', 'person0', 'person1']
    assert not find(people / 'v', group_by=r'(person\d)').remarks


# --- segments


@pytest.mark.parametrize(
    'start, end', [('start', 'end'), ('t-start', 't-end'), ('Start Time', 'end time')]
)
def test_segments_of_a_list_are_no_videos(tmp_path, start, end):
    lines = [f'path,label,{start},{end}', 'a.mp4,x,0.2,0.6', 'a.mp4,y,0.7,1.1', 'b.mp4,x,0,1']
    (tmp_path / 'l.csv').write_text('\n'.join(lines))
    with pytest.raises(InputError, match=r'3 lines with start and end.*cut the videos') as error:
        from_list(tmp_path / 'l.csv')
    assert '\n' not in str(error.value) and 'l.csv' in str(error.value)
    found = find(tmp_path / 'l.csv')  # who reads whole videos may
    assert found.paths == ['a.mp4', 'b.mp4'] and 'whole videos' in '\n'.join(found.report())


@pytest.mark.parametrize(
    'text',
    [
        'path,label,start,end\na.mp4,x,,\nb.mp4,y,,\n',
        'path,label,time_start,time_end\na_000003_000013.mp4,x,3.0,13.0\nb_000000_000010.mp4,y,0,10\n',
        'path,label,youtube_id,time_start,time_end,split\na.mp4,x,a,3,13,train\nb.mp4,y,b,0,10,val\n',
        'path,label,start_time\na.mp4,x,0.02\nb.mp4,y,0\n',
    ],
    ids=['empty', 'cut', 'kinetics', 'clock'],
)
def test_files_that_are_cut_already(tmp_path, text):
    (tmp_path / 'l.csv').write_text(text)
    assert len(from_list(tmp_path / 'l.csv')) == 2 and not find(tmp_path / 'l.csv').remarks


def test_tables_of_tsp_name_whole_videos_for_features(tmp_path):
    source = {'train': MovingDigits(12, size=16)}
    tables = compose(source, tmp_path, 1, Script(actions=(1, 2), action=(1.0, 2.0)))
    found = find(tmp_path / 'train_tsp_groundtruth.csv', tmp_path / 'train')
    assert found.paths == ['v_train_00000.mp4'] and not found.passed
    assert found.remarks == [
        f'{len(tables["train"])} lines of train_tsp_groundtruth.csv name a part by start and end: whole videos are read'
    ]


# --- composed videos


SHORT = Script(actions=(1, 1), action=(0.5, 1.0), gap=(0.2, 0.4))


def test_composed_videos_are_never_replaced(tmp_path, monkeypatch):
    source = {'train': MovingDigits(12, size=16)}
    compose(source, tmp_path, 2, SHORT)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    for other in (source, {'valid': MovingDigits(12, size=16)}):
        with pytest.raises(InputError, match='holds .*folder that does not exist'):
            compose(other, tmp_path, 2, Script(1))
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before
    monkeypatch.setattr(untrimmed, 'write_video', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # interrupted
        compose(source, tmp_path / 'new', 2, SHORT)
    monkeypatch.undo()
    assert compose(source, tmp_path / 'new', 1, SHORT).keys() == {'train'}


@pytest.mark.parametrize('fps', [0, -1, float('nan'), 1e9])
def test_composed_videos_have_frames(tmp_path, fps):
    with pytest.raises(InputError, match='fps'):
        Script(fps=fps)
    words = 'compose', tmp_path / 'out', '--train', tmp_path / 'nowhere', f'--fps={fps}'
    code, _, said = called(data_app, *words)
    assert code and 'fps' in said and 'nowhere' not in said and not (tmp_path / 'out').exists()


# --- features


@pytest.fixture
def twins(tmp_path):
    "Two folders with a file of one name, and other pictures in it."
    for k, name in enumerate('ab'):
        (tmp_path / name / 'videos').mkdir(parents=True)
        write(tmp_path / name / 'videos' / 'x.mp4', range(k, 70 + k))
    save_file(backbone('tiny').state_dict(), tmp_path / 'tiny.safetensors')
    return tmp_path


def options(home):
    return '--backbone', 'tiny', '--weights', home / 'tiny.safetensors', '--device', 'cpu'


def test_what_is_passed_over_is_said(twins):
    videos, out = twins / 'a' / 'videos', twins / 'f'
    touch(videos / 'b.mpeg4')
    touch(videos / 'x.srt')
    line = 'passed over: 1 × companion of a video, x.srt'
    for words in (('extract', videos, out, *options(twins)), ('verify', out, videos)):
        code, said, _ = called(features_app, *words)
        assert code == 0 and line in said.splitlines() and 'b.mpeg4' in said
    (twins / 'l.txt').write_bytes('x.mp4\nx.mp4\n'.encode('utf-16'))
    code, said, _ = called(features_app, 'verify', out, twins / 'l.txt', '--root', videos)
    assert code == 0 and 'listed twice, x.mp4' in said and 'is read as utf-16' in said


def test_one_folder_for_two_sources_of_vectors(twins):
    sources = twins / 'a' / 'videos', twins / 'b' / 'videos'
    code, _, said = called(features_app, 'gvf', *sources, '--out', twins / 'x.h5', *options(twins))
    assert code and 'x/videos' in said and all(str(s) in said for s in sources)
    assert not (twins / 'x').exists() and not (twins / 'x.h5').exists()


def test_features_of_another_content_are_said(twins):
    run = lambda source, **how: extract(Small(), twins / source, twins / 'f', batch=2, **how)
    assert not run('a/videos').notes
    note = {'x.mp4': 'replaces features of another content'}
    assert run('b/videos').notes == note and not run('b/videos').notes
    write(twins / 'b' / 'videos' / 'x.mp4', range(40))  # edited in place
    assert run('b/videos').notes == note
    padded = Settings(on_short='pad')
    write(twins / 'b' / 'videos' / 'x.mp4', range(9))
    notes = run('b/videos', settings=padded).notes
    assert notes['x.mp4'].startswith('padded: ') and note['x.mp4'] in notes['x.mp4']


def test_features_of_another_file_are_kept(twins):
    for name in 'ab':
        (twins / f'{name}.txt').write_text(f'../{name}/videos/x.mp4\n')
    (twins / 'lists').mkdir()
    run = lambda name: extract(
        Small(), twins / f'{name}.txt', twins / 'f', root=twins / 'lists', batch=2
    )
    run('a')
    before = (twins / 'f' / 'x.npy').read_bytes()
    with pytest.raises(InputError, match=r'of ../a/videos/x.mp4, not of ../b/videos/x.mp4'):
        run('b')
    assert (twins / 'f' / 'x.npy').read_bytes() == before
    shutil.copy(twins / 'a' / 'videos' / 'x.mp4', twins / 'b' / 'videos' / 'x.mp4')
    assert run('b').kept == ['../b/videos/x.mp4']  # one content under two names


@pytest.mark.parametrize('policy, kind', [('skip', 'skipped'), ('error', 'failed')])
@pytest.mark.parametrize('spoilt', ['short', 'broken'])
def test_no_features_of_an_older_video_are_left(twins, policy, kind, spoilt):
    video, out, listed = twins / 'a' / 'videos' / 'x.mp4', twins / 'f', twins / 'l.txt'
    listed.write_text('x.mp4\n')
    how = dict(root=video.parent, batch=2)
    run = lambda: extract(Small(), listed, out, Settings(on_short=policy), **how)
    run()
    content = video.read_bytes()
    video.unlink()
    report = run()  # a video that is away takes nothing with it
    assert list(report.failed) == ['x.mp4'] and load(out / 'x.npy')
    video.write_bytes(content)
    assert run().kept == ['x.mp4']
    if spoilt == 'short':
        write(video, range(9))
    else:
        video.write_bytes(b'no video')
    report = run()
    assert list(getattr(report, kind if spoilt == 'short' else 'failed')) == ['x.mp4']
    assert report.notes == {'x.mp4': 'features of another content are removed'}
    assert not list(out.glob('x.*'))
    assert not run().notes


# --- copies


def test_copies_of_another_file_are_said(twins):
    out = twins / 'copies'
    run = lambda root: called(
        data_app, 'standardize', root, out, '--workers', 1, '--short-side', 16, '--fps', 5
    )
    note = 'note: x.mp4: replaces a copy of another file, or of an earlier one'
    assert note not in run(twins / 'a' / 'videos')[1]
    assert note not in run(twins / 'a' / 'videos')[1]
    assert note in run(twins / 'b' / 'videos')[1].splitlines()
    shutil.move(twins / 'a' / 'videos' / 'x.mp4', twins / 'a' / 'videos' / 'x.mkv')
    before = (out / 'x.mp4').read_bytes()
    code, _, said = run(twins / 'a' / 'videos')
    assert code and 'of x.mp4, not of x.mkv' in said
    assert (out / 'x.mp4').read_bytes() == before
    (out / 'x.mp4').unlink()
    for _ in range(2):
        assert run(twins / 'a' / 'videos')[0] == 0
    assert 'of x.mkv, not of x.mp4' in run(twins / 'b' / 'videos')[2]

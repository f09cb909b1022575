"Properties and faults of the core room that a page has no room for."

import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.core.files import InputError, atomic, data_root, locked, project_dir
from vidrepro.core.random import GAMMA, generator, hash_uniform
from vidrepro.core.results import LIMIT, list_runs, load_run, save_run, thin

FACTS = dict(seed=0, protocol={}, data={}, device='cpu', seconds=1)


def mix(z):
    "The finaliser of splitmix64 on Python integers, which never overflow."
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@given(
    st.integers(-(2**70), 2**70),
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_hash_uniform_is_its_formula(seed, index, slots):
    u = hash_uniform(seed, torch.tensor(index), slots)
    for row, i in zip(u, index):
        key = mix((seed + (i + 1) * GAMMA) % 2**64)
        assert row.tolist() == [
            (mix((key + (s + 1) * GAMMA) % 2**64) >> 11) / 2**53 for s in range(slots)
        ]


@given(
    st.lists(st.one_of(st.integers(0, 3), st.text('ab,"', max_size=3)), max_size=3),
    st.lists(st.one_of(st.integers(0, 3), st.text('ab,"', max_size=3)), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_generator_names(one, other):
    same = generator(*one).initial_seed() == generator(*other).initial_seed()
    assert same is (one == other)


@given(st.integers(0, 2000), st.integers(2, 300))
@settings(max_examples=200, deadline=None)
def test_thin(n, most):
    kept = thin(list(range(n)), most)
    assert len(kept) == min(n, most) and kept == sorted(set(kept))
    assert not n or (kept[0], kept[-1]) == (0, n - 1)


@given(st.text(max_size=300), st.text(max_size=300))
def test_input_error_is_one_line(what, value):
    error = pickle.loads(pickle.dumps(InputError(what, value, 'do this')))
    assert str(error).endswith('; do this') and len(str(error).splitlines()) == 1


WRITER = '''
import sys
from vidrepro.core.files import atomic
for _ in range(40):
    with atomic(sys.argv[1]) as temp: temp.write_text(sys.argv[2] * 10_000)
'''


def test_two_writers(tmp_path):
    path = tmp_path / 'page'
    writers = [
        subprocess.Popen([sys.executable, '-c', WRITER, str(path), letter]) for letter in 'ab'
    ]
    seen = set()
    while any(w.poll() is None for w in writers):
        if path.exists():
            seen.add(path.read_text())
        time.sleep(0.001)
    assert [w.returncode for w in writers] == [0, 0]
    assert seen <= {'a' * 10_000, 'b' * 10_000} and os.listdir(tmp_path) == ['page']


def test_folder_survives_a_failed_swap(tmp_path, monkeypatch):
    with atomic(tmp_path / 'bundle') as temp:
        temp.mkdir()
        (temp / 'old').write_text('old')
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError('disk')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(OSError, match='disk'), atomic(tmp_path / 'bundle') as temp:
        temp.mkdir()
        (temp / 'new').write_text('new')
    assert os.listdir(tmp_path) == ['bundle'] and os.listdir(tmp_path / 'bundle') == ['old']


def test_project_of_somebody_else(tmp_path, monkeypatch):
    "A settings file of another package, or of none, is no project of ours."
    (tmp_path / 'sub').mkdir()
    for words in ('[DEFAULT]\nlib_name = theirs\n', '', '[x]\nlib_name = vidrepro', 'lib_name'):
        (tmp_path / 'settings.ini').write_text(words)
        assert project_dir(tmp_path / 'sub') is None
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\nlib_name = vidrepro\nx = %(y)s\n')
    assert project_dir(tmp_path / 'sub') == tmp_path.resolve()


@given(name=st.text(min_size=1, max_size=255).filter(lambda n: not set(n) & set('/\0')))
@settings(max_examples=60, deadline=None)
def test_any_legal_name_can_be_written(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp('names', numbered=True)
    try:
        (folder / name).touch()
    except (OSError, UnicodeEncodeError):
        return  # not legal here
    if (folder / name).is_dir():
        return
    with atomic(folder / name) as temp:
        assert temp.parent.resolve() == folder.resolve() and len(os.fsencode(temp.name)) < 90
        temp.write_text('whole')
    assert os.listdir(folder) == [name] and (folder / name).read_text() == 'whole'


def test_locks_of_forked_children(tmp_path):
    "A child that is forked under a lock does not hold it after its parent let go, once it has ended."
    with locked(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(0.1)
            os._exit(0)
        with pytest.raises(InputError, match='another process'), locked(tmp_path):
            pass
    os.waitpid(child, 0)
    with locked(tmp_path), pytest.raises(InputError), locked(tmp_path, '0-of-2'):
        pass


def test_card_of_a_used_name_is_refused(tmp_path):
    with pytest.raises(TypeError):
        save_run('a', {}, {}, [], root=tmp_path, **FACTS, env={})
    assert list_runs(root=tmp_path) == []


@pytest.mark.parametrize(
    'value',
    [
        float('nan'),
        float('inf'),
        np.float32('nan'),
        torch.tensor(float('-inf')),
        [1.0, float('nan')],
    ],
)
@pytest.mark.parametrize('field', ['config', 'metrics', 'protocol', 'data'])
def test_no_card_of_a_run_that_diverged(tmp_path, field, value):
    bad = dict(x=dict(y=value)) if field == 'protocol' else dict(x=value)
    card = dict(dict(FACTS, config={}, metrics={}, curve=[]), **{field: bad})
    with pytest.raises(InputError, match=rf'{field}\.x'):
        save_run('a', root=tmp_path, **card)
    assert not list(tmp_path.iterdir())


def test_long_curve_fits(tmp_path):
    rows = [dict(step=i, loss=1 / (i + 1), rate=1e-3, grad=0.123456789) for i in range(100_000)]
    path = save_run('a/b', {}, {}, rows, root=tmp_path, **FACTS)
    last = load_run('a/b', {}, tmp_path)['curve'][-1]
    assert path.stat().st_size < LIMIT and last == pytest.approx(rows[-1], rel=1e-3)


def test_message_names_the_first_difference(tmp_path):
    save_run('a', dict(model=dict(width=16, depth=2)), {}, [], root=tmp_path, **FACTS)
    with pytest.raises(
        InputError, match=r'config\.model\.depth = 2 in the card, 3 asked'
    ) as caught:
        load_run('a', dict(model=dict(width=32, depth=3)), tmp_path)
    assert 'width' not in str(caught.value)


def test_results_without_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('VIDREPRO_DATA', raising=False)
    assert project_dir() is None and data_root() is None
    path = save_run('a', {}, {}, [], **FACTS)
    assert path.resolve() == (tmp_path / 'results' / 'a.json').resolve()
    assert json.loads(path.read_text())['seed'] == 0

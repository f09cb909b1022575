"Run cards: the second edition holds what the first held, in a tenth of the lines, and the hits of every test video."

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidrepro.core.files import InputError, project_dir
from vidrepro.core.results import (
    list_runs,
    load_run,
    pack_hits,
    renew,
    results_dir,
    save_run,
    thin,
    unpack_hits,
)

FIRST = '1c3f036'  # the last commit whose cards are of the first edition
FACTS = dict(seed=0, protocol={}, data={}, device='cpu', seconds=1)


def first_edition():
    "Cards as they were, by name; nothing in a shallow clone."
    command = ['git', 'archive', '--format=tar', FIRST, 'results']
    got = subprocess.run(command, cwd=project_dir(), capture_output=True)
    if got.returncode:
        return {}
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(got.stdout)) as tar:
        members = [m for m in tar if m.name.endswith('.json')]
        name = lambda m: m.name.removeprefix('results/').removesuffix('.json')
        return {name(m): json.loads(tar.extractfile(m).read()) for m in members}


def near(was, now):
    "Curves of four digits."
    assert was.keys() == now.keys()
    for key, value in was.items():
        assert now[key] == (pytest.approx(value, rel=6e-4) if isinstance(value, float) else value)


def test_nothing_but_the_curve_has_changed():
    old, here = first_edition(), set(list_runs())
    if not old:
        pytest.skip('the commit of the first edition is not in this clone')
    for name in old.keys() & here:
        was, now = dict(old[name]), load_run(name, old[name]['config'])
        if now.get('hits') or now['seconds'] != was['seconds']:
            continue  # run again since
        a, b = thin(was.pop('curve')), now.pop('curve')
        assert now == was and len(a) == len(b)
        [near(*rows) for rows in zip(a, b)]
    assert len(old.keys() & here) > 200


def test_a_tenth_of_the_lines():
    texts = [p.read_text() for p in results_dir().rglob('*.json')]
    assert sum(t.count('\n') for t in texts) < 16 * len(texts) < 29_600
    assert all(json.loads(t)['edition'] == 2 for t in texts)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)
    | st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=300)
)
def test_hits_come_back(numbers):
    x = np.array(numbers)
    of, back = unpack_hits(dict(hits=dict(m=pack_hits('videos', x))), 'm')
    assert len(of) == 12 and back.shape == x.shape
    np.testing.assert_allclose(back, x, atol=np.ptp(x) / 509 + 1e-9, rtol=0)
    if set(numbers) <= {0.0, 1.0}:
        assert (back == x).all() and back.mean() == x.mean()


def test_hits_of_other_videos_are_others():
    one, two, same = (pack_hits(v, [0, 1])['of'] for v in ('a 0', 'a 1', 'a 0'))
    assert one == same != two


def test_card_of_a_thousand_videos_is_small(tmp_path):
    rng = np.random.default_rng(0)
    hits = {f'R@{k}': ('test', rng.integers(0, 2, 1000)) for k in range(20)}
    hits |= {f'AUC {k}': ('test', rng.normal(size=1000)) for k in range(5)}
    path = save_run('a/b', {}, {}, [], hits=hits, root=tmp_path, **FACTS)
    assert path.stat().st_size < 20_000
    card = load_run('a/b', {}, tmp_path)
    for name, (_, x) in hits.items():
        np.testing.assert_allclose(unpack_hits(card, name)[1], x, atol=np.ptp(x) / 509)


def test_renewed_card_is_still_refused(tmp_path):
    (tmp_path / 'old.json').write_text(
        json.dumps(dict(config=dict(tau=0.1), metrics={}, curve=[], **FACTS), indent=1)
    )
    assert renew(tmp_path) == ['old'] and renew(tmp_path) == []
    assert load_run('old', dict(tau=0.1), tmp_path)['seed'] == 0
    with pytest.raises(InputError, match='tau = 0.1 in the card, 0.2 asked'):
        load_run('old', dict(tau=0.2), tmp_path)
    assert len(Path(tmp_path / 'old.json').read_text().splitlines()) < 12

"Floors, an SVM without a unit, recordings, features to take away: against loops and second libraries."

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.svm import LinearSVC

from vidrepro.core.files import InputError, atomic
from vidrepro.core.random import generator
from vidrepro.data import near_duplicates as near
from vidrepro.data.datasets import from_folder
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.evaluation import probes
from vidrepro.evaluation.baselines import extract_all, floors
from vidrepro.evaluation.comparison import paired
from vidrepro.runs.scores import save_embeddings, tenths

torch.set_num_threads(1)


def clouds(n, seed, k=3, d=12):
    label = torch.arange(n) % k
    x = torch.eye(k, d)[label] + torch.randn(n, d, generator=generator(seed))
    return x.double(), label


@pytest.mark.parametrize('scale', [1e-3, 1.0, 100.0, 1000.0])
def test_scaled_svm_has_no_unit(scale):
    (x, y), (test, _) = clouds(90, 1), clouds(60, 2)
    plain, how = probes.scaled_svm(x, y, test)
    again, same = probes.scaled_svm(x * scale, y, test * scale)
    assert torch.equal(plain, again) and how == same
    mean, std = x.mean(0), x.std(0, unbiased=False)
    model = LinearSVC(C=how['C'], dual=False, max_iter=10000).fit(((x - mean) / std).numpy(), y)
    assert plain.tolist() == model.predict(((test - mean) / std).numpy()).tolist()


def test_inner_folds_keep_groups_whole():
    _, y = clouds(90, 1)
    groups = torch.arange(90) // 5
    folds = probes.inner_folds(y, groups)
    assert len(folds) == 3 and sorted(np.concatenate([b for _, b in folds])) == list(range(90))
    for a, b in folds:
        assert not set(groups[a].tolist()) & set(groups[b].tolist())


def test_tenths_keep_groups_whole():
    groups = torch.randint(0, 37, (200,), generator=generator('groups'))
    parts = tenths(groups)
    assert len(parts.unique()) == 10
    assert all(len(parts[groups == g].unique()) == 1 for g in groups.unique())


def test_one_reading_for_all_floors():
    source = MovingDigits(n=5, length=16)
    frames = torch.arange(4).expand(5, 2, 4)
    found = extract_all(floors(), source, frames, probes.unit_range, 4)
    for name, net in floors().items():
        alone = probes.extract(net, source, frames, probes.unit_range).mean(1)
        torch.testing.assert_close(found[name], alone)


@pytest.mark.parametrize('seed', range(3))
def test_components(seed):
    linked = torch.rand(50, 50, generator=generator(seed)) < 0.02
    theirs = connected_components((linked | linked.T).numpy(), directed=False)[1]
    mine = near.components(linked.nonzero(), 50).numpy()
    assert ((mine[:, None] == mine) == (theirs[:, None] == theirs)).all()


def test_copies_stay_together_whatever_joins(tmp_path):
    "A file under another size is on the side of its source, and others do not move."
    write_videos(MovingDigits(n=8, size=64, length=16, motions=('left', 'right')), tmp_path, 15)
    first = near.divided(from_folder(tmp_path))
    assert not first.found.remarks and set(first.table.group) == {''}
    given = from_folder(tmp_path, group_by='folder')
    assert near.divided(given).found.remarks == []


def test_paired_is_the_mean_difference_and_refuses_others():
    a, b = torch.tensor([1.0, 0, 1, 1]), torch.tensor([0.0, 0, 1, 0])
    found = paired(a, b)
    assert found.value == pytest.approx(0.5) and found.low <= found.value <= found.high
    with pytest.raises(InputError, match='same videos'):
        paired(a, b[:3])


def test_embeddings_are_read_in_a_line(tmp_path):
    items = lambda p: pd.DataFrame(dict(path=[f'{p}{i}' for i in range(3)], group='g'))
    part = lambda p: SimpleNamespace(
        items=items(p), classes=('x', 'y'), labels=torch.tensor([0, 1, -1])
    )
    keep = {p: (part(p), torch.randn(3, 2, 4)) for p in ('train', 'test')}
    z = np.load(save_embeddings(tmp_path / 'f.npz', keep)[0])
    assert (
        z['label'].tolist() == ['x', 'y', ''] * 2
        and z['split'].tolist() == ['train'] * 3 + ['test'] * 3
    )
    np.testing.assert_allclose(z['clips'].mean(1), z['videos'], rtol=1e-5, atol=1e-6)
    table = pd.read_csv(save_embeddings(tmp_path / 'f.csv', keep)[0], keep_default_na=False)
    np.testing.assert_allclose(table[['f0', 'f1', 'f2', 'f3']], z['videos'], rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match='npz'):
        save_embeddings(tmp_path / 'f.txt', keep)


def test_files_can_be_read_by_others(tmp_path):
    with atomic(tmp_path / 'x') as f:
        f.write_text('x')
        f.chmod(0o600)
    usual = tmp_path / 'y'
    usual.write_text('y')
    assert (tmp_path / 'x').stat().st_mode == usual.stat().st_mode
    assert {p.name for p in tmp_path.iterdir()} == {'x', 'y'}


MEMORY = """
import resource, sys, torch
from vidrepro.clips.contract import Clip
from vidrepro.evaluation.baselines import floors
from vidrepro.runs.scores import seen_by
torch.set_num_threads(1)
class Videos:
    def __init__(self, n): self.lengths = torch.full((n,), 60)
    def __len__(self): return len(self.lengths)
    def clips(self, index, frames): return torch.randint(0, 255, (*frames.shape[:2], 3, frames.shape[2], 112, 112), dtype=torch.uint8)
seen_by({'': floors()['pixels'], **floors()}, Clip(16), Videos(int(sys.argv[1])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_videos():
    peak = lambda n: int(subprocess.check_output([sys.executable, '-c', MEMORY, str(n)])) / 1024
    assert peak(48) - peak(12) < 120  # MB; the clips of 36 more videos are 217

"Every shape and type annotation of the package is checked while the tests run."

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

import pytest
from jaxtyping import install_import_hook

install_import_hook(
    'vidrepro', 'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))'
)


DEAR = {'two', 'trained', 'everything', 'world', 'two_runs'}  # fixtures of a module


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "What takes long to make is made by one worker: tests that share it run there."
    for item in items:
        if DEAR & set(getattr(item, 'fixturenames', ())):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope='session', autouse=True)
def few_threads():
    "Workers share the cores: one thread each."
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def data_dir():
    "Real videos and annotation files, which are never part of the repository."
    from vidrepro.core.files import data_root

    root = data_root()
    if root is None:
        pytest.skip('no real videos here: set VIDREPRO_DATA to their folder')
    return root

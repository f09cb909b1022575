"The book builds as web pages."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_book_builds(tmp_path):
    "Every page, without an error, from a copy of the tree."
    pytest.importorskip('myst_nb', reason="the book needs pip install -e '.[docs]'")
    copy = tmp_path / ROOT.name
    skip = shutil.ignore_patterns(
        '.git', '.venv', '_docs', '_proc', '_site_src', 'runs', '__pycache__'
    )
    shutil.copytree(ROOT, copy, ignore=skip)
    env = dict(os.environ, PYTHONPATH=str(copy))
    done = subprocess.run(
        [sys.executable, 'docs.py'], cwd=copy, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    pages = {
        p.relative_to(copy / '_docs').with_suffix('') for p in (copy / '_docs').rglob('*.html')
    }
    book = {p.relative_to(copy / 'nbs').with_suffix('') for p in (copy / 'nbs').rglob('*.ipynb')}
    assert book <= pages, sorted(map(str, book - pages))

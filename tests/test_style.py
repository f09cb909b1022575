"One dialect: whatever ruff formats and checks, it finds as it wants it."

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ['nbs', 'tests', 'benchmarks', 'docs.py', 'setup.py']


@pytest.mark.parametrize('words', [['format', '--check'], ['check']], ids=['format', 'lint'])
def test_ruff(words):
    ruff = Path(sys.executable).with_name('ruff')
    tool = str(ruff) if ruff.exists() else shutil.which('ruff')
    if not tool:
        pytest.skip('ruff is not installed')
    done = subprocess.run(
        [tool, *words, '--quiet', *CODE], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]

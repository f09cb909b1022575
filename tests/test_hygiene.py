"No file of the repository speaks of the machine it was written on, and none is large."

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Written so that this file does not match its own pattern.
PATHS = re.compile(r'(?<![\w.:/])/(?:work|tmp|home|root|Users|opt|mnt|private)(?:/|\b)')
TEXT = set('.py .ipynb .md .ini .toml .in .json .yml .yaml .txt .cfg'.split()) | {''}


def tracked():
    "Text files that git knows or would add."
    words = ['git', 'ls-files', '-co', '--exclude-standard', '-z']
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    names = run.stdout.split('\0') if run.returncode == 0 else []
    return [ROOT / n for n in names if n and Path(n).suffix in TEXT and (ROOT / n).is_file()]


def words_of(path):
    "Lines of a file; images inside notebooks are letters without meaning."
    text = path.read_text(encoding='utf-8')
    return re.sub(r'"image/\w+": ".*"', '', text) if path.suffix == '.ipynb' else text


def test_no_paths():
    files = tracked()
    if not files:
        pytest.skip('not a git checkout')
    bad = [
        f'{p.relative_to(ROOT)}: {line.strip()[:100]}'
        for p in files
        if p.name != 'LICENSE'
        for line in words_of(p).splitlines()
        if PATHS.search(line)
    ]
    assert not bad, '\n'.join(bad)


@pytest.mark.parametrize(
    'text, found',
    [
        ('open("' + '/' + 'tmp/x")', True),
        ('cd ' + '/' + 'work', True),
        ('https://x.org/home/page', False),
        ('nbs/tmp_file', False),
    ],
)
def test_pattern(text, found):
    assert bool(PATHS.search(text)) is found


def test_small():
    "Run cards and pictures, never weights or videos."
    assert not [p.name for p in map(Path, tracked()) if p.stat().st_size > 700 * 1024]
    kept = ('.json', '.md', '.png', '')
    files = (p for p in ROOT.glob('results/**/*') if p.is_file())
    assert not [p for p in files if p.suffix not in kept]


def test_hooks_leave_no_trace(tmp_path):
    "`make hooks` lets git merge notebooks cell by cell and Jupyter save them clean; git sees nothing new."
    if not (shutil.which('nbdev_install_hooks') and tracked()):
        pytest.skip('no nbdev, or not a git checkout')
    call = dict(cwd=tmp_path, env=dict(os.environ, HOME=str(tmp_path)), capture_output=True)
    subprocess.run(['git', 'init', '-q', 'clone'], check=True, **call)
    call['cwd'] = tmp_path / 'clone'
    for name in ('.gitignore', '.gitattributes', 'settings.ini'):
        shutil.copy(ROOT / name, call['cwd'])
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', 'add', '-A'], check=True, **call)
    subprocess.run(['git', *who, 'commit', '-qm', 'all'], check=True, **call)
    subprocess.run(['nbdev_install_hooks'], check=True, **call)
    settings = subprocess.run(['git', 'config', '--get-regexp', 'merge'], text=True, **call).stdout
    status = subprocess.run(['git', 'status', '--porcelain'], text=True, **call).stdout
    assert 'nbdev_merge' in settings and status == ''
    assert list((tmp_path / '.jupyter').glob('jupyter_*_config.py'))

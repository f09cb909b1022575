"No file of the repository speaks of the machine or the circumstances it was written in."

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Written so that this file does not match its own patterns.
PATHS = re.compile(r'(?<![\w.:/])/(?:work|tmp|home|root|Users|opt|mnt|private)(?:/|\b)')
WORDS = re.compile(
    r'\b(?:cl[a]ude|anthr[o]pic|chat[g]pt|open[a]i|co[p]ilot|(?:coding|ai|llm)[ -]a[g]ents?|as an a[i]|br[i]ef\.md|'
    r'design\.m[d]|style\.m[d]|ki[t]/|fact she[e]ts?|(?-i:T[O]DO|F[I]XME|X[X]X))\b',
    re.I,
)
TEXT = {
    '.py',
    '.ipynb',
    '.md',
    '.ini',
    '.toml',
    '.in',
    '.json',
    '.yml',
    '.yaml',
    '.txt',
    '.cfg',
    '',
}


def tracked():
    "Text files that git knows or would add."
    run = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = run.stdout.split('\0') if run.returncode == 0 else []
    return [ROOT / n for n in names if n and Path(n).suffix in TEXT and (ROOT / n).is_file()]


def words_of(path):
    "Lines of a file; images inside notebooks are letters without meaning."
    text = path.read_text(encoding='utf-8')
    return re.sub(r'"image/\w+": ".*"', '', text) if path.suffix == '.ipynb' else text


@pytest.mark.parametrize('pattern', [PATHS, WORDS], ids=['paths', 'words'])
def test_files(pattern):
    files = tracked()
    if not files:
        pytest.skip('not a git checkout')
    bad = [
        f'{p.relative_to(ROOT)}: {line.strip()[:100]}'
        for p in files
        if p.name != 'LICENSE'
        for line in words_of(p).splitlines()
        if pattern.search(line)
    ]
    assert not bad, '\n'.join(bad)


@pytest.mark.parametrize(
    'text, found',
    [
        ('open("' + '/' + 'tmp/x")', True),
        ('cd ' + '/' + 'work', True),
        ('a ' + 'TO' + 'DO', True),
        ('https://x.org/home/page', False),
        ('nbs/tmp_file', False),
        ('method, todo, xxx', False),
    ],
)
def test_patterns(text, found):
    assert bool(PATHS.search(text) or WORDS.search(text)) is found


def test_small():
    "Run cards and pictures, never weights or videos."
    assert not [p.name for p in map(Path, tracked()) if p.stat().st_size > 700 * 1024]
    assert not [
        p
        for p in ROOT.glob('results/**/*')
        if p.is_file() and p.suffix not in ('.json', '.md', '.png', '')
    ]

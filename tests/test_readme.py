"What README tells people to type works."

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', TEXT, re.S)


def test_python():
    "The blocks run one after another, as in one notebook."
    names = {}
    assert len(blocks('python')) >= 2
    for block in blocks('python'):
        exec(compile(block, 'README.md', 'exec'), names)
    assert names['features'].shape[:2] == (8, 3)


def test_commands():
    "Every `vidrepro` command named there exists."
    lines = [
        shlex.split(line, comments=True) for block in blocks('sh') for line in block.splitlines()
    ]
    verbs = {line[1] for line in lines if line[:1] == ['vidrepro'] and not line[1].startswith('-')}
    for verb in ['', *sorted(verbs)]:
        run = subprocess.run(
            [sys.executable, '-m', 'vidrepro', *filter(None, [verb]), '--help'],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr


def test_make():
    "Every `make` target named there exists."
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))
    named = set(re.findall(r'(?:^|`)make ([a-z]+)', TEXT, re.M))
    assert {'demo', 'test'} <= named <= targets

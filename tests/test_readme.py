"What README tells people to type works."

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from vidrepro.cli.main import main
from vidrepro.digits.moving_digits import MovingDigits, write_videos
from vidrepro.experiments.front import all_verdicts
from vidrepro.experiments.scoreboard import markdown, readme, scoreboard

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', TEXT, re.S)


@pytest.fixture
def my_videos(tmp_path, monkeypatch):
    "A working directory with films, two in a folder for each class."
    for name, seed in (('left', 0), ('right', 1)):
        write_videos(MovingDigits(2, size=48, length=40, seed=seed), tmp_path / 'my_videos' / name)
    monkeypatch.chdir(tmp_path)


def test_python(my_videos):
    "The blocks run one after another, as in one notebook."
    names = {}
    assert len(blocks('python')) >= 2
    for block in blocks('python'):
        exec(compile(block, 'README.md', 'exec'), names)
    assert names['features'].shape[:2] == (4, 3)


def test_made_from_index():
    "README and index cannot disagree."
    assert TEXT == readme(ROOT / 'nbs' / 'index.ipynb'), 'run make sync'


def test_scoreboard_is_not_stale():
    "What the cards say today is what README prints."
    assert markdown(scoreboard()) in TEXT, 'run nbs/index.ipynb again, then make sync'


def test_questions_are_not_stale():
    "So it is with the questions of readers, whose pages exist and whose claims are statements."
    cells = json.loads((ROOT / 'nbs/experiments/103_questions.ipynb').read_text())['cells']
    shown = [''.join(o['data'].get('text/markdown', '')) for c in cells
             for o in c.get('outputs', ()) if 'data' in o]  # fmt: skip
    text = '\n'.join(shown)
    verdicts = all_verdicts()
    said = re.findall(r'^- `(.+?)`.*? \*([^*]+)\* · ', text, re.M)
    assert len(said) > 50 and text.count('→') > 30
    wrong = [(n, w, verdicts[n].word) for n, w in said if verdicts[n].word != w]
    assert not wrong, f'run the page again: {wrong}'
    pages = re.findall(r'\]\(\.\./([^)]+)\)', text)
    assert pages and all((ROOT / 'nbs' / p).is_file() for p in pages)


def test_commands(monkeypatch, capsys):
    "Every `vidrepro` command named there exists."
    lines = [
        shlex.split(line, comments=True) for block in blocks('sh') for line in block.splitlines()
    ]
    verbs = {line[1] for line in lines if line[:1] == ['vidrepro'] and not line[1].startswith('-')}
    assert len(verbs) > 8
    for verb in verbs:
        monkeypatch.setattr(sys, 'argv', ['vidrepro', verb, '--help'])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert not stop.value.code and f'vidrepro {verb}' in shown.out, shown.out + shown.err


def test_make():
    "Every `make` target named there exists."
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))
    named = set(re.findall(r'(?:^|`)make ([a-z]+)', TEXT, re.M))
    assert {'demo', 'test'} <= named <= targets, named - targets


def test_contributing():
    "So does every target that CONTRIBUTING names."
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))
    named = set(re.findall(r'(?:^|`)make ([a-z]+)', text, re.M))
    assert {'test', 'sync', 'hooks', 'weights'} <= named <= targets, named - targets


def test_nbdev_prepare_leaves_readme_alone():
    "nbdev would have Quarto make another README: the notebook that it looks for is not there."
    from nbdev.config import get_config

    cfg = get_config(path=ROOT)
    assert not (cfg.nbs_path / cfg.readme_nb).exists()

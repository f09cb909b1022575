"What the package does without: a decoder where videos are painted, torch where only help is asked for."

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def child(*words):
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PAINT = """
import sys
sys.modules |= dict.fromkeys(('av', 'cv2', 'h5py'))
import tempfile
from vidrepro.runs import execute, videos
from vidrepro.runs.methods import pick_preset
from vidrepro.runs.run import Run
videos.PAINTED |= dict(train=(60, 1, 'train'), test=(60, 2, 'test'))
small = dict(videos=16, length=64, batch=8, frames=4, steps=2, warmup=1, hidden=16, dim=8)
run = Run('x', 'tec', pick_preset('tec', 'tiny', **small))
with tempfile.TemporaryDirectory() as home:
    card = execute.execute(run, home, 'cpu', quiet=True, root=home)
print(len(card['metrics']) > 5, card['curve'][-1]['step'])
"""


def test_painted_videos_are_trained_on_and_scored_without_a_decoder():
    assert child('-c', PAINT).split() == ['True', '2']


HELP = """
import resource, runpy, sys
sys.argv = ['vidrepro', '--help']
try:
    runpy.run_module('vidrepro', run_name='__main__')
except SystemExit as end:
    assert not end.code
heavy = {'torch', 'pandas', 'numpy', 'av', 'sklearn', 'matplotlib'} & {*sys.modules}
print('|', sorted(heavy), resource.getrusage(resource.RUSAGE_SELF).ru_utime)
"""


def test_help_is_quick():
    "In the processor's seconds, so that a busy machine is no excuse; and without what is heavy."
    heavy, seconds = child('-c', HELP).rsplit('|', 1)[1].split()
    assert heavy == '[]' and float(seconds) < 1


def test_types_are_shipped():
    "The mark by which type checkers read the annotations of an installed package."
    assert (ROOT / 'vidrepro' / 'py.typed').is_file()
    assert "'py.typed'" in (ROOT / 'setup.py').read_text(encoding='utf-8')

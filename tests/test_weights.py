"Networks that come with the package are what their cards say."

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vidrepro
from vidrepro.core.results import load_run
from vidrepro.digits.moving_digits import MovingDigits
from vidrepro.runs.weights import RELEASED, SHIPPED, Encoder, agreement, model_card, shipped

ROOT = Path(__file__).parents[1]


def test_small():
    "The package stays under 20 MB, and half precision is what is stored."
    files = list(SHIPPED.rglob('*.safetensors'))
    assert files and sum(f.stat().st_size for f in files) < 20e6
    kinds = {v.dtype for f in files for v in load_file(f).values() if v.is_floating_point()}
    assert kinds == {torch.float16}
    assert set(shipped()) <= set(RELEASED)


@pytest.mark.parametrize('name', shipped())
def test_belongs_to_its_card(name):
    "Settings are the card's, scores are those of the row, the model card is drawn from the record."
    about = json.loads((SHIPPED / name / 'config.json').read_text())
    assert about['settings'] == load_run(name)['config']
    assert agreement(name, dict(metrics=about['scores'])).agrees.all()
    assert (SHIPPED / name / 'README.md').read_text(encoding='utf-8') == model_card(about)
    encoder = vidrepro.load(name)
    assert isinstance(encoder, Encoder) and not encoder.training
    assert encoder.features(MovingDigits(2), n_clips=1).isfinite().all()


def test_trained_networks_know_more_than_a_random_one():
    "A cheap oracle: with the weights, motion is retrieved better than with those before training."
    from vidrepro.evaluation.retrieval import neighbours
    from vidrepro.runs.run import fill

    name = 'tec/tiny/full-s0'
    encoder = vidrepro.load(name)
    a, b = MovingDigits(200, split='test', seed=7), MovingDigits(400, seed=8)

    def hits():
        query, gallery = (encoder.features(s, n_clips=2).mean(1) for s in (a, b))
        return (b.labels[neighbours(query, gallery, 1)[:, 0]] == a.labels).float().mean().item()

    trained = hits()
    encoder.network.load_state_dict(fill(encoder.run).state_dict())
    assert trained > hits() + 0.03


def test_hub_conventions(tmp_path):
    "`from_pretrained` reads what `save_pretrained` wrote, and `torch.hub` finds the same network."
    encoder = vidrepro.load(shipped()[0])
    again = Encoder.from_pretrained(encoder.save_pretrained(tmp_path / 'mine'))
    hub = torch.hub.load(str(ROOT), 'encoder', shipped()[0], source='local')
    for k, v in encoder.state_dict().items():
        torch.testing.assert_close(again.state_dict()[k], v)
        torch.testing.assert_close(hub.state_dict()[k], v)

"Promises of TSP for any draw, against the released tables, and through an interrupted run; the notebook checks chosen cases."

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vidrepro.clips import transforms
from vidrepro.core.files import InputError
from vidrepro.core.random import generator
from vidrepro.data.annotations import read_tsp_csv, write_activitynet
from vidrepro.data.video import read_clips
from vidrepro.digits.moving_digits import MovingDigits, write_video
from vidrepro.digits.untrimmed import THUMOS14_SHORTEST, Script, Segments, UntrimmedDigits, compose
from vidrepro.experiments.tables import suites
from vidrepro.learning.train import Batches, Callback, Checkpoint, Learner, Schedule
from vidrepro.models.backbones import backbone
from vidrepro.models.checkpoints import released_keys
from vidrepro.papers import tsp
from vidrepro.papers.tsp import TSP, Config, Views
from vidrepro.papers.tsp_scores import score_backbone, touching
from vidrepro.papers.tsp_tables import PLACES, prepare

repeat = settings(max_examples=40, deadline=None, derandomize=True)
SMALL = Config(videos=12, batch=8, steps=6, warmup=2)


class Fixed(torch.nn.Module):
    "A network whose answers are given."

    def __init__(self, *logits):
        super().__init__()
        self.logits = logits

    def forward(self, clips, gvf):
        return self.logits


def blank(labels):
    return Views(torch.zeros(len(labels), 3, 1, 1, 1), labels)


@repeat
@given(
    st.lists(st.integers(-1, 7), min_size=1, max_size=12),
    st.floats(0, 4),
    st.floats(0.1, 4),
    st.sampled_from(['foreground', 'all']),
    st.integers(0, 999),
)
def test_loss_is_the_sum_over_clips(labels, alpha, beta, average, seed):
    cfg, draw = Config(action=alpha, region=beta, average=average), generator('loss', seed)
    action, region = (torch.randn(len(labels), k, generator=draw) for k in (8, 2))
    acting = [i for i, y in enumerate(labels) if y >= 0]
    first = sum(-torch.log_softmax(action[i], 0)[labels[i]].item() for i in acting) / (
        max(1, len(acting)) if average == 'foreground' else len(labels)
    )
    second = sum(
        -torch.log_softmax(region[i], 0)[0 if i in acting else 1].item() for i in range(len(labels))
    ) / len(labels)
    value, terms = tsp.loss(Fixed(action, region), blank(torch.tensor(labels)), cfg)
    assert value.item() == pytest.approx(alpha * first + beta * second, rel=1e-4, abs=1e-5)
    assert terms['action'].item() == pytest.approx(first, rel=1e-4, abs=1e-5)
    order = torch.randperm(len(labels), generator=draw)
    again, _ = tsp.loss(
        Fixed(action[order], region[order]), blank(torch.tensor(labels)[order]), cfg
    )
    torch.testing.assert_close(again, value)


def test_background_teaches_no_action():
    "Without foreground the action head gets no gradient, the encoder only that of the region."
    torch.manual_seed(0)
    net = TSP(Config(gvf='none')).train()
    clips, labels = torch.randn(4, 3, 8, 32, 32), torch.full((4,), -1)
    value, terms = tsp.loss(net, Views(clips, labels), Config(gvf='none'))
    value.backward()
    assert terms['action'].item() == 0 and value.isfinite()
    assert (
        not net.action.weight.grad.any()
        and net.region.weight.grad.any()
        and net.backbone.layer3.conv1.weight.grad.any()
    )
    assert net.backbone.stem[0].weight.grad is None


def test_one_head_alone():
    tac, region = (TSP(Config(**{k: 0.0})) for k in ('region', 'action'))
    assert tac.region is None and region.action is None and region.region.in_features == 256
    labels = torch.tensor([1, 2])
    value, terms = tsp.loss(tac, Views(torch.randn(2, 3, 8, 32, 32), labels), Config(region=0.0))
    assert set(terms) == {'action'} and value == terms['action']


@repeat
@given(st.lists(st.integers(16, 90), min_size=1, max_size=8), st.integers(0, 2**31))
def test_clips_stay_inside(lengths, seed):
    cfg, lengths = Config(), torch.tensor(lengths)
    frames = tsp.sample(lengths, generator(seed), cfg).frames
    assert (
        (frames >= 0).all()
        and (frames < lengths[:, None, None]).all()
        and (frames.diff() == cfg.stride).all()
    )


def test_starts_are_uniform():
    frames = tsp.sample(torch.full((4000,), 25), generator('uniform'), Config()).frames[:, 0, 0]
    counts = frames.bincount(minlength=11)
    assert (
        len(counts) == 11 and ((counts - 4000 / 11) ** 2 / (4000 / 11)).sum() < 30
    )  # chi square with 10 degrees: p < 0.001


@repeat
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from([-2, -1, 0, 1])), min_size=1, max_size=7
    ),
    st.integers(1, 5),
)
def test_touching(runs, span):
    line = torch.tensor([label for n, label in runs for _ in range(n)])
    where, across = touching(line, span)
    cuts = [
        i
        for i in range(span, len(line) - span + 1)
        if line[i] != line[i - 1]
        and len(set(line[i - span : i].tolist())) == 1
        and len(set(line[i : i + span].tolist())) == 1
        and line[i] > -2
        and line[i - 1] > -2
    ]
    assert where[across].tolist() == cuts
    for i in where[~across].tolist():
        assert len(set(line[i - span : i + span].tolist())) == 1 and line[i] > -2


def test_segments_of_a_source_that_is_not_painted():
    class Film:
        bad, lengths = [], torch.tensor([9, 7])

        def clips(self, index, frames):
            return (
                (10 * index[:, None, None] + frames)[:, :, None, :, None, None]
                .expand(-1, -1, 3, -1, -1, -1)
                .byte()
            )

        def describe(self):
            return {}

    table = pd.DataFrame(
        [(1, 2, 5, -1), (0, 0, 4, 3)], columns=['video', 'first', 'frames', 'label']
    )
    pieces = Segments(Film(), table, ('a',))
    assert pieces.clips(torch.tensor([0, 1]), torch.tensor([[[0, 4]], [[0, 3]]]))[
        :, :, 0
    ].flatten().tolist() == [12, 16, 0, 3]
    assert pieces.cached().subset(torch.tensor([1])).labels.tolist() == [
        3
    ] and pieces.groups.tolist() == [1, 0]
    with pytest.raises(InputError, match='inside the piece'):
        pieces.clips(torch.tensor([1]), torch.tensor([[[4]]]))
    with pytest.raises(InputError, match='shorter clips'):
        Segments(Film(), table[:0], ())


def test_painted_in_any_order():
    source = UntrimmedDigits(MovingDigits(n=60), Script(3), 9)
    index, frames = torch.tensor([8, 2, 5]), torch.tensor([[[0, 3]], [[20, 1]], [[7, 7]]])
    together = source.clips(index, frames)
    for k in range(3):
        assert torch.equal(
            UntrimmedDigits(MovingDigits(n=60), Script(3), 9).clips(
                index[k : k + 1], frames[k : k + 1]
            )[0],
            together[k],
        )


def fit(cfg, folder, stop=None):
    "Train, perhaps only until `stop`."

    class Stop(Callback):
        order = 40

        def after_step(self, learn):
            if learn.step == stop:
                raise KeyboardInterrupt

    model = tsp.build(cfg)
    source = tsp.context(tsp.videos(cfg, 'pretrain'), model.backbone, cfg)
    calls = [
        Checkpoint(folder / 'checkpoint.safetensors', dict(method='tsp'), every=3),
        Schedule(cfg.lr, cfg.warmup),
        *tsp.callbacks(cfg),
        Stop(),
    ]
    learn = Learner(
        model,
        partial(tsp.loss, cfg=cfg),
        partial(tsp.views, cfg=cfg),
        Batches(
            source,
            partial(tsp.sample, cfg=cfg),
            cfg.batch,
            cfg.seed,
            extras=partial(tsp.extras, cfg=cfg),
        ),
        tsp.optimizer(model, cfg),
        calls,
        device='cpu',
        seed=cfg.seed,
    )
    try:
        learn.fit(cfg.steps)
    except KeyboardInterrupt:
        pass
    return model


@pytest.mark.parametrize(
    'change',
    [{}, dict(optimizer='sgd', lr=0.01, milestones=(2, 5), gamma=0.1)],
    ids=['adamw', 'sgd'],
)
def test_a_resumed_run_is_the_same_run(tmp_path, change):
    cfg = replace(SMALL, **change)
    whole = fit(cfg, tmp_path / 'a').state_dict()
    fit(cfg, tmp_path / 'b', stop=3)
    again = fit(cfg, tmp_path / 'b').state_dict()
    assert all(torch.equal(v, again[k]) for k, v in whole.items())
    start = tsp.build(cfg).state_dict()
    assert torch.equal(whole['backbone.stem.0.weight'], start['backbone.stem.0.weight'])
    assert not torch.equal(
        whole['backbone.stem.1.running_mean'], start['backbone.stem.1.running_mean']
    )
    assert not torch.equal(whole['region.weight'], start['region.weight'])


def test_rows_share_their_start():
    "Rows of one seed and clip begin where one run of trimmed videos ends; a random row does not."
    rows = {r.name.split('/')[-1]: r for r in suites()['tsp-ablation']}
    starts = {rows[f'{n}-s0'].start.name for n in ('tsp', 'tac', 'start', 'tac-actions-only')}
    assert len(starts) == 1 and rows['random-s0'].start is None
    others = {rows[n].start.name for n in ('tsp-s1', 'step-4-s0', 'seconds-16-s0')}
    assert len(others | starts) == 4
    start = rows['tsp-s0'].start.config
    assert start.trimmed and start.region == 0 and start.stem == 1


def test_the_baseline_reads_what_tsp_reads():
    "The released TAC sees background clips, too; only its loss does not."
    rows = [tsp.videos(replace(SMALL, **tsp.ABLATION[n]), 'pretrain') for n in ('tsp', 'tac')]
    assert torch.equal(rows[0].labels, rows[1].labels) and (rows[1].labels < 0).any()
    only = tsp.videos(replace(SMALL, **tsp.ABLATION['tac-actions-only']), 'pretrain')
    assert torch.equal(only.labels, rows[0].labels[rows[0].labels >= 0])


def test_heads_have_the_released_shapes():
    for task, change in (('tsp', {}), ('tsp', dict(gvf='none')), ('tac', dict(region=0.0))):
        keys = released_keys('r3d_18', 200, task, change.get('gvf') != 'none')
        with torch.device('meta'):
            net = TSP(replace(Config(classes=200, backbone='r3d_18'), **change))
        shapes = [tuple(h.weight.shape) for h in (net.action, net.region) if h]
        assert shapes == [s for k, s in keys.items() if k.startswith('fc') and k.endswith('weight')]


def test_scores_by_name():
    def few(part):
        return UntrimmedDigits(MovingDigits(n=90, seed=len(part)), Script(len(part)), 8).segments()

    found = score_backbone(backbone('tiny'), SMALL, few)
    assert [s.name for s in found] == [
        'region AUC',
        'region AUC, all clips',
        'action accuracy',
        'boundary sharpness',
    ]
    assert all(s.low <= s.value <= s.high and json.dumps(s.to_dict()) for s in found) and {
        s.n for s in found
    } == {8}


TABLES = [
    ('activitynet', 'activitynet_v1-3_train', 200, 31_187),
    ('activitynet', 'activitynet_v1-3_valid', 200, 15_305),
    ('thumos14', 'thumos14_valid', 20, 4_794),
    ('thumos14', 'thumos14_test', 20, 5_568),
]


@pytest.mark.parametrize('folder, name, classes, kept', TABLES)
def test_released_tables(data_dir, tmp_path, folder, name, classes, kept):
    "The released tables pass the check; what the authors' filter keeps, ours keeps but for the rounding of a frame."
    root = data_dir / 'annotations' / 'tsp_HumamAlwassel' / folder
    for file in (
        f'{name}_tsp_groundtruth.csv',
        f'{folder if folder == "thumos14" else "activitynet_v1-3"}_action_label_mapping.json',
    ):
        (tmp_path / file).write_bytes((root / file).read_bytes())
    subset = name.rsplit('_', 1)[1]
    cfg = replace(
        tsp.PRESETS['paper'], classes=classes, parts=f'{subset},{subset}', root=str(tmp_path)
    )
    table = read_tsp_csv(tmp_path / f'{name}_tsp_groundtruth.csv')
    length = np.minimum(table['t-end'], table['video-duration']) - table['t-start'].clip(lower=0)
    assert (length * 15 >= 16).sum() == kept
    source = tsp.videos(cfg, 'pretrain')
    assert len(source) == kept and (source.lengths >= 16).all()  # row by row the authors' choice
    actions = tsp.videos(replace(cfg, rows='actions'), 'pretrain')
    assert len(actions) == (source.labels >= 0).sum() and actions.labels.max() == classes - 1
    first = table.drop_duplicates('filename')
    lasts = torch.tensor((first['video-frames'].astype(int) + 1).to_numpy(int) // 2)  # 30 fps
    stops = torch.tensor((source.table['first'] + source.table['frames']).to_numpy())
    assert (stops <= lasts[source.groups]).all()


@pytest.fixture(scope='module')
def composed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('composed')
    return folder, compose(
        {'train': MovingDigits(30, size=16)}, folder, 3, Script(actions=(2, 2), action=(2.0, 3.0))
    )


def test_prepare(composed, tmp_path):
    folder, tables = composed
    whole = json.loads((folder / 'activity_net.json').read_text())
    name = next(iter(whole['database']))
    entry = whole['database'][name]
    entry['annotations'].append(
        dict(
            label='inside',
            segment=[
                entry['annotations'][0]['segment'][0] + 0.2,
                entry['annotations'][0]['segment'][1] - 0.2,
            ],
        )
    )
    whole['database']['nowhere'] = dict(entry, subset='training')
    (folder / 'own.json').write_text(json.dumps(whole))
    files, remarks = prepare(folder / 'own.json', folder, THUMOS14_SHORTEST)
    assert [f.name for f in files if not f.is_file()] == []
    assert remarks[0] == '1 annotated videos have no file'
    assert remarks[1].startswith('frames a second of the files: 3 at 15; kept as they are')
    assert len(remarks) == 2
    found = read_tsp_csv(folder / 'train_tsp_groundtruth.csv')
    gaps = [t[t['temporal-region-label'] == 'No action'] for t in (found, tables['train'])]
    assert sorted(gaps[0]['t-start']) == pytest.approx(
        sorted(gaps[1]['t-start'])
    )  # an action inside another changes no gap
    assert 'inside' in json.loads((folder / 'action_label_mapping.json').read_text())
    with pytest.raises(InputError, match='none of the annotated ones'):
        prepare(folder / 'own.json', tmp_path)


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(InputError, match='0 files .*vidrepro tsp prepare'):
        tsp.videos(replace(tsp.PRESETS['real'], root=str(tmp_path)), 'pretrain')


def test_no_segment_is_long_enough():
    with pytest.raises(InputError, match='fewer frames'):
        tsp.videos(replace(SMALL, frames=64, stride=4), 'pretrain')
    assert F.one_hot(tsp.videos(replace(SMALL, frames=16), 'pretrain').labels + 1).shape[1] == 9


@pytest.mark.parametrize('fps', [60, 25, 30])
def test_training_clips_by_seconds_at_the_authors_size(tmp_path, fps):
    "Sixteen samples a fifteenth of a second apart, whatever the file's rate; resized as in the authors' code."
    count = 4 * fps
    noise = torch.randint(256, (3, 1, 48, 64), generator=generator('film'), dtype=torch.uint8)
    ramp = torch.linspace(0, 200, count)[None, :, None, None]
    film = (noise // 6 + ramp).clamp(max=255).byte()
    write_video(tmp_path / 'train' / 'v_a.mp4', [film], fps)
    instance = ('a', 'training', 4.0, 0.5, 3.5, 'spin')
    columns = ['video', 'subset', 'duration', 'start', 'end', 'label']
    write_activitynet(pd.DataFrame([instance], columns=columns), tmp_path / 'own.json')
    assert f'1 at {fps}' in prepare(tmp_path / 'own.json', tmp_path, 0.4)[1][0]
    shape = dict(frames=16, stride=1, rate=15.0, size=24, picture='released', resize=(32, 43))
    cfg = Config(data=str(tmp_path), classes=0, background='', crop=1.0, **shape)
    source = tsp.videos(cfg, 'pretrain')
    assert source.lengths.tolist() == [45]  # three seconds; the rest is shorter than a clip
    clips = source.clips(torch.tensor([0]), torch.arange(16)[None, None] + 5)[:, 0]
    numbers = [int((k + 8 + 5) * fps / 15 + 1e-6) for k in range(16)]  # the first at 8/15 s
    raw = read_clips(tmp_path / 'train' / 'v_a.mp4', [numbers])[0].transpose(0, 1).float() / 255
    theirs = F.interpolate(raw, (32, 43), mode='bilinear', align_corners=False).transpose(0, 1)
    difference = (clips[0].float() / 255 - theirs).abs().max()
    assert difference <= 0.51 / 255  # bytes between decoder and network
    smooth = F.interpolate(raw, (32, 43), mode='bilinear', align_corners=False, antialias=True)
    assert (smooth.transpose(0, 1) - theirs).abs().max() > 0.02
    x = tsp.views(dict(clips=clips[:, None], labels=source.labels), generator(0), cfg).clips[0]
    ready = transforms.normalize(theirs[None])[0]
    corners = [(i, j) for i in range(9) for j in range(20)]
    gap = min((ready[..., i : i + 24, j : j + 24] - x).abs().max() for i, j in corners)
    assert gap <= 0.51 / 255 / 0.216989


def test_places_around_boundaries():
    "The other pretext: equally many starts and ends, no clip beyond its video, background as it was."
    source = tsp.videos(replace(SMALL, rows='boundaries', classes=4, region=0.0), 'pretrain')
    rows = tsp.videos(SMALL, 'train')
    counts = source.labels.bincount(minlength=4).tolist()
    assert counts[0] == counts[2] and source.classes == PLACES
    assert rows.classes != PLACES  # probes see actions
    last = torch.tensor((source.table['first'] + source.table['frames']).to_numpy())
    assert (last <= source.videos.lengths[source.groups]).all() and (source.lengths >= 16).all()


def test_a_region_head_that_bends():
    "With a hidden layer the answer for a clip depends on the video by more than a shift."
    torch.manual_seed(0)
    f, g = torch.randn(6, 128), torch.randn(2, 128)
    ask = lambda net, v: net.region(torch.cat([f, v.expand(6, -1)], 1)).diff(dim=1)[:, 0]
    for gvf, same in (('max', True), ('max+mlp', False)):
        net = TSP(Config(gvf=gvf)).eval()
        torch.nn.init.normal_((net.region[-1] if gvf != 'max' else net.region).weight)
        shift = ask(net, g[0]) - ask(net, g[1])
        assert torch.allclose(shift, shift[:1].expand(6), atol=1e-4) == same
    assert TSP(Config(gvf='none+mlp')).region[0].in_features == 128


def test_videos_of_transfer_share_no_motion():
    cfg = {r.name.split('/')[-1]: r for r in suites()['tsp-transfer']}['part-tsp-s0']
    mine = {*tsp.videos(cfg.config, 'pretrain').classes, *cfg.config.background.split(',')}
    assert mine.isdisjoint(tsp.OTHERS) and len(mine) == 6
    start = tsp.videos(cfg.start.config, 'pretrain')
    assert {*start.classes} < mine and 'others' in cfg.start.name


def test_the_cross_of_span_and_looks():
    for (span, looks), row in tsp.GRID.items():
        clip = replace(tsp.PRESETS['tiny'], **tsp.ABLATION[row]).clip
        assert (clip.span, clip.frames) == (span, looks)
    assert {r.name for r in suites()['tsp-grid']} <= {r.name for r in suites()['tsp-ablation']}


def test_logits_are_those_of_the_released_heads():
    "fc1 on the local feature, fc2 on local and global feature, in this order."
    torch.manual_seed(0)
    net, x, g = TSP(Config()).eval(), torch.randn(2, 3, 8, 32, 32), torch.randn(2, 128)
    with torch.no_grad():
        action, region = net(x, g)
        f = net.backbone(x)
        fc1, fc2 = (h.state_dict() for h in (net.action, net.region))
        first = F.linear(f, fc1['weight'], fc1['bias'])
        second = F.linear(torch.cat([f, g], dim=1), fc2['weight'], fc2['bias'])
    torch.testing.assert_close(action, first, atol=1e-6, rtol=0)
    torch.testing.assert_close(region, second, atol=1e-6, rtol=0)
    turned = F.linear(torch.cat([g, f], dim=1), fc2['weight'], fc2['bias'])
    assert (turned - region).abs().max() > 1e-3

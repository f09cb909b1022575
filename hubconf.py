"Entry points of `torch.hub`: `torch.hub.load('vidrepro/vidrepro', 'encoder', 'tec/tiny/full-s0')`."

dependencies = [
    'torch',
    'torchvision',
    'einops',
    'jaxtyping',
    'safetensors',
    'accelerate',
    'pandas',
]


def encoder(name='tec/tiny/full-s0', **options):
    "A trained network with its clip contract; `vidrepro.runs.weights.shipped()` lists the names."
    from vidrepro.runs.weights import load

    return load(name, **options)

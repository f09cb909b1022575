"Everything is read from settings.ini, the one place where nbdev and the installer both look."

import configparser
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
settings = configparser.ConfigParser(delimiters='=', interpolation=None)
settings.read(HERE / 'settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']
minor = int(cfg['min_python'].split('.')[1])


class BuildWithCards(build_py):
    "Cards of data and runs live at the top of the repository for people; a wheel carries them inside."

    def run(self):
        super().run()
        if self.editable_mode:
            return  # the checkout itself is on the path
        for folder, pattern in (('data_cards', '*.md'), ('results', '*.json')):
            for card in sorted((HERE / folder).rglob(pattern)):
                target = Path(self.build_lib) / cfg['lib_path'] / card.relative_to(HERE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(card, target)


def extras():
    "Every line `NAME_requirements` is an extra."
    ending = '_requirements'
    return {k.removesuffix(ending): v.split() for k, v in cfg.items() if k.endswith(ending)}


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{m}' for m in range(minor, 15)),
    ],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require=extras(),
    packages=find_packages(include=[f"{cfg['lib_path']}*"]),
    cmdclass={'build_py': BuildWithCards},
    zip_safe=False,
    package_data={cfg['lib_path']: ['py.typed', 'weights/**/*']},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)

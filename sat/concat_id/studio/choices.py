"""What the page can offer: the models whose weights are on this machine, what their files say, and prompts that they understand."""

from pathlib import Path
from typing import NamedTuple

from concat_id.config.loading import load_config
from concat_id.config.neighbours import NEIGHBOURS
from concat_id.config.presets import PRESETS, TASKS, UNTRAINED, choose
from concat_id.config.schema import Config
from concat_id.errors import UserError
from concat_id.files.paths import SEPARATOR

MOST_PEOPLE, MOST_TAKES = 3, 8
LONGEST_PROMPT = 2000  # characters
SEEDS = 2**32
RANGES = (1, 13), (2, 100), (1, 15), *[(0, 10)] * MOST_PEOPLE  # of latent frames, steps, the prompt's strength and those of people


class Model(NamedTuple):
    """A model of this machine, and its configuration by task."""

    name: str
    title: str
    configs: dict[str, Config]

    def task(self, people: int) -> str:
        """Which of its configurations is for so many people."""
        return TASKS[1] if people > 1 and TASKS[1] in self.configs else next(iter(self.configs))

    @property
    def weights(self) -> set[Path]:
        """The transformers of its configurations."""
        return {Path(config.args.load) for config in self.configs.values() if config.args.load}

    @property
    def folders(self) -> list[Path]:
        """Where its results are."""
        return [Path(config.args.output_dir) for config in self.configs.values()]


def find_models(output: str | None = None) -> dict[str, Model]:
    """The models that can make videos here, trained ones first; `output` takes the place of their output folders."""
    found = {}
    for name in sorted(PRESETS.keys() - NEIGHBOURS, key=lambda name: name in UNTRAINED):
        configs = {}
        for task in TASKS:
            try:
                configs[task] = load_config(choose(name, task), {"output_dir": output} if output else {})
            except UserError:  # not there, or not for so many people
                continue
        if configs:
            found[name] = Model(name, PRESETS[name].title, configs)
    return found


def default_model(models: dict[str, Model]) -> str:
    """The largest trained one."""
    return next((name for name in models if not PRESETS[name].shipped), next(iter(models)))


def example_prompts(model: Model) -> list[str]:
    """The prompts of the model's prompt files."""
    prompts = []
    for config in model.configs.values():
        try:
            lines = Path(config.args.input_file or "").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        prompts += [line.partition(SEPARATOR)[0] for line in lines if SEPARATOR in line]
    return prompts

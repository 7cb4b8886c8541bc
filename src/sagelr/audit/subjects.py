"""What is audited: a folder of `sagelr train`, any model folder, or a name on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sagelr import recipe as recipes
from sagelr.errors import SagelrError, UsageError
from sagelr.schema import Arm, Recipe, Setting
from sagelr.tasks import Task, hub
from sagelr.training import checkpoint
from sagelr.view import MultiplierRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RUN, STUDY = "run.json", "results.json"
WEIGHTS = ("*.safetensors", "*.bin")
OF_LABELS = ("id2label", "label2id", "label_mean", "label_deviation")  # of a configuration
OPTIMIZER, LIVE = "optimizer.pt", "probe.jsonl"


@dataclass(frozen=True)
class Subject:
    """A model to audit, not loaded yet.

    Attributes:
        source: path or name, as given.
        recipe: whose data it is audited on; its model is this one, where recipes name models.
        arm: of a run.
        setting: of a run.
        seed: of a run.
        trace: what a run with SAGE saw of it.
        sha256: of the data that a run was trained on; None where it is to be audited on others.
    """

    source: str
    recipe: Recipe
    arm: str | None = None
    setting: Setting | None = None
    seed: int | None = None
    trace: dict[str, Any] | None = None
    sha256: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where it is; None for a model of the hub."""
        return hub.folder_of(self.source)

    @property
    def name(self) -> str:
        """Of the folder, or on the hub."""
        return self.source if self.folder is None else self.folder.resolve().name

    @property
    def trained_as(self) -> Arm | None:
        """The arm of a run."""
        return self.recipe.arms[self.arm] if self.arm is not None else None

    @property
    def label(self) -> str:
        """What it is called in words."""
        return self.name if self.trained_as is None else self.trained_as.label

    def check_data(self, data: Mapping[str, Any]) -> None:
        """See that a run is audited on the data that it was trained on.

        Args:
            data: what the task says of them.

        Raises:
            SagelrError: they have changed.
        """
        if self.sha256 is not None and self.sha256 != data["sha256"]:
            raise SagelrError(
                f"The data have changed since {self.source} was trained: sha256 "
                f"{data['sha256'][:12]}… now, {self.sha256[:12]}… then. Restore them, or name "
                "other data with --set."
            )

    def live(self) -> list[MultiplierRow] | None:
        """What a live probe wrote beside it.

        Raises:
            SagelrError: the file is not a probe's.
        """
        path = self.folder / LIVE if self.folder else None
        if path is None or not path.is_file():
            return None
        rows = []
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                rows.append(_probed(line))
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break  # empty, or cut short when the training was killed
                raise SagelrError(
                    f"{path} is not what SageProbe writes: line {number}: {error}. Move it away to "
                    "audit without it."
                ) from None
        return rows

    def checkpoints(self) -> list[Path]:
        """Folders of the checkpoints that were kept, in the order of their steps.

        Those of `sagelr train --keep-checkpoints`, and those of a Trainer.
        """
        found = checkpoint.folders(self.folder) if self.folder else []
        whole = [path for path in found if (path / "config.json").is_file() and has_weights(path)]
        return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def find_all(
    sources: Sequence[str], recipe: str | None, overrides: Mapping[str, Any]
) -> list[Subject]:
    """Find out what is to be audited; a model beside a run is audited by the run's recipe.

    Args:
        sources: as for `find`, as the next two.
        recipe: name or path; a run brings its own.
        overrides: dotted key → value, in place of the recipe's.

    Raises:
        UsageError: as `find`.
    """
    runs = {
        source: find(source, recipe, overrides)
        for source in sources
        if (Path(source) / RUN).is_file()
    }
    beside = next((run.recipe for run in runs.values()), None)
    return [runs.get(source) or find(source, recipe, overrides, beside) for source in sources]


def find(
    source: str, recipe: str | None, overrides: Mapping[str, Any], beside: Recipe | None = None
) -> Subject:
    """Find out what is to be audited, and on which data.

    Args:
        source: a run's folder, a model's folder, or a name on the hub.
        recipe: name or path; a run brings its own.
        overrides: dotted key → value, in place of the recipe's.
        beside: recipe of a run that a model is held against, in place of one by name.

    Raises:
        UsageError: there is no such thing, or no recipe for it, or it cannot be audited.
    """
    folder = Path(source)
    if (folder / RUN).is_file():
        return _run(folder, recipe, overrides)
    if (folder / STUDY).is_file():
        raise UsageError(
            f"{folder} is a study, which keeps scores and no models. Train one of its arms with "
            "sagelr train RECIPE --arm ARM --out DIR, and audit that folder."
        )
    if folder.is_dir() and not ((folder / "config.json").is_file() and has_weights(folder)):
        raise UsageError(
            f"{folder} holds neither {RUN} nor a model (config.json and model.safetensors). Give "
            "a folder that sagelr train or save_pretrained wrote."
        )
    if not folder.is_dir() and not _may_be_on_hub(source):
        raise UsageError(
            f"{source}: there is no such folder. Give the folder of a run or of a model, or a "
            "model's name on the hub."
        )
    if beside is not None:
        return Subject(source, _with_model(beside, source))
    if recipe is None:
        what = source
        if not folder.is_dir():
            what = f"{source}: there is no such folder, and a model of that name on the hub"
        raise UsageError(
            f"{what} says nothing of the data to audit it on. Give --recipe, a built-in recipe "
            f"({', '.join(recipes.built_in())}) or the path of a .toml file."
        )
    return Subject(source, _with_model(recipes.load(recipe, overrides), source))


def labels(subjects: Sequence[Subject]) -> list[str]:
    """What several are called in words: of those with one label, each with its folder's name."""
    found = [subject.label for subject in subjects]
    for more in ("name", "source"):
        if len(set(found)) == len(found):
            break
        found = [f"{subject.label} ({getattr(subject, more)})" for subject in subjects]
    return found


def _probed(line: bytes) -> MultiplierRow:
    row = json.loads(line)
    if not (isinstance(row, dict) and row.keys() >= MultiplierRow.__required_keys__):
        raise ValueError("no row of a look")
    return row  # pyright: ignore[reportReturnType]


def _run(folder: Path, recipe: str | None, overrides: Mapping[str, Any]) -> Subject:
    if recipe is not None:
        raise UsageError(
            f"{folder} is a run and brings its recipe, in {RUN}. Leave --recipe out; --set "
            "changes a setting of it, such as where the data are."
        )
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        data, arm = run["recipe"], run["arm"]
        setting, seed, status = run["setting"], run["seed"], run["status"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder / RUN} is not what sagelr train writes ({type(error).__name__}: {error})."
        ) from None
    if status != "complete" or not has_weights(folder):
        raise UsageError(
            f"{folder} holds no trained model: the run is {status}. Train it to its end first."
        )
    where = f"The recipe in {folder / RUN}"
    checked = recipes.check(recipes.override(data, overrides, "--set"), where)
    found = _with_model(checked, str(folder))
    same = checked.task == recipes.check(data, where).task
    sha256 = (run.get("data") or {}).get("sha256") if same else None
    return Subject(str(folder), found, arm, setting, seed, run.get("sage"), sha256)


def _with_model(recipe: Recipe, source: str) -> Recipe:
    """The recipe with this model in place of its own, where the family takes a model by name."""
    if "name" not in recipe.family.ModelOptions.model_fields:
        return recipe
    return recipe.model_copy(update={"model": {**recipe.model, "name": source}})


def load(subject: Subject, task: Task, folder: Path | None = None) -> tuple[PreTrainedModel, str]:
    """The model, in fp32 on its device, and a notice that is empty if there is nothing to say.

    Args:
        subject: which.
        task: of its recipe.
        folder: one of its checkpoints, in place of the finished model.

    Raises:
        UsageError: it is a model of another class.
        SagelrError: its weights do not fit.
    """
    source = subject.source if folder is None else str(folder)
    model = task.model(subject.seed or 0)
    by_name = "name" in subject.recipe.model
    if not by_name and subject.folder is None:
        raise UsageError(
            f"{source}: there is no such folder. The recipe {subject.recipe.name} builds its "
            "models itself and takes none of the hub: give the folder of such a model."
        )
    from transformers import PretrainedConfig

    cls = type(model)
    config, _ = hub.load("configuration", source, PretrainedConfig.get_config_dict)
    if cls.__name__ not in (config.get("architectures") or ()):
        shown = ", ".join(config.get("architectures") or ["a model of an unnamed class"])
        if not by_name:
            raise UsageError(
                f"{source} holds {shown}; the recipe {subject.recipe.name} is for {cls.__name__}. "
                "Give a model of that class, or the recipe it was trained with."
            )
        notice = (
            f"{source} holds {shown}, without a head for this task: {cls.__name__}'s head is new "
            "and not trained, so its scores say nothing."
        )
        return _placed(model, subject.recipe), notice
    notice = ""
    if by_name:
        own = type(model.config).from_dict(config)
        notice = task.adopt(source, own)
        for key in OF_LABELS:  # what is exported speaks of labels as it did
            vars(model.config).pop(key, None)
            if hasattr(own, key):
                setattr(model.config, key, getattr(own, key))
    loaded = _strictly(cls, source, {"config": model.config} if by_name else {})
    # from_pretrained thaws what a class freezes, such as positions that are not even saved.
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    for name, param in loaded.named_parameters():
        param.requires_grad_(name not in frozen)
    return _placed(loaded, subject.recipe), notice


def _strictly(cls: type[PreTrainedModel], source: str, options: dict[str, Any]) -> PreTrainedModel:
    try:
        with hub.quiet():
            loaded: Any = cls.from_pretrained(
                source,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # to hear which
                **options,
            )
    except hub.DAMAGE as error:
        raise SagelrError(
            f"The weights in {source} are damaged: {' '.join(str(error).split())}. Bring the file "
            "back, or train the model anew."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # of many classes, from several libraries
        raise SagelrError(_misfit(source, cls, str(error))) from error
    model, info = loaded
    if reason := hub.misfit(info):
        raise SagelrError(_misfit(source, cls, reason))
    return model


def _misfit(source: str, cls: type, reason: str) -> str:
    return (
        f"The weights in {source} do not fit {cls.__name__}: {' '.join(reason.split())}. Give a "
        "folder whose config.json and weights belong together, and the recipe they are for."
    )


def _placed(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """On the device that the recipe trains on."""
    device = None if recipe.train.device == "cpu" else torch.accelerator.current_accelerator(True)
    return model.to(device or torch.device("cpu")).eval()  # pyright: ignore[reportArgumentType]


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights."""
    return any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def _may_be_on_hub(source: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None and not source.startswith(".")

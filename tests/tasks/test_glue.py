"""GLUE: the official files, the same from the hub, and what the leaderboard takes."""

from pathlib import Path

import pytest

from sagelr.errors import UsageError
from sagelr.tasks import hub
from sagelr.tasks.language import corpus, glue

# The official header of each task's files; those of test files lack what starts with *.
HEADERS = {
    "cola": "",
    "sst2": "sentence *label",
    "mrpc": "*Quality #1_ID #2_ID #1_String #2_String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 *score",
    "qqp": "id *qid1 *qid2 question1 question2 *is_duplicate",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
    "sentence1_parse sentence2_parse sentence1 sentence2 *label1 *gold_label",
    "qnli": "index question sentence *label",
    "rte": "index sentence1 sentence2 *label",
    "wnli": "index sentence1 sentence2 *label",
}
HEADERS["mnli-mm"] = HEADERS["mnli"]


def sentences(split: str, rows: int = 3) -> list[tuple[str, str]]:
    return [(f'{split} "text {n}', f"second {n} of {split}\u2028.") for n in range(rows)]


def labels(task: glue.GlueTask, rows: int = 3) -> list[int] | list[float]:
    return [n % len(task.classes) if task.classes else n * 1.7 for n in range(rows)]


def write(task: glue.GlueTask, header: str, path: Path, split: str) -> None:
    """A made-up file in the official form."""
    labelled = not path.stem.startswith("test")
    words = header.split()
    if not labelled:
        words = [word for word in words if "*" not in word]
        words = words if words and words[0] in ("id", "index") else ["index", *words]
    # In MRPC's header _ stands for a space.
    names = [word.lstrip("*").replace("_S", " S").replace("_I", " I") for word in words]
    lines = ["\t".join(names)]
    if task.title == "CoLA":
        names = ["index", "sentence"]
        lines = [] if labelled else ["index\tsentence"]
    for (first, second), label in zip(sentences(split), labels(task), strict=True):
        shown = task.classes[int(label)] if task.words else str(label)
        given = dict(zip(task.texts, (first, second), strict=False)) | {task.label: shown}
        if task.title == "CoLA" and labelled:
            lines.append("\t".join(["gj04", shown, "*", first]))
        else:
            lines.append("\t".join(given.get(name, "-") for name in names))
    path.write_bytes("\n".join([*lines, ""]).encode("utf-8-sig"))


def official(name: str, home: Path) -> Path:
    """A task's folder, as the official archive has it."""
    task = glue.TASKS[name]
    folder = home / task.title
    folder.mkdir(parents=True)
    for stem in ("train", task.dev, *task.tests.values()):
        write(task, HEADERS[name], folder / f"{stem}.tsv", stem)
    return folder


@pytest.mark.parametrize("name", glue.TASKS)
def test_official_files(name: str, tmp_path: Path) -> None:
    task = glue.TASKS[name]
    folder = official(name, tmp_path)
    for given in (folder, tmp_path):
        found = glue.load(task, given)
        assert found.source == str(folder)
        for role, split in (("train", "train"), ("test", task.dev)):
            rows = found.splits[role]
            assert list(rows.labels) == pytest.approx(labels(task))
            texts = sentences(split)
            assert list(rows.texts) == [first for first, _ in texts]
            pairs = [second for _, second in texts] if len(task.texts) == 2 else None
            assert rows.pairs == pairs


@pytest.mark.parametrize("name", glue.TASKS)
def test_the_hub_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets.load_dataset itself, on a folder that is laid out as the hub's repository is."""
    datasets = pytest.importorskip("datasets")
    task = glue.TASKS[name]
    made = glue.load(task, official(name, tmp_path / "local"))
    repository = tmp_path / "nyu-mll" / "glue"
    kind = (
        datasets.ClassLabel(names=list(task.classes)) if task.classes else datasets.Value("float32")
    )
    columns = task.hub_texts or task.texts
    features = dict.fromkeys(columns, datasets.Value("string")) | {"label": kind}
    place = repository / task.configuration
    place.mkdir(parents=True)
    card = ["---", "configs:", f"- config_name: {task.configuration}", "  data_files:"]
    dev = task.dev.replace("dev", "validation")
    for split, rows in (("train", made.splits["train"]), (dev, made.splits["test"])):
        texts = dict(zip(columns, filter(None, (rows.texts, rows.pairs)), strict=True))
        datasets.Dataset.from_dict(
            texts | {"label": rows.labels}, features=datasets.Features(features)
        ).to_parquet(place / f"{split}.parquet")
        card += [f"  - split: {split}", f"    path: {task.configuration}/{split}.parquet"]
    (repository / "README.md").write_text("\n".join([*card, "---", ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAGELR_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = glue.load(task, None)
    assert found.loader == f"the hub, datasets.load_dataset('nyu-mll/glue', '{task.configuration}')"
    assert corpus.digest(list(found.splits.values())) == corpus.digest(list(made.splits.values()))
    assert (found.name, found.classes, found.scores) == (made.name, made.classes, made.scores)


@pytest.mark.parametrize(
    ("name", "task"),
    [("MNLI", "mnli"), ("mnli-mm", "mnli-mm"), ("MNLI_mm", "mnli-mm"), ("SST-2", "sst2")],
)
def test_names(name: str, task: str) -> None:
    assert glue.task_of(name) is glue.TASKS[task]


def test_a_name_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"task\.name = 'mnlii' is not a task of GLUE.*cola, sst2"):
        glue.task_of("mnlii")


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = official("rte", tmp_path / "glue")
    monkeypatch.setenv("SAGELR_DATA", str(tmp_path))
    assert glue.find(glue.TASKS["rte"], None) == folder
    assert glue.find(glue.TASKS["mrpc"], None) is None


def test_without_network_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAGELR_DATA", raising=False)
    with pytest.raises(UsageError) as caught:
        glue.load(glue.TASKS["mnli-mm"], None)
    said = str(caught.value)
    for part in ("hub cannot be reached", "MNLI/train.tsv", "MNLI/dev_mismatched.tsv",
                 "test_matched.tsv", "--set task.folder=DIR", "$SAGELR_DATA/glue"):  # fmt: skip
        assert part in said
    assert "\n" not in said


def test_short_rows_are_left_out_and_told(tmp_path: Path) -> None:
    folder = official("qqp", tmp_path)
    path = folder / "train.tsv"
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    path.write_text("\n".join([*lines[:2], "17\tonly this", *lines[2:]]))
    found = glue.load(glue.TASKS["qqp"], folder)
    assert list(found.splits["train"].labels) == labels(glue.TASKS["qqp"])
    assert any(line.endswith("left out: 1 (line 3).") for line in found.notices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("sentence2", "sentence9", 1),
            "train.tsv, line 1: no column 'se",
        ),
        (
            lambda text: text.replace("\tentailment", "\tyes", 1),
            "line 2: the label 'yes'; allowed:",
        ),
        (lambda text: text.split("\n")[0], "train.tsv has no rows"),
    ],
)
def test_files_that_are_not_glues(tmp_path: Path, change, message: str) -> None:
    folder = official("rte", tmp_path)
    path = folder / "train.tsv"
    path.write_text(change(path.read_text(encoding="utf-8-sig")))
    with pytest.raises(UsageError, match=message):
        glue.load(glue.TASKS["rte"], folder)


@pytest.mark.parametrize("score", ["nan", "inf", "-1", "5.5"])
def test_a_score_that_is_none_is_told_with_its_line(tmp_path: Path, score: str) -> None:
    folder = official("stsb", tmp_path)
    path = folder / "train.tsv"
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    lines[1] = "\t".join([*lines[1].split("\t")[:-1], score])
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=f"line 2: the label '{score}'; allowed: a number from 0"):
        glue.load(glue.TASKS["stsb"], folder)


def test_a_named_folder_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"lacks train\.tsv or dev\.tsv, there and in its folder RTE"
    ):
        glue.load(glue.TASKS["rte"], tmp_path)


@pytest.mark.parametrize("name", glue.TASKS)
def test_test_sets(name: str, tmp_path: Path) -> None:
    task = glue.TASKS[name]
    folder = official(name, tmp_path)
    found = dict(glue.test_sets(task, folder))
    assert {file: list(rows.texts) for file, rows in found.items()} == {
        file: [first for first, _ in sentences(stem)] for file, stem in task.tests.items()
    }


def test_the_diagnostic_set_goes_with_mnli(tmp_path: Path) -> None:
    folder = official("mnli", tmp_path)
    (tmp_path / "diagnostic").mkdir()
    (tmp_path / "diagnostic" / "diagnostic.tsv").write_text(
        "index\tsentence1\tsentence2\n0\ta\tb\n"
    )
    files = [file for file, _ in glue.test_sets(glue.TASKS["mnli"], folder)]
    assert files == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]


def test_a_test_set_that_is_missing_or_cut(tmp_path: Path) -> None:
    folder = official("rte", tmp_path)
    test = folder / "test.tsv"
    test.write_text("index\tsentence1\tsentence2\n0\tonly one\n")
    with pytest.raises(UsageError, match=r"line 2: 2 fields of 3\. Predictions need the whole"):
        list(glue.test_sets(glue.TASKS["rte"], folder))
    test.unlink()
    with pytest.raises(UsageError, match=r"test\.tsv is missing, so RTE\.tsv cannot be written"):
        list(glue.test_sets(glue.TASKS["rte"], folder))


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("cola", [1, 0], ["1", "0"]),
        ("mnli", [0, 1, 2], ["entailment", "neutral", "contradiction"]),
        ("qnli", [0, 1], ["entailment", "not_entailment"]),
        ("rte", [1, 0], ["not_entailment", "entailment"]),
        ("wnli", [1, 0], ["1", "0"]),
        ("stsb", [-0.3, 2.71828, 7.0], ["0.000", "2.718", "5.000"]),
    ],
)
def test_prediction_files(name: str, values: list[float], shown: list[str], tmp_path: Path) -> None:
    path = tmp_path / "X.tsv"
    glue.write_predictions(path, glue.TASKS[name], values)
    lines = path.read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{n}\t{word}" for n, word in enumerate(shown))]


# Rows of the official files, and how many of train have the first class.
OFFICIAL = {
    "cola": (8551, 1043, 2528),
    "mrpc": (3668, 408, 1194),
    "rte": (2490, 277, 1249),
    "sst2": (67349, 872, 29780),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_real_files(name: str, shared_data: Path) -> None:
    found = glue.load(glue.TASKS[name], shared_data / "glue")
    train, dev, first = OFFICIAL[name]
    assert {role: len(rows) for role, rows in found.splits.items()} == {"train": train, "test": dev}
    assert list(found.splits["train"].labels).count(0) == first
    assert set(found.splits["test"].labels) == {0, 1}
    assert not any("left out" in line for line in found.notices)


def test_reachable_is_asked_of_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nothing listens on is no way to the hub; a proxy's ways are not ours to judge."""
    import socket

    from huggingface_hub import constants

    monkeypatch.undo()  # the stand-in for `reachable`
    with socket.socket() as closed, pytest.MonkeyPatch.context() as patch:
        closed.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        port = closed.getsockname()[1]
        patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        ask = hub.reachable.__wrapped__
        assert not ask()
        closed.listen()
        assert ask()
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not ask()

"""JSON files: whole at every moment, a line for each entry of a list."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from sagelr import jsonfile


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "results.json"
    jsonfile.write(path, {"a": 1})
    jsonfile.write(path, {"θ": [1.5]})
    assert json.loads(path.read_text()) == {"θ": [1.5]}
    assert list(tmp_path.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_each_run_has_a_line():
    document = {"id": "θ", "runs": [{"key": "a", "x": [1.5]}, {"key": "b"}], "none": [], "no": {}}
    document |= {"arms": {"one": {"grid": {"lr": [1.0]}}}, "comparison": None}
    text = jsonfile.dumps(document)
    assert json.loads(text) == document
    assert [line for line in text.splitlines() if '"key"' in line] == [
        '  {"key": "a", "x": [1.5]},',
        '  {"key": "b"}',
    ]
    with pytest.raises(ValueError, match="not JSON compliant"):
        jsonfile.dumps({"runs": [{"loss": float("nan")}]})


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    jsonfile.write(path, {"a": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jsonfile.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        jsonfile.write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]

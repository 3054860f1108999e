from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cautious_imitation.atomic_files import replacing, write_bytes, write_safetensors, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_utf8_with_the_line_ends_it_has(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "τ ≤ 1\nend\n")
    assert (tmp_path / "a.txt").read_bytes() == "τ ≤ 1\nend\n".encode()
    assert names(tmp_path) == ["a.txt"]


def test_writing_replaces_what_was_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"a long first version")
    write_bytes(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def fail_half_way() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half of the ne")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_nothing_is_at_the_name_before_all_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("not yet")
        assert temporary.parent == tmp_path
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"]


def test_a_failed_rename_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_bytes(tmp_path / "taken", b"x")
    assert names(tmp_path) == ["taken"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_text(tmp_path / "nowhere" / "a", "x")


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")
def test_the_mode_is_that_of_an_ordinary_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_safetensors_keep_values_shapes_and_types_of_any_layout(tmp_path: Path) -> None:
    arrays = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "every other": np.arange(10)[::2],
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
    }
    write_safetensors(tmp_path / "a.safetensors", arrays, {"made by": "a test"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array, strict=True)
    assert names(tmp_path) == ["a.safetensors"]

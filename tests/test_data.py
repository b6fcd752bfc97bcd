"""The user's own inputs, in every form, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxlathe.errors import UsageError
from onnxlathe.model.data import load_feeds
from onnxlathe.model.shapes import InputSpec

X = InputSpec("x", ir.DataType.FLOAT, ("n", 4))
IDS = InputSpec("model/ids", ir.DataType.INT64, ("n",))
SPECS = [X, IDS]


def feed(n: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.arange(n * 4, dtype=np.float32).reshape(n, 4), "model/ids": np.arange(n)}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and np.array_equal(first[k], second[k]) for k in first
    )


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "feed.npz", **feed())
    (found,) = load_feeds(tmp_path / "feed.npz", SPECS)
    assert same(found, feed())


def test_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", feed()["x"])
    np.save(tmp_path / "model_ids.npy", feed()["model/ids"])
    (found,) = load_feeds(tmp_path, SPECS)
    assert same(found, feed())
    many = tmp_path / "many"
    many.mkdir()
    for n in (1, 2, 3):
        np.savez(many / f"{n}.npz", **feed(n))
    assert [len(f["x"]) for f in load_feeds(many, SPECS)] == [1, 2, 3]


def test_polygraphy_json(tmp_path: Path) -> None:
    from polygraphy.json import save_json

    save_json([feed(1), feed(2)], str(tmp_path / "inputs.json"))
    found = list(load_feeds(tmp_path / "inputs.json", SPECS))
    assert same(found[0], feed(1))
    assert same(found[1], feed(2))


SCRIPT = """
import numpy as np
def feed(n): return {"x": np.zeros((n, 4), np.float32), "model/ids": np.arange(n)}
def load_data():
    for n in (1, 2): yield feed(n)
def other(): return [feed(3)]
def broken(): raise ValueError("no disk")
numbers = [1]
"""


def test_script(tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(SCRIPT)
    assert [len(f["x"]) for f in load_feeds(script, SPECS)] == [1, 2]
    assert [len(f["x"]) for f in load_feeds(f"{script}:other", SPECS)] == [3]
    for name, says in [("broken", "no disk"), ("lod_data", "there is no"), ("numbers", "is int")]:
        with pytest.raises(UsageError, match=says):
            list(load_feeds(f"{script}:{name}", SPECS))
    script.write_text("import nothing_of_that_name")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        list(load_feeds(script, SPECS))


def test_types_are_converted_only_without_loss(tmp_path: Path) -> None:
    notes: list[str] = []
    np.savez(
        tmp_path / "f.npz", **{"x": feed()["x"].astype(np.float64), "model/ids": np.arange(2, dtype=np.int32)}
    )
    (found,) = load_feeds(tmp_path / "f.npz", SPECS, notes=notes)
    assert same(found, feed())
    assert len(notes) == 2
    for wrong in (np.array([0.5, 1.0]), np.array(["a", "b"]), np.array([2**63, 1], np.uint64)):
        np.savez(tmp_path / "f.npz", **(feed() | {"model/ids": wrong}))
        with pytest.raises(UsageError, match="'model/ids' has type"):
            list(load_feeds(tmp_path / "f.npz", SPECS))
    half = InputSpec("h", ir.DataType.FLOAT16, (1,))
    np.savez(tmp_path / "h.npz", h=np.array([1e6], np.float32))
    with pytest.raises(UsageError, match="'h' has type"):
        list(load_feeds(tmp_path / "h.npz", [half]))


def test_bfloat16_survives_numpy(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", b=np.array([1.5, 2], ml_dtypes.bfloat16))
    (found,) = load_feeds(tmp_path / "b.npz", [InputSpec("b", ir.DataType.BFLOAT16, (2,))])
    assert found["b"].dtype == ml_dtypes.bfloat16
    assert found["b"].astype(np.float32).tolist() == [1.5, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((2, 5), np.float32)}, "dimension 1 of input 'x' is 5, not 4"),
        ({"x": np.zeros(4, np.float32)}, "rank 1"),
        ({"x": np.zeros((3, 4), np.float32)}, "dimension 'n' is 3 in input 'x' and 2 in 'model/ids'"),
        ({"y": np.zeros(1)}, "no input is called 'y'"),
        ({"x": None}, "input 'x' is missing"),
    ],
)
def test_feeds_that_do_not_fit(tmp_path: Path, change: dict[str, np.ndarray | None], says: str) -> None:
    np.savez(tmp_path / "f.npz", **{k: v for k, v in (feed() | change).items() if v is not None})
    with pytest.raises(UsageError) as caught:
        list(load_feeds(tmp_path / "f.npz", SPECS))
    assert says in caught.value.message
    assert "f.npz" in caught.value.message


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UsageError, match="pickled"):
        list(load_feeds(tmp_path, [X]))
    np.savez(tmp_path / "o.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(UsageError, match="pickled"):
        list(load_feeds(tmp_path / "o.npz", [X]))


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    for name, content in [("a.npz", b"PK\x03\x04junk"), ("b.json", b"{"), ("c.txt", b""), ("d.npz", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=name):
            list(load_feeds(tmp_path / name, SPECS))
    (tmp_path / "e.json").write_text(json.dumps(3))
    for missing in ("e.json", "nowhere.npz", "nowhere.py"):
        with pytest.raises(UsageError, match=missing):
            list(load_feeds(tmp_path / missing, SPECS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no feed"):
        list(load_feeds(tmp_path / "empty", SPECS))

"""`optimize passes check`: it finds what is wrong with a rule, and nothing wrong with the standard ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import registry
from onnxlathe.check import Prover
from onnxlathe.cli import run
from onnxlathe.pipeline import Registry

HERE = Path(__file__).parent
FAULTY = HERE / "plugins" / "faulty_rules.py"
TINY = sorted((HERE.parent / "fixtures" / "tiny").glob("*.onnx"))

# What is wrong with each faulty rule, and words that its counterexample must contain.
FAULTS = {
    "wrong_axis": ("different", "Softmax(%"),
    "ignored_second_use": ("different", "is"),
    "dropped_broadcast": ("fails", "changes the shape"),
    "wrong_promotion": ("different", "Cast(%"),
    "half_overflow": ("different", "float16"),
    "missing_attribute": ("different", "Gemm(%"),
    "wrong_approximation": ("different", "Gelu(%"),
    "ignored_epsilon": ("different", "Sqrt(%"),
    "integer_division": ("different", "int"),
    "first_element": ("different", "Relu(%"),
    "frozen_size": ("different", "Shape(%"),
    "restless": ("endless", "does not come to rest"),
    "raises": ("fails", "KeyError"),
    "renames_outputs": ("interface", "output_0"),
    "grows": ("restless", "second time"),
    "endless": ("endless", "did not end"),
}


# These ask TensorRT about every model.
SLOW = {"legalize"}


@pytest.fixture(scope="module")
def faulty() -> Registry:
    found = Registry()
    found.add_plugin(str(FAULTY))
    return found


@pytest.fixture(scope="module")
def prover():
    with Prover(examples=100, seconds=5.0) as opened:
        yield opened


@pytest.fixture(scope="module")
def quick():
    with Prover(examples=20, patience=3) as opened:
        yield opened


def test_every_faulty_rule_is_listed(faulty: Registry) -> None:
    assert sorted(faulty.names()) == sorted(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_finds_the_fault(name: str, faulty: Registry, prover: Prover) -> None:
    kind, words = FAULTS[name]
    if name == "endless":
        prover = Prover(examples=5, seconds=0.5)
    proof = prover.prove(faulty.get(name).cls())
    assert proof.status == "fails"
    found = proof.counterexample
    assert found is not None
    text = found.text()
    assert (found.kind, words in text) == (kind, True), text
    # Small and readable: a handful of nodes, shapes of a few elements.
    assert found.before.count_nodes() <= 8
    assert len(text.splitlines()) <= 30


@pytest.mark.parametrize("name", [entry.name for entry in registry().all() if entry.trusted])
def test_standard_pass_holds(name: str, quick: Prover) -> None:
    quick.examples, quick.patience = (3, 1) if name in SLOW else (20, 3)
    proof = quick.prove(registry().get(name).cls())
    assert proof.counterexample is None, proof.counterexample.text()


def test_opaque_pass_over_models(quick: Prover) -> None:
    quick.examples, quick.patience = 20, 5
    for name in ("cse", "dead", "dedup"):
        proof = quick.prove(registry().get(name).cls(), TINY[::4])
        assert proof.holds, proof.counterexample and proof.counterexample.text()


def test_two_runs_find_the_same(faulty: Registry, prover: Prover) -> None:
    first, second = (prover.prove(faulty.get("wrong_axis").cls()) for _ in range(2))
    assert first.counterexample is not None
    assert second.counterexample is not None
    assert first.counterexample.text() == second.counterexample.text()


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["passes", "check", "swish", "identity", "--examples", "20"]) == 0
    said = capsys.readouterr().out
    assert "swish holds" in said
    assert "identity holds" in said
    assert run(["passes", "check", "wrong_gelu", "--plugin", str(HERE / "plugins/wrong_gelu.py")]) == 1
    said = capsys.readouterr().out
    assert "wrong_gelu fails" in said
    assert "Erf(" in said
    assert run(["passes", "check", "gleu"]) == 2
    assert "did you mean 'gelu'" in capsys.readouterr().err
    assert run(["passes", "check"]) == 2


def test_the_other_words_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["passes"]) == 0
    assert "gelu" in capsys.readouterr().out
    assert run(["passes", "gelu"]) == 0
    assert "Erf" in capsys.readouterr().out
    assert run(["passes", "--help"]) == 0
    assert "check" in capsys.readouterr().out

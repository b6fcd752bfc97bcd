"""Proving passes: instances of a rule's own pattern, run before and after in two runtimes.

with Prover(examples=200) as prover:
    proof = prover.prove(MyRule())
print(proof.status, proof.counterexample and proof.counterexample.text())
"""

from onnxlathe.check.prove import Counterexample, Proof, Prover

__all__ = ["Counterexample", "Proof", "Prover"]

"""`python -m onnxlathe.cli` is `optimize`."""

from onnxlathe.cli import main

main()

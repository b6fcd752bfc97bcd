"""Recurrent networks that are written out by hand: loops over cells, in Python, TorchScript and torch.export."""

from __future__ import annotations

import torch
from torch import nn

from architecture_sketch import BATCH, TOKENS, Example, Exporter, Size


class CellTagger(nn.Module):
    """A layer, an LSTMCell and a layer for each step of a series, in a Python loop: exporters unroll it."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.cell = nn.LSTMCell(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        h = c = series.new_zeros(series.shape[0], self.cell.hidden_size)
        scores = []
        for t in range(series.shape[1]):
            h, c = self.cell(torch.relu(self.embed(series[:, t])), (h, c))
            scores.append(self.head(h))
        return torch.stack(scores, dim=1)


def lstmcell(size: Size, exporter: Exporter) -> Example:
    """A tagger of series of a known length: an LSTMCell in a loop."""
    features, width, steps = (4, 12, 8) if size == "tiny" else (32, 256, 64)
    series = torch.randn(2, steps, features)
    return Example(CellTagger(features, width), {"series": series}, {"series": BATCH}, ("scores",))


class CellTranslator(nn.Module):
    """Two GRUCells read a series, forwards; a third one says what comes next, from what they have left."""

    def __init__(self, features: int, width: int, ahead: int) -> None:
        super().__init__()
        self.first = nn.GRUCell(features, width)
        self.second = nn.GRUCell(width, width)
        self.decoder = nn.GRUCell(width, width)
        self.head = nn.Linear(width, features)
        self.ahead = ahead

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        h = g = series.new_zeros(series.shape[0], self.first.hidden_size)
        for t in range(series.shape[1]):
            h = self.first(series[:, t], h)
            g = self.second(h, g)
        state, values = g, []
        for _ in range(self.ahead):
            state = self.decoder(g, state)
            values.append(self.head(state))
        return torch.stack(values, dim=1)


def grucell(size: Size, exporter: Exporter) -> Example:
    """An encoder of two GRUCells and a decoder of one, in loops."""
    features, width, steps, ahead = (4, 12, 6, 4) if size == "tiny" else (32, 256, 64, 16)
    series = torch.randn(2, steps, features)
    return Example(CellTranslator(features, width, ahead), {"series": series}, {"series": BATCH}, ("values",))


class ScriptedLSTM(nn.Module):
    """An LSTM by its formulas. TorchScript keeps the loop, for series of any length, and the list of states."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.gates = nn.Linear(features + width, 4 * width)

    def forward(self, series: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.zeros(series.size(0), self.width)
        c = torch.zeros(series.size(0), self.width)
        states: list[torch.Tensor] = []
        for t in range(series.size(1)):
            i, f, g, o = self.gates(torch.cat([series[:, t], h], dim=1)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1), c


def lstmscript(size: Size, exporter: Exporter) -> Example:
    """An LSTM by its formulas as a Loop (TorchScript only)."""
    features, width = (4, 12) if size == "tiny" else (32, 256)
    module = torch.jit.script(ScriptedLSTM(features, width))
    series = torch.randn(2, 16, features)
    return Example(module, {"series": series}, {"series": TOKENS}, ("states", "memory"))


class ScannedGRU(nn.Module):
    """A GRUCell in torch's `scan`, which is how torch.export keeps a loop."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(features, width)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        # It has no public name yet.
        from torch._higher_order_ops.scan import scan

        def step(state: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            state = self.cell(x, state)
            return state, state.clone()

        first = series.new_zeros(series.shape[0], self.cell.hidden_size)
        _, states = scan(step, first, series.transpose(0, 1))
        return states.transpose(0, 1)


def gruscan(size: Size, exporter: Exporter) -> Example:
    """A GRU as a Scan (torch.export only)."""
    features, width = (4, 12) if size == "tiny" else (32, 256)
    series = torch.randn(2, 16, features)
    return Example(ScannedGRU(features, width), {"series": series}, {"series": TOKENS}, ("states",))


RECURRENT = (lstmcell, grucell, lstmscript, gruscan)

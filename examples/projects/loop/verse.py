"""Text as windows of characters, and the model that continues them."""

import torch
from torch import nn
from torch.utils.data import Dataset

NOISE = 0.02  # how many of the characters that go in are swapped for others


class Windows(Dataset):
    """Overlapping windows of a text: what goes in, and the same shifted by one, which should come out."""

    def __init__(self, text, vocabulary, window, stride, *, noisy):
        self.codes = torch.tensor([vocabulary.index(char) for char in text])
        self.starts = range(0, len(text) - window - 1, stride)
        self.window, self.size, self.noisy = window, len(vocabulary), noisy

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        begin = self.starts[index]
        part = self.codes[begin : begin + self.window + 1]
        given, wanted = part[:-1], part[1:]
        if self.noisy:  # drawn in the worker, whose generator the loader seeds
            swapped = torch.rand(self.window) < NOISE
            given = torch.where(swapped, torch.randint(self.size, (self.window,)), given)
        return given, wanted


class Verse(nn.Module):
    """Characters in, a score for each next character out."""

    def __init__(self, size, hidden):
        super().__init__()
        self.embed = nn.Embedding(size, hidden)
        self.recur = nn.GRU(hidden, hidden, batch_first=True)
        self.score = nn.Linear(hidden, size)

    def forward(self, codes, state=None):
        """codes: [batch, length]. Returns scores [batch, length, size], and the state to go on from."""
        out, state = self.recur(self.embed(codes), state)
        return self.score(out), state


@torch.no_grad()
def sample(model, vocabulary, start, length, seed):
    """Continue `start` with characters drawn as likely as the model finds them."""
    text, state, dice = start, None, torch.Generator().manual_seed(seed)
    codes = torch.tensor([[vocabulary.index(char) for char in start]])
    for _ in range(length):
        scores, state = model(codes, state)
        codes = torch.multinomial(scores[:, -1].softmax(dim=-1), 1, generator=dice)
        text += vocabulary[codes.item()]
    return text
